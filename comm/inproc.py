"""Make ranks of the threads of one process, with faults on demand: for tests."""

import mmap
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ark_dist.comm.communicator import DEFAULT_TIMEOUT_S, Bytes, Communicator, Window
from ark_dist.comm.endpoint import Endpoint, Request, Route, check_message, farewell
from ark_dist.comm.flight import FlightRecord, Label, new_record
from ark_dist.comm.group import GroupCommunicator
from ark_dist.core.errors import CommAborted, CommError

PAUSE_S = 0.005
TAG_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Drop:
    """Lose the message number `index`, from 0, that `src` sends to `dst`."""

    src: int
    dst: int
    index: int


@dataclass(frozen=True, slots=True)
class Delay:
    """Deliver message number `index`, from 0, of `src` to `dst` late, and those behind it."""

    src: int
    dst: int
    index: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Kill:
    """End a rank when it starts its message number `index`, from 0; receives count too."""

    rank: int
    index: int


Fault = Drop | Delay | Kill
# Context, source, destination, channel, tag.
_Key = tuple[int, int, int, int, int]


class _Message:
    """One side of a message: a send that waits for its receive, or the other way round."""

    def __init__(self, world: "_World", key: _Key, data: Bytes, label: Label, route: Route) -> None:
        self.world = world
        self.key = key
        self.data = data
        self.label = label
        self.route = route
        self.due_s = 0.0
        self.is_done = False
        self.error: CommError | None = None

    def test(self) -> bool:
        """Tell whether both sides met."""
        if not self.is_done and self.error is None:
            self.world.match(self.key)
        if self.error is not None:
            raise self.error
        return self.is_done

    def cancel(self) -> bool:
        """Withdraw it: nothing is copied before both sides meet."""
        return self.world.withdraw(self)


class _World:
    """What the threads share: messages that wait, by route, and the faults to come."""

    def __init__(self, size: int, faults: Iterable[Fault]) -> None:
        self.changed = threading.Condition()
        self.version = 0
        self.records = {rank: new_record() for rank in range(size)}
        self.windows: dict[tuple[int, tuple[int, ...], int], dict[int, Bytes]] = defaultdict(dict)
        self._sends: dict[_Key, deque[_Message]] = defaultdict(deque)
        self._recvs: dict[_Key, deque[_Message]] = defaultdict(deque)
        self._faults = frozenset(faults)
        self._sent: Counter[tuple[int, int]] = Counter()
        self._begun: Counter[int] = Counter()

    def is_killed(self, rank: int) -> bool:
        """Count a message that a rank begins; tell whether the rank ends here."""
        with self.changed:
            index = self._begun[rank]
            self._begun[rank] += 1
            if Kill(rank, index) not in self._faults:
                return False
            for waiting in (self._sends, self._recvs):
                for key in waiting:
                    _, src, dst, _, _ = key
                    if rank == (src if waiting is self._sends else dst):
                        waiting[key].clear()
            self.records[rank].close()
            self._notify()
            return True

    def post(self, message: _Message, *, is_send: bool) -> None:
        """Add a side of a message."""
        with self.changed:
            if is_send and self._is_lost(message):
                message.is_done = True
                return
            (self._sends if is_send else self._recvs)[message.key].append(message)
            self._match(message.key)

    def match(self, key: _Key) -> None:
        """Copy what can be copied on a route."""
        with self.changed:
            self._match(key)

    def withdraw(self, message: _Message) -> bool:
        """Take a message back unless it was copied."""
        with self.changed:
            for waiting in (self._sends, self._recvs):
                if message in waiting[message.key]:
                    waiting[message.key].remove(message)
                    return True
            return False

    def _is_lost(self, message: _Message) -> bool:
        _, src, dst, _, _ = message.key
        index = self._sent[src, dst]
        self._sent[src, dst] += 1
        for fault in self._faults:
            if isinstance(fault, Delay) and (src, dst, index) == (
                fault.src,
                fault.dst,
                fault.index,
            ):
                message.due_s = time.monotonic() + fault.delay_s
        return Drop(src, dst, index) in self._faults

    def _match(self, key: _Key) -> None:
        sends, recvs = self._sends[key], self._recvs[key]
        while sends and recvs and sends[0].due_s <= time.monotonic():
            send, recv = sends.popleft(), recvs.popleft()
            _, _, dst, _, _ = key
            found = send.data.nbytes
            try:
                check_message(dst, recv.route, recv.label, send.label, recv.data.nbytes, found)
            except CommError as error:
                recv.error = error
            else:
                recv.data[:] = send.data
                recv.is_done = True
            send.is_done = True
            self._notify()

    def _notify(self) -> None:
        self.version += 1
        self.changed.notify_all()


