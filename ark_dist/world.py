"""Say which rank this process is, and connect it to the others on first use."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ark_dist.comm.communicator import Communicator
from ark_dist.core.settings import read_settings
from ark_dist.launch.error_file import CONNECTED, STARTS_MPI
from ark_dist.launch.fault import fault_point
from ark_dist.launch.hooks import bounded, hooked_ranks, install_hooks, note_stage
from ark_dist.launch.node_board import NodeBoard
from ark_dist.launch.ranks import Ranks, check_world
from ark_dist.launch.session import Session


@dataclass(frozen=True, slots=True)
class World:
    """One process among those that run a program together.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        communicator: the way to the others; None where there is one process.
        is_planned: whether programs are planned only, and there are no other ranks.
    """

    rank: int
    size: int
    communicator: Communicator | None
    is_planned: bool = False


ALONE = World(0, 1, None)
_override: ContextVar[World | None] = ContextVar("ark_dist_world", default=None)
_lock = threading.Lock()
_found: list[World] = []
# Programs that other ranks may wait for: they are told when this process ends.
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def current() -> World:
    """This process's place; the first call connects to the others, which is collective.

    Raises:
        ConfigError: the launcher's variables can't be, or disagree with MPI.
        CommTimeout: not all ranks came in time.
    """
    given = _override.get()
    if given is not None:
        return given
    with _lock:
        if not _found:
            _found.append(_connect(hooked_ranks()))
        return _found[0]


@contextmanager
def use(communicator: Communicator) -> Iterator[World]:
    """Let this thread be a rank of another world, such as one of threads, within a block."""
    with _as(World(communicator.rank, communicator.size, communicator)) as world:
        yield world


@contextmanager
def plan_as(rank: int, size: int) -> Iterator[World]:
    """Let this thread plan what a rank would run within a block; there are no other ranks."""
    with _as(World(rank, size, None, is_planned=True)) as world:
        yield world


@contextmanager
def _as(world: World) -> Iterator[World]:
    token = _override.set(world)
    try:
        yield world
    finally:
        _override.reset(token)


def watch(session: Session) -> None:
    """Tell the other ranks when this process ends with the session still open."""
    _sessions.add(session)


def _connect(ranks: Ranks) -> World:
    if ranks.world_size == 1:
        return ALONE
    # Only here: one process alone needs no MPI.
    from ark_dist.comm.mpi import mpi_world

    fault_point("init", ranks.rank)
    timeout_s = read_settings().timeout_s
    # The start of MPI waits for all ranks without any limit.
    with bounded(timeout_s):
        note_stage(STARTS_MPI)
        communicator = mpi_world(timeout_s=timeout_s)
        check_world(ranks, communicator.rank, communicator.size)
        note_stage(CONNECTED)
        board = NodeBoard(communicator)

    def abort(code: int) -> None:
        board.resume_others()
        communicator.abort(code, "this rank failed")

    def leave(code: int) -> None:
        for session in list(_sessions):
            session.leave()
        if code == 0:
            board.wait_until_all_leave(timeout_s)

    install_hooks(ranks, abort, leave)
    return World(communicator.rank, communicator.size, communicator)
