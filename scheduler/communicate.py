"""Turn communication operators into handshakes, and operators that read and write peers' memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from ark_dist.core.dtype import DTYPES
from ark_dist.core.graph import HOST, Buffer, Graph, GraphMethod, Node, Raise, freeze_attrs
from ark_dist.core.groups import cuts_of, parts_of
from ark_dist.core.message import Message, messages, named_key
from ark_dist.core.names import Names
from ark_dist.core.op import AttrValue
from ark_dist.core.pieces import line_slices, pieces, resized, rows, shifted
from ark_dist.core.shape import Box, row_major_strides
from ark_dist.core.target import Topology
from ark_dist.core.view import View

# Kinds of buffers that may lie where other ranks reach them.
SHAREABLE_KINDS = ("activation", "output", "state", "input")
LINE_BYTES = 64
# A generated function addresses so many parts of a sum; larger groups go through the host.
MAX_PARTS = 12
# Up to this size every rank reads all of the others' parts; above it each sums a slice for all.
ONE_SHOT_BYTES = 8 * 1024


def communicate(graph: Graph, rank: int, topology: Topology, transport: str) -> Graph:
    """Return the graph with its communication lowered for one rank.

    `transport` is "auto" (memory where ranks share a node, else the host), "peer" or "proxy".
    """
    buffers = list(graph.buffers)
    methods = []
    for method in graph.methods:
        lowering = _Lowering(method.name, buffers, rank, topology, transport)
        for node, message in zip(method.nodes, messages(method, rank, topology.size), strict=True):
            lowering.add(node, message)
        methods.append(GraphMethod(method.name, lowering.finish()))
    return Graph(graph.name, tuple(buffers), tuple(methods))


def at(view: View, box: Box) -> View:
    """The part of a view inside a box."""
    offset = view.offset + sum(
        start * stride for (start, _), stride in zip(box, view.strides, strict=True)
    )
    return replace(view, offset=offset, shape=tuple(stop - start for start, stop in box))


@dataclass(frozen=True, slots=True)
class _Release:
    """A handshake that waits until others have read a view; it comes as late as it can.

    Before the next collective at the latest. What was sent waits for the end of the turn, unless
    send_done asks: its receiver may have to receive something else first.
    """

    key: str
    view: View
    waits: tuple[str, ...]
    is_sent: bool = False


class _Lowering:
    """Builds the nodes of one method; buffers are added to a list that methods share."""

    def __init__(
        self, method: str, buffers: list[Buffer], rank: int, topology: Topology, transport: str
    ) -> None:
        self._method = method
        self._buffers = buffers
        self._rank = rank
        self._topology = topology
        self._transport = transport
        self._nodes: list[Node] = []
        self._names = Names()
        self._releases: list[_Release] = []
        self._stage = 0
        for buffer in buffers:
            self._names.unique(buffer.name)

    def add(self, node: Node, message: Message | None) -> None:
        """Append a node, or what a communication operator becomes."""
        if message is None:
            written = {view.buffer for view in node.writes}
            self._release([r for r in self._releases if r.view.buffer in written])
            self._append(node)
            return
        self._stage = node.stage
        message = replace(message, key=named_key(message.key, node.op))
        self._release([r for r in self._releases if not r.is_sent])
        if len(message.ranks) > 1 and self._is_proxied(message):
            self._ask(node, message)
        else:
            _LOWERINGS[node.op](self, node, message)

    def finish(self) -> tuple[Node, ...]:
        """All nodes, numbered; what was given to others is theirs no longer at the end."""
        self._release(list(self._releases))
        return tuple(replace(node, id=position) for position, node in enumerate(self._nodes))

    # Pieces that all operators are made of.

    def _append(self, node: Node) -> None:
        self._nodes.append(node)

    def _compute(
        self, op: str, inputs: Sequence[View], output: View, attrs: dict[str, AttrValue]
    ) -> None:
        name = self._buffers[output.buffer].name
        self._append(Node(0, op, name, tuple(inputs), output, freeze_attrs(attrs), (), self._stage))

    def _copy(self, source: View, target: View) -> None:
        if prod(target.shape):
            self._compute("copy", (source,), target, {})

    def _handshake(
        self,
        key: str,
        *,
        waits: Sequence[str] = (),
        raises: Sequence[Raise] = (),
        after: Sequence[View] = (),
        takes: Sequence[View] = (),
        output: View | None = None,
    ) -> None:
        token = output if output is not None else self._token(key)
        self._append(
            Node(
                0,
                "handshake",
                self._buffers[token.buffer].name,
                (),
                token,
                (),
                tuple(after),
                self._stage,
                tuple(takes),
                tuple(waits),
                tuple(raises),
            )
        )

    def _release(self, releases: Sequence[_Release]) -> None:
        for release in releases:
            self._releases.remove(release)
            self._handshake(release.key, waits=release.waits, after=(release.view,))

    def _token(self, key: str) -> View:
        return self._new(f"{key}.token", (1,), "uint8")

    def _new(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        export: str = "",
        peer: int = -1,
    ) -> View:
        kind = "activation" if peer < 0 else "peer"
        buffer = Buffer(
            len(self._buffers),
            self._names.unique(name),
            shape,
            DTYPES[dtype],
            kind,
            self._method,
            export=export,
            peer=peer,
        )
        self._buffers.append(buffer)
        return View(buffer.id, buffer.dtype, 0, shape, row_major_strides(shape))

    def _peer(self, rank: int, export: str, shape: tuple[int, ...], dtype: str) -> View:
        return self._new(f"{export}@{rank}", shape, dtype, export=export, peer=rank)

    def _is_shareable(self, view: View) -> bool:
        """Whether the view's buffer may lie in the symmetric arena, under one name."""
        buffer = self._buffers[view.buffer]
        return (
            buffer.kind in SHAREABLE_KINDS
            and not buffer.export
            and view.offset == 0
            and view.is_contiguous
            and prod(view.shape) == prod(buffer.shape)
        )

    def _share(self, view: View, export: str) -> View:
        buffer = self._buffers[view.buffer]
        self._buffers[buffer.id] = replace(buffer, export=export)
        return view

    def _shared_source(self, view: View, export: str) -> View:
        """The view under a name for peers: where it is, or in a copy."""
        if self._is_shareable(view):
            return self._share(view, export)
        copied = self._new(export, view.shape, view.dtype.name, export=export)
        self._copy(view, copied)
        return copied

    # Transports.

    def _is_proxied(self, message: Message) -> bool:
        nodes = {self._topology.nodes[r] for r in message.ranks}
        if self._transport == "auto":
            return len(nodes) > 1 or len(message.ranks) > MAX_PARTS
        return self._transport == "proxy"

    def _ask(self, node: Node, message: Message) -> None:
        """Let the host move the data; only its result is waited for here."""
        if node.op == "send_done":
            done = next(r for r in self._releases if r.key == message.key)
            self._releases.remove(done)
            self._handshake(message.key, waits=done.waits, after=(done.view,), output=node.output)
            return
        attrs = node.attributes
        peer = next((attrs[n] for n in ("dst", "src", "root") if n in attrs), 0)
        asked: dict[str, AttrValue] = {
            "axis": attrs.get("axis", 0),
            "cuts": attrs.get("cuts", ()),
            "key": message.key,
            "op": node.op,
            "peer": peer,
            "ranks": message.ranks,
            "reduce": attrs.get("reduce", ""),
            "source": attrs.get("source", ()),
            "tag": attrs.get("tag", 0),
            "target": attrs.get("target", ()),
        }
        is_send = node.op == "send"
        token = node.output if is_send else self._token(message.key)
        self._append(
            Node(
                0,
                "request",
                self._buffers[token.buffer].name,
                node.inputs,
                token,
                freeze_attrs(asked),
                (),
                self._stage,
                () if is_send else (node.output,),
                (),
                (Raise(HOST, f"{message.key}.ask"),),
            )
        )
        done_flag = f"{message.key}.done"
        if is_send:
            self._releases.append(_Release(message.key, node.inputs[0], (done_flag,), True))
        else:
            takes = (node.output,)
            self._handshake(message.key, waits=(done_flag,), after=node.inputs, takes=takes)

    # Operators, by memory that ranks share.

    def _pull(
        self,
        message: Message,
        source: View | None,
        peers: dict[int, tuple[int, ...]],
        readers: Sequence[int],
        dtype: str,
        read: Callable[[dict[int, View]], None],
    ) -> None:
        """Let `readers` read `source`; run `read` once the peers' parts, by shape, are there."""
        key, me = message.key, self._rank
        views: dict[int, View] = {}
        if source is not None:
            views[me] = self._shared_source(source, f"{key}.{me}") if readers else source
        if readers:
            ready = [Raise(r, f"{key}.ready.{me}") for r in readers]
            self._handshake(key, raises=ready, after=(views[me],))
        parts = [self._peer(p, f"{key}.{p}", shape, dtype) for p, shape in peers.items()]
        views.update(zip(peers, parts, strict=True))
        if parts:
            self._handshake(key, waits=[f"{key}.ready.{p}" for p in peers], takes=parts)
        read(views)
        if parts:
            taken = [Raise(p, f"{key}.taken.{me}") for p in peers]
            self._handshake(key, raises=taken, takes=parts)
        if readers:
            waits = tuple(f"{key}.taken.{r}" for r in readers)
            self._releases.append(_Release(key, views[me], waits))

    def _others(self, message: Message) -> list[int]:
        return [r for r in message.ranks if r != self._rank]

    def all_reduce(self, node: Node, message: Message) -> None:
        """Read all parts and combine them, or combine a slice for all."""
        (source,), others = node.inputs, self._others(message)
        size_bytes = prod(source.shape) * source.dtype.itemsize
        if not others or not size_bytes:
            self._copy(source, node.output)
        elif size_bytes <= ONE_SHOT_BYTES:
            self._pull(
                message,
                source,
                dict.fromkeys(others, source.shape),
                others,
                source.dtype.name,
                lambda views: self._combine(
                    node, message, [views[r] for r in message.ranks], node.output
                ),
            )
        else:
            self._push(node, message)

    def _combine(self, node: Node, message: Message, parts: Sequence[View], target: View) -> None:
        if not prod(target.shape):
            return
        reduce = str(node.attributes["reduce"])
        is_mean = reduce == "mean"
        attrs: dict[str, AttrValue] = {
            "how": "sum" if is_mean else reduce,
            "scale": 1.0 / len(message.ranks) if is_mean else None,
        }
        self._compute("reduce_parts", parts, target, attrs)

    def _push(self, node: Node, message: Message) -> None:
        """Each rank combines one slice of all parts and writes it into everybody's result."""
        key, me, others = message.key, self._rank, self._others(message)
        dtype = node.output.dtype
        source = _flat(self._shared_source(node.inputs[0], f"{key}.x"))
        is_direct = self._is_shareable(node.output)
        if is_direct:
            target = _flat(self._share(node.output, f"{key}.y"))
        else:
            target = self._new(f"{key}.y", source.shape, dtype.name, export=f"{key}.y")
        count = source.shape[0]
        mine = message.ranks.index(me)
        part = (line_slices(count, len(message.ranks), dtype.itemsize, LINE_BYTES)[mine],)
        inputs = {r: self._peer(r, f"{key}.x", (count,), dtype.name) for r in others}
        outputs = {r: self._peer(r, f"{key}.y", (count,), dtype.name) for r in others}
        ready = [Raise(r, f"{key}.ready.{me}") for r in others]
        self._handshake(key, raises=ready, after=(source,), takes=(target,))
        ends = [*(at(v, part) for v in inputs.values()), *(at(v, part) for v in outputs.values())]
        self._handshake(key, waits=[f"{key}.ready.{r}" for r in others], takes=ends)
        parts = [at(inputs[r] if r != me else source, part) for r in message.ranks]
        self._combine(node, message, parts, at(target, part))
        for view in outputs.values():
            self._copy(at(target, part), at(view, part))
        arrived = [Raise(r, f"{key}.arrived.{me}") for r in others]
        self._handshake(key, raises=arrived, takes=ends)
        waits = [f"{key}.arrived.{r}" for r in others]
        self._handshake(key, waits=waits, after=(source,), takes=(target,))
        if not is_direct:
            self._copy(_shaped(target, node.output.shape), node.output)

    def reduce_scatter(self, node: Node, message: Message) -> None:
        """Read this rank's rows of all parts and combine them."""
        (source,), others = node.inputs, self._others(message)
        axis = _axis(node)
        start, stop = _cuts(node, source.shape[axis])[message.ranks.index(self._rank)]
        box = rows(source.shape, axis, start, stop)
        self._pull(
            message,
            source,
            dict.fromkeys(others, source.shape),
            others,
            source.dtype.name,
            lambda views: self._combine(
                node, message, [at(views[r], box) for r in message.ranks], node.output
            ),
        )

    def all_gather(self, node: Node, message: Message) -> None:
        """Copy everybody's rows to their place."""
        (source,), others = node.inputs, self._others(message)
        axis = _axis(node)
        cuts = _cuts(node, node.output.shape[axis])
        places = dict(zip(message.ranks, cuts, strict=True))
        shapes = {r: resized(source.shape, axis, places[r][1] - places[r][0]) for r in others}

        def read(views: dict[int, View]) -> None:
            for r in message.ranks:
                self._copy(views[r], at(node.output, rows(node.output.shape, axis, *places[r])))

        self._pull(message, source, shapes, others, source.dtype.name, read)

    def broadcast(self, node: Node, message: Message) -> None:
        """Copy what the root has."""
        (source,), others = node.inputs, self._others(message)
        root = int(node.attributes["root"])  # type: ignore[call-overload]  # checked by infer
        is_root = root == self._rank
        peers = {} if is_root else {root: source.shape}
        self._pull(
            message,
            source if is_root else None,
            peers,
            others if is_root else (),
            source.dtype.name,
            lambda views: self._copy(views[root], node.output),
        )

    def all_to_all(self, node: Node, message: Message) -> None:
        """Copy this rank's piece of everybody's rows to their place."""
        (source,), others = node.inputs, self._others(message)
        axis, count = _axis(node), len(message.ranks)
        size = source.shape[axis] // count
        mine = message.ranks.index(self._rank)

        def read(views: dict[int, View]) -> None:
            piece = rows(source.shape, axis, mine * size, (mine + 1) * size)
            for k, r in enumerate(message.ranks):
                place = rows(source.shape, axis, k * size, (k + 1) * size)
                self._copy(at(views[r], piece), at(node.output, place))

        shapes = dict.fromkeys(others, source.shape)
        self._pull(message, source, shapes, others, source.dtype.name, read)

    def redistribute(self, node: Node, message: Message) -> None:
        """Copy each piece of this rank's part from the lowest rank that holds it."""
        (source,) = node.inputs
        dims = len(source.shape)
        held = parts_of(node.attributes["source"], dims, len(message.ranks))
        wanted = parts_of(node.attributes["target"], dims, len(message.ranks))
        mine = message.ranks.index(self._rank)
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
                self._copy(origin, at(node.output, shifted(box, wanted[mine])))

        self._pull(message, source, shapes, readers, source.dtype.name, read)

    def send(self, node: Node, message: Message) -> None:
        """Say that the data is there; the receiver fetches it."""
        (peer,) = self._others(message)
        given, name = node.inputs[0], f"{message.key}.{self._rank}"
        if self._buffers[given.buffer].kind != "activation":
            # What may be written again this turn must not wait for the receiver.
            given = self._new(f"{name}.copy", given.shape, given.dtype.name)
            self._copy(node.inputs[0], given)
        source = self._shared_source(given, name)
        ready = [Raise(peer, f"{message.key}.ready.{self._rank}")]
        self._handshake(message.key, raises=ready, after=(source,), output=node.output)
        waits = (f"{message.key}.taken.{peer}",)
        self._releases.append(_Release(message.key, source, waits, True))

    def send_done(self, node: Node, message: Message) -> None:
        """Wait until the receiver has the data."""
        release = next(r for r in self._releases if r.key == message.key)
        self._releases.remove(release)
        self._handshake(message.key, waits=release.waits, after=(release.view,), output=node.output)

    def recv(self, node: Node, message: Message) -> None:
        """Fetch what the sender says is there."""
        (peer,) = self._others(message)
        self._pull(
            message,
            None,
            {peer: node.output.shape},
            (),
            node.output.dtype.name,
            lambda views: self._copy(views[peer], node.output),
        )

    def barrier(self, node: Node, message: Message) -> None:
        """Go on once everybody has come here."""
        key, me, others = message.key, self._rank, self._others(message)
        here = [Raise(r, f"{key}.here.{me}") for r in others]
        self._handshake(key, raises=here, after=node.inputs)
        waits = [f"{key}.here.{r}" for r in others]
        self._handshake(key, waits=waits, after=node.inputs, output=node.output)


_LOWERINGS: dict[str, Callable[[_Lowering, Node, Message], None]] = {
    "all_reduce": _Lowering.all_reduce,
    "all_gather": _Lowering.all_gather,
    "reduce_scatter": _Lowering.reduce_scatter,
    "broadcast": _Lowering.broadcast,
    "all_to_all": _Lowering.all_to_all,
    "redistribute": _Lowering.redistribute,
    "send": _Lowering.send,
    "send_done": _Lowering.send_done,
    "recv": _Lowering.recv,
    "barrier": _Lowering.barrier,
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