class InprocEndpoint:
    """A thread's access to the other threads of its world."""

    backend = "inproc"
    capabilities = frozenset({"windows", "threads"})
    tag_limit = TAG_LIMIT

    def __init__(self, world: _World, rank: int, members: tuple[int, ...], context: int) -> None:
        self.rank = rank
        self.members = members
        self.node_ranks = tuple(range(len(members)))
        self.context = context
        self.records: Mapping[int, FlightRecord] = world.records
        self._world = world
        self._world_rank = members[rank]
        self._window_count = 0
        self._seen = -1
        self._death: str | None = None

    def post_send(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to send bytes: done when they are received."""
        return self._post(data, route, label, is_send=True)

    def post_recv(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to fill bytes."""
        return self._post(data, route, label, is_send=False)

    def pause(self, round_index: int) -> None:
        """Wait until something changed."""
        with self._world.changed:
            if self._world.version == self._seen:
                self._world.changed.wait(PAUSE_S)
            self._seen = self._world.version

    def allocate_window(
        self, size_bytes: int, talk: Communicator, timeout_s: float | None
    ) -> Window:
        """Share memory with the other threads."""
        self._window_count += 1
        parts = self._world.windows[self.context, self.members, self._window_count]
        memory = mmap.mmap(-1, max(1, size_bytes))
        parts[self.rank] = np.frombuffer(memory, np.uint8)[:size_bytes]
        talk.barrier(timeout_s=timeout_s)
        return Window(self.rank, parts)

    def split(self, ranks: tuple[int, ...], context: int) -> Endpoint:
        """The endpoint of some ranks of the group."""
        members = tuple(self.members[rank] for rank in ranks)
        return InprocEndpoint(self._world, ranks.index(self.rank), members, context)

    def abort(self, code: int, reason: str) -> NoReturn:
        """End all ranks' work: the flight record tells the others."""
        raise CommAborted(farewell(self.rank, code, reason))

    def close(self, *, is_broken: bool) -> None:
        """Give it up."""
        if self.context == 0:
            self.records[self._world_rank].close()

    def _post(self, data: Bytes, route: Route, label: Label, *, is_send: bool) -> Request:
        if self._death is None and self._world.is_killed(self._world_rank):
            self._death = f"rank {self.rank} was killed by a fault at {label}"
            # What a dead rank does is not seen by the others.
            self.records = {**self.records, self._world_rank: new_record()}
        if self._death is not None:
            raise CommAborted(self._death)
        peer = self.members[route.peer]
        ends = (self._world_rank, peer) if is_send else (peer, self._world_rank)
        key = (self.context, *ends, route.channel, route.tag)
        message = _Message(self._world, key, data, label, route)
        self._world.post(message, is_send=is_send)
        return message


def inproc_world(
    size: int,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    debug: bool = False,
    faults: Sequence[Fault] = (),
) -> list[Communicator]:
    """Make the communicators of ranks that are threads of this process, one for each.

    Sends are done when they are received, as the strictest transport would have it.

    Args:
        size: how many ranks.
        timeout_s: limit of a call that names none.
        debug: compare the calls of all ranks before each collective call.
        faults: what goes wrong: messages that are dropped or delayed, ranks that are killed.
    """
    if size < 1:
        raise ValueError(f"inproc_world: size is {size}; it must be at least 1")
    world = _World(size, faults)
    members = tuple(range(size))
    return [
        GroupCommunicator(InprocEndpoint(world, rank, members, 0), timeout_s=timeout_s, debug=debug)
        for rank in members
    ]
