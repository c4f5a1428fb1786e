"""Collect the buffers and nodes of one rank, communication among them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ark_dist.core.dtype import DType
from ark_dist.core.graph import Buffer, Graph, GraphMethod, Node, freeze_attrs
from ark_dist.core.layout import MeshShape, Note
from ark_dist.core.names import Names
from ark_dist.core.op import AttrValue
from ark_dist.core.shape import Box, Shape, box_shape, box_size, row_major_strides
from ark_dist.core.view import View
from ark_dist.scheduler.layouts import narrowed, part
from ark_dist.scheduler.routes import Move, Tensor, gather_cuts, largest_bytes

STAGE_AXIS = "pp"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is in the mesh."""

    mesh: MeshShape
    rank: int

    @property
    def at(self) -> Mapping[str, int]:
        """Its coordinates."""
        return self.mesh.coordinates(self.rank)

    @property
    def stage(self) -> int:
        """The pipeline stage that it computes."""
        return self.at.get(STAGE_AXIS, 0)

    def group(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        """The ranks that differ from this one along some axes only, sorted."""
        own = self.at
        return tuple(
            rank
            for rank in range(self.mesh.world_size)
            if all(own[a] == c for a, c in self.mesh.coordinates(rank).items() if a not in axes)
        )

    def at_stage(self, stage: int) -> int:
        """The rank of another stage with the same other coordinates."""
        return next(
            rank
            for rank in self.group((STAGE_AXIS,))
            if self.mesh.coordinates(rank).get(STAGE_AXIS, 0) == stage
        )


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor of the global graph, or a temporary one with its shape."""

    name: str
    shape: Shape
    dtype: DType

    @property
    def tensor(self) -> Tensor:
        """What costs depend on."""
        return Tensor(self.shape, self.dtype.itemsize)


class RankNodes:
    """What this rank's graph has so far.

    Attributes:
        place: the rank's.
        buffers: all buffers.
        method: the method that nodes are added to.
        stage: the stage that they belong to.
        step: counts what is done, on all ranks alike.
        notes: the communication so far.
    """

    def __init__(self, place: Place) -> None:
        """Start without any."""
        self.place = place
        self.buffers: list[Buffer] = []
        self.method = ""
        self.stage = 0
        self.step = 0
        self.notes: list[Note] = []
        self._names = Names()
        self._methods: dict[str, list[tuple[tuple[int, int, int], Node]]] = {}
        self._constants: dict[tuple[object, ...], int] = {}

    def reserve(self, name: str) -> None:
        """Keep a name for the buffer that has it in the global graph."""
        self._names.unique(name)

    def begin(self, method: str) -> None:
        """Add nodes to this method from now on."""
        self.method, self.step = method, 0
        self._methods[method] = []

    def store(self, buffer: Buffer, box: Box) -> int:
        """Add this rank's part of a buffer; returns its id."""
        initial = buffer.initial
        if initial is not None:
            whole = np.frombuffer(initial, np.uint8).reshape(*buffer.shape, buffer.dtype.itemsize)
            initial = whole[tuple(slice(a, b) for a, b in box)].tobytes()
        local = replace(
            buffer, id=len(self.buffers), shape=box_shape(box), initial=initial, shard=None
        )
        self.buffers.append(local)
        return local.id

    def make(self, base: str, shape: Shape, dtype: DType, method: str | None) -> View:
        """Add an activation, or without a method a constant of zeros; returns all of it."""
        kind = "constant" if method is None else "activation"
        name = self._names.unique(base)
        buffer = Buffer(len(self.buffers), name, shape, dtype, kind, method)
        self.buffers.append(buffer)
        return View(buffer.id, dtype, 0, shape, row_major_strides(shape))

    def temporary(self, base: str, shape: Shape, dtype: DType) -> View:
        """Add an activation of the current method."""
        return self.make(base, shape, dtype, self.method)

    def zeros(self, shape: Shape, dtype: DType) -> View:
        """A constant of zeros; also what stands for an empty part of anything."""
        key = (shape, dtype.name)
        if key not in self._constants:
            self._constants[key] = self.make("zeros", shape, dtype, None).buffer
        return self.all_of(self._constants[key])

    def filled(self, shape: Shape, dtype: DType, reduce: str) -> View:
        """A constant that changes nothing where it is combined."""
        key = (reduce, dtype.name)
        if key not in self._constants:
            made = self.make(f"nothing_{reduce}", (1,), dtype, None)
            value = np.full(1, _neutral(reduce, dtype)).astype(dtype.numpy)
            self.buffers[made.buffer] = replace(
                self.buffers[made.buffer], initial=value.tobytes() if reduce != "sum" else None
            )
            self._constants[key] = made.buffer
        return View(self._constants[key], dtype, 0, shape, (0,) * len(shape))

    def all_of(self, buffer: int) -> View:
        """The view that covers all of one of this rank's buffers."""
        found = self.buffers[buffer]
        return View(buffer, found.dtype, 0, found.shape, row_major_strides(found.shape))

    def add(
        self,
        op: str,
        inputs: tuple[View, ...],
        output: View,
        attrs: Mapping[str, AttrValue],
        *,
        after: tuple[View, ...] = (),
        at: tuple[int, int] | None = None,
    ) -> None:
        """Add a node, at the current step or right after an earlier one."""
        nodes = self._methods[self.method]
        key = (self.step, 0, len(nodes)) if at is None else (at[0], 1, at[1])
        name = self.buffers[output.buffer].name
        node = Node(0, op, name, inputs, output, freeze_attrs(attrs), after, self.stage)
        nodes.append((key, node))

    def copy(self, source: View, target: View) -> None:
        """Add a copy."""
        self.add("copy", (source,), target, {})

    def graph(self, name: str) -> Graph:
        """What there is, nodes in order."""
        methods = []
        for method, keyed in self._methods.items():
            nodes = [node for _, node in sorted(keyed, key=lambda pair: pair[0])]
            numbered = tuple(replace(node, id=number) for number, node in enumerate(nodes))
            methods.append(GraphMethod(method, numbered))
        return Graph(name, tuple(self.buffers), tuple(methods))

    def communicate(self, whole: Whole, move: Move, source: int, into: View | None) -> View:
        """Do one move of a tensor whose part is buffer `source`; returns the result."""
        at = self.place.at
        before, after = (
            part(move.before.cuts, whole.shape, at),
            part(move.after.cuts, whole.shape, at),
        )
        output = into
        if output is None or 0 in output.shape:
            output = self.temporary(f"{whole.name}.{move.op}", box_shape(after), whole.dtype)
        group = self.place.group(move.axes)
        attrs, held = _move_attrs(move, whole.shape, self.place, group)
        if _moves_nothing(move, whole.shape, at):
            return output
        if box_size(held):
            x = narrowed(self.all_of(source), before, held)
        else:
            x = self.zeros(box_shape(held), whole.dtype)
        self.exchange(move.op, (x,), output, {**attrs, "ranks": group})
        return output

    def exchange(
        self,
        op: str,
        inputs: tuple[View, ...],
        output: View,
        attrs: Mapping[str, AttrValue],
        at: tuple[int, int] | None = None,
    ) -> None:
        """Add a communication operator."""
        own = {"rank": self.place.rank, "world": self.place.mesh.world_size}
        self.add(op, inputs, output, {**attrs, **own}, at=at)

    def note(self, node: str, move: Move, whole: Whole, reason: str) -> None:
        """Say what a move is for."""
        group = self.place.group(move.axes)
        size = largest_bytes(whole.tensor, move.after.cuts)
        self.notes.append(Note(node, move.op, group, size, reason))


def _moves_nothing(move: Move, shape: Shape, at: Mapping[str, int]) -> bool:
    """Whether there is no element along the axes that stay as they are."""
    cuts = (None if cut is not None and cut.axis in move.axes else cut for cut in move.before.cuts)
    return box_size(part(tuple(cuts), shape, at)) == 0


def _move_attrs(
    move: Move, shape: Shape, place: Place, group: tuple[int, ...]
) -> tuple[dict[str, AttrValue], Box]:
    """The operator's attributes, and what this rank gives."""
    held = part(move.before.cuts, shape, place.at)
    if move.op == "all_reduce":
        return {"reduce": move.reduce}, held
    if move.op == "redistribute":
        boxes = (
            tuple(part(layout.cuts, shape, place.mesh.coordinates(rank)) for rank in group)
            for layout in (move.before, move.after)
        )
        source, target = (_flat(parts) for parts in boxes)
        return {"source": source, "target": target}, held
    d = move.dim
    cuts = gather_cuts(move, shape[d])
    attrs: dict[str, AttrValue] = {"axis": d, "cuts": cuts}
    if move.op == "reduce_scatter":
        return {**attrs, "reduce": move.reduce}, held
    # Of parts that overlap each gives what no lower rank gives.
    mine = group.index(place.rank)
    return attrs, (*held[:d], (cuts[mine], cuts[mine + 1]), *held[d + 1 :])


def _flat(boxes: tuple[Box, ...]) -> tuple[int, ...]:
    return tuple(edge for box in boxes for interval in box for edge in interval)


def _neutral(reduce: str, dtype: DType) -> float | int | bool:
    """What changes nothing where values are combined."""
    if reduce == "sum" or dtype.kind == "bool":
        return reduce == "min"
    if dtype.is_float:
        return float("inf") if reduce == "min" else float("-inf")
    return dtype.limits[reduce == "min"]
