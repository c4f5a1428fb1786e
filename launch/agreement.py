"""Let ranks compare what they are about to run, before anything of it runs."""

import msgpack

from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import PlanMismatchError
from ark_dist.core.graph import Graph
from ark_dist.core.message import Call, calls, disagreement
from ark_dist.core.target import Topology, topology_of
from ark_dist.core.version import VERSION


def node_topology(communicator: Communicator) -> Topology:
    """Which ranks share memory with which: each node is named by its lowest rank."""
    mine = str(min(communicator.node_ranks)).encode()
    return topology_of(tuple(int(name) for name in communicator.all_gather_bytes(mine)))


def check_agreement(graph: Graph, communicator: Communicator) -> None:
    """Raise PlanMismatchError on every rank unless all build messages that fit together.

    Compared are versions, the names of methods, and every message's operator, dtype, shape and
    attributes on all ranks that take part in it.
    """
    mine = {
        "version": VERSION,
        "methods": [method.name for method in graph.methods],
        "calls": [
            [c.key, list(c.ranks), c.op, c.what, c.node]
            for c in calls(graph, communicator.rank, communicator.size)
        ],
    }
    packed = communicator.all_gather_bytes(msgpack.packb(mine))
    said = [msgpack.unpackb(data, strict_map_key=True) for data in packed]
    for what in ("version", "methods"):
        for rank, other in enumerate(said):
            if other[what] != said[0][what]:
                raise PlanMismatchError(
                    f"rank {rank} has {what} {other[what]}, rank 0 has {said[0][what]}; all "
                    "ranks must run the same program with the same ark_dist"
                )
    by_rank = {
        rank: [Call(k, tuple(r), op, what, node) for k, r, op, what, node in other["calls"]]
        for rank, other in enumerate(said)
    }
    problem = disagreement(by_rank)
    if problem is not None:
        raise PlanMismatchError(problem)
