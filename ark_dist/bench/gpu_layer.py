"""Decoder layers as of Llama-3.2-1B: built of the library's modules, run, compared with NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ark_dist.bench.timing import loop_s
from ark_dist.core.dtype import FP32, INT32
from ark_dist.core.op import Array
from ark_dist.executor import Executor
from ark_dist.model import Model
from ark_dist.models.llama_config import LlamaConfig
from ark_dist.models.llama_layers import Layers, Place, Step, rope_table
from ark_dist.tensors import Tensor

Floats = npt.NDArray[np.float64]

CACHES = ("keys", "values")
BF16_BYTES = 2
# Norms' weights are 1 and a little.
NORM_SPREAD = 0.1
# Of values rounded to bf16 between operators; ours are 0.5 % off on a CPU. PyTorch's layers pass
# on bf16 too, and are 1.1 % off there.
TOLERANCE, PEER_TOLERANCE = 1e-2, 3e-2


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers at batch 1.

    Attributes:
        config: their sizes.
        capacity: positions of their caches.
        position: of the token; caches are full before it.
        seed: of all values.
    """

    config: LlamaConfig
    capacity: int
    position: int
    seed: int = 7

    @property
    def layers(self) -> int:
        """How many."""
        return self.config.num_hidden_layers

    @property
    def weight_bytes(self) -> int:
        """Of all weights, which a turn reads once."""
        return sum(prod(shape) for shape in weight_shapes(self.config).values()) * BF16_BYTES

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that a turn reads."""
        config = self.config
        seen = (self.position + 1) * config.num_key_value_heads * config.head_dim
        return self.layers * len(CACHES) * seen * BF16_BYTES


def llama_config(
    *, hidden: int, heads: int, groups: int, depth: int, inner: int, layers: int, context: int
) -> LlamaConfig:
    """Sizes of layers without embeddings; norms and rotary embedding are Llama 3's."""
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=depth,
        vocab_size=1,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        dtype="bf16",
        eos_token_ids=(),
    )


# 486 MB of weights, several times what the L2 of any GPU holds.
LLAMA_1B = Stack(
    llama_config(
        hidden=2048, heads=32, groups=8, depth=64, inner=8192, layers=4, context=1024
    ),
    capacity=1024,
    position=128,
)  # fmt: skip


def weight_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights, by their names in `Layers`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config.num_hidden_layers)
    return {f"{i}.{name}.weight": shape for i in layers for name, shape in layer.items()}


def weights(stack: Stack) -> Iterator[tuple[str, Array]]:
    """Yield the name and the values of each weight, bf16; products keep their inputs' size."""
    for number, (name, shape) in enumerate(weight_shapes(stack.config).items()):
        random = np.random.default_rng((stack.seed, number))
        values = random.standard_normal(shape, np.float32)
        if len(shape) > 1:
            values *= shape[1] ** -0.5
        else:
            values = 1 + NORM_SPREAD * values
        yield name, values.astype(ml_dtypes.bfloat16)


def caches(stack: Stack) -> dict[str, Array]:
    """Keys and values of all layers, bf16 (layers, positions, groups, depth)."""
    config = stack.config
    shape = (stack.layers, stack.position, config.num_key_value_heads, config.head_dim)
    random = np.random.default_rng((stack.seed, len(CACHES)))
    return {
        name: random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
        for name in CACHES
    }


def token(stack: Stack) -> npt.NDArray[np.float32]:
    """What the first layer is given, fp32 (hidden,)."""
    random = np.random.default_rng(stack.seed)
    return random.standard_normal(stack.config.hidden_size, np.float32)


