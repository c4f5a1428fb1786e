"""Records of operators that work along dimensions: softmax, norms, running sums, reductions."""

from collections.abc import Callable
from math import prod

import numpy as np

from ark_dist.core.dtype import DType
from ark_dist.core.op import Argument, Array, Attrs, AttrValue, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, Shape, full_box, normalize_axis
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import (
    LINE_ELEMENTS,
    check_dtypes,
    cut_letters,
    int_attr,
    is_fp32,
    map_cost,
    moved_bytes,
    share,
    spread,
    tiles_worth,
)

# Exponentials and divisions weigh more than one operation each.
ROW_OPS_PER_ELEMENT = 8
AXIS = Argument("axis", "int", "the dimension to work along; negative counts from the end", "-1")
AXES = Argument(
    "axis",
    "int | Sequence[int] | None",
    "the dimensions to reduce, None for all; negative counts from the end",
    None,
)
WEIGHT = Argument("weight", "Tensor | None", "factors, one per element along `axis`", "None")
BIAS = Argument("bias", "Tensor | None", "summands, one per element along `axis`", "None")
KEEPDIMS = "keep reduced dimensions with size 1"
# Results of argmax are int32.
MOST_INDICES = 2**31 - 1


def row_axis(name: str, specs: Specs, attrs: Attrs) -> int:
    """The dimension that a row operator works along, counted from 0."""
    if not specs[0].shape:
        raise ValueError(f"{name}: the tensor has no dimensions; reshape it to (1,)")
    return normalize_axis(name, attrs["axis"], len(specs[0].shape))


def axes_of(name: str, axis: AttrValue, ndim: int) -> tuple[int, ...]:
    """The dimensions that a reduction folds, counted from 0, in increasing order."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    if given and not ndim:
        raise ValueError(f"{name}: the tensor has no dimensions; reshape it to (1,)")
    axes = [normalize_axis(name, item, ndim) for item in given]
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name}: axis {axis} names a dimension twice; name each once")
    return tuple(sorted(axes))


def row_op(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    reference: Callable[[tuple[Array, ...], int, Attrs], Array],
    kernel: Kernel,
    *,
    can_narrow: bool = False,
) -> Op:
    """Register an operator that maps each row along `axis` to a row of the same length.

    Inputs after the first are vectors along the rows. With `can_narrow` they may be narrower than
    fp32 rows, and so is the result then.
    """

    def infer(specs: Specs, attrs: Attrs) -> Spec:
        is_narrower = can_narrow and len(specs) > 1 and specs[0].dtype.name == "fp32"
        check_dtypes(name, dtypes, specs[1:] if is_narrower else specs)
        axis = row_axis(name, specs, attrs)
        _check_vectors(name, arguments, specs, axis)
        for argument in arguments:
            value = attrs.get(argument.name)
            if argument.annotation == "float" and not _is_size(value):
                raise ValueError(
                    f"{name}: {argument.name} is {value!r}; it must be a number, 0 or more, "
                    "that fp32 can hold"
                )
        return Spec(specs[0].shape, specs[-1].dtype)

    def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
        axis = row_axis(name, specs, attrs)
        row = (0, specs[0].shape[axis])
        return ((*box[:axis], row, *box[axis + 1 :]), *((row,) for _ in specs[1:]))

    def run(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
        ndim = tiles[0].ndim
        axis = int_attr(attrs, "axis") % ndim
        shape = [-1 if d == axis else 1 for d in range(ndim)]
        # NaN and infinities are data like any other.
        with np.errstate(all="ignore"):
            vectors = (vector.reshape(shape) for vector in tiles[1:])
            return reference((tiles[0], *vectors), axis, attrs)

    def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
        axis = row_axis(name, specs, attrs)
        units = tuple(size if i == axis else 1 for i, size in enumerate(out.shape))
        whole = row_cost(specs, out, attrs, full_box(out.shape))
        return spread(out.shape, tiles_worth(whole, target), units)

    def sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
        axis = row_axis(name, specs, attrs)
        rows = cut_letters(len(out.shape), (axis,))
        return ",".join([rows, *rows[axis] * (len(specs) - 1)]) + "->" + rows

    infer.__module__ = __name__
    return register(
        Op(
            name=name,
            summary=summary,
            arguments=arguments,
            dtypes=dtypes,
            infer=infer,
            view=None,
            in_boxes=in_boxes,
            reference=run,
            tiles=tiles,
            cost=row_cost,
            sharding=sharding,
            localize=None,
            gradient=None,
            effect="none",
            kernel=kernel,
            expand=None,
            parts=None,
            pieces=None,
            is_public=True,
        )
    )


def _is_size(value: AttrValue) -> bool:
    return isinstance(value, (int, float)) and value >= 0 and is_fp32(value)


def _check_vectors(name: str, arguments: tuple[Argument, ...], specs: Specs, axis: int) -> None:
    """Raise ValueError unless all inputs after the first are vectors along the rows."""
    wanted = (specs[0].shape[axis],)
    for argument, spec in zip(arguments[1:], specs[1:], strict=False):
        if spec.shape != wanted:
            raise ValueError(
                f"{name}: {argument.name} is {spec.shape}; along dimension {axis} of "
                f"{specs[0].shape} it must be {wanted}"
            )


def row_cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Each row is read and written once, with several operations per element."""
    cost = map_cost(specs, out, attrs, box)
    return Cost(cost.bytes, cost.ops * ROW_OPS_PER_ELEMENT)


