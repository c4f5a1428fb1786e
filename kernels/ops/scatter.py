"""Write a tensor into a part of another one that is known at run time."""

from math import prod

import numpy as np

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, Shape, full_box, normalize_axis
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import (
    LINE_ELEMENTS,
    check_dtypes,
    cut_letters,
    per_row_term,
    share,
    spread,
    tiles_worth,
)

SUMMARY = """Write `source` over elements `position` to `position` + T of dimension `axis`.

T is the size of `source` along `axis`; its other sizes are those of `input`. `position` is int32 of
shape () or (1,), or of shape (B,) with one position for each index of dimension 0. Where the part
does not lie inside, nothing is written, and the run ends with a TaskError.

A state is written in place, and the result is the state as it is afterwards: this appends to a
cache. Of any other tensor the result is a copy."""
FAILURE = "position {value} is outside 0 to {limit}"


def _axis(shape: Shape, attrs: Attrs) -> int:
    return normalize_axis("scatter", attrs["axis"], len(shape))


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    target, source, position = specs
    check_dtypes("scatter", ALL_DTYPES, (target, source))
    axis = _axis(target.shape, attrs)
    if (
        len(source.shape) != len(target.shape)
        or _without(source.shape, axis) != _without(target.shape, axis)
        or source.shape[axis] > target.shape[axis]
    ):
        raise ValueError(
            f"scatter: source is {source.shape}, input is {target.shape}; all sizes but that of "
            f"dimension {axis} must be equal, and that one no larger"
        )
    if position.dtype.name != "int32":
        raise TypeError(f"scatter: the position is {position.dtype}; it must be int32")
    if position.shape not in ((), (1,)) and (axis == 0 or position.shape != target.shape[:1]):
        rows = f", or ({target.shape[0]},), one for each index of dimension 0" if axis else ""
        raise ValueError(f"scatter: the position is {position.shape}; it must be () or (1,){rows}")
    return target


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    _, source, position = specs
    axis = _axis(out.shape, attrs)
    if box[axis] != (0, out.shape[axis]):
        raise ValueError(f"scatter: tile {box} of {out.shape} cuts dimension {axis}")
    part = (*box[:axis], (0, source.shape[axis]), *box[axis + 1 :])
    is_one = position.shape in ((), (1,))
    return box, part, full_box(position.shape) if is_one else (box[0],)


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    target, source, position = tiles
    axis = _axis(target.shape, attrs)
    count = source.shape[axis]
    limit = target.shape[axis] - count
    starts = position.reshape(-1).astype(np.int64)
    outside = starts[(starts < 0) | (starts > limit)]
    if outside.size:
        raise IndexError(FAILURE.format(value=int(outside[0]), limit=limit))
    result: Array = target.copy()
    for b, start in enumerate(starts.tolist()):
        row = slice(None) if len(starts) == 1 else slice(b, b + 1)
        inside = [row, *[slice(None)] * (target.ndim - 1)]
        inside[axis] = slice(start, start + count)
        result[tuple(inside)] = source[row]
    return result


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    # In place, which is what it is for: the rest of the state is not touched.
    count = prod(specs[1].shape)
    return Cost(share(2 * count * out.dtype.itemsize, box, out), share(count, box, out))


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    axis = _axis(out.shape, attrs)
    parts = tiles_worth(_cost(specs, out, attrs, full_box(out.shape)), target)
    units = [1] * (len(out.shape) - 1) + [LINE_ELEMENTS]
    units[axis] = max(out.shape[axis], 1)
    return spread(out.shape, parts, tuple(units))


def _sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
    target, position = specs[0], specs[2]
    axis = _axis(target.shape, attrs)
    rows = cut_letters(len(target.shape))
    whole, part = (f"{rows[:axis]}{letter}{rows[axis + 1 :]}" for letter in "ST")
    return f"{whole},{part},{per_row_term(position, 'a')}->{whole}"


register(
    Op(
        name="scatter",
        summary=SUMMARY,
        arguments=(
            Argument("input", "Tensor", "the state or tensor to write into", None),
            Argument("source", "Tensor", "what to write", None),
            Argument(
                "position", "Operand", "int32, the first index to write to", None, dtype="int32"
            ),
            Argument("axis", "int", "the dimension; negative counts from the end", None),
        ),
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding=_sharding,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("tile", "ark_scatter", params=("axis",), is_in_place=True, failure=FAILURE),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
