"""Turn one task into a call: which loop nest, over which extents and strides, on which operands."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ark_dist.core.graph import Buffer, Node, frame_of
from ark_dist.core.op import OPS
from ark_dist.core.packing import packed_view
from ark_dist.core.shape import Box, Shape, box_shape
from ark_dist.core.task import Group
from ark_dist.core.view import View
from ark_dist.kernels.rows import axes_of

# Frames of the operators that a group is built around; all else is elementwise.
ANCHORS = ("matmul", "row", "reduce", "gather", "control", "tile")


@dataclass(frozen=True, slots=True)
class Operand:
    """A view as the loops of a group see it.

    Attributes:
        view: the tensor; its offset is where the loops of the whole output start.
        strides: elements per step of each output dimension.
        is_output: whether it is what the group writes.
    """

    view: View
    strides: Shape
    is_output: bool


@dataclass(frozen=True, slots=True)
class Lowered:
    """A group ready for code: the nodes by role and its operands in order.

    Attributes:
        anchor: the node that decides the loop nest, or None for an elementwise chain.
        prologue: the norm that a matmul applies to its rows, or None.
        chain: the elementwise nodes, in order.
        operands: the anchor's inputs first, then the rest of the prologue's, then the chain's,
            the output last.
        read_only: ids of buffers that the kernel never writes: weights and constants.
        packed: ids of buffers that are stored in panels; views of them count stored elements.
        chain_start: which operand is the first of the chain's.
        output: what the group writes.
    """

    anchor: Node | None
    prologue: Node | None
    chain: tuple[Node, ...]
    operands: tuple[Operand, ...]
    read_only: frozenset[int]
    packed: frozenset[int]
    chain_start: int
    output: View


def lower(group: Group, nodes: Sequence[Node], buffers: Sequence[Buffer]) -> Lowered:
    """Sort the nodes of a group by role and collect its operands."""
    members = [_in_storage(nodes[n], buffers) for n in group.nodes]
    anchors = [n for n in members if frame_of(n) in ANCHORS]
    anchor = next((n for n in anchors if frame_of(n) == "matmul"), anchors[0] if anchors else None)
    prologue = next((n for n in anchors if n is not anchor), None)
    chain = tuple(n for n in members if frame_of(n) == "map")
    output = members[-1].output
    made = {node.output for node in members[:-1]}
    operands: list[Operand] = []
    if anchor is not None:
        operands += _anchor_operands(anchor, prologue)
    chain_start = len(operands)
    for node in chain:
        for view in node.inputs:
            operand = Operand(view, spread_strides(view, output.shape), False)
            if view not in made and operand not in operands[chain_start:]:
                operands.append(operand)
    operands.append(Operand(output, output.strides, True))
    used = {operand.view.buffer for operand in operands}
    read_only = frozenset(b for b in used if buffers[b].kind in ("weight", "constant"))
    packed = frozenset(b for b in used if buffers[b].packing)
    return Lowered(anchor, prologue, chain, tuple(operands), read_only, packed, chain_start, output)


def _in_storage(node: Node, buffers: Sequence[Buffer]) -> Node:
    """A node whose views of packed buffers count elements as they are stored."""
    if not any(buffers[view.buffer].packing for view in node.inputs):
        return node
    return replace(node, inputs=tuple(_stored(view, buffers[view.buffer]) for view in node.inputs))


def _stored(view: View, buffer: Buffer) -> View:
    if not buffer.packing:
        return view
    stored = packed_view(buffer.packing, buffer.shape, view)
    assert stored is not None, f"{view} of {buffer.name!r} can't be read in {buffer.packing}"
    return stored


def _anchor_operands(anchor: Node, prologue: Node | None) -> list[Operand]:
    """Strides of the anchor's inputs over the dimensions of its output; 0 where it reads all."""
    inputs = anchor.inputs
    shape = anchor.output.shape
    frame = frame_of(anchor)
    if OPS[anchor.op].effect == "handshake":
        return []
    if frame == "matmul":
        return _matmul_operands(anchor, prologue)
    if frame == "gather":
        index, table = inputs
        return [
            Operand(index, (*index.strides, 0), False),
            Operand(table, (*(0,) * len(index.shape), table.strides[1]), False),
        ]
    if frame == "reduce":
        axes, is_kept = reduced_axes(anchor), len(shape) == len(inputs[0].shape)
        steps = [0 if d in axes else step for d, step in enumerate(inputs[0].strides)]
        kept = (step for d, step in enumerate(steps) if is_kept or d not in axes)
        return [Operand(inputs[0], tuple(kept), False)]
    if frame == "row":
        # Weight and bias of a norm are vectors along the rows.
        before, after = row_axis(anchor), len(shape) - row_axis(anchor) - 1
        along = ((v, (*(0,) * before, *v.strides, *(0,) * after)) for v in inputs[1:])
        vectors = [Operand(view, strides, False) for view, strides in along]
        return [Operand(inputs[0], inputs[0].strides, False), *vectors]
    if frame == "tile":
        # What a tile reads is the operator's own affair: `tile_parts` says where it starts.
        return [Operand(v, (0,) * len(shape), False) for v in inputs]
    return [Operand(v, v.strides, False) for v in inputs]


