"""The seam between the calls of a communicator and what carries their messages."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol

from ark_dist.comm.communicator import Bytes, Communicator, Window
from ark_dist.comm.flight import FlightRecord, Label
from ark_dist.core.errors import CommMismatch

# Streams of messages between two ranks, each in order.
POINT_TO_POINT, COLLECTIVE, COMPARE = range(3)

# Polls before a wait sleeps between them, and how long it sleeps then at most.
_BUSY_ROUNDS = 1000
_SLEEP_S, _LONGEST_SLEEP_S = 50e-6, 1e-3


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes: a receive takes the first one that came on the same route."""

    peer: int
    channel: int
    tag: int


class Request(Protocol):
    """A message under way."""

    def test(self) -> bool:
        """Make progress; tell whether it is done; raise CommError if it failed."""

    def cancel(self) -> bool:
        """Withdraw it; False if that can't be done any more."""


class Endpoint(Protocol):
    """A rank's access to the others of a group; ranks count within the group."""

    @property
    def backend(self) -> str:
        """What carries the data."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `CAPABILITIES` it has."""

    @property
    def rank(self) -> int:
        """This rank in the group."""

    @property
    def members(self) -> tuple[int, ...]:
        """The world ranks of the group, by rank."""

    @property
    def node_ranks(self) -> tuple[int, ...]:
        """Ranks that share memory with this one."""

    @property
    def context(self) -> int:
        """Number that tells apart the groups that a rank belongs to; 0 is the world."""

    @property
    def records(self) -> Mapping[int, FlightRecord]:
        """Flight records by world rank, as far as this rank can see them."""

    @property
    def tag_limit(self) -> int:
        """Tags of sends and receives are below it."""

    def post_send(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to send bytes, which stay untouched until the request is done."""

    def post_recv(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to fill bytes; the message must have their length."""

    def pause(self, round_index: int) -> None:
        """Let others run for a moment, or wait until something changed."""

    def allocate_window(
        self, size_bytes: int, talk: Communicator, timeout_s: float | None
    ) -> Window:
        """Share memory with the node's ranks; `talk` is the communicator of this group."""

    def split(self, ranks: tuple[int, ...], context: int) -> "Endpoint":
        """The endpoint of some ranks of the group, called by all of these."""

    def abort(self, code: int, reason: str) -> NoReturn:
        """End all ranks' work."""

    def close(self, *, is_broken: bool) -> None:
        """Give it up."""


class Contexts:
    """The number that the next group of this rank gets; one for a world and all its parts."""

    def __init__(self) -> None:
        self.next = 1


def farewell(rank: int, code: int, reason: str) -> str:
    """What is said when a rank aborts."""
    return f"rank {rank} gave up with code {code}: {reason}"


def yield_core(round_index: int) -> None:
    """Pause between two polls: give the core to others, and sleep if it takes long."""
    if round_index < _BUSY_ROUNDS:
        os.sched_yield()  # another process
        time.sleep(0)  # another thread
    else:
        over = (round_index - _BUSY_ROUNDS) // 100
        time.sleep(min(_SLEEP_S * (1 + over), _LONGEST_SLEEP_S))


def check_message(
    rank: int, route: Route, mine: Label, theirs: Label | None, size_bytes: int, found_bytes: int
) -> None:
    """Raise CommMismatch, with both sides, unless a message is what the receiver waits for."""
    is_same = theirs is None or mine.fits(theirs)
    if is_same and size_bytes == found_bytes:
        return
    if theirs is None:
        other = f"sent {found_bytes} bytes"
    elif route.channel == POINT_TO_POINT:
        other = f"sent {theirs.dtype} x {theirs.count}"
    else:
        other = f"called {theirs}"
    tag = f" tag {route.tag}" if route.channel == POINT_TO_POINT else ""
    raise CommMismatch(
        f"rank {rank} called {mine} ({size_bytes} bytes), rank {route.peer}{tag} {other}; "
        "both sides must name the same call, dtype and count"
    )
