"""Carry messages by MPI; mpi4py is imported when a world is made, not before."""

import os
import sys
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from ark_dist.comm.communicator import DEFAULT_TIMEOUT_S, Bytes, Communicator, Window
from ark_dist.comm.endpoint import (
    COLLECTIVE,
    COMPARE,
    POINT_TO_POINT,
    Endpoint,
    Request,
    Route,
    check_message,
    farewell,
    yield_core,
)
from ark_dist.comm.flight import PAGE_BYTES, FlightRecord, Label, new_record
from ark_dist.comm.group import GroupCommunicator
from ark_dist.comm.process import node_name
from ark_dist.comm.window import SHARED_FOLDER, share_window
from ark_dist.core.errors import (
    CommError,
    CommMismatch,
    CommTimeout,
    ConfigError,
    MemoryLimitError,
    PeerLost,
)

if TYPE_CHECKING:
    from mpi4py import MPI

# Counts of MPI are int32 in many builds: longer messages go in pieces.
PIECE_BYTES = 1 << 30
TAG_LIMIT_OF_MPI = 32767  # the standard promises this one
CANCEL_TESTS = 100
# The launcher needs a moment to pass on the last words of a rank.
SPEAK_S = 0.1
# A stream of its own for labels: so all receives of a message can be asked for at once.
LABELS = COMPARE + 1
CHANNEL_COUNT = LABELS + 1


class MpiEndpoint:
    """A process' access to the other processes of an MPI communicator."""

    backend = "mpi"

    def __init__(
        self,
        comm: "MPI.Intracomm",
        members: tuple[int, ...],
        context: int,
        *,
        folder: Path,
        debug: bool,
        piece_bytes: int,
    ) -> None:
        from mpi4py import MPI

        comm.Set_errhandler(MPI.ERRORS_RETURN)
        limit = comm.Get_attr(MPI.TAG_UB)
        is_free = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self.capabilities = frozenset({"windows", *(["threads"] if is_free else [])})
        self.comm = comm
        self.rank = comm.Get_rank()
        self.members = members
        self.node_ranks: tuple[int, ...] = (self.rank,)
        self.context = context
        self.records: Mapping[int, FlightRecord] = {members[self.rank]: new_record()}
        self.tag_limit = (limit if isinstance(limit, int) else TAG_LIMIT_OF_MPI) // CHANNEL_COUNT
        self.debug = debug
        self.piece_bytes = piece_bytes
        self.lock = threading.Lock()
        # MPI may write to their arrays until they are done, whoever forgot them.
        self.under_way: set[MpiRequest] = set()
        self._folder = folder

    def post_send(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to send bytes."""
        return MpiRequest(self, data, route, label, is_send=True)

    def post_recv(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to fill bytes."""
        return MpiRequest(self, data, route, label, is_send=False)

    def pause(self, round_index: int) -> None:
        """Give the core to another rank."""
        yield_core(round_index)

    def mpi_tag(self, route: Route, label: Label) -> int:
        """The tag of a route; calls that do not belong together have different ones."""
        if route.channel == COLLECTIVE:
            tag = zlib.crc32(label.pack()) % self.tag_limit
        else:
            tag = route.tag
        return tag * CHANNEL_COUNT + route.channel

    def join(self, talk: Communicator) -> None:
        """Find the ranks of this node, and let them see each other's flight records."""
        names = talk.all_gather_bytes(node_name(self._folder).encode())
        mine = names[self.rank]
        self.node_ranks = tuple(rank for rank, name in enumerate(names) if name == mine)
        with suppress(CommError, MemoryLimitError):  # no room: each keeps its own
            window = self.allocate_window(PAGE_BYTES, talk, None)
            own = self.records[self.members[self.rank]]
            own.move(window.own)
            self.records = {
                self.members[rank]: own if rank == self.rank else FlightRecord(page)
                for rank, page in window.peers.items()
            }

    def allocate_window(
        self, size_bytes: int, talk: Communicator, timeout_s: float | None
    ) -> Window:
        """Share memory with the ranks of this node."""
        return share_window(
            talk, size_bytes, self.node_ranks, folder=self._folder, timeout_s=timeout_s
        )

    def split(self, ranks: tuple[int, ...], context: int) -> Endpoint:
        """The endpoint of some ranks of the group, with an MPI communicator of its own."""
        group = self.comm.Get_group().Incl(ranks)
        tag = context % (TAG_LIMIT_OF_MPI + 1)
        part = MpiEndpoint(
            self.comm.Create_group(group, tag),
            tuple(self.members[rank] for rank in ranks),
            context,
            folder=self._folder,
            debug=self.debug,
            piece_bytes=self.piece_bytes,
        )
        part.records = self.records
        part.node_ranks = tuple(i for i, rank in enumerate(ranks) if rank in self.node_ranks)
        return part

    def abort(self, code: int, reason: str) -> NoReturn:
        """End all processes."""
        from mpi4py import MPI

        print(farewell(self.rank, code, reason), file=sys.stderr, flush=True)
        time.sleep(SPEAK_S)
        MPI.COMM_WORLD.Abort(code)
        os._exit(code)  # not reached where MPI does as it says

    def close(self, *, is_broken: bool) -> None:
        """Give it up."""
        if self.context == 0:
            self.records[self.members[self.rank]].close()
        from mpi4py import MPI

        if not is_broken and not self.under_way and not MPI.Is_finalized():
            self.comm.Free()


class MpiRequest:
    """A message under way, in one piece or several.

    In debug mode a send or receive has a label besides the data.
    """

    def __init__(
        self, endpoint: MpiEndpoint, data: Bytes, route: Route, label: Label, *, is_send: bool
    ) -> None:
        self._endpoint = endpoint
        self._data = data
        self._route = route
        self._label = label
        self._is_send = is_send
        self._pending: list[tuple[MPI.Request, int]] = []
        self._head: Bytes | None = None
        self._error: CommError | None = None
        endpoint.under_way.add(self)
        step = endpoint.piece_bytes
        with endpoint.lock:
            if endpoint.debug and route.channel == POINT_TO_POINT:
                self._head = np.array(bytearray(label.pack()), np.uint8)
                self._start(self._head, endpoint.mpi_tag(replace(route, channel=LABELS), label))
            for start in range(0, max(1, data.size), step):
                self._start(data[start : start + step], endpoint.mpi_tag(route, label))

    def test(self) -> bool:
        """Make progress; tell whether all pieces are done; raise if one failed."""
        from mpi4py import MPI

        if self._error is not None:
            raise self._error
        status = MPI.Status()
        try:
            while self._pending:
                request, size = self._pending[0]
                if not request.Test(status):
                    return False
                self._pending.pop(0)
                if not self._is_send:
                    self._check(size, status.Get_count(MPI.BYTE))
        except MPI.Exception as error:
            self._pending.clear()
            self._over()
            self._error = self._translated(error)
            raise self._error from error
        except CommError as error:
            self.cancel()
            self._error = error
            raise
        self._over()
        return True

    def cancel(self) -> bool:
        """Withdraw a receive that has not begun to come; sends can't be withdrawn."""
        from mpi4py import MPI

        if self._is_send or not self._pending:
            return False
        status = MPI.Status()
        is_cancelled = True
        for request, _ in self._pending:
            request.Cancel()
            is_ended = any(request.Test(status) for _ in range(CANCEL_TESTS))
            is_cancelled &= is_ended and status.Is_cancelled()
            if not is_ended:
                return False
        self._pending.clear()
        self._over()
        return is_cancelled

    def _start(self, data: Bytes, tag: int) -> None:
        comm = self._endpoint.comm
        start = comm.Isend if self._is_send else comm.Irecv
        self._pending.append((start(data, self._route.peer, tag), data.size))

    def _check(self, size: int, found: int) -> None:
        """Raise unless a piece has the length, and the label the content, that is wanted."""
        theirs = None
        if self._head is not None:
            theirs = Label.unpack(self._head.tobytes())
            self._head = None
            size = found = self._data.size
        check_message(self._endpoint.rank, self._route, self._label, theirs, size, found)

    def _over(self) -> None:
        self._endpoint.under_way.discard(self)

    def _translated(self, error: "MPI.Exception") -> CommError:
        from mpi4py import MPI

        rank, peer = self._endpoint.rank, self._route.peer
        kind = error.Get_error_class()
        if kind == MPI.ERR_TRUNCATE:
            return CommMismatch(
                f"rank {rank} called {self._label} ({self._data.size} bytes), rank {peer} sent "
                "more bytes; both sides must name the same call, dtype and count"
            )
        if kind in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_ABORTED, MPI.ERR_REVOKED):
            return PeerLost(
                f"rank {rank}: {self._label}: rank {peer} ended", rank=rank, lost=(peer,)
            )
        return CommError(f"rank {rank}: {self._label}: MPI: {error.Get_error_string()}")


