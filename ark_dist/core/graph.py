"""The model as data: buffers, views of them, and nodes that compute one view from others."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ark_dist.core.dtype import DType
from ark_dist.core.layout import P
from ark_dist.core.op import OPS, Attrs, AttrValue
from ark_dist.core.packing import packed_shape
from ark_dist.core.shape import Shape
from ark_dist.core.view import Spec, View

# weight, constant: read-only · state: lives across iterations · input, output: the host's
# side · activation: lives within one iteration · peer: memory of another rank.
BUFFER_KINDS = ("weight", "constant", "state", "input", "output", "activation", "peer")
WRITABLE_KINDS = ("state", "output", "activation", "peer")
EFFECT_KINDS = ("state", "output")


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of memory with a shape; contiguous, last dimension fastest unless it is packed.

    Attributes:
        id: its position in `Graph.buffers`.
        name: the user's name, or one made from the operator; unique in the graph.
        shape: sizes per dimension.
        dtype: element type.
        kind: one of `BUFFER_KINDS`.
        method: the method an activation or output belongs to, None for shared ones.
        slots: copies of it that iterations take in turn; 1 unless it is streamed.
        packing: one of `core.packing.PACKINGS`, how a weight is stored; "" is row-major.
        initial: first bytes of a constant or state; None is zeros.
        shard: how the mesh cuts it; None is not said.
        export: the name under which other ranks reach it; "" where none does. Of a "peer"
            buffer, the name it has on the rank that it lies on.
        peer: the rank that a "peer" buffer lies on, else -1.
    """

    id: int
    name: str
    shape: Shape
    dtype: DType
    kind: str
    method: str | None
    slots: int = 1
    packing: str = ""
    initial: bytes | None = None
    shard: P | None = None
    export: str = ""
    peer: int = -1

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots, as they are stored."""
        return prod(self.stored_shape) * self.dtype.itemsize * self.slots

    @property
    def stored_shape(self) -> Shape:
        """Sizes of the row-major array that holds it: those of its packing, or its own."""
        return packed_shape(self.packing, self.shape, self.dtype) if self.packing else self.shape


# The rank of a flag that is for this rank's own host thread.
HOST = -1


@dataclass(frozen=True, slots=True)
class Raise:
    """Tell rank `rank` by its flag `flag` that this turn's work is done; `HOST` is one's own."""

    rank: int
    flag: str


@dataclass(frozen=True, slots=True)
class Node:
    """One application of an operator.

    Attributes:
        id: its position in the method's node list; inputs come from smaller ids.
        op: the operator's name.
        name: the name of the buffer it writes.
        inputs: the views it reads.
        output: the view it writes.
        attrs: the operator's attributes, sorted by name.
        after: views it does not read but has to come after (`identity` with deps).
        stage: the pipeline stage it runs in.
        takes: views that a handshake takes over: for the order of things it writes them.
        waits: this rank's flags that a handshake waits for, each raised once per turn.
        raises: other ranks' flags that it raises when it is done.
    """

    id: int
    op: str
    name: str
    inputs: tuple[View, ...]
    output: View
    attrs: tuple[tuple[str, AttrValue], ...]
    after: tuple[View, ...] = ()
    stage: int = 0
    takes: tuple[View, ...] = ()
    waits: tuple[str, ...] = ()
    raises: tuple[Raise, ...] = ()

    @property
    def writes(self) -> tuple[View, ...]:
        """All that it writes or takes over."""
        return (self.output, *self.takes)

    @property
    def attributes(self) -> Attrs:
        """The attributes as a mapping."""
        return dict(self.attrs)

    @property
    def input_specs(self) -> tuple[Spec, ...]:
        """Shape and dtype of each input."""
        return tuple(view.spec for view in self.inputs)


def frame_of(node: Node) -> str:
    """The loop nest that the node's operator needs; views have no node."""
    kernel = OPS[node.op].kernel
    assert kernel is not None, f"{node.op} is a view and has no node"
    return kernel.frame


def freeze_attrs(attrs: Mapping[str, AttrValue]) -> tuple[tuple[str, AttrValue], ...]:
    """Attributes in the form nodes keep them: pairs sorted by name."""
    return tuple(sorted(attrs.items()))


@dataclass(frozen=True, slots=True)
class GraphMethod:
    """One entry point of a graph: nodes in the order they were built."""

    name: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """One model: methods that share weights, constants, inputs and state."""

    name: str
    buffers: tuple[Buffer, ...]
    methods: tuple[GraphMethod, ...]

    def __str__(self) -> str:
        lines = [f"graph {quoted(self.name)}"]
        lines += [f"  {describe_buffer(b)}" for b in self.buffers]
        for method in self.methods:
            lines.append(f"method {method.name}")
            lines += [f"  {describe_node(n, self.buffers)}" for n in method.nodes]
        return "\n".join(lines)


def quoted(name: str) -> str:
    """A user's name as ASCII on one line, however strange it is."""
    return json.dumps(name)


def _attr_text(value: AttrValue) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def describe_buffer(buffer: Buffer) -> str:
    """One line: name, dtype, shape, kind."""
    return f"%{buffer.id} {quoted(buffer.name)}: {buffer.dtype}{list(buffer.shape)} {buffer.kind}"


def describe_view(view: View, buffers: tuple[Buffer, ...]) -> str:
    """A view as `%buffer` or, where it is not the whole buffer, with its geometry."""
    buffer = buffers[view.buffer]
    if view.offset == 0 and view.shape == buffer.shape and view.is_contiguous:
        return f"%{view.buffer}"
    return f"%{view.buffer}+{view.offset}{list(view.shape)}/{list(view.strides)}"


def describe_node(node: Node, buffers: tuple[Buffer, ...]) -> str:
    """One line: `name: output = op(inputs) {attrs}`."""
    inputs = ", ".join(describe_view(v, buffers) for v in node.inputs)
    attrs = ", ".join(f"{k}={_attr_text(v)}" for k, v in node.attrs)
    text = f"{quoted(node.name)}: {describe_view(node.output, buffers)} = {node.op}({inputs})"
    if attrs:
        text += f" {{{attrs}}}"
    if node.after:
        text += " after " + ", ".join(describe_view(v, buffers) for v in node.after)
    return text
