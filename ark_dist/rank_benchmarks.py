"""Measure what several ranks do together: the parts that run under mpirun.

`python -m ark_dist.rank_benchmarks NAME` is what the parent starts on every rank; rank 0 prints
the rows as JSON.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.layout import P
from ark_dist.executor import Executor
from ark_dist.load_benchmark import load
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.tensors import Tensor

# Bytes, and iterations of one measurement.
SIZES = ((4 << 10, 2000), (64 << 10, 1000), (1 << 20, 200), (16 << 20, 20))
CASES = {4 << 10: "4 KB", 64 << 10: "64 KB", 1 << 20: "1 MB", 16 << 20: "16 MB"}
LEAST_FLOOR_BYTES = 1 << 20
ROUNDS = 7
CHECKED_ITERATIONS = 20
# The tutorial's model.
ROWS, WIDTH, HIDDEN = 64, 512, 2048
MLP_ITERATIONS = 200

# Elements and iterations -> a call that returns seconds.
Gloo = Callable[[int, int], Callable[[], float]]


def main(name: str) -> None:
    """Measure on this rank; rank 0 prints."""
    communicator = world.current().communicator
    assert communicator is not None, "start this with mpirun"
    rows = {"all_reduce": all_reduce, "load": load, "mlp": mlp}[name](communicator)
    if communicator.rank == 0:
        print(json.dumps(rows))


def all_reduce(communicator: Communicator) -> list[dict[str, object]]:
    """Time ours, mpi4py's and gloo's in turn, each rewriting its input before every call."""
    with tempfile.TemporaryDirectory(prefix="ark_dist-gloo-") as folder:
        return _all_reduce_rows(communicator, _gloo(communicator, folder))


def _all_reduce_rows(communicator: Communicator, gloo: Gloo | None) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for size_bytes, iterations in SIZES:
        count, fewer = size_bytes // 4, max(iterations // 10, 5)
        _check(communicator, count)
        with _loop(communicator, count, True) as whole, _loop(communicator, count, False) as bare:
            calls: dict[str, Callable[[], float]] = {
                "whole": partial(_loop_s, whole, iterations),
                "bare": partial(_loop_s, bare, iterations),
                "mpi": _mpi_call(communicator, count, iterations),
                "floor": _floor_call(communicator, size_bytes, fewer),
            }
            if gloo is not None:
                calls["torch-gloo"] = gloo(count, fewer)
            times = _in_turn(communicator, calls, ROUNDS)
        # What rewriting the input costs is not the operator's: the same loop without it.
        ours = times["whole"] - times["bare"]
        for peer in ("mpi", "torch-gloo"):
            if peer in times:
                rows.append(_row(communicator, size_bytes, ours, peer, times))
    return rows


def _row(
    communicator: Communicator, size_bytes: int, ours: float, peer: str, times: dict[str, float]
) -> dict[str, object]:
    # Of small buffers the call from Python takes longer than the reading.
    floor = times["floor"] if size_bytes >= LEAST_FLOOR_BYTES else None
    return {
        "case": CASES[size_bytes],
        "dtype": "fp32",
        "ranks": communicator.size,
        "workers": 1,
        "unit": "us",
        "ours": ours * 1e6,
        "peer_name": peer,
        "peer": times[peer] * 1e6,
        "ratio": times[peer] / ours,
        "floor": None if floor is None else floor * 1e6,
        "of_floor": None if floor is None else ours / floor,
    }


def _in_turn(
    communicator: Communicator, calls: dict[str, Callable[[], float]], rounds: int
) -> dict[str, float]:
    """The median, over rounds, of each call's time on the slowest rank, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            communicator.barrier()
            mine = struct.pack("<d", call())
            slowest = max(struct.unpack("<d", t)[0] for t in communicator.all_gather_bytes(mine))
            times[name].append(slowest)
    return {name: float(np.median(found)) for name, found in times.items()}


def _loop(communicator: Communicator, count: int, is_reduced: bool) -> Executor:
    """A kernel that rewrites its input every iteration, and reduces it or not."""
    model = Model("all_reduce")
    turn = model.state(1, name="turn", init=communicator.rank)
    model.add(turn, 1, output=turn)
    x = model.add(turn, np.zeros(1, np.float32).item()).reshape((1,))
    x = model.mul(model.ones((count,)), x)
    if is_reduced:
        model.all_reduce(x)
    exe = Executor(model=model, device="cpu", workers=1)
    exe.compile()
    exe.launch()
    return exe


def _loop_s(exe: Executor, iterations: int) -> float:
    began = time.perf_counter()
    exe.run(iterations)
    exe.wait()
    return (time.perf_counter() - began) / iterations


