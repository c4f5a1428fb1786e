"""Record a rank's last calls in a page of memory that other ranks may read, to say who is late."""

import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ark_dist.comm.communicator import Bytes
from ark_dist.comm.process import is_alive, process_id

PAGE_BYTES = 8192
ENTRY_COUNT = 60
POINT_TO_POINT = ("send", "recv")
EVERYWHERE = -1  # context of a failure that ends all communicators

_LABEL = struct.Struct("<q16s24sq24s")
# Native: a word is stored at once, another rank never sees half of it.
_WORD = struct.Struct("q")
_TIME = struct.Struct("d")
_HEAD = struct.Struct("qqqqq")  # calls begun, state, pid, start time, context of the failure
_TIMES = struct.Struct("qqqdd")  # context, peer, tag, begun, ended
_TEXT_AT, _TEXT_BYTES, _ENTRIES_AT = 64, 448, 512
_ENTRY_BYTES = 128
_OPEN, _FAILED, _CLOSED = 1, 2, 4

LABEL_BYTES = _LABEL.size


@dataclass(frozen=True, slots=True)
class Label:
    """What a call is: both sides of a message must agree on it.

    Attributes:
        seq: which call of its kind it is on its communicator, from 1.
        op: name of the call.
        dtype: name of the element type.
        count: elements in this rank's array; 0 where lengths may differ.
        detail: the way to combine, or the root.
    """

    seq: int
    op: str
    dtype: str
    count: int
    detail: str = ""

    def __str__(self) -> str:
        data = f" {self.dtype} x {self.count}" if self.dtype else ""
        return f"{self.op} #{self.seq}{data}{' ' if self.detail else ''}{self.detail}"

    def pack(self) -> bytes:
        """Write it as LABEL_BYTES bytes."""
        op, dtype, detail = (text.encode() for text in (self.op, self.dtype, self.detail))
        return _LABEL.pack(self.seq, op, dtype, self.count, detail)

    @staticmethod
    def unpack(data: bytes) -> "Label":
        """Read what `pack` wrote."""
        seq, op, dtype, count, detail = _LABEL.unpack(data)
        texts = [word.rstrip(b"\0").decode(errors="replace") for word in (op, dtype, detail)]
        return Label(seq, texts[0], texts[1], count, texts[2])

    def fits(self, other: "Label") -> bool:
        """Tell whether the other side's call belongs to this one."""
        if self.op in POINT_TO_POINT:
            return (self.dtype, self.count) == (other.dtype, other.count)
        return self == other


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of a flight record; times are of the monotonic clock, ended is 0 before the end."""

    label: Label
    context: int
    peer: int
    tag: int
    begun_s: float
    ended_s: float

    def text(self, now_s: float) -> str:
        """Say what the call is, since when, or how long ago it ended."""
        peer = f" with rank {self.peer} tag {self.tag}" if self.peer >= 0 else ""
        if self.ended_s:
            when = f"ended {now_s - self.ended_s:.3f} s ago"
        else:
            when = f"waits since {now_s - self.begun_s:.3f} s"
        return f"{self.label}{peer}, {when}"


class FlightRecord:
    """The last calls of one rank, its process, and whether it failed or is done."""

    def __init__(self, page: Bytes) -> None:
        self._page = page.data
        self._lock = threading.Lock()

    def open(self) -> None:
        """Enter this process as the rank's."""
        pid, start = process_id()
        _HEAD.pack_into(self._page, 0, self.calls, _OPEN, pid, start, 0)

    def move(self, page: Bytes) -> None:
        """Go on in another page."""
        with self._lock:
            page[:] = np.frombuffer(self._page, np.uint8)
            self._page = page.data

    @property
    def calls(self) -> int:
        """How many calls it began."""
        return self._head(0)

    @property
    def pid(self) -> int:
        """The rank's process."""
        return self._head(2)

    def begin(self, label: Label, context: int, peer: int = -1, tag: int = 0) -> int:
        """Enter a call and return its number."""
        with self._lock:
            number = self.calls
            at = self._at(number)
            self._page[at : at + LABEL_BYTES] = label.pack()
            values = (context, peer, tag, time.monotonic(), 0.0)
            _TIMES.pack_into(self._page, at + LABEL_BYTES, *values)
            _WORD.pack_into(self._page, 0, number + 1)
        return number

    def end(self, number: int) -> None:
        """Enter that a call ended."""
        with self._lock:
            if self.calls - number <= ENTRY_COUNT:
                at = self._at(number) + LABEL_BYTES + _TIMES.size - 8
                _TIME.pack_into(self._page, at, time.monotonic())

    def fail(self, context: int, text: str) -> None:
        """Tell the other ranks that a communicator is broken, and why."""
        data = text.encode(errors="replace")[: _TEXT_BYTES - 1].ljust(_TEXT_BYTES, b"\0")
        with self._lock:
            # The context comes last: who sees it finds the text.
            self._page[_TEXT_AT : _TEXT_AT + _TEXT_BYTES] = data
            _WORD.pack_into(self._page, 32, context)
            _WORD.pack_into(self._page, 8, self._head(1) | _FAILED)

    def close(self) -> None:
        """Tell the other ranks that this one makes no more calls."""
        with self._lock:
            _WORD.pack_into(self._page, 8, self._head(1) | _CLOSED)

    def failure(self, context: int) -> str | None:
        """Why a communicator is broken at this rank; None if it is not."""
        if not self._head(1) & _FAILED or self._head(4) not in (context, EVERYWHERE):
            return None
        data = bytes(self._page[_TEXT_AT : _TEXT_AT + _TEXT_BYTES])
        return data.rstrip(b"\0").decode(errors="replace")

    def ended(self) -> str | None:
        """How the rank ended; None if it goes on."""
        state, pid = self._head(1), self._head(2)
        if state & _CLOSED:
            return f"closed its communicator after {self.calls} calls"
        if state and not is_alive(pid, self._head(3)):
            return f"process {pid} is gone after {self.calls} calls"
        return None

    def entries(self) -> list[Entry]:
        """The last calls, oldest first; not the very oldest, whose place may be written to now."""
        calls = self.calls
        return [self._entry(n) for n in range(max(0, calls - ENTRY_COUNT + 1), calls)]

    def collective(self, context: int, seq: int) -> Label | None:
        """The label of a collective call; None if it was not made, or long ago."""
        for entry in reversed(self.entries()):
            label = entry.label
            if entry.context == context and label.op not in POINT_TO_POINT and label.seq == seq:
                return label
        return None

    def last_text(self) -> str:
        """Say in one line what the rank did last."""
        end = self.ended()
        calls = self.entries()
        last = calls[-1].text(time.monotonic()) if calls else "no call yet"
        return f"{end}; last call {last}" if end else last

    def text(self) -> str:
        """Say what the last calls were, one per line, oldest first."""
        now = time.monotonic()
        lines = [entry.text(now) for entry in self.entries()]
        return "\n".join([f"process {self.pid}, {self.calls} calls", *lines])

    def _head(self, index: int) -> int:
        value: int = _WORD.unpack_from(self._page, _WORD.size * index)[0]
        return value

    def _at(self, number: int) -> int:
        return _ENTRIES_AT + number % ENTRY_COUNT * _ENTRY_BYTES

    def _entry(self, number: int) -> Entry:
        at = self._at(number)
        label = Label.unpack(bytes(self._page[at : at + LABEL_BYTES]))
        context, peer, tag, begun, ended = _TIMES.unpack_from(self._page, at + LABEL_BYTES)
        return Entry(label, context, peer, tag, begun, ended)


def new_record() -> FlightRecord:
    """Make a record in this process' own memory."""
    record = FlightRecord(np.zeros(PAGE_BYTES, np.uint8))
    record.open()
    return record


def who_did_what(records: Iterable[tuple[int, FlightRecord]]) -> str:
    """Say in a line per rank what each did last."""
    return "\n".join(f"  rank {rank}: {record.last_text()}" for rank, record in records)