def reduction(
    name: str,
    summary: str,
    dtypes: tuple[str, ...],
    reference: Callable[[Array, tuple[int, ...]], Array],
    *,
    combine: str | None,
    of_nothing: bool = False,
    axis: Argument = AXES,
    keepdims: str = "True",
    result: DType | None = None,
) -> Op:
    """Register an operator that maps the elements along the dimensions `axis` to one.

    `combine` says how results of parts of the elements make the whole result: "sum", "max", "min",
    or None if they can't; `of_nothing` whether there is a result for no elements.
    """

    def infer(specs: Specs, attrs: Attrs) -> Spec:
        check_dtypes(name, dtypes, specs)
        shape = specs[0].shape
        axes = axes_of(name, attrs["axis"], len(shape))
        spec = Spec(_reduced(shape, axes, attrs["keepdims"]), result or specs[0].dtype)
        empty = next((d for d in axes if shape[d] == 0), None)
        if empty is not None and not of_nothing and 0 not in spec.shape:
            raise ValueError(f"{name}: dimension {empty} of {shape} is empty; nothing to reduce")
        if result is not None and prod(shape[d] for d in axes) > MOST_INDICES:
            raise ValueError(
                f"{name}: {shape} has more than {MOST_INDICES} elements to choose from; "
                "reduce parts of it"
            )
        return spec

    def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
        shape = specs[0].shape
        axes = axes_of(name, attrs["axis"], len(shape))
        rest = iter(box)
        found: list[tuple[int, int]] = []
        for d, size in enumerate(shape):
            kept = next(rest) if attrs["keepdims"] or d not in axes else None
            found.append((0, size) if d in axes or kept is None else kept)
        return (tuple(found),)

    def run(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
        axes = axes_of(name, attrs["axis"], tiles[0].ndim)
        with np.errstate(all="ignore"):
            return reference(tiles[0], axes).reshape([b - a for a, b in box])

    def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
        parts = tiles_worth(reduce_cost(specs, out, attrs, full_box(out.shape)), target)
        units = (1,) * (len(out.shape) - 1) + (LINE_ELEMENTS,) * min(len(out.shape), 1)
        return spread(out.shape, parts, units) if out.shape else ((),)

    def sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
        ndim = len(specs[0].shape)
        axes = axes_of(name, attrs["axis"], ndim)
        given = cut_letters(ndim, () if combine else axes)
        kept = "Z" if attrs["keepdims"] else ""
        left = "".join(kept if d in axes else c for d, c in enumerate(given))
        return f"{given}->{left}" + (f"@{combine}" if combine else "")

    infer.__module__ = __name__
    return register(
        Op(
            name=name,
            summary=summary,
            arguments=(
                Argument("input", "Tensor", "the tensor to reduce", None),
                axis,
                Argument("keepdims", "bool", KEEPDIMS, keepdims),
            ),
            dtypes=dtypes,
            infer=infer,
            view=None,
            in_boxes=in_boxes,
            reference=run,
            tiles=tiles,
            cost=reduce_cost,
            sharding=sharding,
            localize=None,
            gradient=None,
            effect="none",
            kernel=Kernel("reduce", f"ark_{name}", has_columns=result is None),
            expand=None,
            parts=None,
            pieces=None,
            is_public=True,
        )
    )


def _reduced(shape: Shape, axes: tuple[int, ...], is_kept: AttrValue) -> Shape:
    """The shape without the dimensions `axes`, or with size 1 there."""
    if is_kept:
        return tuple(1 if d in axes else size for d, size in enumerate(shape))
    return tuple(size for d, size in enumerate(shape) if d not in axes)


def reduce_cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Every input element is read and takes one operation."""
    return Cost(share(moved_bytes(specs, out), box, out), share(prod(specs[0].shape), box, out))
