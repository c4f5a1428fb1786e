"""What the CUDA device and its emulation share: blocks that a kernel starts with, and traces."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import Settings
from ark_dist.kernels.tables import Tables
from ark_dist.launch.devices.commands import MAX_TIMEOUT_S, NEVER
from ark_dist.launch.trace import TraceEvent

Memory = npt.NDArray[np.void]
# ARK_LAUNCHED in kernels/device/shared.h, by architecture: threads of a CTA.
THREADS = {"sm_80": 288, "sm_90a": 384, "sm_100a": 384}
# Tasks that a trace keeps per worker: the last ones; a power of 2.
TRACE_ROWS = 1 << 14
# How much faster one of two clocks may be.
DRIFT = 1e-4
# Blocks that the kernel only reads.
READ_ONLY = (
    *("tasks", "params", "operands", "waits", "raises", "queues", "methods"),
    *("streams", "segments"),
)
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
        "raises": np.zeros(max(len(tables.raises), 1), np.uint64),
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


@dataclass(frozen=True, slots=True)
class GpuClock:
    """A line through two looks at a GPU's clock and the host's monotonic clock, in nanoseconds.

    A look is late by some microseconds, or by the length of a nap. So the line's slope is kept near
    1: clocks are exact to some 10 us per second. Where there was only one look it is 1.
    """

    gpu_ns: int
    host_ns: int
    host_per_gpu: float = 1.0

    def through(self, gpu_ns: int, host_ns: int) -> "GpuClock":
        """The line through a second look."""
        rate = (host_ns - self.host_ns) / max(gpu_ns - self.gpu_ns, 1)
        rate = min(max(rate, 1 - DRIFT), 1 + DRIFT)
        return GpuClock(self.gpu_ns, self.host_ns, rate)

    def host(self, gpu_ns: int) -> int:
        """The host's time of a moment on the GPU."""
        return self.host_ns + round((gpu_ns - self.gpu_ns) * self.host_per_gpu)


def trace_events(plan: Plan, counts: Memory, traces: Memory, clock: GpuClock) -> list[TraceEvent]:
    """The last tasks of every worker, oldest first; `traces` has as many rows for each."""
    workers = plan.target.worker_count
    row_count = len(traces) // workers
    events = []
    for worker in range(workers):
        count = int(counts["value"][worker])
        for number in range(max(0, count - row_count), count):
            row = traces[worker * row_count + number % row_count]
            times = (clock.host(int(row[name])) for name in ("wait_begin", "start", "end"))
            ids = (int(row[name]) for name in ("method", "task", "turn"))
            events.append(TraceEvent(worker, *ids, *times))
    return events