def _check(communicator: Communicator, count: int) -> None:
    """Compare the result of every iteration, in the kernel, with what it must be."""
    size = communicator.size
    model = Model("checked")
    turn = model.state(1, name="turn", init=0)
    model.add(turn, 1, output=turn)
    x = model.mul(model.ones((count,)), model.add(turn, float(communicator.rank)))
    wanted = model.add(model.mul(turn, float(size)), float(sum(range(size))))
    off = model.reduce_max(model.abs(model.sub(model.all_reduce(x), wanted)), axis=0)
    worst = model.state(1, name="worst")
    model.maximum(worst, off.reshape((1,)), output=worst)
    with Executor(model=model, device="cpu", workers=1) as exe:
        exe.compile()
        exe.launch()
        exe.run(CHECKED_ITERATIONS)
        exe.wait()
        found = float(worst.to_numpy()[0])
    if found != 0:
        raise AssertionError(f"all_reduce of {count} elements was off by {found}")


def _mpi_call(communicator: Communicator, count: int, iterations: int) -> Callable[[], float]:
    from mpi4py import MPI

    source, target = np.empty(count, np.float32), np.empty(count, np.float32)

    def call() -> float:
        spent = []
        for turn in range(iterations):
            source.fill(turn + communicator.rank)
            began = time.perf_counter()
            MPI.COMM_WORLD.Allreduce(source, target)
            spent.append(time.perf_counter() - began)
        size = communicator.size
        assert target[0] == target[-1] == size * (iterations - 1) + sum(range(size))
        return float(np.median(spent))

    return call


def _floor_call(communicator: Communicator, size_bytes: int, rounds: int) -> Callable[[], float]:
    """Read a peer's buffer just after the peer has written it: what no algorithm can avoid."""
    window = communicator.allocate_window(size_bytes)
    peer = window.peers[(communicator.rank + 1) % communicator.size].view(np.float32)
    own = window.own.view(np.float32)

    def call() -> float:
        spent = []
        for turn in range(rounds):
            own.fill(turn)
            communicator.barrier()
            began = time.perf_counter()
            peer.max()
            spent.append(time.perf_counter() - began)
            communicator.barrier()
        return float(np.median(spent))

    return call


def _gloo(communicator: Communicator, folder: str) -> Gloo | None:
    """Make calls of torch's gloo backend, which meets in rank 0's folder; None without torch."""
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer
        import torch.distributed as distributed  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        if communicator.rank == 0:
            print("torch is not installed: no comparison with gloo", file=sys.stderr)
        return None
    torch.set_num_threads(1)
    shared = communicator.broadcast_bytes(folder.encode())
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{shared.decode()}/store",
        rank=communicator.rank,
        world_size=communicator.size,
    )

    def make(count: int, iterations: int) -> Callable[[], float]:
        tensor = torch.empty(count)

        def call() -> float:
            spent = []
            for turn in range(iterations):
                tensor.fill_(turn)
                began = time.perf_counter()
                distributed.all_reduce(tensor)
                spent.append(time.perf_counter() - began)
            return float(np.median(spent))

        return call

    return make


@dataclass(frozen=True, slots=True)
class _Mlp:
    """The tutorial's model and what has to be written before it runs."""

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


def mlp(communicator: Communicator) -> list[dict[str, object]]:
    """Time the tutorial's model over all ranks, and on one rank with as many workers."""
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
        together.launch()
        together.run(2)
        together.wait()
        communicator.barrier()
        ours.append(_loop_s(together, MLP_ITERATIONS))
        together.stop()
        if alone is not None:
            alone.launch()
            alone.run(2)
            alone.wait()
            peer.append(_loop_s(alone, MLP_ITERATIONS))
            alone.stop()
        _wait_politely(communicator)
    if alone is None:
        return []
    found, single = float(np.median(ours)), float(np.median(peer))
    row: dict[str, object] = {
        "case": "tutorial",
        "dtype": "fp32",
        "ranks": size,
        "workers": 1,
        "unit": "us",
        "ours": found * 1e6,
        "peer_name": f"1 rank, {size} workers",
        "peer": single * 1e6,
        "ratio": single / found,
    }
    return [row]


def _wait_politely(communicator: Communicator) -> None:
    """Wait for rank 0 without taking its cores: it measures alone."""
    ready = np.zeros(1, np.uint8)
    if communicator.rank == 0:
        for other in range(1, communicator.size):
            communicator.send(ready, other)
        return
    work = communicator.irecv(ready, 0)
    while not work.done():
        time.sleep(2e-3)


if __name__ == "__main__":
    main(sys.argv[1])
