"""Build what messages between ranks become: handshakes, copies, and views of peers' memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from ark_dist.core.dtype import DTYPES
from ark_dist.core.graph import EFFECT_KINDS, HOST, Buffer, GraphMethod, Node, Raise, freeze_attrs
from ark_dist.core.message import Message
from ark_dist.core.names import Names
from ark_dist.core.op import OPS, AttrValue
from ark_dist.core.shape import row_major_strides
from ark_dist.core.view import View

# Kinds of buffers that may lie where other ranks reach them.
SHAREABLE_KINDS = ("activation", "output", "state", "input")


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


class Lowering:
    """Builds the nodes of one method; buffers are added to a list that methods share."""

    def __init__(self, method: GraphMethod, buffers: list[Buffer], rank: int) -> None:
        """Start a method of one rank."""
        self.rank = rank
        self._method = method.name
        self._buffers = buffers
        self._nodes: list[Node] = []
        self._names = Names()
        self._releases: list[_Release] = []
        self._stage = 0
        # What a communication operator comes after, and its position.
        self._after: tuple[View, ...] = ()
        self._position = -1
        self._last_write = {view.buffer: node.id for node in method.nodes for view in node.writes}
        self._may_end = any(OPS[node.op].effect == "stop" for node in method.nodes)
        for buffer in buffers:
            self._names.unique(buffer.name)

    def keep(self, node: Node) -> None:
        """Append a node that is no communication, after those that still read what it writes."""
        self._after = ()
        written = {view.buffer for view in node.writes}
        self._release([r for r in self._releases if r.view.buffer in written])
        self.append(node)

    def start(self, node: Node) -> None:
        """Begin what a communication operator becomes."""
        self._after = ()
        self._stage = node.stage
        self._release([r for r in self._releases if not r.is_sent])
        self._after, self._position = node.after, node.id

    def finish(self) -> tuple[Node, ...]:
        """All nodes, numbered; what was given to others is theirs no longer at the end."""
        self._after = ()
        self._release(list(self._releases))
        return tuple(replace(node, id=position) for position, node in enumerate(self._nodes))

    # Nodes.

    def append(self, node: Node) -> None:
        """Add a node, after all that the operator it is made for comes after."""
        after = dict.fromkeys((*node.after, *self._after))
        self._nodes.append(replace(node, after=tuple(view for view in after if prod(view.shape))))

    def compute(
        self, op: str, inputs: Sequence[View], output: View, attrs: dict[str, AttrValue]
    ) -> None:
        """Add an ordinary operator."""
        name = self._buffers[output.buffer].name
        self.append(Node(0, op, name, tuple(inputs), output, freeze_attrs(attrs), (), self._stage))

    def copy(self, source: View, target: View) -> None:
        """Copy a view."""
        self.compute("copy", (source,), target, {})

    def handshake(
        self,
        key: str,
        *,
        waits: Sequence[str] = (),
        raises: Sequence[Raise] = (),
        after: Sequence[View] = (),
        takes: Sequence[View] = (),
        output: View | None = None,
    ) -> None:
        """Wait for flags, take views over, raise flags."""
        token = output if output is not None else self._token(key)
        self.append(
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

    def release_later(
        self, key: str, view: View, waits: Sequence[str], *, is_sent: bool = False
    ) -> None:
        """Wait for these flags before the view's memory is used for something else."""
        self._releases.append(_Release(key, view, tuple(waits), is_sent))

    def release_now(self, key: str, output: View) -> None:
        """Wait for what was put off under a message's name."""
        release = next(r for r in self._releases if r.key == key)
        self._releases.remove(release)
        self.handshake(key, waits=release.waits, after=(release.view,), output=output)

    def _release(self, releases: Sequence[_Release]) -> None:
        for release in releases:
            self._releases.remove(release)
            self.handshake(release.key, waits=release.waits, after=(release.view,))

    # Buffers.

    def _token(self, key: str) -> View:
        return self.new(f"{key}.token", (1,), "uint8")

    def new(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        *,
        export: str = "",
        peer: int = -1,
    ) -> View:
        """A buffer of this method, or one of a peer's."""
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

    def peer(self, rank: int, export: str, shape: tuple[int, ...], dtype: str) -> View:
        """What another rank has under a name."""
        return self.new(f"{export}@{rank}", shape, dtype, export=export, peer=rank)

    def is_shareable(self, view: View) -> bool:
        """Whether the view's buffer may lie in the symmetric arena, under one name."""
        buffer = self._buffers[view.buffer]
        return (
            buffer.kind in SHAREABLE_KINDS
            and not buffer.export
            and view.offset == 0
            and view.is_contiguous
            and prod(view.shape) == prod(buffer.shape)
        )

    def share(self, view: View, export: str) -> View:
        """Give the view's buffer a name for peers."""
        buffer = self._buffers[view.buffer]
        self._buffers[buffer.id] = replace(buffer, export=export)
        return view

    def shared_source(self, view: View, export: str) -> View:
        """The view under a name for peers: where it is, or in a copy."""
        if self.is_shareable(view):
            return self.share(view, export)
        copied = self.new(export, view.shape, view.dtype.name, export=export)
        self.copy(view, copied)
        return copied

    def lasting(self, view: View, name: str) -> View:
        """The view, or a copy of it if this turn writes its buffer again.

        Who writes a buffer waits until it is read, which what was sent may be late for.
        """
        if self._last_write.get(view.buffer, -1) < self._position:
            return view
        copied = self.new(f"{name}.copy", view.shape, view.dtype.name)
        self.copy(view, copied)
        return copied

    def is_fillable(self, view: View) -> bool:
        """Whether peers or the host may write into the view.

        They do so in turns past an early end too, where this rank leaves out what can be seen.
        """
        return not (self._may_end and self._buffers[view.buffer].kind in EFFECT_KINDS)

    # Exchanges.

    def ask(self, node: Node, message: Message) -> None:
        """Let the host move the data; only its result is waited for here."""
        key, done = message.key, f"{message.key}.done"
        if node.op == "send_done":
            self.release_now(key, node.output)
        elif node.op == "send":
            (source,) = node.inputs
            source = self.lasting(source, f"{key}.{self.rank}")
            self._request(node, message, (source,), node.output, ())
            self.release_later(key, source, (done,), is_sent=True)
        else:
            is_direct = self.is_fillable(node.output)
            spec = node.output.spec
            target = node.output if is_direct else self.new(key, spec.shape, spec.dtype.name)
            self._request(node, message, node.inputs, self._token(key), (target,))
            self.handshake(key, waits=(done,), after=node.inputs, takes=(target,))
            if not is_direct:
                self.copy(target, node.output)

    def _request(
        self,
        node: Node,
        message: Message,
        inputs: tuple[View, ...],
        token: View,
        takes: tuple[View, ...],
    ) -> None:
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
        name = self._buffers[token.buffer].name
        raises = (Raise(HOST, f"{message.key}.ask"),)
        frozen = freeze_attrs(asked)
        self.append(
            Node(0, "request", name, inputs, token, frozen, (), self._stage, takes, (), raises)
        )

    def pull(
        self,
        message: Message,
        source: View | None,
        peers: dict[int, tuple[int, ...]],
        readers: Sequence[int],
        dtype: str,
        read: Callable[[dict[int, View]], None],
    ) -> None:
        """Let `readers` read `source`; run `read` once the peers' parts, by shape, are there."""
        key, me = message.key, self.rank
        views: dict[int, View] = {}
        if source is not None:
            views[me] = self.shared_source(source, f"{key}.{me}") if readers else source
        if readers:
            ready = [Raise(r, f"{key}.ready.{me}") for r in readers]
            self.handshake(key, raises=ready, after=(views[me],))
        parts = [self.peer(p, f"{key}.{p}", shape, dtype) for p, shape in peers.items()]
        views.update(zip(peers, parts, strict=True))
        if parts:
            self.handshake(key, waits=[f"{key}.ready.{p}" for p in peers], takes=parts)
        read(views)
        if parts:
            taken = [Raise(p, f"{key}.taken.{me}") for p in peers]
            self.handshake(key, raises=taken, takes=parts)
        if readers:
            self.release_later(key, views[me], [f"{key}.taken.{r}" for r in readers])
