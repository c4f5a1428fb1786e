"""Shapes and boxes: tuples of sizes, and of [start, stop) intervals."""

import operator
from collections.abc import Iterable
from math import prod

MAX_DIMS = 8
# Offsets are 64-bit in generated code; the margin keeps byte sizes in range too.
MAX_ELEMENTS = 2**48

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]


class Dims(tuple[int, ...]):
    """A shape, ARK style: `Dims(32)`, `Dims(32,)`, `Dims(2, 3)` or `Dims([2, 3])`."""

    def __new__(cls, *sizes: int | Iterable[int]) -> "Dims":
        """Check and store the sizes; raises as `as_shape` does."""
        return super().__new__(cls, as_shape(sizes[0] if len(sizes) == 1 else sizes))

    def __repr__(self) -> str:
        return f"Dims({', '.join(map(str, self))})"


def as_shape(sizes: object) -> Shape:
    """Return `sizes` (an int or a sequence of ints) as a checked shape.

    Raises TypeError for sizes that are not integers, and ValueError for negative
    sizes, more than 8 dimensions, or more than 2**48 elements.
    """
    try:
        shape = _as_integers(sizes)
    except TypeError:
        raise TypeError(
            f"shape is {sizes!r}; it must be an integer or a sequence of integers"
        ) from None
    if any(size < 0 for size in shape):
        raise ValueError(f"shape is {shape}; sizes must be 0 or more")
    if len(shape) > MAX_DIMS:
        raise ValueError(f"shape {shape} has {len(shape)} dimensions; at most {MAX_DIMS} work")
    if prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise ValueError(f"shape {shape} has more than 2**48 elements; cut the tensor")
    return shape


def _as_integers(sizes: object) -> Shape:
    if isinstance(sizes, Iterable) and not isinstance(sizes, (str, bytes)):
        return tuple(operator.index(size) for size in sizes)
    return (operator.index(sizes),)  # type: ignore[arg-type]  # raises TypeError itself


def row_major_strides(shape: Shape) -> Shape:
    """Strides in elements of a contiguous tensor, last dimension fastest."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def broadcast_shapes(name: str, *shapes: Shape) -> Shape:
    """Return the NumPy broadcast of the shapes; ValueError names the operator."""
    ndim = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (ndim - len(s)) + tuple(s) for s in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        wide = {s for s in sizes if s != 1}
        if len(wide) > 1:
            listed = " and ".join(map(str, shapes))
            raise ValueError(
                f"{name}: shapes {listed} do not broadcast; sizes must be equal or 1, "
                "counted from the last dimension"
            )
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def normalize_axis(name: str, axis: object, ndim: int) -> int:
    """Return `axis` counted from 0; negative axes count from the end."""
    try:
        index = operator.index(axis)  # type: ignore[arg-type]  # checked here
    except TypeError:
        raise TypeError(f"{name}: axis is {axis!r}; it must be an integer") from None
    if not -ndim <= index < ndim:
        raise ValueError(
            f"{name}: axis {index} is out of range for {ndim} dimensions; use {-ndim} to {ndim - 1}"
        )
    return index % ndim


def full_box(shape: Shape) -> Box:
    """The box that covers a whole shape."""
    return tuple((0, size) for size in shape)


def box_shape(box: Box) -> Shape:
    """The sizes of a box."""
    return tuple(stop - start for start, stop in box)


def box_size(box: Box) -> int:
    """The number of elements in a box."""
    return prod(stop - start for start, stop in box)


def boxes_overlap(a: Box, b: Box) -> bool:
    """Whether two boxes of one tensor share an element."""
    return all(max(s, t) < min(e, f) for (s, e), (t, f) in zip(a, b, strict=True))
