"""Turn calls into one model's graph: leaves, operators, methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ark_dist.context import rank, world_size
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import BOOL, FP32, INT32, DType, DTypeLike, as_dtype
from ark_dist.core.graph import Graph
from ark_dist.core.layout import P
from ark_dist.core.names import checked_name
from ark_dist.core.op import Array, AttrValue, find_op
from ark_dist.ops import ModelOps
from ark_dist.tensors import Parameter, Tensor

if TYPE_CHECKING:
    from ark_dist.binding import Binding


class Model(ModelOps):
    """A graph of operators under construction; building it touches no device.

    Every operator is a method: `model.add(x, y)`.

    Args:
        name: shown in plans and errors.
    """

    def __init__(self, name: str = "model") -> None:
        self._builder = GraphBuilder(name, rank=rank(), world_size=world_size())
        self._binding: Binding | None = None
        self._labels: dict[int, str] = {}

    @property
    def name(self) -> str:
        """The model's name."""
        return self._builder.name

    @property
    def builder(self) -> GraphBuilder:
        """The graph under construction."""
        return self._builder

    @property
    def binding(self) -> Binding | None:
        """The program that `from_numpy` and `to_numpy` of its tensors use: the latest made."""
        return self._binding

    @property
    def labels(self) -> Mapping[int, str]:
        """What modules call their weights, by buffer."""
        return self._labels

    def __repr__(self) -> str:
        return f"Model({self.name!r})"

    def __str__(self) -> str:
        return str(self._builder.freeze())

    def tensor(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = FP32,
        *,
        name: str | None = None,
        shard: P | None = None,
    ) -> Tensor:
        """Add an input, written by the host before a run.

        Args:
            shape: sizes per dimension: `ark.Dims(2, 3)`, `(2, 3)`, `[2, 3]` or `6`.
            dtype: element type, such as `ark.FP16`.
            name: shown in plans and errors.
            shard: mesh axis that cuts each dimension, for runs on several ranks.

        Raises:
            TypeError: for sizes that are no integers, or an unknown dtype.
            ValueError: for negative sizes, more than 8 dimensions, or 2**48 elements.
        """
        return Tensor(self, self._builder.tensor(shape, dtype, name=name, shard=shard))

    def parameter(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = FP32,
        *,
        name: str | None = None,
        shard: P | None = None,
    ) -> Parameter:
        """Add a weight: read-only in the kernel, written before the first run."""
        return Parameter(self.tensor(shape, dtype, name=name or "parameter", shard=shard))

    def constant(
        self,
        value: object,
        shape: int | Sequence[int] | None = None,
        dtype: DTypeLike | None = None,
        *,
        name: str | None = None,
    ) -> Tensor:
        """Add a constant.

        Args:
            value: a number, spread over `shape`, or an array or nested list of that shape.
            shape: sizes per dimension; those of `value` if left out.
            dtype: element type; if left out an array's own, else bool, int32 or fp32.
            name: shown in plans and errors.

        Raises:
            TypeError: for a value or dtype that is not supported.
            ValueError: for an array of another shape, or integers out of the dtype's range.
        """
        array = np.asarray(value)
        if dtype is None and not isinstance(value, (np.ndarray, np.generic)):
            dtype = {"b": BOOL, "i": INT32, "u": INT32}.get(array.dtype.kind, FP32)
        wanted = as_dtype(array.dtype if dtype is None else dtype)
        checked = _fitting("constant", array, wanted)
        return Tensor(self, self._builder.constant(checked, shape, wanted, name=name))

    def zeros(
        self, shape: int | Sequence[int], dtype: DTypeLike = FP32, *, name: str | None = None
    ) -> Tensor:
        """Add a constant of zeros; it takes the memory of one element."""
        return self.full(shape, 0, dtype, name=name)

    def ones(
        self, shape: int | Sequence[int], dtype: DTypeLike = FP32, *, name: str | None = None
    ) -> Tensor:
        """Add a constant of ones; it takes the memory of one element."""
        return self.full(shape, 1, dtype, name=name)

    def full(
        self,
        shape: int | Sequence[int],
        value: int | float | bool,
        dtype: DTypeLike = FP32,
        *,
        name: str | None = None,
    ) -> Tensor:
        """Add a constant with one value everywhere; it takes the memory of one element.

        Raises:
            TypeError: for a value that is no number, or sizes or a dtype that do not work.
            ValueError: for a value that does not fit the dtype.
        """
        if not isinstance(value, (int, float, np.number, np.bool_)):
            raise TypeError(f"full: value is {value!r}; it must be a number, or use constant")
        return self.constant(value, shape, dtype, name=name)

    def state(
        self,
        shape: int | Sequence[int],
        dtype: DTypeLike = FP32,
        *,
        name: str | None = None,
        init: object = 0,
        shard: P | None = None,
    ) -> Tensor:
        """Add memory that lives across iterations and runs; `assign` writes it.

        Args:
            shape: sizes per dimension.
            dtype: element type.
            name: shown in plans and errors.
            init: first value, broadcast to the shape.
            shard: mesh axis that cuts each dimension, for runs on several ranks.

        Raises:
            TypeError: for sizes, a dtype or a value that is not supported.
            ValueError: for sizes out of range, or a value that does not fit.
        """
        wanted = as_dtype(dtype)
        first = _fitting("state", np.asarray(init), wanted)
        value = self._builder.state(shape, wanted, name=name, init=first, shard=shard)
        return Tensor(self, value)

    def scalar(
        self, name: str, dtype: DTypeLike = INT32, *, init: int | float | bool = 0
    ) -> Tensor:
        """Add a state of one element that `run(scalars={name: value})` can set.

        Raises:
            ValueError: if the name is taken: a command could not tell the two apart.
        """
        if self._builder.is_taken(checked_name(name)):
            raise ValueError(f"scalar: the name {name!r} is taken; choose another")
        tensor = self.state(1, dtype, name=name, init=init)
        self._builder.command_scalar(tensor.value)
        return tensor

    def assign(self, state: Tensor, value: Tensor | int | float | bool) -> Tensor:
        """Write a tensor, or a number everywhere, into a state; returns the state.

        Operators added later read the new value, those added before the old one.

        Raises:
            TypeError: if `state` is no tensor, or dtypes differ.
            ValueError: if shapes differ, or `state` is not writable.
        """
        if not isinstance(state, Tensor):
            raise TypeError(f"assign: found a {type(state).__name__}, wanted a state")
        if not isinstance(value, Tensor):
            value = self.constant(value, state.shape, state.dtype)
        return self.copy(value, output=state)

    @contextmanager
    def method(self, name: str) -> Iterator[None]:
        """Add the operators of this block to the method `name` instead of "forward"."""
        before = self._builder.select_method(name)
        try:
            yield
        finally:
            self._builder.select_method(before)

    @contextmanager
    def stage(self, index: int) -> Iterator[None]:
        """Let the operators of this block run in pipeline stage `index`, counted from 0.

        Raises:
            TypeError: for a stage that is no integer.
            ValueError: for a negative one.
        """
        before = self._builder.select_stage(index)
        try:
            yield
        finally:
            self._builder.select_stage(before)

    def shard(self, tensor: Tensor, shard: P) -> Tensor:
        """Say how the mesh cuts a tensor, whoever computes it; returns the tensor.

        Inputs, weights and states can also be made with `shard=`; the last word counts. What
        operators compute need not be cut by hand: its layout follows from what they read.

        Args:
            tensor: a whole tensor, no view.
            shard: for each dimension the mesh axis that cuts it, or None.

        Raises:
            TypeError: for something else than a tensor and a `P`.
            ValueError: for a view, or a `P` of another number of dimensions.
        """
        if not isinstance(tensor, Tensor):
            raise TypeError(f"shard: found a {type(tensor).__name__}, wanted a tensor")
        self._builder.shard(tensor.value, shard)
        return tensor

    def keep(self, tensor: Tensor) -> Tensor:
        """Let the host read a tensor after a run, though operators use it; returns it."""
        if not isinstance(tensor, Tensor):
            raise TypeError(f"keep: found a {type(tensor).__name__}, wanted a tensor")
        value = tensor.value
        method = value.builder.buffer(value).method
        if value.builder is self._builder and method is not None:
            with self.method(method):
                self._builder.keep(value)
        else:
            self._builder.keep(value)
        return tensor

    def apply_op(
        self,
        op_name: str,
        inputs: Sequence[object],
        attrs: Mapping[str, AttrValue],
        *,
        output: Tensor | None = None,
        name: str | None = None,
        deps: Sequence[Tensor] = (),
    ) -> Tensor:
        """Add an operator by name; the functions in `ark_dist.ops` end here.

        Without `output` one that may write in place does so if its first input is a state.
        """
        if output is None:
            output = self._updated_state(op_name, inputs)
        if output is not None and not isinstance(output, Tensor):
            raise TypeError(f"{op_name}: output is {output!r}; it must be a tensor")
        if isinstance(deps, Tensor):
            raise TypeError(f"{op_name}: deps is a tensor; it must be a sequence, such as [x]")
        try:
            deps = tuple(deps)
        except TypeError:
            raise TypeError(
                f"{op_name}: deps is {deps!r}; it must be a sequence of tensors, such as [x]"
            ) from None
        for dep in deps:
            if not isinstance(dep, Tensor):
                raise TypeError(f"{op_name}: found {dep!r} among deps; wanted tensors")
        values = [item.value if isinstance(item, Tensor) else item for item in inputs]
        value = self._builder.apply(
            op_name,
            values,  # type: ignore[arg-type]  # the builder checks each
            attrs,
            output=None if output is None else output.value,
            name=name,
            deps=[dep.value for dep in deps],
        )
        return Tensor(self, value) if output is None else output

    def _updated_state(self, op_name: str, inputs: Sequence[object]) -> Tensor | None:
        """The state that an operator writes in place, or None."""
        kernel = find_op(op_name).kernel
        if kernel is None or not kernel.is_in_place or not isinstance(inputs[0], Tensor):
            return None
        value = inputs[0].value
        return inputs[0] if value.builder.buffer(value).kind == "state" else None

    def freeze(self, name: str | None = None) -> Graph:
        """Return the graph as built so far, under the model's name or another."""
        graph = self._builder.freeze()
        return graph if name is None else replace(graph, name=checked_name(name))

    def bind(self, binding: Binding) -> None:
        """Let `from_numpy` and `to_numpy` of the tensors use this program from now on."""
        self._binding = binding

    def label(self, value: Value, name: str) -> None:
        """Remember what a module calls a weight, for errors."""
        self._labels[value.view.buffer] = name


def _fitting(call: str, array: Array, dtype: DType) -> Array:
    """Return the numbers as `dtype`; nothing may wrap around or lose its fraction."""
    if array.dtype.kind not in "biuf" and not _is_known(array.dtype):
        raise TypeError(f"{call}: found {array.dtype} values; wanted numbers or bool")
    with np.errstate(all="ignore"):
        result = array.astype(dtype.numpy)
    if not dtype.is_float and not np.array_equal(result, array):
        raise ValueError(f"{call}: a value does not fit {dtype}; use another dtype")
    return result


def _is_known(dtype: np.dtype[np.generic]) -> bool:
    try:
        as_dtype(dtype)
    except TypeError:
        return False
    return True
