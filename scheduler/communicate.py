"""Turn communication operators into handshakes, and operators that read and write peers' memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

from ark_dist.core.graph import Graph, GraphMethod, Node, Raise
from ark_dist.core.groups import cuts_of, parts_of
from ark_dist.core.message import Message, messages, named_key
from ark_dist.core.op import OPS, AttrValue
from ark_dist.core.pieces import line_slices, pieces, resized, rows, shifted
from ark_dist.core.shape import Box, row_major_strides
from ark_dist.core.target import Topology
from ark_dist.core.view import View
from ark_dist.scheduler.lowering import Lowering

TRANSPORTS = ("auto", "peer", "proxy")
LINE_BYTES = 64
# A generated function addresses so many parts of a sum; larger groups go through the host.
MAX_PARTS = 12
# Up to this size every rank reads all of the others' parts; above it each sums a slice for all.
ONE_SHOT_BYTES = 8 * 1024


def communicate(graph: Graph, rank: int, topology: Topology, transport: str) -> Graph:
    """Return the graph with its communication lowered for one rank.

    `transport` is "auto" (memory where ranks share a node, else the host), "peer" or "proxy".
    Raises ValueError for communication that was built for another rank or number of ranks, or
    that the transport can't do.
    """
    if transport not in TRANSPORTS:
        raise ValueError(f"transport is {transport!r}; it must be one of {', '.join(TRANSPORTS)}")
    buffers = list(graph.buffers)
    methods = []
    for method in graph.methods:
        _check_world(method, rank, topology.size)
        lowering = Lowering(method, buffers, rank)
        for node, message in zip(method.nodes, messages(method, rank, topology.size), strict=True):
            if message is None:
                lowering.keep(node)
                continue
            message = replace(message, key=named_key(message.key, node.op))
            lowering.start(node)
            if len(message.ranks) > 1 and _is_proxied(message, topology, transport):
                lowering.ask(node, message)
            else:
                _LOWERINGS[node.op](lowering, node, message)
        methods.append(GraphMethod(method.name, lowering.finish()))
    return Graph(graph.name, tuple(buffers), tuple(methods))


def _check_world(method: GraphMethod, rank: int, world_size: int) -> None:
    for node in method.nodes:
        if OPS[node.op].effect != "communication":
            continue
        built = (node.attributes["rank"], node.attributes["world"])
        if built != (rank, world_size):
            raise ValueError(
                f"{node.op} {node.name!r} of method {method.name!r} was built for rank {built[0]} "
                f"of {built[1]} and is planned for rank {rank} of {world_size}; build the model "
                "on every rank, with its rank and the number of ranks that run it"
            )


def _is_proxied(message: Message, topology: Topology, transport: str) -> bool:
    nodes = {topology.nodes[r] for r in message.ranks}
    is_far = len(nodes) > 1 or len(message.ranks) > MAX_PARTS
    if transport == "peer" and is_far:
        raise ValueError(
            f"message {message.key}: transport 'peer' is for up to {MAX_PARTS} ranks of one node, "
            f"and these are {len(message.ranks)} ranks of {len(nodes)} nodes; use 'auto'"
        )
    return is_far if transport == "auto" else transport == "proxy"


def at(view: View, box: Box) -> View:
    """The part of a view inside a box."""
    offset = view.offset + sum(
        start * stride for (start, _), stride in zip(box, view.strides, strict=True)
    )
    return replace(view, offset=offset, shape=tuple(stop - start for start, stop in box))


def _others(low: Lowering, message: Message) -> list[int]:
    return [r for r in message.ranks if r != low.rank]


def all_reduce(low: Lowering, node: Node, message: Message) -> None:
    """Read all parts and combine them, or combine a slice for all."""
    (source,), others = node.inputs, _others(low, message)
    size_bytes = prod(source.shape) * source.dtype.itemsize
    if not others or not size_bytes:
        low.copy(source, node.output)
    elif size_bytes <= ONE_SHOT_BYTES:
        low.pull(
            message,
            source,
            dict.fromkeys(others, source.shape),
            others,
            source.dtype.name,
            lambda views: _combine(
                low, node, message, [views[r] for r in message.ranks], node.output
            ),
        )
    else:
        _push(low, node, message)


def _combine(
    low: Lowering, node: Node, message: Message, parts: Sequence[View], target: View
) -> None:
    reduce = str(node.attributes["reduce"])
    is_mean = reduce == "mean"
    attrs: dict[str, AttrValue] = {
        "how": "sum" if is_mean else reduce,
        "scale": 1.0 / len(message.ranks) if is_mean else None,
    }
    low.compute("reduce_parts", parts, target, attrs)


def _push(low: Lowering, node: Node, message: Message) -> None:
    """Each rank combines one slice of all parts and writes it into everybody's result."""
    key, me, others = message.key, low.rank, _others(low, message)
    dtype = node.output.dtype
    source = _flat(low.shared_source(node.inputs[0], f"{key}.x"))
    is_direct = low.is_shareable(node.output) and low.is_fillable(node.output)
    if is_direct:
        target = _flat(low.share(node.output, f"{key}.y"))
    else:
        target = low.new(f"{key}.y", source.shape, dtype.name, export=f"{key}.y")
    count = source.shape[0]
    mine = message.ranks.index(me)
    part = (line_slices(count, len(message.ranks), dtype.itemsize, LINE_BYTES)[mine],)
    inputs = {r: low.peer(r, f"{key}.x", (count,), dtype.name) for r in others}
    outputs = {r: low.peer(r, f"{key}.y", (count,), dtype.name) for r in others}
    ready = [Raise(r, f"{key}.ready.{me}") for r in others]
    low.handshake(key, raises=ready, after=(source,), takes=(target,))
    ends = [*(at(v, part) for v in inputs.values()), *(at(v, part) for v in outputs.values())]
    low.handshake(key, waits=[f"{key}.ready.{r}" for r in others], takes=ends)
    parts = [at(inputs[r] if r != me else source, part) for r in message.ranks]
    _combine(low, node, message, parts, at(target, part))
    for view in outputs.values():
        low.copy(at(target, part), at(view, part))
    arrived = [Raise(r, f"{key}.arrived.{me}") for r in others]
    low.handshake(key, raises=arrived, takes=ends)
    waits = [f"{key}.arrived.{r}" for r in others]
    low.handshake(key, waits=waits, after=(source,), takes=(target,))
    if not is_direct:
        low.copy(_shaped(target, node.output.shape), node.output)


