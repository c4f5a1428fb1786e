"""How long to measure, and how to wait until nothing disturbs it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ark_dist.executor import Executor

PAUSE_S = 5e-3
# A process that uses less of a core than this is at rest.
REST = 0.1
REST_LIMIT_S = 1.0


STAT = Path("/proc/stat")
# Of its first line: user, nice, system, and later steal, which other machines took.
BUSY_FIELDS = (1, 2, 3, 8)
TICKS_PER_S = 100


@dataclass(frozen=True, slots=True)
class Effort:
    """How often each side is measured in turn, and how long each time."""

    rounds: int = 7
    round_s: float = 0.05

    def count(self, once_s: float) -> int:
        """How many calls of `once_s` seconds fill a round."""
        return max(1, round(self.round_s / max(once_s, 1e-9)))


FULL = Effort()


def rest() -> None:
    """Wait until this process's threads sleep: they spin for a while after their work."""
    deadline = time.monotonic() + REST_LIMIT_S
    while time.monotonic() < deadline:
        used, began = time.process_time(), time.perf_counter()
        time.sleep(PAUSE_S)
        if time.process_time() - used < REST * (time.perf_counter() - began):
            return


def loop_s(exe: Executor, count: int) -> float:
    """Seconds of one of a number of iterations, the wait for the last included."""
    began = time.perf_counter()
    exe.run(count)
    exe.wait()
    return (time.perf_counter() - began) / count


def seconds_per_call(call: Callable[[], object], count: int) -> float:
    """Seconds of one of a number of calls."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def others_s() -> float:
    """Seconds that cores were busy with other processes than this one; differences count."""
    if not STAT.exists():
        return 0.0
    fields = STAT.read_text("ascii").partition("\n")[0].split()
    return sum(int(fields[i]) for i in BUSY_FIELDS) / TICKS_PER_S - time.process_time()
