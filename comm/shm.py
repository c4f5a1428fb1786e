"""Connect the ranks of one node by rings of bytes in a shared window."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from ark_dist.comm.communicator import DEFAULT_TIMEOUT_S, Bytes, Communicator, Window
from ark_dist.comm.endpoint import Endpoint, Request, Route, farewell, yield_core
from ark_dist.comm.flight import PAGE_BYTES, FlightRecord, Label
from ark_dist.comm.group import GroupCommunicator
from ark_dist.comm.process import node_name
from ark_dist.comm.rings import CONTROL_BYTES, Recv, Ring, Rings
from ark_dist.comm.window import SHARED_FOLDER, share_window
from ark_dist.core.errors import CommAborted, ConfigError

# Rings of one rank together; more gives longer runs between two switches, and costs memory.
RANK_BYTES = 4 << 20
SMALLEST_RING_BYTES = 16384
TAG_LIMIT = 1 << 30
MACHINES = ("x86_64", "AMD64")  # stores become visible in their order


class ShmEndpoint:
    """A process' access to the other processes of its node."""

    backend = "shm"
    capabilities = frozenset({"windows", "threads"})
    tag_limit = TAG_LIMIT

    def __init__(
        self,
        rings: Rings,
        rank: int,
        members: tuple[int, ...],
        context: int,
        records: Mapping[int, FlightRecord],
        *,
        folder: Path,
        talk: Communicator,
    ) -> None:
        self.rank = rank
        self.members = members
        self.node_ranks = tuple(range(len(members)))
        self.context = context
        self.records = records
        self._rings = rings
        self._folder = folder
        self._talk = talk

    def post_send(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to send bytes: done when all of them are in the ring."""
        return self._rings.send(self.members[route.peer], self.context, route, label, data)

    def post_recv(self, data: Bytes, route: Route, label: Label) -> Request:
        """Start to fill bytes."""
        key = (self.context, route.channel, route.tag)
        src = self.members[route.peer]
        return self._rings.recv(Recv(self._rings, self.rank, src, route, key, label, data))

    def pause(self, round_index: int) -> None:
        """Give the core to another rank."""
        yield_core(round_index)

    def allocate_window(
        self, size_bytes: int, talk: Communicator, timeout_s: float | None
    ) -> Window:
        """Share memory with the other ranks."""
        return share_window(
            talk, size_bytes, self.node_ranks, folder=self._folder, timeout_s=timeout_s
        )

    def split(self, ranks: tuple[int, ...], context: int) -> Endpoint:
        """The endpoint of some ranks of the group: the same rings."""
        return ShmEndpoint(
            self._rings,
            ranks.index(self.rank),
            tuple(self.members[rank] for rank in ranks),
            context,
            self.records,
            folder=self._folder,
            talk=self._talk,
        )

    def abort(self, code: int, reason: str) -> NoReturn:
        """End all ranks' work: by the launcher where it started them."""
        if self._talk.backend == "mpi":
            self._talk.abort(code, reason)
        raise CommAborted(farewell(self.rank, code, reason))

    def close(self, *, is_broken: bool) -> None:
        """Give it up."""
        if self.context == 0:
            self.records[self.members[self.rank]].close()


def shm_world(
    talk: Communicator,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    debug: bool = False,
    folder: Path = SHARED_FOLDER,
    rank_bytes: int = RANK_BYTES,
) -> Communicator:
    """Connect the ranks of a communicator through shared memory; collective over them.

    Raises ConfigError if they are on several nodes, or the machine orders its stores in another
    way than the rings need; MemoryLimitError if the folder is full.

    Args:
        talk: a communicator of the ranks, used to set this one up and to abort.
        timeout_s: limit of a call that names none.
        debug: compare the calls of all ranks before each collective call.
        folder: where the shared files are for a moment.
        rank_bytes: shared memory of each rank.
    """
    if platform.machine() not in MACHINES:
        raise ConfigError(
            f"backend shm runs on {MACHINES[0]}, this is {platform.machine()}; use backend mpi"
        )
    _check_one_node(talk, folder)
    size = talk.size
    ring_bytes = CONTROL_BYTES + max(SMALLEST_RING_BYTES, rank_bytes // size) // 64 * 64
    window = share_window(talk, PAGE_BYTES + size * ring_bytes, tuple(range(size)), folder=folder)
    records = {rank: FlightRecord(part[:PAGE_BYTES]) for rank, part in window.peers.items()}
    records[talk.rank].open()
    talk.barrier()  # every record names its process

    rings = _rings(window, talk.rank, ring_bytes)
    members = tuple(range(size))
    endpoint = ShmEndpoint(rings, talk.rank, members, 0, records, folder=folder, talk=talk)
    world = GroupCommunicator(endpoint, timeout_s=timeout_s, debug=debug)
    world.close_at_exit()
    return world


def _check_one_node(talk: Communicator, folder: Path) -> None:
    """Raise ConfigError unless all ranks see the same folder in memory."""
    names = [name.decode() for name in talk.all_gather_bytes(node_name(folder).encode())]
    for rank, name in enumerate(names):
        if name != names[0]:
            raise ConfigError(
                f"backend shm: rank 0 is on {names[0].split()[0]}, rank {rank} on "
                f"{name.split()[0]} or in another container or folder; use backend mpi"
            )


def _rings(window: Window, rank: int, ring_bytes: int) -> Rings:
    """The rings of a rank: those it writes to lie in its own part of the window."""

    def ring(src: int, dst: int) -> Ring:
        start = PAGE_BYTES + dst * ring_bytes
        return Ring(window.peers[src][start : start + ring_bytes])

    return Rings(
        {dst: ring(rank, dst) for dst in window.peers},
        {src: ring(src, rank) for src in window.peers},
    )