def reduce_scatter(low: Lowering, node: Node, message: Message) -> None:
    """Read this rank's rows of all parts and combine them."""
    (source,), others = node.inputs, _others(low, message)
    axis = _axis(node)
    start, stop = _cuts(node, source.shape[axis])[message.ranks.index(low.rank)]
    box = rows(source.shape, axis, start, stop)
    low.pull(
        message,
        source,
        dict.fromkeys(others, source.shape),
        others,
        source.dtype.name,
        lambda views: _combine(
            low, node, message, [at(views[r], box) for r in message.ranks], node.output
        ),
    )


def all_gather(low: Lowering, node: Node, message: Message) -> None:
    """Copy everybody's rows to their place."""
    (source,), others = node.inputs, _others(low, message)
    axis = _axis(node)
    cuts = _cuts(node, node.output.shape[axis])
    places = dict(zip(message.ranks, cuts, strict=True))
    shapes = {r: resized(source.shape, axis, places[r][1] - places[r][0]) for r in others}

    def read(views: dict[int, View]) -> None:
        for r in message.ranks:
            low.copy(views[r], at(node.output, rows(node.output.shape, axis, *places[r])))

    low.pull(message, source, shapes, others, source.dtype.name, read)


def broadcast(low: Lowering, node: Node, message: Message) -> None:
    """Copy what the root has."""
    (source,), others = node.inputs, _others(low, message)
    root = node.attributes["root"]
    assert isinstance(root, int)
    is_root = root == low.rank
    peers = {} if is_root else {root: source.shape}
    low.pull(
        message,
        source if is_root else None,
        peers,
        others if is_root else (),
        source.dtype.name,
        lambda views: low.copy(views[root], node.output),
    )


