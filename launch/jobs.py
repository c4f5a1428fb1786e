"""Find and signal the processes of a run on this host, by the mark in their environment."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from ark_dist.core.settings import JOB_MARK


def job_pids(job: str) -> list[int]:
    """The running processes of a job: the launcher, ranks, and whatever they started."""
    wanted = f"{JOB_MARK}={job}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text("latin-1").rpartition(")")[2].split()[0]
                if state not in "ZX":
                    found.append(int(folder.name))
    return found


def signal_job(job: str, signum: int) -> list[int]:
    """Send a signal to all processes of a job, 0 for none, and return which there are."""
    pids = job_pids(job)
    if signum:
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signum)
    return pids


def kill_job(job: str, leader: int | None) -> None:
    """Kill all processes of a job, and the process group of its launcher, if it still runs."""
    if leader is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    signal_job(job, signal.SIGKILL)
