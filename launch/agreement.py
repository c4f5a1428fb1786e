"""Let ranks compare what they are about to run, before anything of it runs."""

import hashlib

import msgpack

from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import PlanMismatchError
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape
from ark_dist.core.message import calls, disagreement
from ark_dist.core.target import Topology, topology_of
from ark_dist.core.version import VERSION
from ark_dist.launch.peer_data import read_rank, read_said


def node_topology(communicator: Communicator) -> Topology:
    """Which ranks share memory with which: each node is named by its lowest rank."""
    mine = str(min(communicator.node_ranks)).encode()
    names = communicator.all_gather_bytes(mine)
    return topology_of(tuple(read_rank(n, r, len(names)) for r, n in enumerate(names)))


def check_same_graph(graph: Graph, mesh: MeshShape, communicator: Communicator) -> None:
    """Raise PlanMismatchError on every rank unless all have one graph and one mesh."""
    lines = [str(mesh), *str(graph).splitlines(), *(repr(b.shard) for b in graph.buffers)]
    initial = hashlib.sha256(repr([b.initial for b in graph.buffers]).encode()).hexdigest()
    digests = [hashlib.sha256(line.encode()).digest()[:8] for line in [VERSION, *lines, initial]]
    for rank, other in enumerate(communicator.all_gather_bytes(b"".join(digests))):
        mine = b"".join(digests)
        if other == mine:
            continue
        place = next((i for i, d in enumerate(digests) if other[8 * i : 8 * i + 8] != d), None)
        theirs = communicator.rank
        where = "" if place is None else f"; the first difference is at: {_line(place, lines)}"
        raise PlanMismatchError(
            f"rank {theirs} and rank {rank} have different graphs of {len(digests)} and "
            f"{len(other) // 8} lines{where}; with a mesh all ranks must build the same graph"
        )


def _line(place: int, lines: list[str]) -> str:
    known = [f"ark_dist {VERSION}", *lines, "initial values"]
    return known[place].strip()


def said_of(graph: Graph, rank: int, size: int) -> bytes:
    """Return what a rank tells the others about the messages of its graph."""
    said: bytes = msgpack.packb(
        {
            "version": VERSION,
            "methods": [method.name for method in graph.methods],
            "calls": [
                [c.key, list(c.ranks), c.op, c.what, c.node] for c in calls(graph, rank, size)
            ],
        }
    )
    return said


def check_agreement(said_here: bytes, communicator: Communicator) -> None:
    """Raise PlanMismatchError on every rank unless all build messages that fit together.

    Compared is what `said_of` tells of each rank: versions, the names of methods, and every
    message's operator, dtype, shape and attributes on all ranks that take part in it.
    """
    packed = communicator.all_gather_bytes(said_here)
    said = [read_said(data, rank, len(packed)) for rank, data in enumerate(packed)]
    first = said[0]
    for rank, other in enumerate(said):
        for what, theirs, wanted in (
            ("version", other.version, first.version),
            ("methods", list(other.methods), list(first.methods)),
        ):
            if theirs != wanted:
                raise PlanMismatchError(
                    f"rank {rank} has {what} {theirs}, rank 0 has {wanted}; all "
                    "ranks must run the same program with the same ark_dist"
                )
    problem = disagreement({rank: other.calls for rank, other in enumerate(said)})
    if problem is not None:
        raise PlanMismatchError(problem)
