"""Describe the device a plan is made for, and turn work into seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """What one task moves and computes: bytes read and written, arithmetic operations."""

    bytes: int
    ops: int


@dataclass(frozen=True, slots=True)
class Target:
    """A device as the scheduler sees it.

    Attributes:
        kind: "cpu", "cuda", "numpy" or "null".
        worker_count: threads or streaming multiprocessors that walk queues.
        arch: instruction set or architecture, such as "avx512" or "sm_90a".
        counters: "clock" (one counter per worker) or "group" (one per fused node).
        cache_bytes: fast memory per worker that a tile should fit in.
        bytes_per_s: measured memory rate of one worker.
        ops_per_s: measured arithmetic rate of one worker.
        task_s: fixed cost of one task.
        hop_s: time from a signal on one worker to its effect on another.
    """

    kind: str
    worker_count: int
    arch: str
    counters: str
    cache_bytes: int
    bytes_per_s: float
    ops_per_s: float
    task_s: float
    hop_s: float

    def seconds(self, cost: Cost) -> float:
        """Predicted time of one task on one worker, by the roofline rule."""
        return self.task_s + max(cost.bytes / self.bytes_per_s, cost.ops / self.ops_per_s)


@dataclass(frozen=True, slots=True)
class Topology:
    """Which node each rank is on, and what a message between ranks costs."""

    nodes: tuple[int, ...]
    local_bytes_per_s: float
    local_latency_s: float
    remote_bytes_per_s: float
    remote_latency_s: float

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.nodes)


def topology_of(nodes: tuple[int, ...]) -> Topology:
    """Ranks by node, with rates that are right in their order of magnitude."""
    return Topology(nodes, 10e9, 0.5e-6, 1e9, 20e-6)


def cpu_target(worker_count: int, arch: str = "portable", kind: str = "cpu") -> Target:
    """A CPU process with `worker_count` threads; rates are per thread, order of magnitude."""
    return Target(
        kind=kind,
        worker_count=worker_count,
        arch=arch,
        counters="clock",
        cache_bytes=512 * 1024,
        bytes_per_s=12e9,
        ops_per_s=40e9,
        task_s=30e-9,
        hop_s=300e-9,
    )


def wide_target(worker_count: int = 132, arch: str = "sm_90a", kind: str = "null") -> Target:
    """A GPU-like device with one worker per streaming multiprocessor (H200 rates)."""
    return Target(
        kind=kind,
        worker_count=worker_count,
        arch=arch,
        counters="group",
        cache_bytes=208 * 1024,
        bytes_per_s=4.4e12 / 132,
        ops_per_s=400e12 / 132,
        task_s=200e-9,
        hop_s=1.5e-6,
    )