def _matmul_operands(matmul: Node, norm: Node | None) -> list[Operand]:
    """The two factors, the first as it is before a norm, then the norm's weight and bias."""
    a, b = matmul.inputs
    along: tuple[View, ...] = ()
    if norm is not None:
        a, *vectors = norm.inputs
        along = tuple(vectors)
    shape = matmul.output.shape
    a_rows, _ = matrix_strides(a, matmul.attributes["transpose_input"])
    _, b_columns = matrix_strides(b, matmul.attributes["transpose_other"])
    a_batch, b_batch = (spread_strides(_without_matrix(v), shape[:-2]) for v in (a, b))
    return [
        Operand(a, (*a_batch, a_rows, 0), False),
        Operand(b, (*b_batch, 0, b_columns), False),
        # They lie along the dimension that the matmul contracts.
        *(Operand(view, (0,) * len(shape), False) for view in along),
    ]


def tile_parts(lowered: Lowered, box: Box) -> list[tuple[View, Box]]:
    """For a "tile" operator: each input and the part it reads, then the output and its box."""
    node = lowered.anchor
    assert node is not None
    boxes = OPS[node.op].in_boxes(node.input_specs, node.output.spec, node.attributes, box)
    return [*zip(node.inputs, boxes, strict=True), (node.output, box)]


def row_axis(node: Node) -> int:
    """The dimension of the input that a row operator works along."""
    axis = node.attributes["axis"]
    assert isinstance(axis, int)
    return axis % len(node.inputs[0].shape)


def reduced_axes(node: Node) -> Shape:
    """The dimensions of the input that a reduction folds, in order."""
    return axes_of(node.op, node.attributes["axis"], len(node.inputs[0].shape))


def matrix_strides(view: View, transposed: object) -> tuple[int, int]:
    """Strides along rows and columns of a matrix operand."""
    rows, columns = view.strides[-2:]
    return (columns, rows) if transposed else (rows, columns)


def _without_matrix(view: View) -> View:
    return View(view.buffer, view.dtype, view.offset, view.shape[:-2], view.strides[:-2])


def spread_strides(view: View, shape: Shape) -> Shape:
    """Strides of a view broadcast to a shape."""
    skipped = len(shape) - len(view.shape)
    return (0,) * skipped + tuple(
        0 if size == 1 else stride for size, stride in zip(view.shape, view.strides, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Nest:
    """Loops of one tile: outer extents, each operand's outer strides, the inner dimensions.

    `inner` lists the output dimensions that the frame itself loops over.
    """

    extents: Shape
    strides: tuple[Shape, ...]

    @property
    def params(self) -> list[int]:
        """The integers that `ark_loop` reads, without the frame's own."""
        flat = [len(self.extents), *self.extents]
        for steps in self.strides:
            flat += steps
        return flat


def collapse(extents: Sequence[int], strides: Sequence[Shape]) -> Nest:
    """Drop loops of one step and merge neighbours that every operand walks evenly.

    `strides` has, per loop, one stride per operand.
    """
    kept: list[tuple[int, Shape]] = []
    for extent, steps in zip(extents, strides, strict=True):
        if extent == 1:
            continue
        if kept:
            outer, outer_steps = kept[-1]
            if all(a == b * extent for a, b in zip(outer_steps, steps, strict=True)):
                kept[-1] = (outer * extent, steps)
                continue
        kept.append((extent, steps))
    return Nest(tuple(e for e, _ in kept), tuple(s for _, s in kept))


@dataclass(frozen=True, slots=True)
class MatmulLoops:
    """How a tile of a matmul is walked: matrices outside, then rows that share one B.

    Attributes:
        nest: loops over matrices.
        rows: how many rows each has; those of several matrices together, where they can be.
        steps: each operand's stride from row to row.
    """

    nest: Nest
    rows: int
    steps: Shape


def matmul_loops(lowered: Lowered, box: Box) -> MatmulLoops:
    """Loops over a tile (..., M, N) but for its columns."""
    sizes = box_shape(box)[:-1]
    strides = [tuple(o.strides[d] for o in lowered.operands) for d in range(len(sizes))]
    whole = collapse(sizes, strides)
    if not whole.extents or whole.strides[-1][1] != 0:  # of B
        return MatmulLoops(whole, 1, (0,) * len(lowered.operands))
    outer = Nest(whole.extents[:-1], whole.strides[:-1])
    return MatmulLoops(outer, whole.extents[-1], whole.strides[-1])


def element_offset(operand: Operand, box: Box) -> int:
    """Where a tile of the output starts in an operand, in elements from its buffer's start."""
    starts = (start for start, _ in box)
    return operand.view.offset + sum(a * s for a, s in zip(starts, operand.strides, strict=True))
