"""Carry messages through rings of bytes in shared memory, one ring for each pair of ranks.

A ring has one writer and one reader. Each owns a counter in a cache line of its own: the writer
moves the head after the bytes are there, the reader the tail after it has taken them. This order
holds by itself on x86.
"""

import struct
import threading
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ark_dist.comm.communicator import Bytes
from ark_dist.comm.endpoint import Route, check_message
from ark_dist.comm.flight import LABEL_BYTES, Label
from ark_dist.core.errors import CommError

LINE_BYTES = 64
CONTROL_BYTES = 2 * LINE_BYTES  # head, tail

_HEAD = struct.Struct("qqqq")  # context, channel, tag, bytes; then the label
HEAD_BYTES = _HEAD.size + LABEL_BYTES
_Key = tuple[int, int, int]  # context, channel, tag


class Ring:
    """A ring of bytes; `memory` holds two counters and then the bytes."""

    def __init__(self, memory: Bytes) -> None:
        words = memory[:CONTROL_BYTES].view(np.int64).data
        self._head, self._tail = words[:1], words[LINE_BYTES // 8 :]
        self._data = memory[CONTROL_BYTES:]
        self.size = self._data.size

    @property
    def filled(self) -> int:
        """Bytes that were written and not read."""
        return self._head[0] - self._tail[0]

    @property
    def room(self) -> int:
        """Bytes that can be written."""
        return self.size - self.filled

    def write(self, data: Bytes) -> int:
        """Write what fits; return how much that was."""
        head = self._head[0]
        count = min(data.size, self.room)
        at = head % self.size
        first = min(count, self.size - at)
        self._data[at : at + first] = data[:first]
        self._data[: count - first] = data[first:count]
        self._head[0] = head + count
        return count

    def read(self, data: Bytes) -> int:
        """Fill as much as there is; return how much that was."""
        tail = self._tail[0]
        count = min(data.size, self.filled)
        at = tail % self.size
        first = min(count, self.size - at)
        data[:first] = self._data[at : at + first]
        data[first:count] = self._data[: count - first]
        self._tail[0] = tail + count
        return count


@dataclass(eq=False, slots=True)
class Send:
    """A message to write: its head and bytes, and how far it is."""

    rings: "Rings"
    dst: int
    parts: list[Bytes]
    at: int = 0
    is_done: bool = False

    def test(self) -> bool:
        """Make progress; tell whether all of it is in the ring."""
        if not self.is_done:
            self.rings.progress()
        return self.is_done

    def cancel(self) -> bool:
        """Withdraw it unless a part of it is written; from then on a copy is sent."""
        return self.rings.withdraw_send(self)


@dataclass(eq=False, slots=True)
class Recv:
    """A message to read."""

    rings: "Rings"
    rank: int
    src: int
    route: Route
    key: _Key
    label: Label
    data: Bytes
    is_done: bool = False
    error: CommError | None = None

    def test(self) -> bool:
        """Make progress; tell whether all of it has come."""
        if not self.is_done and self.error is None:
            self.rings.progress()
        if self.error is not None:
            raise self.error
        return self.is_done

    def cancel(self) -> bool:
        """Withdraw it; a message that has begun to come waits for the next receive."""
        return self.rings.withdraw_recv(self)

    def is_accepted(self, label: Label, found_bytes: int) -> bool:
        """Tell whether this is the message that is waited for; if not, remember the error."""
        try:
            check_message(self.rank, self.route, self.label, label, self.data.size, found_bytes)
        except CommError as error:
            self.error = error
        return self.error is None


@dataclass(eq=False, slots=True)
class _Frame:
    """The message that a ring delivers now."""

    key: _Key
    label: Label
    data: Bytes
    recv: Recv | None
    got: int = 0


@dataclass(eq=False, slots=True)
class _Inbox:
    """What came from a rank, and what is waited for."""

    ring: Ring
    posted: dict[_Key, deque[Recv]] = field(default_factory=lambda: defaultdict(deque))
    early: dict[_Key, deque[tuple[Label, Bytes]]] = field(
        default_factory=lambda: defaultdict(deque)
    )
    waiting: int = 0
    frame: _Frame | None = None


class Rings:
    """All messages of one rank: it writes to one ring and reads from one for each rank."""

    def __init__(self, outgoing: Mapping[int, Ring], incoming: Mapping[int, Ring]) -> None:
        self._lock = threading.Lock()
        self._outgoing = dict(outgoing)
        self._queues: dict[int, deque[Send]] = {dst: deque() for dst in outgoing}
        self._inboxes = {src: _Inbox(ring) for src, ring in incoming.items()}

    def send(self, dst: int, context: int, route: Route, label: Label, data: Bytes) -> Send:
        """Queue a message."""
        head = _HEAD.pack(context, route.channel, route.tag, data.size) + label.pack()
        send = Send(self, dst, [np.frombuffer(head, np.uint8), data])
        with self._lock:
            self._queues[dst].append(send)
            self._push(dst)
        return send

    def recv(self, request: Recv) -> Recv:
        """Take a message that came early, or wait for it."""
        with self._lock:
            inbox = self._inboxes[request.src]
            early = inbox.early.get(request.key)
            if early:
                label, data = early.popleft()
                if request.is_accepted(label, data.size):
                    request.data[:] = data
                    request.is_done = True
            else:
                inbox.posted[request.key].append(request)
                inbox.waiting += 1
                self._pull(inbox)
        return request

    def progress(self) -> None:
        """Write and read what can be."""
        with self._lock:
            for dst, queue in self._queues.items():
                if queue:
                    self._push(dst)
            for inbox in self._inboxes.values():
                # Unasked messages stay in the ring: a rank that floods has to wait.
                if inbox.waiting or inbox.frame is not None:
                    self._pull(inbox)

    def withdraw_send(self, send: Send) -> bool:
        """Take a send back; False if a part of it is written."""
        with self._lock:
            if send.is_done:
                return False
            if send is self._queues[send.dst][0] and (send.at or send.parts[0].size < HEAD_BYTES):
                send.parts[-1] = send.parts[-1].copy()
                return False
            self._queues[send.dst].remove(send)
            return True

    def withdraw_recv(self, recv: Recv) -> bool:
        """Take a receive back; False if it is done."""
        with self._lock:
            inbox = self._inboxes[recv.src]
            frame = inbox.frame
            if frame is not None and frame.recv is recv:
                frame.recv = None
                frame.data = frame.data.copy()
                return True
            if recv.is_done or recv not in inbox.posted[recv.key]:
                return False
            inbox.posted[recv.key].remove(recv)
            inbox.waiting -= 1
            return True

    def _push(self, dst: int) -> None:
        ring, queue = self._outgoing[dst], self._queues[dst]
        while queue:
            send = queue[0]
            while send.at < len(send.parts):
                part = send.parts[send.at]
                count = ring.write(part)
                send.parts[send.at] = part[count:]
                if count < part.size:
                    return
                send.at += 1
            send.is_done = True
            queue.popleft()

    def _pull(self, inbox: _Inbox) -> None:
        while inbox.frame is not None or inbox.waiting:
            if inbox.frame is None and not self._begin(inbox):
                return
            frame = inbox.frame
            assert frame is not None
            frame.got += inbox.ring.read(frame.data[frame.got :])
            if frame.got < frame.data.size:
                return
            self._deliver(inbox, frame)
            inbox.frame = None

    def _begin(self, inbox: _Inbox) -> bool:
        """Read the head of the next message; find who waits for it."""
        if inbox.ring.filled < HEAD_BYTES:
            return False
        head = np.empty(HEAD_BYTES, np.uint8)
        inbox.ring.read(head)
        context, channel, tag, size = _HEAD.unpack_from(head.data)
        label = Label.unpack(head[_HEAD.size :].tobytes())
        key = (context, channel, tag)
        recv = self._take(inbox, key)
        is_wanted = recv is not None and recv.is_accepted(label, size)
        data = recv.data if recv is not None and is_wanted else np.empty(size, np.uint8)
        inbox.frame = _Frame(key, label, data, recv)
        return True

    def _take(self, inbox: _Inbox, key: _Key) -> Recv | None:
        if not inbox.posted.get(key):
            return None
        inbox.waiting -= 1
        return inbox.posted[key].popleft()

    def _deliver(self, inbox: _Inbox, frame: _Frame) -> None:
        """Give a complete message to who waits for it, or keep it."""
        recv = frame.recv
        if recv is not None:
            recv.is_done = recv.error is None
            return
        late = self._take(inbox, frame.key)  # posted while the message came
        if late is None:
            inbox.early[frame.key].append((frame.label, frame.data))
        elif late.is_accepted(frame.label, frame.data.size):
            late.data[:] = frame.data
            late.is_done = True
