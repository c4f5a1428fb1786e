"""Measure what this machine's cores can do at most: operations, reading, copying."""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np

from ark_dist.bench.timing import Effort
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.launch import cpuinfo
from ark_dist.launch.compile import compile_source, load_library

ALIGNMENT = 4096
FIRST_TURNS = 16
# Each worker reads whole blocks of this size.
BLOCK_BYTES = 1024

# Arguments between the number of turns and the end, for one worker.
Arguments = tuple[int, ...]


class Peaks:
    """The machine's limits: arithmetic is measured once, memory anew each time.

    The memory of a virtual machine is shared: its rate doubles and halves within an hour.
    """

    def __init__(self, effort: Effort) -> None:
        """Compile the loops for the best instruction set there is."""
        isa = min(cpuinfo.best_isa(), "avx512", key=cpuinfo.LADDER.index)
        text = (resources.files("ark_dist.bench") / "peak.h").read_text("utf-8")
        binary = compile_source(Source("peaks", "c++", text), isa=isa, settings=read_settings())
        self._library = load_library(binary)
        self._effort = effort
        self._found: dict[tuple[str, int], float] = {}

    def operations_per_s(self, dtype: str, workers: int) -> float:
        """Most operations per second; a CPU without instructions for a dtype converts to fp32."""
        kind = "dot" if dtype == "bf16" and self._library.ark_peak_dot_operations() else "fma"
        per_turn = getattr(self._library, f"ark_peak_{kind}_operations")()
        key = kind, workers
        if key not in self._found:
            self._found[key] = self._best_rate(kind, [()] * workers, per_turn * workers)
        return self._found[key]

    def read_per_s(self, size_bytes: int, workers: int) -> float:
        """Bytes per second when all workers together read this much again and again."""
        return self._memory_rate(size_bytes, workers, ("read",), 1)

    def copied_per_s(self, size_bytes: int, workers: int) -> float:
        """Bytes per second, read and written, when all workers copy this much again and again."""
        return self._memory_rate(size_bytes, workers, ("copy", "stream"), 2)

    def reader(self, size_bytes: int, workers: int) -> Callable[[], float]:
        """A call that returns bytes per second, as `read_per_s`, of memory that stays the same."""
        part = _part_bytes(size_bytes, workers)
        memory = _aligned(part * workers)
        parts = [(memory.ctypes.data + w * part, 0, part) for w in range(workers)]
        # The array has to live as long as the call.
        return lambda: self._best_rate("read", parts, memory.nbytes)

    def _memory_rate(
        self, size_bytes: int, workers: int, kinds: Sequence[str], passes: int
    ) -> float:
        part = _part_bytes(size_bytes, workers)
        source, target = (_aligned(part * workers) for _ in range(2))
        parts = [
            (source.ctypes.data + w * part, target.ctypes.data + w * part, part)
            for w in range(workers)
        ]
        return max(self._best_rate(kind, parts, part * workers * passes) for kind in kinds)

    def _best_rate(self, kind: str, arguments: Sequence[Arguments], amount: float) -> float:
        """The most that was done per second, where a turn of all workers does `amount`."""
        function = getattr(self._library, f"ark_peak_{kind}")
        function.restype = ctypes.c_double
        once = _together(function, arguments, FIRST_TURNS) / FIRST_TURNS
        turns = self._effort.count(once)
        best = min(_together(function, arguments, turns) for _ in range(self._effort.rounds))
        return amount * turns / best


def _part_bytes(size_bytes: int, workers: int) -> int:
    return max(size_bytes // workers // BLOCK_BYTES, 1) * BLOCK_BYTES


def _aligned(size_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    # Not zeros: what has only been read is one page of zeros for the machine.
    memory = np.ones(size_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size_bytes]


def _together(function: Callable[..., float], arguments: Sequence[Arguments], turns: int) -> float:
    """Call on one thread per worker, each on its core; the seconds of the slowest."""
    arrived = ctypes.c_uint32(0)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    seconds = [0.0] * len(arguments)

    def work(worker: int) -> None:
        if worker < len(cores):
            os.sched_setaffinity(0, {cores[worker]})  # of this thread alone
        rest = (ctypes.c_void_p(value) for value in arguments[worker])
        count = ctypes.c_uint32(len(arguments))
        seconds[worker] = function(ctypes.byref(arrived), count, ctypes.c_uint64(turns), *rest)

    threads = [threading.Thread(target=work, args=(w,)) for w in range(len(arguments))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(seconds)
