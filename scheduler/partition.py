"""Cut a graph with global shapes into the graph of one rank, communication included."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ark_dist.core.errors import PlanError
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape, Note, Share
from ark_dist.core.op import OPS
from ark_dist.core.shape import Box, full_box
from ark_dist.core.target import Topology
from ark_dist.scheduler.layouts import part
from ark_dist.scheduler.propagate import propagate
from ark_dist.scheduler.rank_graph import STAGE_AXIS, Place
from ark_dist.scheduler.routes import Network
from ark_dist.scheduler.share_out import ShareOut
from ark_dist.scheduler.strategy import Chooser

SHARED_KINDS = ("weight", "constant", "state", "input", "output")


@dataclass(frozen=True, slots=True)
class RankGraph:
    """One rank's part of a graph.

    Attributes:
        graph: with local shapes; communication operators are nodes like others.
        shares: by the buffer's id in the global graph, for weights, constants, states, inputs
            and outputs: what each rank has of it.
        notes: the communication that was added, and why.
    """

    graph: Graph
    shares: Mapping[int, Share]
    notes: tuple[Note, ...]


def partition(graph: Graph, mesh: MeshShape, rank: int, topology: Topology) -> RankGraph:
    """Return the graph that `rank` runs, so that all ranks together compute `graph`.

    Buffers are cut as their `shard` says, and what belongs together is cut alike. Nodes of stage
    s run on the ranks whose coordinate on the axis "pp" is s; without such an axis, or with one
    of size 1, stages don't matter. All decisions depend on graph, mesh and topology only, so
    that all ranks decide alike.

    Raises ValueError for a mesh, an annotation or a stage that doesn't fit, and PlanError for
    communication operators in the graph.
    """
    _check_mesh(mesh, rank, topology)
    _check_graph(graph, mesh)
    mesh = MeshShape(tuple((name, size) for name, size in mesh.axes if size > 1))
    if mesh.world_size == 1:
        return _alone(graph)
    cutting = {name: size for name, size in mesh.axes if name != STAGE_AXIS}
    place, network = Place(mesh, rank), Network(mesh, topology)
    kept: frozenset[int] = frozenset()
    while True:
        found = propagate(graph, cutting, kept)
        done = ShareOut(graph, place, Chooser(graph.buffers, found, network))
        done.run()
        if not done.regrets:
            break
        # What nobody asked to cut, and some node needs whole, costs less if all ranks have it.
        kept |= done.regrets
    shares = {
        b.id: _share(done, graph, mesh, b.id) for b in graph.buffers if b.kind in SHARED_KINDS
    }
    return RankGraph(
        done.nodes.graph(graph.name), MappingProxyType(shares), tuple(done.nodes.notes)
    )


def _alone(graph: Graph) -> RankGraph:
    """The graph as it is: one rank has all of it."""
    shares = {
        b.id: Share(b.id, (full_box(b.shape),)) for b in graph.buffers if b.kind in SHARED_KINDS
    }
    buffers = tuple(replace(b, shard=None) for b in graph.buffers)
    return RankGraph(replace(graph, buffers=buffers), MappingProxyType(shares), ())


def _share(done: ShareOut, graph: Graph, mesh: MeshShape, buffer: int) -> Share:
    shape = graph.buffers[buffer].shape
    parts: list[Box] = []
    for rank in range(mesh.world_size):
        at = mesh.coordinates(rank)
        if at.get(STAGE_AXIS, 0) in done.homes[buffer]:
            parts.append(part(done.stored[buffer], shape, at))
        else:
            # Without dimensions, one more that is empty.
            parts.append(tuple((0, 0) for _ in shape) or ((0, 0),))
    return Share(done.local.get(buffer, -1), tuple(parts))


def _check_mesh(mesh: MeshShape, rank: int, topology: Topology) -> None:
    names = [name for name, _ in mesh.axes]
    if len(set(names)) != len(names):
        raise ValueError(f"mesh: axes {names} name one twice; name each once")
    small = next(((name, size) for name, size in mesh.axes if size < 1), None)
    if small is not None:
        raise ValueError(f"mesh: axis {small[0]!r} has size {small[1]}; it must be 1 or more")
    if mesh.world_size != topology.size:
        sizes = " x ".join(f"{name} {size}" for name, size in mesh.axes)
        raise ValueError(
            f"mesh: {sizes} are {mesh.world_size} ranks, there are {topology.size}; "
            f"start {mesh.world_size} ranks, or change the mesh"
        )
    if not 0 <= rank < mesh.world_size:
        raise ValueError(f"rank {rank} is outside of the mesh; it has {mesh.world_size} ranks")


def _check_graph(graph: Graph, mesh: MeshShape) -> None:
    sizes = dict(mesh.axes)
    for buffer in graph.buffers:
        used = [axis for axis in buffer.shard or () if axis is not None]
        if buffer.shard is not None and len(buffer.shard) != len(buffer.shape):
            raise ValueError(
                f"{buffer.name!r}: shard {buffer.shard} names {len(buffer.shard)} dimensions, "
                f"the shape {buffer.shape} has {len(buffer.shape)}"
            )
        for axis in used:
            if axis not in sizes or (axis == STAGE_AXIS and sizes[axis] > 1):
                others = ", ".join(repr(name) for name in sizes if name != STAGE_AXIS) or "none"
                raise ValueError(
                    f"{buffer.name!r}: shard {buffer.shard} names {axis!r}, which is no axis of "
                    f"the mesh that cuts tensors; there are {others}"
                )
            if used.count(axis) > 1:
                raise ValueError(
                    f"{buffer.name!r}: shard {buffer.shard} names {axis!r} twice; an axis cuts one "
                    "dimension"
                )
    stages = sizes.get(STAGE_AXIS, 1)
    for method in graph.methods:
        for node in method.nodes:
            if OPS[node.op].effect in ("communication", "handshake"):
                raise PlanError(
                    f"method {method.name!r}: {node.op} {node.name!r} communicates by itself; "
                    "with a mesh the partitioner adds communication, so leave it out, or build "
                    "each rank's graph without a mesh"
                )
            if stages > 1 and not 0 <= node.stage < stages:
                raise ValueError(
                    f"method {method.name!r}: {node.op} {node.name!r} is in stage {node.stage}, "
                    f"the mesh axis {STAGE_AXIS!r} has {stages}: stages 0 to {stages - 1}"
                )
