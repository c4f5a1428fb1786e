"""Break something on purpose where a test asked for it; does nothing otherwise."""

import ctypes
import os
import signal
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ark_dist.core.settings import Fault, read_faults

LONG_S = 1_000_000
MS_PER_S = 1000.0


class InjectedError(Exception):
    """The exception that a test asked for: no error of ours, as a user's would be."""


@dataclass(slots=True)
class Faults:
    """Counts passes of the points that have a fault, and breaks what is due."""

    faults: tuple[Fault, ...]
    passes: dict[str, int] = field(default_factory=dict)

    def pass_point(self, name: str, rank: int, path: Path | None) -> None:
        """Note one pass of a point, and do what its faults ask for."""
        due = [f for f in self.faults if f.point == name and f.rank in (None, rank)]
        if not due:
            return
        count = self.passes[name] = self.passes.get(name, 0) + 1
        for fault in due:
            if fault.kind == "delay" or fault.count == count:
                _break(fault, rank, path)


def fault_point(name: str, rank: int, path: Path | None = None) -> None:
    """Break what ARK_DIST_FAULT asks for at this point: one cheap check if it asks for nothing.

    Args:
        name: "init", "load", "save:<phase>", "compile", "run" or "op=<name>".
        rank: this process's rank.
        path: the file that a fault of kind "truncate" cuts in half.
    """
    faults = _faults()
    if faults is not None:
        faults.pass_point(name, rank, path)


@cache
def _faults() -> Faults | None:
    faults = read_faults()
    return Faults(faults) if faults else None


def _break(fault: Fault, rank: int, path: Path | None) -> None:
    place = f"{fault.point}, pass {fault.count}, rank {rank}"
    match fault.kind:
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sigstop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sigsegv":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit0":
            os._exit(0)
        case "sysexit0":
            raise SystemExit(0)
        case "raise":
            raise InjectedError(f"fault at {place}")
        case "sleep":
            time.sleep(fault.amount)
        case "delay":
            time.sleep(fault.amount / MS_PER_S)
        case "spin":
            ctypes.PyDLL(None).sleep(LONG_S)  # PyDLL keeps the GIL: no other thread can run
        case "truncate" if path is not None:
            os.truncate(path, path.stat().st_size // 2)
