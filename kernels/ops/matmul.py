"""Multiply matrices, with broadcast batch dimensions."""

from math import prod

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, Shape, box_shape, broadcast_shapes, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import (
    INPUT,
    LINE_ELEMENTS,
    broadcast_box,
    check_dtypes,
    cut,
    parts_worth,
    spread,
)

SUMMARY = """Multiply matrices: the last two dimensions are (M, K) and (K, N), others broadcast.

Products accumulate in fp32. `is_relu` replaces negative results by zero."""


def sizes(spec: Spec, transposed: object) -> tuple[Shape, int, int]:
    """Batch sizes, rows and columns of a matrix operand."""
    batch, (rows, columns) = spec.shape[:-2], spec.shape[-2:]
    return (batch, columns, rows) if transposed else (batch, rows, columns)


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_dtypes("matmul", FLOATS, specs)
    a, b = specs
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ValueError(
            f"matmul: shapes are {a.shape} and {b.shape}; both need two dimensions, reshape first"
        )
    a_batch, m, k = sizes(a, attrs["transpose_input"])
    b_batch, k2, n = sizes(b, attrs["transpose_other"])
    if k != k2:
        raise ValueError(
            f"matmul: inner sizes differ, a is {a.shape} and b is {b.shape}; transpose one?"
        )
    return Spec((*broadcast_shapes("matmul", a_batch, b_batch), m, n), a.dtype)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    a, b = specs
    inner = (0, sizes(a, attrs["transpose_input"])[2])
    a_tail = (inner, box[-2]) if attrs["transpose_input"] else (box[-2], inner)
    b_tail = (box[-1], inner) if attrs["transpose_other"] else (inner, box[-1])
    return (
        (*broadcast_box(a.shape[:-2], box[:-2]), *a_tail),
        (*broadcast_box(b.shape[:-2], box[:-2]), *b_tail),
    )


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    a, b = tiles
    if attrs["transpose_input"]:
        a = a.swapaxes(-1, -2)
    if attrs["transpose_other"]:
        b = b.swapaxes(-1, -2)
    with np.errstate(all="ignore"):
        product: Array = np.matmul(a, b)
    return np.maximum(product, 0.0) if attrs["is_relu"] else product


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    k = sizes(specs[0], attrs["transpose_input"])[2]
    *batch, m, n = box_shape(box)
    count = prod(batch)
    itemsize = out.dtype.itemsize
    return Cost(count * (m * k + k * n + m * n) * itemsize, 2 * count * m * n * k)


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    parts = parts_worth(_cost(specs, out, attrs, full_box(out.shape)), target)
    *batch, m, n = out.shape
    if prod(batch) >= parts:
        return spread(out.shape, parts, (*(1,) * len(batch), max(m, 1), max(n, 1)))
    outer = spread(tuple(batch), parts, (1,) * len(batch)) if batch else ((),)
    rows, columns = _grid(m, n, -(-parts // max(len(outer), 1)))
    return tuple(
        (*box, row, column)
        for box in outer
        for column in cut(n, columns, LINE_ELEMENTS)
        for row in cut(m, rows, 1)
    )


def _grid(m: int, n: int, parts: int) -> tuple[int, int]:
    # Each task reads m/rows rows of one operand and n/columns columns of the other.
    options = [
        (rows, parts // rows)
        for rows in range(1, parts + 1)
        if parts % rows == 0 and rows <= max(m, 1) and parts // rows <= -(-n // LINE_ELEMENTS)
    ]
    if not options:
        return 1, max(1, min(parts, -(-n // LINE_ELEMENTS)))
    return min(options, key=lambda grid: (m / grid[0] + n / grid[1], grid[0]))


register(
    Op(
        name="matmul",
        summary=SUMMARY,
        arguments=(
            INPUT,
            Argument("other", "Tensor", "the right operand", None),
            Argument("transpose_input", "bool", "swap the last two dimensions of input", "False"),
            Argument("transpose_other", "bool", "swap the last two dimensions of other", "False"),
            Argument("is_relu", "bool", "replace negative results by zero", "False"),
        ),
        dtypes=FLOATS,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding="...mk,...kn->...mn",
        gradient=None,
        effect="none",
        kernel=Kernel("matmul", "ark_matmul"),
        expand=None,
        parts=None,
        is_public=True,
    )
)
