"""Compute a case with PyTorch in a process of its own, which is idle while ours is measured.

`python -m ark_dist.bench.torch_peer THREADS` reads one JSON object per line and answers each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ark_dist.bench.cases import CHAIN_FACTOR, LAYERNORM_EPS, RMSNORM_EPS, Array, Case
from ark_dist.bench.child import Child, Message, open_answers
from ark_dist.bench.timing import Effort, rest, seconds_per_call

if TYPE_CHECKING:
    import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer

# Ways to compute the same; the fastest one is the peer.
Ways = list[Callable[[], "torch.Tensor"]]

# Calls, then groups of calls, by which the fastest way is found: the first ones are slow.
WARM_CALLS, PROBES = 3, Effort(rounds=3, round_s=0.02)


class TorchPeer:
    """A process that computes with torch on some threads; `name` is None where there is none."""

    def __init__(self, threads: int) -> None:
        self._child = Child("ark_dist.bench.torch_peer", [str(threads)], threads)
        self.name = self._child.name

    def prepare(self, case: Case) -> float | None:
        """Make the operands and check the result; seconds of a call, None where torch can't."""
        fields = [case.kind, case.name, case.dtype, case.shapes, case.operations]
        answer = self._child.ask({"case": fields})
        if "problem" in answer:
            print(f"torch: no {case.name} in {case.dtype}: {answer['problem']}", file=sys.stderr)
            return None
        return float(str(answer["seconds"]))

    def run(self, count: int) -> float:
        """Compute a number of times; seconds of a call."""
        return self._child.seconds({"count": count})

    def __enter__(self) -> TorchPeer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._child.close()


def _rope(v: Sequence[torch.Tensor]) -> Ways:
    import torch

    x, table = v
    # As Llama does it: both tables have the width of a head.
    cos, sin = (torch.cat([table[..., part::2]] * 2, -1).contiguous() for part in (0, 1))

    def rotated() -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    return [rotated]


def ways(case: Case, v: Sequence[torch.Tensor]) -> Ways:
    """The ways to compute a case from its operands."""
    import torch
    from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]

    x, *others = v
    if case.kind == "attention":
        q, k, w = (a.transpose(1, 2).contiguous() for a in v)
        is_causal = q.shape[2] == k.shape[2]
        attend = functional.scaled_dot_product_attention
        return [lambda: attend(q, k, w, is_causal=is_causal, enable_gqa=True)]
    if case.kind == "rope":
        return _rope(v)
    width = x.shape[-1:]
    turned = [a.mT.contiguous() for a in others if a.ndim > 1]
    relu, linear = functional.relu, functional.linear
    table: dict[str, Callable[[], Ways]] = {
        "chain": lambda: [
            lambda: torch.maximum(functional.silu(x * others[0] + x) * CHAIN_FACTOR - x, others[0])
        ],
        "gelu": lambda: [lambda: functional.gelu(x)],
        "gelu tanh": lambda: [lambda: functional.gelu(x, approximate="tanh")],
        "layernorm": lambda: [lambda: functional.layer_norm(x, width, *others, LAYERNORM_EPS)],
        "matmul": lambda: [lambda: linear(x, turned[0]), lambda: torch.matmul(x, others[0])],
        "mlp": lambda: [
            lambda: linear(relu(linear(x, turned[0])), turned[1]),
            lambda: relu(x @ others[0]) @ others[1],
        ],
        "reduce_sum": lambda: [lambda: x.sum(-1, keepdim=True)],
        "rmsnorm": lambda: [lambda: functional.rms_norm(x, width, *others, RMSNORM_EPS)],
        "silu": lambda: [lambda: functional.silu(x)],
        "softmax": lambda: [lambda: functional.softmax(x, -1)],
    }
    return table[case.kind]()


def as_tensor(array: Array) -> torch.Tensor:
    """A tensor of an array's values, bfloat16 included, which NumPy lends no tensor."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _prepared(case: Case) -> tuple[Callable[[], torch.Tensor], float]:
    """The fastest way to compute a case, all being right, and its seconds."""
    operands = [as_tensor(array) for array in case.operands(is_whole=True)]
    found = []
    for way in ways(case, operands):
        result = way()
        if case.kind == "attention":
            result = result.transpose(1, 2)
        case.check(result.float().numpy(), "torch")
        once = min(seconds_per_call(way, 1) for _ in range(WARM_CALLS))
        count = PROBES.count(once)
        found.append((min(seconds_per_call(way, count) for _ in range(PROBES.rounds)), way))
    seconds, best = min(found, key=lambda pair: pair[0])
    return best, seconds


def main(threads: int) -> None:
    """Answer questions until there are no more."""
    send = open_answers()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        import torch
    except ImportError:
        send({"name": None})
        return
    torch.set_num_threads(threads)
    send({"name": f"torch {torch.__version__}"})
    way: Callable[[], object] | None = None
    with torch.inference_mode():
        for line in sys.stdin:
            question = json.loads(line)
            try:
                if "case" in question:
                    way = None  # its memory goes before the next one's comes
                    kind, name, dtype, shapes, operations = question["case"]
                    case = Case(kind, name, dtype, tuple(map(tuple, shapes)), operations)
                    way, seconds = _prepared(case)
                else:
                    assert way is not None, "nothing was prepared"
                    seconds = seconds_per_call(way, question["count"])
                answer: Message = {"seconds": seconds}
            except (AttributeError, TypeError, RuntimeError, ArithmeticError) as error:
                answer = {"problem": str(error)}
            rest()
            send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
