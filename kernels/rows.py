"""Records of operators that work along one dimension: softmax, norms and reductions."""

from collections.abc import Callable
from math import inf, prod

import numpy as np

from ark_dist.core.dtype import DType
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, full_box, normalize_axis
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import (
    LINE_ELEMENTS,
    check_dtypes,
    int_attr,
    map_cost,
    moved_bytes,
    parts_worth,
    share,
    spread,
)

# Exponentials and divisions weigh more than one operation each.
ROW_OPS_PER_ELEMENT = 8
AXIS = Argument("axis", "int", "the dimension to work along; negative counts from the end", "-1")
KEEPDIMS = Argument("keepdims", "bool", "keep the dimension with size 1", "True")


def row_axis(name: str, specs: Specs, attrs: Attrs) -> int:
    """The dimension that a row operator works along, counted from 0."""
    if not specs[0].shape:
        raise ValueError(f"{name}: the tensor has no dimensions; reshape it to (1,)")
    return normalize_axis(name, attrs["axis"], len(specs[0].shape))


def row_op(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    reference: Callable[[Array, int, Attrs], Array],
    *,
    params: tuple[str, ...] = (),
    has_prologue: bool = False,
) -> Op:
    """Register an operator that maps each row along `axis` to a row of the same length."""

    def infer(specs: Specs, attrs: Attrs) -> Spec:
        check_dtypes(name, dtypes, specs)
        row_axis(name, specs, attrs)
        for param in params:
            value = attrs[param]
            if not isinstance(value, (int, float)) or not 0 <= value < inf:
                raise ValueError(f"{name}: {param} is {value!r}; it must be a number, 0 or more")
        return specs[0]

    def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
        axis = row_axis(name, specs, attrs)
        return ((*box[:axis], (0, specs[0].shape[axis]), *box[axis + 1 :]),)

    def run(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
        # NaN and infinities are data like any other.
        with np.errstate(all="ignore"):
            return reference(tiles[0], int_attr(attrs, "axis") % tiles[0].ndim, attrs)

    def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
        axis = row_axis(name, specs, attrs)
        units = tuple(size if i == axis else 1 for i, size in enumerate(out.shape))
        whole = row_cost(specs, out, attrs, full_box(out.shape))
        return spread(out.shape, parts_worth(whole, target), units)

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
            sharding=None,
            gradient=None,
            effect="none",
            kernel=Kernel("row", f"ark_{name}", params, has_prologue),
            expand=None,
            parts=None,
            is_public=True,
        )
    )


def row_cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Each row is read and written once, with several operations per element."""
    cost = map_cost(specs, out, attrs, box)
    return Cost(cost.bytes, cost.ops * ROW_OPS_PER_ELEMENT)


def reduction(
    name: str,
    summary: str,
    dtypes: tuple[str, ...],
    reference: Callable[[Array, int], Array],
    *,
    result: DType | None = None,
    keepdims: str = "True",
) -> Op:
    """Register an operator that maps each row along `axis` to one element."""

    def infer(specs: Specs, attrs: Attrs) -> Spec:
        check_dtypes(name, dtypes, specs)
        shape = specs[0].shape
        axis = row_axis(name, specs, attrs)
        others = (*shape[:axis], *shape[axis + 1 :])
        if shape[axis] == 0 and 0 not in others:
            raise ValueError(f"{name}: dimension {axis} of {shape} is empty; nothing to reduce")
        kept = (1,) if attrs["keepdims"] else ()
        return Spec((*shape[:axis], *kept, *shape[axis + 1 :]), result or specs[0].dtype)

    def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
        axis = row_axis(name, specs, attrs)
        rest = box[axis + 1 :] if attrs["keepdims"] else box[axis:]
        return ((*box[:axis], (0, specs[0].shape[axis]), *rest),)

    def run(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
        axis = int_attr(attrs, "axis") % tiles[0].ndim
        with np.errstate(all="ignore"):
            return reference(tiles[0], axis).reshape([b - a for a, b in box])

    def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
        parts = parts_worth(reduce_cost(specs, out, attrs, full_box(out.shape)), target)
        units = (1,) * (len(out.shape) - 1) + (LINE_ELEMENTS,) * min(len(out.shape), 1)
        return spread(out.shape, parts, units) if out.shape else ((),)

    infer.__module__ = __name__
    return register(
        Op(
            name=name,
            summary=summary,
            arguments=(
                Argument("input", "Tensor", "the tensor to reduce", None),
                AXIS if name == "argmax" else Argument("axis", "int", AXIS.doc, None),
                Argument("keepdims", "bool", KEEPDIMS.doc, keepdims),
            ),
            dtypes=dtypes,
            infer=infer,
            view=None,
            in_boxes=in_boxes,
            reference=run,
            tiles=tiles,
            cost=reduce_cost,
            sharding=None,
            gradient=None,
            effect="none",
            kernel=Kernel("reduce", f"ark_{name}"),
            expand=None,
            parts=None,
            is_public=True,
        )
    )


def reduce_cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Every input element is read and takes one operation."""
    return Cost(share(moved_bytes(specs, out), box, out), share(prod(specs[0].shape), box, out))
