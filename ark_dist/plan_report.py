"""Gather what one rank's plan does: its parts of tensors, its messages, memory, tasks and time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ark_dist.core.graph import Graph, GraphMethod, Node
from ark_dist.core.layout import MeshShape, Note, Share
from ark_dist.core.message import messages, named_key
from ark_dist.core.plan import ARENAS, Method, Plan
from ark_dist.core.shape import Box, Shape, box_size, full_box
from ark_dist.core.target import Topology
from ark_dist.launch.proxy import SMALL_BYTES
from ark_dist.message_sizes import Member, traffic
from ark_dist.scheduler.partition import SHARED_KINDS, RankGraph
from ark_dist.scheduler.sync import positions

LOCAL_REASON = "the program says so"
# What moves no data of its own.
SILENT = ("send_done",)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a rank has of one tensor.

    Attributes:
        name, kind, dtype, shape: of the whole tensor.
        part: the [start, stop) per dimension that is here; None for nothing.
        axes: for each dimension, the mesh axes that cut it.
        bytes: of the part, as it is stored.
        packing: how it is stored; "" is row-major.
    """

    name: str
    kind: str
    dtype: str
    shape: Shape
    part: Box | None
    axes: tuple[tuple[str, ...], ...]
    bytes: int
    packing: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One message of a turn, as a rank sees it.

    Attributes:
        method: the entry point it belongs to.
        op: the operator.
        name: the tensor that it makes, or gives away.
        ranks: who takes part.
        sent_bytes, received_bytes: in one iteration, by this rank.
        transport: "peer" (memory that ranks share), "proxy" (the host moves it), "none" (one rank).
        algorithm: of an all_reduce "one-shot" (each reads all parts) or "two-shot" (each combines
            a slice for all), else "".
        node: the operator that needs it; "" where the program itself communicates.
        reason: why it is there.
    """

    method: str
    op: str
    name: str
    ranks: tuple[int, ...]
    sent_bytes: int
    received_bytes: int
    transport: str
    algorithm: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Work:
    """What the workers do in one iteration of a method.

    Attributes:
        method: the entry point.
        tasks: how many tasks each worker has.
        predicted_s: by the cost model, in seconds; other ranks are never late.
    """

    method: str
    tasks: tuple[int, ...]
    predicted_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """All about one rank's plan.

    Attributes:
        program: its name.
        rank, world_size: whose plan it is.
        place: the rank's coordinates on the mesh; empty without one.
        target: the device, such as "cpu avx512".
        pieces, exchanges, work: see their types.
        arenas: bytes by arena.
    """

    program: str
    rank: int
    world_size: int
    place: Mapping[str, int]
    target: str
    pieces: tuple[Piece, ...]
    exchanges: tuple[Exchange, ...]
    arenas: Mapping[str, int]
    work: tuple[Work, ...]


def report(
    graph: Graph, cut: RankGraph, plan: Plan, mesh: MeshShape | None, topology: Topology
) -> Report:
    """Put together what is known of a plan.

    `graph` is the one that was built, `cut` what of it this rank has; without a mesh all of it.
    """
    exchanges = tuple(_exchanges(cut, plan))
    target = plan.target
    return Report(
        plan.name,
        plan.rank,
        plan.world_size,
        {} if mesh is None else mesh.coordinates(plan.rank),
        f"{target.kind} {target.arch}" if target.arch else target.kind,
        tuple(_pieces(graph, cut.shares, plan, mesh)),
        exchanges,
        dict(zip(ARENAS, plan.arena_bytes, strict=True)),
        tuple(_work(plan, method, exchanges, topology) for method in plan.methods),
    )


def uncut(graph: Graph, rank: int, world_size: int) -> RankGraph:
    """A rank's own graph as if it were cut: it has all of it, the others nothing."""
    shares = {}
    for buffer in graph.buffers:
        if buffer.kind in SHARED_KINDS:
            nothing: Box = tuple((0, 0) for _ in buffer.shape) or ((0, 0),)
            whole = full_box(buffer.shape)
            parts = tuple(whole if r == rank else nothing for r in range(world_size))
            shares[buffer.id] = Share(buffer.id, parts)
    return RankGraph(graph, shares, ())


def _pieces(
    graph: Graph, shares: Mapping[int, Share], plan: Plan, mesh: MeshShape | None
) -> Iterator[Piece]:
    for buffer in graph.buffers:
        share = shares.get(buffer.id)
        if share is None:
            continue
        box = share.parts[plan.rank]
        is_here = len(box) == len(buffer.shape)
        axes = tuple(
            () if mesh is None else _cutting(share, mesh, d) for d in range(len(buffer.shape))
        )
        size = box_size(box) * buffer.dtype.itemsize if is_here else 0
        is_held = is_here and (size > 0 or 0 in buffer.shape)
        part = box if is_held else None
        packing = plan.buffers[share.buffer].packing if is_held and share.buffer >= 0 else ""
        if packing:
            size = plan.buffers[share.buffer].size_bytes
        dtype = buffer.dtype.name
        yield Piece(buffer.name, buffer.kind, dtype, buffer.shape, part, axes, size, packing)


