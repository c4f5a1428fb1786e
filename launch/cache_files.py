"""Read and write files in a cache folder that only its user may write to."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

OTHERS_CAN_WRITE = stat.S_IWGRP | stat.S_IWOTH


def unsafe(folder: Path) -> str | None:
    """Say why others could put files into a folder, or None."""
    info = folder.lstat()
    if stat.S_ISLNK(info.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(info.st_mode):
        return "is not a folder"
    if info.st_uid != os.geteuid():
        return f"belongs to user {info.st_uid}, this process runs as user {os.geteuid()}"
    if info.st_mode & OTHERS_CAN_WRITE:
        return f"can be written by others (mode {stat.S_IMODE(info.st_mode):04o})"
    return None


def open_own(path: Path) -> BinaryIO:
    """Open a regular file that only this user can have written."""
    # O_NONBLOCK: opening a FIFO must not wait
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    info = os.fstat(file.fileno())
    is_own = info.st_uid == os.geteuid() and not info.st_mode & OTHERS_CAN_WRITE
    if not (is_own and stat.S_ISREG(info.st_mode)):
        file.close()
        raise PermissionError(errno.EPERM, "not a file that only this user can write", str(path))
    return file


def write_new(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet; it is for this user alone."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


@contextlib.contextmanager
def private_folder(root: Path) -> Iterator[Path]:
    """Give a folder inside a cache's folder, for work that is not complete; it goes at the end."""
    sweep(root, ".tmp-")
    work = Path(tempfile.mkdtemp(prefix=f".tmp-{stamp(os.getpid())}-", dir=root))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sweep(folder: Path, prefix: str) -> None:
    """Remove the private folders of processes of this machine that are gone."""
    pattern = re.compile(rf"{re.escape(prefix)}((\d+)-\d+-([0-9a-f]+))-.+")
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        now = stamp(match[2]) if match else ""
        if match and now.endswith(f"-{match[3]}") and now != match[1]:
            with contextlib.suppress(OSError):
                if unsafe(path) is None:
                    shutil.rmtree(path, ignore_errors=True)


def stamp(pid: int | str) -> str:
    """Name a process for good: its id, its start (0: it is gone), this boot and PID namespace."""
    start, place = "0", "unknown"
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        boot += str(Path("/proc/self/ns/pid").readlink())
        place = hashlib.sha256(boot.encode()).hexdigest()[:12]
        stat_line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        state, *fields = stat_line.rpartition(")")[2].split()
        start = "0" if state in "ZX" else fields[18]  # proc(5): starttime is field 22
    return f"{pid}-{start}-{place}"
