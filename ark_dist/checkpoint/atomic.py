"""Write a file under a name of its own first, and put it in place at once and whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ark_dist.core.errors import CheckpointError

_PERMISSIONS = 0o777


class PendingFile:
    """A file that is written beside its place; `publish` moves it there.

    Attributes:
        path: its place.
        size_bytes: what was written so far.
    """

    def __init__(self, path: Path, temporary: Path, *, like: Path | None = None) -> None:
        """Create the file; it will have the mode of the file at `path`, or else at `like`.

        Raises OSError, and CheckpointError where `path` is no regular file.
        """
        self.path = path
        self.size_bytes = 0
        self._temporary = temporary
        mode = find_mode(path)
        if mode is None and like is not None:
            mode = find_mode(like)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(temporary, flags, 0o666 if mode is None else 0o600)
        self._mode = stat.S_IMODE(os.fstat(self._fd).st_mode) if mode is None else mode
        try:
            # Nobody else reads a half-written file.
            os.fchmod(self._fd, 0o600)
        except OSError:
            self.discard()
            raise

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        rest = memoryview(data).cast("B")
        self.size_bytes += len(rest)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def finish(self) -> None:
        """Set the mode, and wait until the disk has all of it."""
        os.fchmod(self._fd, self._mode)
        os.fsync(self._fd)
        self._close()

    def publish(self) -> None:
        """Put the file in its place."""
        self._temporary.replace(self.path)

    def discard(self) -> None:
        """Remove the file unless it was published; safe to call twice."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._temporary.unlink()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@contextmanager
def replacing(path: Path, temporary: Path) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Give a function that writes bytes, then put them in the place of path, or change nothing.

    Raises CheckpointError where that fails.
    """
    pending = None
    try:
        pending = PendingFile(path, temporary)
        yield pending.write
        pending.finish()
        pending.publish()
    except BaseException as error:
        if pending is not None:
            pending.discard()
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{path}: can't be saved: {error.strerror}; the old file, if any, is unchanged"
            ) from error
        raise
    sync_folder(path.parent, path)


def find_mode(path: Path) -> int | None:
    """Return the permissions of the file to replace; None where there is none.

    Raises CheckpointError where it is no regular file.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        kind = "a symlink" if stat.S_ISLNK(mode) else "a folder or special file"
        raise CheckpointError(f"{path}: found {kind}, wanted a regular file or none to save to")
    return mode & _PERMISSIONS


def sync_folder(folder: Path, path: Path) -> None:
    """Wait until the disk knows of a new name in a folder; CheckpointError names `path`."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise CheckpointError(
            f"{path}: saved, but a power cut may undo it: {error.strerror}; save it again"
        ) from error
