"""Tell processes and nodes apart: pid and start time, process namespace, boot."""

import os
import socket
from pathlib import Path

_START_FIELD = 22  # proc(5): field of /proc/PID/stat, counted from 1
_COMM_FIELD = 2


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name before the last ")" may hold anything.
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return int(fields[_START_FIELD - _COMM_FIELD - 1])


def process_id() -> tuple[int, int]:
    """This process' pid and start time: together they never come back."""
    pid = os.getpid()
    return pid, start_time(pid) or 0


def is_alive(pid: int, start: int) -> bool:
    """Tell whether the very process with this pid and start time still runs."""
    return start_time(pid) == start


def namespace() -> int:
    """The number of the process namespace: pids mean something inside one alone."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def node_name(folder: Path) -> str:
    """A text that is equal for ranks that can share files of a folder through memory."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    try:
        device = folder.stat().st_dev
    except OSError:
        device = -1  # who needs the folder finds out
    return f"{socket.gethostname()} {boot} {namespace()} {device} {folder}"
