"""Turn API calls into a Graph; shapes and dtypes are inferred on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ark_dist.core.arguments import (
    attributes_of_send,
    check_count,
    check_result,
    check_shard,
    check_stage,
    default_attributes,
)
from ark_dist.core.data import bits_dtype, check_number, converted, default_dtype
from ark_dist.core.dtype import DType, DTypeLike, as_dtype
from ark_dist.core.graph import WRITABLE_KINDS, Buffer, Graph, GraphMethod, Node, freeze_attrs
from ark_dist.core.groups import check_world
from ark_dist.core.layout import P
from ark_dist.core.names import Names, checked_name
from ark_dist.core.op import AttrValue, Op, find_op, reads_in_place
from ark_dist.core.shape import as_shape, boxes_overlap, broadcast_shapes, row_major_strides
from ark_dist.core.view import Spec, View

DEFAULT_METHOD = "forward"


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A handle on one tensor of a builder: what it views, and what it has to come after."""

    builder: "GraphBuilder"
    view: View
    after: tuple[View, ...] = ()


Operand = Value | int | float | bool


class GraphBuilder:
    """Collects the buffers and nodes of one model; `freeze` makes the Graph.

    Attributes:
        name: the model's name.
        rank, world_size: where it will run, for operators that ranks do together.
    """

    def __init__(self, name: str = "model", *, rank: int = 0, world_size: int = 1) -> None:
        """Start an empty model."""
        self.name = checked_name(name)
        check_world(f"model {name!r}", rank, world_size)
        self.rank, self.world_size = int(rank), int(world_size)
        self._buffers: list[Buffer] = []
        self._methods: dict[str, list[Node]] = {DEFAULT_METHOD: []}
        self._method = DEFAULT_METHOD
        self._stage = 0
        self._names = Names()
        self._constants: dict[tuple[bytes, str], View] = {}
        self._unconsumed: dict[Value, None] = {}
        self._kept: list[int] = []
        self._command_scalars: dict[int, set[str]] = {}

    # Where new nodes go.

    @property
    def method(self) -> str:
        """The method that new operators are added to."""
        return self._method

    def select_method(self, name: str) -> str:
        """Add operators to method `name` from now on; returns the one before."""
        before, self._method = self._method, checked_name(name)
        self._methods.setdefault(self._method, [])
        return before

    def select_stage(self, stage: int) -> int:
        """Give new nodes this pipeline stage from now on; returns the one before."""
        check_stage(stage)
        before, self._stage = self._stage, stage
        return before

    # Leaves.

    def tensor(
        self, shape: object, dtype: DTypeLike, *, name: str | None = None, shard: P | None = None
    ) -> Value:
        """Add an input that the host writes before a run."""
        return self._leaf("input", "tensor", shape, dtype, name, shard, None)

    def parameter(
        self, shape: object, dtype: DTypeLike, *, name: str | None = None, shard: P | None = None
    ) -> Value:
        """Add a weight: read-only in the kernel, loaded by name from a state_dict."""
        return self._leaf("weight", "parameter", shape, dtype, name, shard, None)

    def make_parameter(self, value: Value) -> None:
        """Turn an input that `tensor` made into a weight."""
        self._check_own("parameter", value)
        buffer = self._buffers[value.view.buffer]
        if buffer.kind not in ("input", "weight"):
            raise TypeError(
                f"parameter: {buffer.name!r} is of kind {buffer.kind}, not an input; "
                "make a parameter from model.tensor(...)"
            )
        self._buffers[buffer.id] = replace(buffer, kind="weight")

    def state(
        self,
        shape: object,
        dtype: DTypeLike,
        *,
        name: str | None = None,
        init: object = 0,
        shard: P | None = None,
    ) -> Value:
        """Add memory that lives across iterations, first filled with `init` (broadcast)."""
        dtype = as_dtype(dtype)
        sizes = as_shape(shape)
        array = converted("state", init, dtype)
        if broadcast_shapes("state", array.shape, sizes) != sizes:
            raise ValueError(f"state: init has shape {array.shape}, wanted {sizes}")
        initial = np.broadcast_to(array, sizes)
        data = initial.tobytes() if np.any(initial.view(bits_dtype(dtype)) != 0) else None
        return self._leaf("state", "state", sizes, dtype, name, shard, data)

    def constant(
        self,
        value: object,
        shape: object = None,
        dtype: DTypeLike | None = None,
        *,
        name: str | None = None,
    ) -> Value:
        """Add a constant: a number spread over `shape`, or an array."""
        array = np.asarray(value)
        if dtype is None:
            dtype = (
                array.dtype if isinstance(value, (np.ndarray, np.generic)) else default_dtype(value)
            )
        dtype = as_dtype(dtype)
        sizes = array.shape if shape is None else as_shape(shape)
        if array.ndim and array.shape != sizes:
            raise ValueError(f"constant: the array has shape {array.shape}, wanted {sizes}")
        data = np.ascontiguousarray(converted("constant", value, dtype)).tobytes()
        if array.ndim:
            return self._leaf("constant", "constant", sizes, dtype, name, None, data)
        key = (data, dtype.name)
        if key not in self._constants:
            leaf = self._leaf("constant", "constant", (1,), dtype, name, None, data)
            self._constants[key] = leaf.view
        base = self._constants[key]
        return Value(self, replace(base, shape=sizes, strides=(0,) * len(sizes)))

    def command_scalar(self, value: Value) -> None:
        """Let `run(n, scalars={name: x})` set this one-element state before iteration 0."""
        self._check_own("scalar", value)
        buffer = self._buffers[value.view.buffer]
        if buffer.kind != "state" or value.view.shape not in ((), (1,)):
            raise ValueError(
                f"scalar: {buffer.name!r} is {buffer.kind} of shape {value.view.shape}; "
                "only a state of one element can be set by a command"
            )
        self._command_scalars.setdefault(buffer.id, set())

    # Operators.

    def apply(
        self,
        op_name: str,
        inputs: Sequence[Operand],
        attrs: Mapping[str, AttrValue] | None = None,
        *,
        output: Value | None = None,
        name: str | None = None,
        deps: Sequence[Value] = (),
    ) -> Value:
        """Add one operator and return its result.

        Python numbers among `inputs` become constants of the dtype that the tensors share.
        `output` names a state, or a tensor nobody used yet, to write into; the result also
        comes after all of `deps`.
        Raises ValueError or TypeError with the operator's message; nothing is added then.
        """
        op = find_op(op_name)
        specs = self._check_inputs(op, inputs)
        attrs = {**default_attributes(op), **self._filled(op, inputs), **(attrs or {})}
        spec = op.infer(specs, attrs)
        check_result(op_name, spec)
        if output is not None:
            self._check_output(op_name, spec, output, inputs)
        if name is not None:
            checked_name(name)
        for dep in deps:
            self._check_own(op_name, dep)
        values = [
            item if isinstance(item, Value) else self.constant(item, (), wanted.dtype)
            for item, wanted in zip(inputs, specs, strict=True)
        ]
        extra = (view for v in (*values, *deps) for view in v.after)
        after = tuple(dict.fromkeys((*extra, *(dep.view for dep in deps))))
        if op.view is not None:
            return self._apply_view(op, values, attrs, after, output, name)
        target = self._output_view(op_name, spec, output, name)
        if op.pieces is not None:
            self._add_pieces(op, values, attrs, after, target, name)
        else:
            self._add_node(op, values, attrs, after, target, name)
        for value in values:
            self._unconsumed.pop(value, None)
        result = output if output is not None else Value(self, target)
        if self._buffers[target.buffer].kind == "activation":
            self._unconsumed[result] = None
        return result

    def keep(self, value: Value) -> None:
        """Let the host read this tensor after a run, even though operators use it."""
        self._check_own("keep", value)
        self._kept.append(value.view.buffer)

    def shard(self, value: Value, shard: P) -> None:
        """Say how the mesh cuts a whole tensor, whoever made it; the last word counts."""
        self._check_own("shard", value)
        buffer = self._buffers[value.view.buffer]
        if value.view != whole_view(buffer):
            raise ValueError(
                f"shard: the tensor is only a view of {buffer.name!r}; shard that tensor, or a "
                "copy of the view"
            )
        check_shard("shard", shard, buffer.shape)
        self._buffers[buffer.id] = replace(buffer, shard=shard)

    def is_taken(self, name: str) -> bool:
        """Whether a buffer has this name already; a second one would get a number."""
        return name in self._names

    def buffer(self, value: Value) -> Buffer:
        """The buffer that the tensor views."""
        return self._buffers[value.view.buffer]

    def freeze(self) -> Graph:
        """Return the graph as built so far; building may go on afterwards."""
        outputs = {v.view.buffer for v in self._unconsumed} | set(self._kept)
        buffers = tuple(
            replace(b, kind="output") if b.kind == "activation" and b.id in outputs else b
            for b in self._buffers
        )
        methods = tuple(
            GraphMethod(name, tuple(nodes))
            for name, nodes in self._methods.items()
            if nodes or name != DEFAULT_METHOD or len(self._methods) == 1
        )
        return Graph(self.name, buffers, methods)

    # Internals.

    def _leaf(
        self,
        kind: str,
        prefix: str,
        shape: object,
        dtype: DTypeLike,
        name: str | None,
        shard: P | None,
        initial: bytes | None,
    ) -> Value:
        dtype, sizes = as_dtype(dtype), as_shape(shape)
        if shard is not None:
            check_shard(prefix, shard, sizes)
        buffer = self._add_buffer(kind, prefix, sizes, dtype, name, None, shard, initial)
        return Value(self, whole_view(buffer))

    def _add_buffer(
        self,
        kind: str,
        prefix: str,
        shape: tuple[int, ...],
        dtype: DType,
        name: str | None,
        method: str | None,
        shard: P | None = None,
        initial: bytes | None = None,
    ) -> Buffer:
        unique = self._names.unique(prefix if name is None else checked_name(name))
        buffer = Buffer(
            len(self._buffers), unique, shape, dtype, kind, method, shard=shard, initial=initial
        )
        self._buffers.append(buffer)
        return buffer

    def _check_inputs(self, op: Op, inputs: Sequence[Operand]) -> tuple[Spec, ...]:
        """Shape and dtype of each input; a number has the dtype of the first that shares it."""
        check_count(op, len(inputs))
        tensors = [argument for argument in op.arguments if argument.is_tensor]
        apart = {i for i, argument in enumerate(tensors) if argument.dtype is not None}
        sharing = (v for i, v in enumerate(inputs) if i not in apart)
        first = next((v for v in sharing if isinstance(v, Value)), None)
        number = " or a number" if first is not None else ""
        specs = []
        for position, item in enumerate(inputs):
            if isinstance(item, Value):
                self._check_own(op.name, item)
                specs.append(item.view.spec)
            elif first is not None and isinstance(item, (bool, int, float, np.number, np.bool_)):
                own = tensors[position].dtype if position in apart else None
                dtype = as_dtype(own) if own is not None else first.view.dtype
                check_number(op.name, item, dtype)
                specs.append(Spec((), dtype))
            else:
                raise TypeError(
                    f"{op.name}: input {position} is {type(item).__name__}; "
                    f"wanted a tensor of this model{number}"
                )
        return tuple(specs)

    def _filled(self, op: Op, inputs: Sequence[Operand]) -> dict[str, AttrValue]:
        """The attributes that the caller of an operator does not give."""
        known = {"rank": self.rank, "world": self.world_size}
        attrs: dict[str, AttrValue] = {
            a.name: known[a.name] for a in op.arguments if a.source == "builder"
        }
        if any(a.source == "send" for a in op.arguments):
            (token,) = inputs
            assert isinstance(token, Value), f"{op.name} takes a tensor"
            attrs.update(attributes_of_send(op, self._methods[self._method], token.view))
        return attrs

    def _check_own(self, op_name: str, value: Value) -> None:
        if not isinstance(value, Value):
            raise TypeError(f"{op_name}: {type(value).__name__} is not a tensor")
        buffer = value.builder._buffers[value.view.buffer]
        if value.builder is not self:
            raise ValueError(
                f"{op_name}: tensor {buffer.name!r} belongs to model {value.builder.name!r}, "
                f"not to {self.name!r}; build both with one model"
            )
        if buffer.method not in (None, self._method):
            raise ValueError(
                f"{op_name}: tensor {buffer.name!r} was computed in method {buffer.method!r} "
                f"and is used in {self._method!r}; pass it on through a state"
            )

    def _check_output(
        self, op_name: str, spec: Spec, output: Value, inputs: Sequence[Operand]
    ) -> None:
        self._check_own(op_name, output)
        buffer = self._buffers[output.view.buffer]
        if output.view.spec != spec:
            raise ValueError(
                f"{op_name}: the result is {spec.dtype}{list(spec.shape)}, the output "
                f"{buffer.name!r} is {output.view.dtype}{list(output.view.shape)}; "
                "reshape or cast it first"
            )
        used = any(
            buffer.id in {v.buffer for v in (*node.inputs, node.output, *node.after)}
            for nodes in self._methods.values()
            for node in nodes
        ) or any(isinstance(v, Value) and v.view.buffer == buffer.id for v in inputs)
        if buffer.kind not in WRITABLE_KINDS and (buffer.kind != "input" or used):
            raise ValueError(
                f"{op_name}: output {buffer.name!r} is of kind {buffer.kind} or in use; "
                "write into a state, or into a tensor nobody used yet"
            )
        if any(
            size > 1 and step == 0
            for size, step in zip(output.view.shape, output.view.strides, strict=True)
        ):
            raise ValueError(f"{op_name}: output {buffer.name!r} is a broadcast view; copy it")

    def _output_view(
        self, op_name: str, spec: Spec, output: Value | None, name: str | None
    ) -> View:
        if output is None:
            return whole_view(
                self._add_buffer("activation", op_name, spec.shape, spec.dtype, name, self._method)
            )
        buffer = self._buffers[output.view.buffer]
        if buffer.kind == "input":
            self._buffers[buffer.id] = replace(buffer, kind="output", method=self._method)
        return output.view

    def _add_node(
        self,
        op: Op,
        values: Sequence[Value],
        attrs: Mapping[str, AttrValue],
        after: tuple[View, ...],
        target: View,
        name: str | None,
    ) -> None:
        views = tuple(v.view for v in values)
        self._read_command_scalars((*views, target))
        if self._would_overwrite_inputs(op, views, target):
            # Tiles would read what their neighbours already wrote: go through a copy.
            spare = whole_view(
                self._add_buffer(
                    "activation", op.name, target.shape, target.dtype, name, self._method
                )
            )
            self._append(op.name, views, attrs, after, spare)
            self._append("copy", (spare,), {}, (), target)
        else:
            self._append(op.name, views, attrs, after, target)

    def _add_pieces(
        self,
        op: Op,
        values: Sequence[Value],
        attrs: Mapping[str, AttrValue],
        after: tuple[View, ...],
        target: View,
        name: str | None,
    ) -> None:
        """Copy each input to its place in the result."""
        assert op.pieces is not None
        place = target
        if self._would_overwrite_inputs(op, [v.view for v in values], target):
            # A piece would be read after another one was written over it.
            place = whole_view(
                self._add_buffer(
                    "activation", op.name, target.shape, target.dtype, name, self._method
                )
            )
        copy = find_op("copy")
        pieces = op.pieces(tuple(v.view.spec for v in values), attrs, place)
        for value, piece in zip(values, pieces, strict=True):
            self._add_node(copy, [value], {}, after, piece, name)
        if place is not target:
            self._add_node(copy, [Value(self, place)], {}, (), target, name)

    def _would_overwrite_inputs(self, op: Op, views: Sequence[View], target: View) -> bool:
        shape = self._buffers[target.buffer].shape
        return any(
            view.buffer == target.buffer
            and not (view == target and reads_in_place(op, position))
            and boxes_overlap(view.whole(shape).box, target.whole(shape).box)
            for position, view in enumerate(views)
        )

    def _append(
        self,
        op_name: str,
        views: tuple[View, ...],
        attrs: Mapping[str, AttrValue],
        after: tuple[View, ...],
        target: View,
    ) -> None:
        nodes = self._methods[self._method]
        name = self._buffers[target.buffer].name
        nodes.append(
            Node(len(nodes), op_name, name, views, target, freeze_attrs(attrs), after, self._stage)
        )

    def _read_command_scalars(self, views: tuple[View, ...]) -> None:
        for view in views:
            done = self._command_scalars.get(view.buffer)
            if done is not None and self._method not in done:
                done.add(self._method)
                buffer = self._buffers[view.buffer]
                self._append("command_scalar", (), {"name": buffer.name}, (), whole_view(buffer))

    def _apply_view(
        self,
        op: Op,
        values: Sequence[Value],
        attrs: Mapping[str, AttrValue],
        after: tuple[View, ...],
        output: Value | None,
        name: str | None,
    ) -> Value:
        assert op.view is not None
        source = values[0]
        view = op.view(source.view, attrs)
        if view is None:
            source = self.apply("copy", [source])
            view = op.view(source.view, attrs)
            assert view is not None, f"{op.name} of a contiguous tensor must be a view"
        # The result stands in for its source: reading either reads the same memory.
        result = Value(self, view, after)
        self._unconsumed.pop(source, None)
        self._unconsumed[result] = None
        if output is not None:
            return self.apply("copy", [result], output=output, name=name)
        return result


def whole_view(buffer: Buffer) -> View:
    """The view that covers all of a buffer."""
    return View(buffer.id, buffer.dtype, 0, buffer.shape, row_major_strides(buffer.shape))
