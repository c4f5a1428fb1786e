"""What the CUDA device and its emulation share: the blocks of memory a kernel starts with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import Settings
from ark_dist.kernels.emit import Tables

Memory = npt.NDArray[np.void]
# ARK_THREADS in kernels/device/shared.h.
THREADS = 288
# Nanoseconds of a longer limit do not fit 63 bits together with the clock.
MAX_TIMEOUT_S = 1e9
NEVER = 1 << 62
# Blocks that the kernel only reads.
READ_ONLY = ("tasks", "params", "operands", "waits", "queues", "methods", "streams", "segments")
# Blocks in the host's memory, which both sides reach.
HOST_BLOCKS = ("host", "host_commands")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Memory by the names of LAUNCH's fields, as it is before the kernel starts."""

    arrays: dict[str, npt.NDArray[Any]]
    numbers: dict[str, int]

    def launch_record(self, addresses: dict[str, int]) -> Memory:
        """The record the kernel starts with, once its blocks have addresses."""
        record = np.zeros(1, abi.LAUNCH.dtype)
        for name, value in {**addresses, **self.numbers}.items():
            record[0][name] = value
        return record


def make_blocks(
    plan: Plan,
    tables: Tables,
    arenas: dict[str, int],
    settings: Settings,
    trace_rows: int,
) -> Blocks:
    """Return the blocks of a plan's kernel; `arenas` are the arenas' addresses."""
    workers = plan.target.worker_count
    bases = np.array([arenas[name] for name in ARENAS], np.uint64)
    segments = tables.segments.copy()
    segments["source"] += bases[segments["unused"].astype(np.int64)]
    states = np.zeros(len(plan.methods), abi.METHOD_STATE.dtype)
    states["last_turn"] = NEVER
    arrays: dict[str, npt.NDArray[Any]] = {
        "tasks": tables.tasks,
        "params": tables.params,
        "operands": bases[tables.operands["arena"]] + tables.operands["offset"],
        "waits": tables.waits,
        "queues": tables.queues,
        "methods": tables.methods,
        "streams": tables.streams,
        "segments": segments,
        "counters": np.zeros(max(tables.counter_count, 1), abi.COUNTER.dtype),
        "control": np.zeros(1, abi.CONTROL.dtype),
        "method_states": states,
        "commands": np.zeros(abi.COMMAND_RING, abi.COMMAND.dtype),
        "forwarded": np.zeros(1, abi.COUNTER.dtype),
        "statuses": np.zeros(workers, abi.STATUS.dtype),
        "failures": np.zeros(workers, abi.FAILURE.dtype),
        "trace_counts": np.zeros(workers, abi.COUNTER.dtype),
        "scratch": np.zeros((workers, max(tables.scratch_elems, 1)), np.float32),
        "host": np.zeros(1, abi.HOST.dtype),
        "host_commands": np.zeros(abi.COMMAND_RING, abi.COMMAND.dtype),
    }
    if trace_rows:
        arrays["traces"] = np.zeros(workers * trace_rows, abi.TRACE.dtype)
    numbers = {
        "trace_rows": trace_rows,
        "scratch_elems": max(tables.scratch_elems, 1),
        "timeout_ns": int(min(settings.timeout_s, MAX_TIMEOUT_S) * 1e9),
        "worker_count": workers,
        "method_count": len(plan.methods),
    }
    return Blocks({name: _aligned(array) for name, array in arrays.items()}, numbers)


def _aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that starts on a cache line, as records have to."""
    raw = np.zeros(array.nbytes + abi.LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % abi.LINE_BYTES
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def first_failure(failures: Memory) -> np.void:
    """The failure of the earliest turn."""
    pending = np.flatnonzero(failures["state"])
    first: np.void = failures[min(pending, key=lambda w: (int(failures[w]["turn"]), int(w)))]
    return first