def all_to_all(low: Lowering, node: Node, message: Message) -> None:
    """Copy this rank's piece of everybody's rows to their place."""
    (source,), others = node.inputs, _others(low, message)
    axis, count = _axis(node), len(message.ranks)
    size = source.shape[axis] // count
    mine = message.ranks.index(low.rank)

    def read(views: dict[int, View]) -> None:
        piece = rows(source.shape, axis, mine * size, (mine + 1) * size)
        for k, r in enumerate(message.ranks):
            place = rows(source.shape, axis, k * size, (k + 1) * size)
            low.copy(at(views[r], piece), at(node.output, place))

    shapes = dict.fromkeys(others, source.shape)
    low.pull(message, source, shapes, others, source.dtype.name, read)


def redistribute(low: Lowering, node: Node, message: Message) -> None:
    """Copy each piece of this rank's part from the lowest rank that holds it."""
    (source,) = node.inputs
    dims = len(source.shape)
    held = parts_of(node.attributes["source"], dims, len(message.ranks))
    wanted = parts_of(node.attributes["target"], dims, len(message.ranks))
    mine = message.ranks.index(low.rank)
    mine_of = pieces(held, wanted[mine])
    shapes = {
        message.ranks[k]: tuple(b - a for a, b in held[k])
        for k in sorted({k for k, _ in mine_of} - {mine})
    }
    readers = [
        r
        for j, r in enumerate(message.ranks)
        if j != mine and any(k == mine for k, _ in pieces(held, wanted[j]))
    ]

    def read(views: dict[int, View]) -> None:
        for k, box in mine_of:
            origin = at(views[message.ranks[k]], shifted(box, held[k]))
            low.copy(origin, at(node.output, shifted(box, wanted[mine])))
        if not mine_of:
            # Nothing is written, but something has to stand for that.
            low.handshake(message.key, takes=(node.output,))

    low.pull(message, source, shapes, readers, source.dtype.name, read)


def send(low: Lowering, node: Node, message: Message) -> None:
    """Say that the data is there; the receiver fetches it."""
    (peer,) = _others(low, message)
    key, name = message.key, f"{message.key}.{low.rank}"
    source = low.shared_source(low.lasting(node.inputs[0], name), name)
    ready = [Raise(peer, f"{key}.ready.{low.rank}")]
    low.handshake(key, raises=ready, after=(source,), output=node.output)
    low.release_later(key, source, [f"{key}.taken.{peer}"], is_sent=True)


def send_done(low: Lowering, node: Node, message: Message) -> None:
    """Wait until the receiver has the data."""
    low.release_now(message.key, node.output)


def recv(low: Lowering, node: Node, message: Message) -> None:
    """Fetch what the sender says is there."""
    (peer,) = _others(low, message)
    low.pull(
        message,
        None,
        {peer: node.output.shape},
        (),
        node.output.dtype.name,
        lambda views: low.copy(views[peer], node.output),
    )


def barrier(low: Lowering, node: Node, message: Message) -> None:
    """Go on once everybody has come here."""
    key, me, others = message.key, low.rank, _others(low, message)
    here = [Raise(r, f"{key}.here.{me}") for r in others]
    low.handshake(key, raises=here, after=node.inputs)
    waits = [f"{key}.here.{r}" for r in others]
    low.handshake(key, waits=waits, after=node.inputs, output=node.output)


_LOWERINGS: dict[str, Callable[[Lowering, Node, Message], None]] = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "broadcast": broadcast,
    "all_to_all": all_to_all,
    "redistribute": redistribute,
    "send": send,
    "send_done": send_done,
    "recv": recv,
    "barrier": barrier,
}


def _flat(view: View) -> View:
    """A contiguous view as one row."""
    count = prod(view.shape)
    return replace(view, shape=(count,), strides=(1,))


def _shaped(view: View, shape: tuple[int, ...]) -> View:
    """A row of elements in another shape."""
    return replace(view, shape=shape, strides=row_major_strides(shape))


def _axis(node: Node) -> int:
    axis = node.attributes["axis"]
    assert isinstance(axis, int)
    return axis % len(node.output.shape)


def _cuts(node: Node, size: int) -> list[tuple[int, int]]:
    """The rows of each member of the group."""
    return list(pairwise(cuts_of(node.attributes, size)))