class LayerModel:
    """The layers as a model: a turn takes what the last one gave, at the same position.

    Attributes:
        model: it, with one method.
        x: state, fp32 (1, 1, hidden).
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        config = stack.config
        self.model = model = Model("llama_layers")
        place = Place(model, config, 1, stack.capacity, "bf16", None)
        self._layers = Layers(place.inner("layers"), 1)
        angles = model.constant(rope_table(config, stack.capacity), dtype=FP32, name="angles")
        position = model.state((1,), INT32, name="position", init=[stack.position])
        self.x = model.state((1, 1, config.hidden_size), FP32, name="x")
        model.assign(self.x, self._layers(self.x, Step(angles, position, position + 1)))

    def fill(self) -> None:
        """Write weights, caches and the first token; an Executor has to have compiled it."""
        parameters = self._layers.params_dict()
        for name, array in weights(self._stack):
            parameters[name].from_numpy(array)
        found = caches(self._stack)
        for i, block in enumerate(self._layers.blocks):
            self._fill_cache(block.self_attn.keys, found["keys"][i])
            self._fill_cache(block.self_attn.values, found["values"][i])
        self.x.from_numpy(token(self._stack))

    def _fill_cache(self, cache: Tensor, rows: Array) -> None:
        whole = np.zeros(cache.shape, ml_dtypes.bfloat16)
        whole[0, : len(rows)] = rows
        cache.from_numpy(whole)

    def check(self) -> float:
        """The relative error of what one turn added to its input.

        Raises:
            ArithmeticError: it is too large.
        """
        return check(self._stack, self.x.to_numpy().astype(np.float64), "ours", TOLERANCE)


def layer_s(stack: Stack, turns: int, rounds: int, *, device: str = "cuda") -> float:
    """Seconds of a layer in a loop of turns inside the kernel, the median of rounds.

    Raises:
        ArithmeticError: the first turn's result is wrong, or the last one's is not finite.
    """
    layers = LayerModel(stack)
    with Executor(0, 0, 1, layers.model, device=device) as exe:
        exe.compile()
        layers.fill()
        exe.launch()
        loop_s(exe, 1)
        layers.check()
        loop_s(exe, turns)
        seconds = [loop_s(exe, turns) for _ in range(rounds)]
        if not np.isfinite(layers.x.to_numpy()).all():
            raise ArithmeticError("bench gpu: llama-1b layer: values are not finite in the end")
    return float(np.median(seconds)) / stack.layers


def check(stack: Stack, found: Floats, whose: str, tolerance: float) -> float:
    """The relative error of what a turn added to its input; `found` is x after it.

    Raises:
        ArithmeticError: it is more than `tolerance`.
    """
    first = token(stack).astype(np.float64)
    added = reference(stack) - first
    error = float(np.linalg.norm(found.reshape(-1) - first - added) / np.linalg.norm(added))
    if not error <= tolerance:
        raise ArithmeticError(
            f"bench gpu: llama-1b layer: {whose}: {error:.2e} off, wanted {tolerance:.0e} at most"
        )
    return error


def reference(stack: Stack) -> Floats:
    """What a turn makes of its input, in float64 without rounding."""
    x, found = token(stack).astype(np.float64), caches(stack)
    named = dict[str, Floats]()
    layer = 0
    for name, array in weights(stack):
        number, _, rest = name.partition(".")
        named[rest.removesuffix(".weight")] = array.astype(np.float64)
        if rest == "mlp.down_proj.weight":  # the layer's last one: memory holds one layer
            assert int(number) == layer
            x = _layer(stack, named, {name: cache[layer] for name, cache in found.items()}, x)
            named.clear()
            layer += 1
    return x


def _layer(
    stack: Stack, named: Mapping[str, Floats], cache: Mapping[str, Array], x: Floats
) -> Floats:
    config = stack.config
    y = _norm(config, x, named["input_layernorm"])
    heads = {
        name: (named[f"self_attn.{name}_proj"] @ y).reshape(-1, config.head_dim) for name in "qkv"
    }
    query, key = (_turned(config, heads[name], stack.position) for name in "qk")
    keys = np.concatenate([cache["keys"].astype(np.float64), key[None]])
    values = np.concatenate([cache["values"].astype(np.float64), heads["v"][None]])
    x = x + named["self_attn.o_proj"] @ _attention(query, keys, values)
    y = _norm(config, x, named["post_attention_layernorm"])
    gate = named["mlp.gate_proj"] @ y
    result: Floats = x + named["mlp.down_proj"] @ (
        gate / (1 + np.exp(-gate)) * (named["mlp.up_proj"] @ y)
    )
    return result


def _norm(config: LlamaConfig, x: Floats, weight: Floats) -> Floats:
    return np.asarray(x / np.sqrt(np.mean(x * x) + config.rms_norm_eps) * weight)


def _turned(config: LlamaConfig, heads: Floats, position: int) -> Floats:
    """Elements i and i + depth / 2 of each head turned by their angle; Su et al. 2021."""
    half = config.head_dim // 2
    angle = position * config.rope_theta ** (-np.arange(half) / half)
    low, high = heads[:, :half], heads[:, half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=1)


def _attention(query: Floats, keys: Floats, values: Floats) -> Floats:
    """All heads' results in one row; query heads share keys in groups."""
    _, groups, depth = keys.shape
    shared = query.reshape(groups, -1, depth)
    scores = np.einsum("ghd,tgd->ght", shared, keys) / np.sqrt(depth)
    parts = np.exp(scores - scores.max(axis=-1, keepdims=True))
    parts /= parts.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("ght,tgd->ghd", parts, values).reshape(-1))
