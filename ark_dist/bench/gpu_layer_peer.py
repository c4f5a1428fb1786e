"""Compute the decoder layers with PyTorch, as one CUDA graph, in a process of its own.

`python -m ark_dist.bench.gpu_layer_peer STACK`, a Stack as JSON, answers a question with `rounds`
and `count`: the median over rounds of the seconds that one of so many replays takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ark_dist.bench.child import Message, open_answers
from ark_dist.bench.gpu_layer import PEER_TOLERANCE, Stack, caches, check, token, weights
from ark_dist.bench.torch_peer import as_tensor
from ark_dist.models.llama_config import LlamaConfig
from ark_dist.models.llama_layers import rope_table

if TYPE_CHECKING:
    import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer

# Turns before one is captured: libraries choose their kernels then.
WARM_TURNS = 3


def stack_text(stack: Stack) -> str:
    """A stack as the process takes it."""
    return json.dumps(asdict(stack))


def read_stack(text: str) -> Stack:
    """The stack that `stack_text` wrote."""
    fields = json.loads(text)
    sizes = fields.pop("config")
    sizes["eos_token_ids"] = tuple(sizes["eos_token_ids"])
    return Stack(LlamaConfig(**sizes), **fields)


class TorchLayers:
    """The layers in bf16: products that share an input are one, as serving programs have them.

    Attributes:
        x: what goes round, bf16 (1, hidden).
    """

    def __init__(self, stack: Stack, device: str) -> None:
        import torch

        self._stack, self._torch = stack, torch
        config = stack.config
        named = {name: as_tensor(array).to(device) for name, array in weights(stack)}
        joined = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
        self._weights = []
        for i in range(stack.layers):
            own = {
                name.removeprefix(f"{i}.").removesuffix(".weight").rpartition(".")[2]: named[name]
                for name in list(named)
                if name.startswith(f"{i}.")
            }
            for name, parts in joined.items():
                own[name] = torch.cat([own.pop(f"{part}_proj") for part in parts])
            self._weights.append(own)
        self._caches = [self._cache(array, device) for array in caches(stack).values()]
        half = config.head_dim // 2
        angles = rope_table(config, stack.position + 1)[-1].reshape(half, 2)
        table = torch.tensor(angles, dtype=torch.float32, device=device)
        self._cos, self._sin = (torch.cat([part] * 2) for part in (table[:, 0], table[:, 1]))
        self.x = torch.empty(1, config.hidden_size, dtype=torch.bfloat16, device=device)
        self.restart()

    def _cache(self, array: object, device: str) -> torch.Tensor:
        """(layers, 1, groups, capacity, depth), the stack's positions filled."""
        rows = as_tensor(np.ascontiguousarray(np.moveaxis(np.asarray(array), 2, 1)))
        layers, groups, count, depth = rows.shape
        shape = layers, 1, groups, self._stack.capacity, depth
        cache = self._torch.zeros(shape, dtype=rows.dtype, device=device)
        cache[:, 0, :, :count] = rows.to(device)
        return cache

    def restart(self) -> None:
        """Begin with the first token again."""
        self.x.copy_(self._torch.from_numpy(token(self._stack))[None])

    def turn(self, *, is_plain: bool) -> None:
        """Let x go through all layers; attention by products alone, or by torch's function."""
        from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]

        config = self._stack.config
        x, width, eps = self.x, (config.hidden_size,), config.rms_norm_eps
        for i, own in enumerate(self._weights):
            y = functional.rms_norm(x, width, own["input_layernorm"], eps)
            found = self._attention(functional.linear(y, own["qkv"]), i, is_plain)
            x = x + functional.linear(found, own["o_proj"])
            y = functional.rms_norm(x, width, own["post_attention_layernorm"], eps)
            gate, up = functional.linear(y, own["gate_up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, own["down_proj"])
        self.x.copy_(x)

    def _attention(self, qkv: torch.Tensor, layer: int, is_plain: bool) -> torch.Tensor:
        config, position = self._stack.config, self._stack.position
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        rows = qkv.view(1, heads + 2 * groups, 1, config.head_dim)
        turned = self._turned(rows[:, : heads + groups])
        for cache, row in zip(
            self._caches, (turned[:, heads:], rows[:, heads + groups :]), strict=True
        ):
            cache[layer, :, :, position] = row[:, :, 0]
        query = turned[:, :heads]
        keys, values = (cache[layer, :, :, : position + 1] for cache in self._caches)
        if is_plain:
            shared = query.view(1, groups, heads // groups, config.head_dim)
            scores = shared @ keys.mT * config.head_dim**-0.5
            return (scores.float().softmax(-1).to(values.dtype) @ values).view(1, -1)
        attend = self._torch.nn.functional.scaled_dot_product_attention
        return attend(query, keys, values, enable_gqa=True).reshape(1, -1)

    def _turned(self, rows: torch.Tensor) -> torch.Tensor:
        low, high = rows.chunk(2, -1)
        other = self._torch.cat([-high, low], -1)
        return (rows * self._cos + other * self._sin).to(rows.dtype)

    def check(self) -> float:
        """Compare x after one turn with NumPy; returns the relative error."""
        found = self.x.float().cpu().numpy().astype(np.float64)
        return check(self._stack, found, "torch", PEER_TOLERANCE)


class Replays:
    """CUDA graphs of a turn, one per way to compute it; the fastest one counts."""

    def __init__(self, stack: Stack) -> None:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} finds no GPU")
        self.name = f"torch {torch.__version__} CUDA graph"
        self._torch, self._layers = torch, TorchLayers(stack, "cuda")
        self._replays = [self._captured(is_plain) for is_plain in (False, True)]

    def _captured(self, is_plain: bool) -> Callable[[], None]:
        torch, layers = self._torch, self._layers
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_TURNS):
                layers.turn(is_plain=is_plain)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            layers.turn(is_plain=is_plain)
        layers.restart()
        graph.replay()
        layers.check()
        replay: Callable[[], None] = graph.replay
        return replay

    def seconds(self, rounds: int, count: int) -> float:
        """Seconds of a turn."""
        return min(
            float(np.median([self._round_s(replay, count) for _ in range(rounds)]))
            for replay in self._replays
        )

    def _round_s(self, replay: Callable[[], None], count: int) -> float:
        cuda = self._torch.cuda
        self._layers.restart()
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / count


def main(text: str) -> None:
    """Answer questions until there are no more; without torch or a GPU say so, and no more."""
    send = open_answers()
    try:
        import torch
    except ImportError as error:
        send({"name": None, "problem": str(error)})
        return
    with torch.inference_mode():
        try:
            replays = Replays(read_stack(text))
        except (RuntimeError, AttributeError, ArithmeticError) as error:
            send({"name": None, "problem": str(error)})
            return
        send({"name": replays.name})
        for line in sys.stdin:
            answer: Message = {"seconds": replays.seconds(**json.loads(line))}
            send(answer)


if __name__ == "__main__":
    main(sys.argv[1])
