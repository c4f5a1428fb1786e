"""Share memory between the ranks of a node: a file per rank, mapped by all, then unlinked."""

import errno
import mmap
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

from ark_dist.comm.communicator import Bytes, Communicator, Window
from ark_dist.comm.process import is_alive, namespace, process_id
from ark_dist.core.errors import CommError, MemoryLimitError

SHARED_FOLDER = Path("/dev/shm")

_NAME = re.compile(r"ark-dist-(\d+)-(\d+)-(\d+)-(\d+)")  # namespace, pid, start time, number
_NUMBERS = count()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)
# First byte of what a rank tells the others: its part is there, or which error it met.
_OK, _FULL_ERROR, _OTHER_ERROR = b"\0", b"\1", b"\2"


def share_window(
    talk: Communicator,
    size_bytes: int,
    node_ranks: tuple[int, ...],
    *,
    folder: Path = SHARED_FOLDER,
    timeout_s: float | None = None,
) -> Window:
    """Allocate memory at each rank that all ranks of its node map; collective over `talk`.

    A rank that can't have its memory raises MemoryLimitError, naming the folder, and so do all
    the others.

    Args:
        talk: the ranks that call it.
        size_bytes: of this rank's part; sizes may differ.
        node_ranks: the ranks of this node.
        folder: where the files are for a moment; it must be in memory.
        timeout_s: limit of each step.
    """
    path: Path | None = None
    parts: dict[int, Bytes] = {}
    try:
        try:
            sweep(folder)
            path, parts[talk.rank] = _create(folder, size_bytes)
            mine = _OK + f"{size_bytes} {path}".encode()
        except MemoryLimitError as error:
            mine = _FULL_ERROR + str(error).encode()
        except OSError as error:
            mine = _OTHER_ERROR + str(error).encode()
        answers = talk.all_gather_bytes(mine, timeout_s=timeout_s)
        _raise_first(talk.rank, answers)
        mine = _map_peers({r: answers[r] for r in node_ranks if r != talk.rank}, parts)
        _raise_first(talk.rank, talk.all_gather_bytes(mine, timeout_s=timeout_s))
    finally:
        # From here on the memory lives as long as its mappings: nothing is left by a crash.
        if path is not None:
            path.unlink(missing_ok=True)
    return Window(talk.rank, {rank: parts[rank] for rank in node_ranks})


def sweep(folder: Path = SHARED_FOLDER) -> list[Path]:
    """Remove the files of owners that are dead, never those of living ones; return them."""
    here = namespace()
    removed = []
    for path in folder.glob("ark-dist-*"):
        match = _NAME.fullmatch(path.name)
        # A pid of another namespace can't be looked up here: its owner may live.
        if match is None or int(match[1]) != here or is_alive(int(match[2]), int(match[3])):
            continue
        with suppress(OSError):  # of another user, or another rank was faster
            path.unlink()
            removed.append(path)
    return removed


def _create(folder: Path, size_bytes: int) -> tuple[Path, Bytes]:
    """Make a file of this size, with its memory reserved, and map it."""
    _check_room(folder, size_bytes)
    pid, start = process_id()
    path = folder / f"ark-dist-{namespace()}-{pid}-{start}-{next(_NUMBERS)}"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            # Reserved, not sparse: a full folder is an error here and not a SIGBUS later.
            os.posix_fallocate(handle, 0, max(1, size_bytes))
        except OSError as error:
            path.unlink()
            if error.errno in _FULL:
                raise _no_room(folder, size_bytes) from error
            raise
        return path, _map(handle, size_bytes)
    finally:
        os.close(handle)


def _map_peers(answers: Mapping[int, bytes], parts: dict[int, Bytes]) -> bytes:
    """Map the files that other ranks named; return _OK, or the first error."""
    for peer, answer in answers.items():
        size_text, _, path = answer[1:].decode().partition(" ")
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                parts[peer] = _map(handle, int(size_text))
            finally:
                os.close(handle)
        except (OSError, ValueError) as error:
            return _OTHER_ERROR + f"can't map the memory of rank {peer}: {error}".encode()
    return _OK


def _map(handle: int, size_bytes: int) -> Bytes:
    memory = mmap.mmap(handle, max(1, size_bytes))
    return np.frombuffer(memory, np.uint8)[:size_bytes]


def _raise_first(rank: int, answers: list[bytes]) -> None:
    """Raise the error of the first rank that has one, the same at every rank."""
    for peer, answer in enumerate(answers):
        if answer[:1] != _OK:
            kind = MemoryLimitError if answer[:1] == _FULL_ERROR else CommError
            text = answer[1:].decode(errors="replace")
            raise kind(f"rank {rank}: shared memory: rank {peer}: {text}")


def _check_room(folder: Path, size_bytes: int) -> None:
    room = os.statvfs(folder)
    if room.f_blocks and room.f_bavail * room.f_frsize < size_bytes:
        raise _no_room(folder, size_bytes)


def _no_room(folder: Path, size_bytes: int) -> MemoryLimitError:
    room = os.statvfs(folder)
    free, total = (blocks * room.f_frsize for blocks in (room.f_bavail, room.f_blocks))
    return MemoryLimitError(
        f"{folder} has {free} of {total} bytes free, {size_bytes} are needed (shm); remove old "
        "files there, or make it larger: docker run --shm-size=8g, mount -o remount,size=8g"
    )
