"""Fake GPUs: what state they are in, and kernels that threads emulate."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ark_dist.bench.gpu_kernels import BENCH, CONFIG
from ark_dist.core import abi
from ark_dist.launch.devices.gpu import READ_ONLY
from ark_dist.launch.emulation import Emulation, EmulationFault, Program

LAUNCH_FAILURE = 719  # of enum cudaError
POLL_S = 5e-4

# Address and size in bytes.
Buffer = tuple[int, int]


@dataclass(frozen=True)
class Entry:
    """A kernel's name, the constant that it starts with, and fields of what it only reads."""

    name: str
    constant: str
    record: abi.Record
    read_only: tuple[str, ...]


PERSISTENT = Entry("ark_kernel", "ark_kernel_launch", abi.LAUNCH, READ_ONLY)


def entry_of(name: str) -> Entry:
    """The persistent kernel, or one that measures a GPU."""
    if name == PERSISTENT.name:
        return PERSISTENT
    return Entry(name, CONFIG, BENCH, ("source", "segments"))


@dataclass(eq=False)
class FakeGpu:
    """One GPU and the state of its context.

    Attributes:
        is_busy: another process holds all multiprocessors.
        is_frozen: kernels get on no more, and end no more.
        has_watchdog: whether waits in which nothing else can happen time out.
        read_only: addresses in memory that kernels only read.
    """

    id: int
    sm_count: int = 4
    capability: tuple[int, int] = (9, 0)
    memory_bytes: int = 1 << 33
    ctas_per_sm: int = 1
    has_context: bool = False
    is_busy: bool = False
    is_frozen: bool = False
    has_watchdog: bool = False
    fault: int = 0
    read_only: set[int] = field(default_factory=set)
    kernels: "list[Kernel]" = field(default_factory=list)

    @property
    def residents(self) -> "list[Kernel]":
        return [kernel for kernel in self.kernels if kernel.is_resident]


class Kernel(threading.Thread):
    """A launched kernel."""

    def __init__(
        self,
        gpu: FakeGpu,
        program: Program,
        entry: Entry,
        ctas: int,
        shared_bytes: int,
        record: bytes,
        memory: Sequence[Buffer],
    ) -> None:
        """Prepare it; `record` is what its constant holds, `memory` all that it may touch."""
        super().__init__(daemon=True)
        launch = np.frombuffer(record, entry.record.dtype)[0]
        self.gpu, self.program, self.ctas, self.shared_bytes = gpu, program, ctas, shared_bytes
        self.entry = entry
        self.addresses = {int(word) for word in np.frombuffer(record, np.uint64)}
        read_only = gpu.read_only | {int(launch[name]) for name in entry.read_only}
        self.memory = [
            (start, size, not any(start <= address < start + size for address in read_only))
            for start, size in memory
        ]
        self.error: EmulationFault | None = None
        self.is_running, self.is_resident = False, True

    def run(self) -> None:
        """Emulate it once there is room; it looks for commands every `POLL_S`."""
        while self.gpu.is_busy or not self._fits():
            time.sleep(POLL_S)
        self.is_running = True
        with Emulation(
            self.program,
            self.entry.name,
            ctas=self.ctas,
            smem_bytes=self.shared_bytes,
            watchdog=self.gpu.has_watchdog,
        ) as emulation:
            emulation.limit_steps(1 << 62)
            for address, size, is_writable in self.memory:
                emulation.memory("memory", address, size, is_writable=is_writable)
            try:
                while self.gpu.is_frozen or not emulation.resume():
                    time.sleep(POLL_S)
            except EmulationFault as error:
                self.error, self.gpu.fault = error, LAUNCH_FAILURE
        self.is_resident = False

    def _fits(self) -> bool:
        others = sum(k.ctas for k in self.gpu.residents if k.is_running)
        return others + self.ctas <= self.gpu.sm_count * self.gpu.ctas_per_sm