def _cutting(share: Share, mesh: MeshShape, dim: int) -> tuple[str, ...]:
    """The mesh axes along which ranks have other places of a dimension."""
    found = []
    for axis, _ in mesh.axes:
        lines: dict[tuple[tuple[str, int], ...], set[tuple[int, int]]] = {}
        for rank, box in enumerate(share.parts):
            if share.is_held_by(rank):
                place = mesh.coordinates(rank).items()
                rest = tuple((name, at) for name, at in place if name != axis)
                lines.setdefault(rest, set()).add(box[dim])
        if any(len(places) > 1 for places in lines.values()):
            found.append(axis)
    return tuple(found)


def _exchanges(cut: RankGraph, plan: Plan) -> Iterator[Exchange]:
    notes = list(cut.notes)
    for method in cut.graph.methods:
        asked = {str(n.attributes["key"]) for n in _nodes(plan, method) if n.op == "request"}
        found = messages(method, plan.rank, plan.world_size)
        for node, message in zip(method.nodes, found, strict=True):
            if message is None or node.op in SILENT:
                continue
            key = named_key(message.key, node.op)
            is_proxied = key in asked
            index, count = message.ranks.index(plan.rank), len(message.ranks)
            is_sliced = node.op == "all_reduce" and _is_sliced(plan, node, key, is_proxied)
            moved = traffic(Member(node, index, count, is_sliced))
            note = _take_note(notes, node, message.ranks)
            yield Exchange(
                method.name,
                node.op,
                node.name,
                message.ranks,
                moved.sent_bytes,
                moved.received_bytes,
                "none" if count == 1 else "proxy" if is_proxied else "peer",
                _algorithm(node, count, is_sliced=is_sliced),
                "" if note is None else note.node,
                LOCAL_REASON if note is None else note.reason,
            )


def _nodes(plan: Plan, method: GraphMethod) -> tuple[Node, ...]:
    return plan.method(method.name).nodes


def _algorithm(node: Node, count: int, *, is_sliced: bool) -> str:
    if node.op != "all_reduce" or count == 1:
        return ""
    return "two-shot" if is_sliced else "one-shot"


def _is_sliced(plan: Plan, node: Node, key: str, is_proxied: bool) -> bool:
    """Whether each rank combines a slice for all."""
    if is_proxied:
        view = node.inputs[0]
        return prod(view.shape) * view.dtype.itemsize > SMALL_BYTES
    return any(buffer.export == f"{key}.x" for buffer in plan.buffers)


def _take_note(notes: list[Note], node: Node, ranks: tuple[int, ...]) -> Note | None:
    """Remove the note that was made for a node, and return it."""
    like = [note for note in notes if (note.op, note.ranks) == (node.op, ranks)]
    if not like:
        return None
    # Tensors that a move makes are called after those that it moves.
    base = node.name.rpartition(f".{node.op}")[0] or node.name
    named = [note for note in like if note.reason.startswith(f"{base} ")]
    note = (named or like)[0]
    notes.remove(note)
    return note


def _work(plan: Plan, method: Method, exchanges: Sequence[Exchange], topology: Topology) -> Work:
    queues = tuple(len(queue) for queue in method.queues)
    return Work(method.name, queues, _predicted_s(plan, method, exchanges, topology))


def _predicted_s(
    plan: Plan, method: Method, exchanges: Sequence[Exchange], topology: Topology
) -> float:
    """Time of one turn by itself: tasks by the cost model, and a latency where flags are awaited.

    Peers' memory is read and written by tasks; what the host moves is added as a whole.
    """
    target = plan.target
    worker_of = positions(len(method.tasks), method.queues).worker
    members: dict[int, list[int]] = {}
    for task in method.tasks:
        members.setdefault(task.group, []).append(task.id)
    free_s, end_s = [0.0] * target.worker_count, [0.0] * len(method.tasks)
    for task in method.tasks:
        start = free_s[worker_of[task.id]]
        for wait in method.waits[task.id]:
            if wait.turns_back:
                continue
            counter = method.counters[wait.counter]
            if counter.kind == "clock":
                awaited = list(method.queues[counter.owner][wait.threshold - 1 : wait.threshold])
            else:
                awaited = members[counter.owner]
            start = max([start, *(end_s[other] + target.hop_s for other in awaited)])
        if any(method.nodes[n].waits for n in method.groups[task.group].nodes):
            start += topology.local_latency_s
        end_s[task.id] = free_s[worker_of[task.id]] = start + target.seconds(task.cost)
    proxied = [e for e in exchanges if e.method == method.name and e.transport == "proxy"]
    return max(free_s, default=0.0) + sum(_proxy_s(e, topology) for e in proxied)


def _proxy_s(exchange: Exchange, topology: Topology) -> float:
    is_local = len({topology.nodes[r] for r in exchange.ranks}) == 1
    rate = topology.local_bytes_per_s if is_local else topology.remote_bytes_per_s
    moved = max(exchange.sent_bytes, exchange.received_bytes)
    return topology.remote_latency_s + moved / rate
