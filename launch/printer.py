"""Copy what ranks write into their log files to stdout and stderr, line by line, as it comes."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STDOUT, STDERR = 1, 2
PAUSE_S = 0.02
PIECE_BYTES = 1 << 16
# A line that is longer than this comes in pieces.
LINE_BYTES = 1 << 20


@dataclass(slots=True)
class Tail:
    """One log file, and how far it has been copied.

    Attributes:
        path: the file; it need not be there yet.
        target: the file descriptor that it goes to.
        prefix: what stands before each line.
        offset: bytes that have been read.
        rest: a line that has not ended yet.
    """

    path: Path
    target: int
    prefix: bytes
    offset: int = 0
    rest: bytes = b""

    def take(self, is_last: bool) -> bytes:
        """Read on, and return the lines that are whole, with their prefix."""
        data = b""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(PIECE_BYTES)
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        if self.rest and ((is_last and not data) or len(self.rest) > LINE_BYTES):
            lines.append(self.rest)
            self.rest = b""
        return b"".join(self.prefix + line + b"\n" for line in lines)


class Printer:
    """Copies logs in a thread of its own, so that a blocked terminal holds nothing else up."""

    def __init__(self, tails: Sequence[Tail]) -> None:
        """Take the logs; `start` starts copying."""
        self._tails = tails
        self._closed: set[int] = set()
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._copy, name="ark_dist printer", daemon=True)

    def start(self) -> None:
        """Start copying."""
        self._thread.start()

    def finish(self, timeout_s: float | None) -> None:
        """Copy what is left, and end; a reader may take `timeout_s` seconds for it."""
        self._is_ending.set()
        self._thread.join(timeout_s)

    def _copy(self) -> None:
        while True:
            is_ending = self._is_ending.is_set()
            before = [tail.offset for tail in self._tails]
            for tail in self._tails:
                self._write(tail.target, tail.take(is_ending))
            if [tail.offset for tail in self._tails] != before:
                continue
            if is_ending:
                return
            self._is_ending.wait(PAUSE_S)

    def _write(self, target: int, data: bytes) -> None:
        """Write it all; a reader that has gone, as `head` does, ends the copying and no rank."""
        try:
            while data and target not in self._closed:
                data = data[os.write(target, data) :]
        except OSError:
            self._closed.add(target)
