"""Tensors as users hold them: handles on the graph while building, on memory once it runs."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ark_dist.arrays import as_ndarray, cast, check_destination, fit_shape
from ark_dist.core.builder import Value
from ark_dist.core.dtype import DType
from ark_dist.core.errors import LifecycleError
from ark_dist.core.op import Array
from ark_dist.core.shape import Dims
from ark_dist.ops import TensorOps

if TYPE_CHECKING:
    from typing_extensions import CapsuleType  # every type checker brings it

    from ark_dist.binding import Binding
    from ark_dist.model import Model

DLPACK_CPU = (1, 0)


class Tensor(TensorOps):
    """A tensor of a model. Make one with `model.tensor(...)` or by calling an operator.

    Operators are methods and Python operators too: `x.relu()`, `x + y`, `2 - x`, `x @ w`.
    Two tensors are equal only if they are the same object; `x.equal(y)` compares elements.
    """

    # NumPy leaves `array + tensor` to us, which gives a clear error.
    __array_ufunc__ = None

    def __init__(self, model: Model, value: Value) -> None:
        self._model = model
        self._value = value

    @property
    def model(self) -> Model:
        """The model it belongs to."""
        return self._model

    @property
    def value(self) -> Value:
        """The graph's handle behind it."""
        return self._value

    @property
    def shape(self) -> Dims:
        """Sizes per dimension."""
        return Dims(self._value.view.shape)

    @property
    def dtype(self) -> DType:
        """Element type."""
        return self._value.view.dtype

    @property
    def name(self) -> str:
        """The name of the memory it looks at; views share their source's."""
        return self._value.builder.buffer(self._value).name

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._value.view.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self._value.view.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def T(self) -> Tensor:
        """The tensor with its dimensions reversed."""
        return self.transpose()

    def __repr__(self) -> str:
        shape = tuple(self._value.view.shape)
        return f"{type(self).__name__}({self.name!r}, shape={shape}, dtype={self.dtype})"

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} has no truth value while the graph is built; use operators instead of "
            "`if`, or read it with to_numpy() after a run"
        )

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError(f"{self!r} has no dimensions, so it has no length")
        return self._value.view.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(len(self)):
            yield self[index]

    def __contains__(self, item: object) -> bool:
        raise TypeError(f"`in {self!r}` can't be told while the graph is built; use x.equal(y)")

    def __getitem__(self, key: object) -> Tensor:
        """Take a part as NumPy does: integers, slices, `...` and None; it is never a copy.

        Raises:
            IndexError: for an index out of range, or more indices than dimensions.
            TypeError: for an index of another type, such as an array or a tensor.
            ValueError: for a slice that goes backwards.
        """
        return _item(self, key if isinstance(key, tuple) else (key,))

    def reshape(
        self,
        *shape: int | Sequence[int],
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Give the tensor another shape: `x.reshape(2, -1)` or `x.reshape((2, -1))`.

        Arguments and errors: `ark_dist.reshape`.
        """
        sizes = shape[0] if len(shape) == 1 else shape
        return super().reshape(sizes, output=output, name=name)  # type: ignore[arg-type]  # checked there

    def view(
        self,
        *shape: int | Sequence[int],
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Look at the tensor in another shape: `x.view(2, -1)` or `x.view((2, -1))`.

        Arguments and errors: `ark_dist.view`.
        """
        sizes = shape[0] if len(shape) == 1 else shape
        return super().view(sizes, output=output, name=name)  # type: ignore[arg-type]  # checked there

    def from_numpy(self, array: npt.NDArray[np.generic]) -> Tensor:
        """Write an array into the tensor's memory and return the tensor.

        Numbers are converted to the tensor's dtype. Dimensions of size 1 may be added or left
        out, and a flat array stands for any shape with as many elements.

        Raises:
            TypeError: for something that is no array of numbers.
            ValueError: for another shape, or a tensor that the model computes.
            LifecycleError: before the program has memory, and while it runs.
        """
        binding = self._bound("from_numpy")
        source = as_ndarray("from_numpy", array)
        source = fit_shape("from_numpy", self.name, source, self._value.view.shape)
        binding.write("from_numpy", self, cast("from_numpy", self.name, source, self.dtype))
        return self

    def to_numpy(
        self, out: npt.NDArray[np.generic] | None = None, local: bool = False
    ) -> npt.NDArray[np.generic]:
        """Return a copy of the tensor's memory, or fill `out` and return it.

        Args:
            out: a writable C-contiguous array of the tensor's dtype to fill.
            local: this rank's part instead of the global value; one rank holds all of it.

        Raises:
            TypeError: for an `out` that is no array, or of another dtype.
            ValueError: for an `out` that does not fit, or a tensor that no run leaves behind.
            LifecycleError: before the program has memory, and while it runs.
        """
        return self._read("to_numpy", out, is_local=local)

    def _read(self, call: str, out: object, *, is_local: bool = False) -> Array:
        value = self._bound(call).read(call, self, is_local=is_local)
        if out is None:
            return value
        destination = as_ndarray(call, out)
        shaped = check_destination(call, self.name, destination, value.shape, self.dtype)
        shaped[...] = value
        return destination

    def _bound(self, call: str) -> Binding:
        binding = self._model.binding
        if binding is None:
            raise LifecycleError(
                f"{call}: model {self._model.name!r} has no memory yet; call launch() of a "
                "Runtime, or compile() of an Executor, first"
            )
        return binding

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[np.generic]:
        if copy is False:
            raise ValueError("a tensor's memory is only given as a copy; pass copy=None")
        value = self._read("__array__", None)
        return value if dtype is None else value.astype(dtype)

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType:
        if copy is False or dl_device not in (None, DLPACK_CPU) or stream is not None:
            raise BufferError("a tensor's memory is only given as a copy on the CPU")
        value: npt.NDArray[Any] = self._read("__dlpack__", None)
        try:
            return value.__dlpack__()
        except (TypeError, RuntimeError, BufferError) as error:
            raise BufferError(f"DLPack can't carry {self.dtype}: {error}; use to_numpy()") from None

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CPU


class Parameter(Tensor):
    """A weight: read-only in the kernel, loaded by name; a Module collects its parameters.

    Args:
        tensor: a whole tensor that `tensor(...)` made and no operator computed.
    """

    def __init__(self, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"Parameter: found a {type(tensor).__name__}, wanted a tensor; "
                "write ark.Parameter(ark.tensor(shape, dtype))"
            )
        builder = tensor.value.builder
        if builder.buffer(tensor.value).shape != tensor.value.view.shape:
            raise TypeError(
                f"Parameter: {tensor!r} is only a part of its memory; make a parameter first, "
                "then take parts of it"
            )
        builder.make_parameter(tensor.value)
        super().__init__(tensor.model, tensor.value)


Operand = Tensor | int | float | bool


def _item(tensor: Tensor, key: tuple[object, ...]) -> Tensor:
    shape: list[int] = []
    ranges: list[range] = []
    for part in _expand(tensor, key):
        if part is None:
            shape.append(1)
            continue
        ranges.append(_range(tensor, part, tensor.shape[len(ranges)]))
        if isinstance(part, slice):
            shape.append(len(ranges[-1]))
    if [len(indices) for indices in ranges] != list(tensor.shape):
        starts, stops, steps = zip(*((r.start, r.stop, r.step) for r in ranges), strict=True)
        tensor = tensor.slice(starts, stops, steps)
    return tensor if tuple(shape) == tensor.shape else tensor.view(shape)


def _expand(tensor: Tensor, key: tuple[object, ...]) -> list[object]:
    """Put whole slices where `...` stands, or at the end."""
    used = sum(part is not None and part is not Ellipsis for part in key)
    dots = [i for i, part in enumerate(key) if part is Ellipsis]
    if used > tensor.ndim or len(dots) > 1:
        raise IndexError(f"{tensor!r} can't be indexed with {len(key)} items")
    rest = [slice(None)] * (tensor.ndim - used)
    if not dots:
        return [*key, *rest]
    return [*key[: dots[0]], *rest, *key[dots[0] + 1 :]]


def _range(tensor: Tensor, part: object, size: int) -> range:
    """The indices that an item of a key takes of a dimension."""
    if isinstance(part, slice):
        start, stop, step = _bounds(tensor, part, size)
        if step < 1:
            raise ValueError(f"{tensor!r} can't be sliced with step {step}; steps are 1 or more")
        return range(start, max(start, stop), step)
    try:
        index = operator.index(part)  # type: ignore[arg-type]  # raises TypeError itself
    except TypeError:
        index = None
    if index is None or isinstance(part, (bool, np.bool_)):
        raise TypeError(
            f"{tensor!r} can't be indexed with a {type(part).__name__}; use integers, slices, "
            "`...` and None; embedding(index, table) and gather look elements up"
        )
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of range for a dimension of size {size}")
    return range(index % size, index % size + 1)


def _bounds(tensor: Tensor, part: slice, size: int) -> tuple[int, int, int]:
    try:
        return part.indices(size)
    except TypeError:
        raise TypeError(f"{tensor!r} can't be sliced with {part}; its ends are integers") from None