def mpi_world(
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    debug: bool = False,
    folder: Path = SHARED_FOLDER,
    piece_bytes: int = PIECE_BYTES,
) -> Communicator:
    """Connect the ranks that mpirun started; collective over them.

    Args:
        timeout_s: limit of a call that names none.
        debug: compare the calls of all ranks before each collective call, and both sides of
            each message; equal at all ranks.
        folder: where shared files are for a moment.
        piece_bytes: longer messages go in pieces; equal at all ranks.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"mpi4py can't be imported: {error}; pip install 'ark_dist[mpich]' brings an MPI"
        ) from error
    comm = _duplicate(MPI.COMM_WORLD, timeout_s)
    members = tuple(range(comm.Get_size()))
    endpoint = MpiEndpoint(comm, members, 0, folder=folder, debug=debug, piece_bytes=piece_bytes)
    world = GroupCommunicator(endpoint, timeout_s=timeout_s, debug=debug)
    endpoint.join(world)
    world.close_at_exit()
    return world


def _duplicate(world: "MPI.Intracomm", timeout_s: float) -> "MPI.Intracomm":
    """A communicator of our own for all ranks; raise CommTimeout if one does not come."""
    comm, request = world.Idup()
    begun_s = time.monotonic()
    round_index = 0
    while not request.Test():
        waited_s = time.monotonic() - begun_s
        if waited_s > timeout_s:
            rank = world.Get_rank()
            raise CommTimeout(
                f"rank {rank}: mpi_world: not all of {world.Get_size()} ranks came in "
                f"{waited_s:.3g} s; does each of them call it?",
                rank=rank,
                op="mpi_world",
                waited_s=waited_s,
            )
        yield_core(round_index)
        round_index += 1
    return comm
