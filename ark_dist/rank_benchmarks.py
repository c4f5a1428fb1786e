"""Measure what several ranks do together: the parts that run under mpirun.

`python -m ark_dist.rank_benchmarks NAME` is what the parent starts on every rank; rank 0 prints
the rows as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from ark_dist import world
from ark_dist.bench.rank_mlp import mlp
from ark_dist.bench.rank_timing import in_turn, join_gloo
from ark_dist.bench.timing import loop_s
from ark_dist.comm.communicator import Communicator
from ark_dist.executor import Executor
from ark_dist.load_benchmark import load
from ark_dist.model import Model

# Bytes, and iterations of one measurement.
SIZES = ((4 << 10, 2000), (64 << 10, 1000), (1 << 20, 200), (16 << 20, 20))
CASES = {4 << 10: "4 KB", 64 << 10: "64 KB", 1 << 20: "1 MB", 16 << 20: "16 MB"}
LEAST_FLOOR_BYTES = 1 << 20
ROUNDS = 7
CHECKED_ITERATIONS = 20

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
                "whole": partial(loop_s, whole, iterations),
                "bare": partial(loop_s, bare, iterations),
                "mpi": _mpi_call(communicator, count, iterations),
                "floor": _floor_call(communicator, size_bytes, fewer),
            }
            if gloo is not None:
                calls["torch-gloo"] = gloo(count, fewer)
            times = in_turn(communicator, calls, ROUNDS)
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
    """Make calls of torch's gloo backend; None without torch."""
    if not join_gloo(communicator, folder):
        return None
    import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer
    import torch.distributed as distributed  # type: ignore[import-not-found,unused-ignore]

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


if __name__ == "__main__":
    main(sys.argv[1])
