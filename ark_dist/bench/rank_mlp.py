"""Time the tutorial's model cut over all ranks: against one rank, and against torch with gloo."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ark_dist.bench.cases import Array, Case
from ark_dist.bench.rank_timing import in_turn, join_gloo, wait_politely
from ark_dist.bench.timing import loop_s, seconds_per_call
from ark_dist.bench.torch_peer import as_tensor
from ark_dist.comm.communicator import Communicator
from ark_dist.core.layout import P
from ark_dist.executor import Executor
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.tensors import Tensor

ROWS, WIDTH, HIDDEN = 64, 512, 2048
ITERATIONS = 200
ROUNDS = 7
DTYPES = ("fp32", "bf16")
US = 1e6


def mlp(communicator: Communicator) -> list[dict[str, object]]:
    """Rows of the model with its norm and its residual sum, and of its products alone."""
    with tempfile.TemporaryDirectory(prefix="ark_dist-gloo-") as folder:
        has_gloo = join_gloo(communicator, folder)
        return [
            *_against_one_rank(communicator),
            *(_against_gloo(communicator, dtype, has_gloo) for dtype in DTYPES),
        ]


@dataclass(frozen=True, slots=True)
class _Mlp:
    """The model with its norm and sum, and what has to be written before it runs."""

    model: Model
    leaves: Sequence[Tensor]


def _mlp_model() -> _Mlp:
    model = Model("mlp")
    x = model.tensor((ROWS, WIDTH), name="x")
    first = model.parameter((WIDTH, HIDDEN), name="first", shard=P(None, "tp"))
    second = model.parameter((HIDDEN, WIDTH), name="second", shard=P("tp", None))
    norm, bias = (model.parameter(WIDTH, name=name) for name in ("norm", "bias"))
    inner = model.matmul(model.layernorm(x, norm, bias), first, is_relu=True)
    model.add(model.matmul(inner, second), x)
    return _Mlp(model, (x, first, second, norm, bias))


def _against_one_rank(communicator: Communicator) -> list[dict[str, object]]:
    """Time the model over all ranks, and on one rank with as many workers."""
    size = communicator.size
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(t.shape).astype(np.float32) for t in _mlp_model().leaves]

    def prepared(**options: object) -> Executor:
        made = _mlp_model()
        exe = Executor(model=made.model, device="cpu", **options)  # type: ignore[arg-type]  # Executor's
        exe.compile()
        for leaf, value in zip(made.leaves, values, strict=True):
            leaf.from_numpy(value)
        return exe

    together = prepared(mesh=Mesh({"tp": size}), workers=1)
    alone = prepared(rank=0, world_size=1, workers=size) if communicator.rank == 0 else None
    ours, peer = [], []
    for _ in range(ROUNDS):
        communicator.barrier()
        ours.append(_launched_s(together))
        if alone is not None:
            peer.append(_launched_s(alone))
        wait_politely(communicator)
    if alone is None:
        return []
    found, single = float(np.median(ours)), float(np.median(peer))
    name = f"1 rank, {size} workers"
    return [_row(communicator, "tutorial, norm and sum", "fp32", found, name, single)]


def _launched_s(exe: Executor) -> float:
    exe.launch()
    exe.run(2)
    exe.wait()
    seconds = loop_s(exe, ITERATIONS)
    exe.stop()
    return seconds


def _against_gloo(communicator: Communicator, dtype: str, has_gloo: bool) -> dict[str, object]:
    """Time the two products and the relu, cut over all ranks, one thread each on both sides."""
    shapes = (ROWS, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH)
    case = Case("mlp", "tutorial", dtype, shapes)
    operands = case.operands(is_whole=True)
    model = Model("mlp")
    x = model.tensor(shapes[0], dtype)
    first = model.parameter(shapes[1], dtype, shard=P(None, "tp"))
    second = model.parameter(shapes[2], dtype, shard=P("tp", None))
    result = model.matmul(model.matmul(x, first, is_relu=True), second)
    exe = Executor(model=model, device="cpu", workers=1, mesh=Mesh({"tp": communicator.size}))
    with exe:
        exe.compile()
        for leaf, value in zip((x, first, second), operands, strict=True):
            leaf.from_numpy(value)
        exe.launch()
        exe.run(1)
        exe.wait()
        case.check(result.to_numpy(), f"rank {communicator.rank}")
        calls: dict[str, Callable[[], float]] = {"ours": partial(loop_s, exe, ITERATIONS)}
        if has_gloo:
            calls["torch-gloo"] = _gloo_call(communicator, case, operands)
        times = in_turn(communicator, calls, ROUNDS)
    name = "torch-gloo" if has_gloo else None
    return _row(communicator, case.name, dtype, times["ours"], name, times.get("torch-gloo"))


def _gloo_call(
    communicator: Communicator, case: Case, operands: Sequence[Array]
) -> Callable[[], float]:
    """This rank's part of both products in torch, and the sum of all parts by gloo."""
    import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer
    import torch.distributed as distributed  # type: ignore[import-not-found,unused-ignore]
    from torch.nn import functional  # type: ignore[import-not-found,unused-ignore]

    part = HIDDEN // communicator.size
    own = slice(communicator.rank * part, (communicator.rank + 1) * part)
    x, first, second = (as_tensor(array) for array in operands)
    first, second = first[:, own].T.contiguous(), second[own].T.contiguous()

    def once() -> torch.Tensor:
        inner = functional.relu(functional.linear(x, first))
        result = functional.linear(inner, second)
        distributed.all_reduce(result)
        return result

    def call() -> float:
        with torch.inference_mode():
            return seconds_per_call(once, ITERATIONS)

    with torch.inference_mode():
        case.check(once().float().numpy(), "torch-gloo")
    call()
    return call


def _row(
    communicator: Communicator,
    case: str,
    dtype: str,
    ours: float,
    peer_name: str | None,
    peer: float | None,
) -> dict[str, object]:
    return {
        "case": case,
        "dtype": dtype,
        "ranks": communicator.size,
        "workers": 1,
        "unit": "us",
        "ours": ours * US,
        "peer_name": peer_name,
        "peer": None if peer is None else peer * US,
        "ratio": None if peer is None else peer / ours,
    }
