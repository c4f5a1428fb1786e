"""Multiply matrices, with broadcast batch dimensions."""

from dataclasses import replace
from functools import partial
from math import prod

import numpy as np

from ark_dist.core.dtype import FLOATS, INT8
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, Step, register
from ark_dist.core.shape import MAX_DIMS, Box, Shape, box_size, broadcast_shapes, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec, View
from ark_dist.kernels.rules import (
    INPUT,
    LINE_ELEMENTS,
    broadcast_box,
    check_dtypes,
    cut,
    float_attr,
    int_attr,
    parts_worth,
    spread,
)

SUMMARY = """Multiply matrices: the last two dimensions are (M, K) and (K, N), others broadcast.

Products accumulate in fp32 and are rounded to `dtype`, that of the left operand if it is left out.
`is_relu` replaces negative results by zero. The right operand may be int8, such as quantized
weights, whatever float the left one is; multiply the result by their scales, in fp32.

`splitk` is a hint: K is cut into the largest number of equal parts that is not above it, their
products are computed side by side in fp32, and then summed in a fixed order. With 1 a GPU may
split by itself where it has more multiprocessors than there are tiles."""
# Shorter parts of K are not worth a task of their own, unless they are asked for.
MIN_PART = 256
# Rows that a GPU multiplies without tensor cores, the bytes of shared memory that they may take as
# fp32, and lines of B that its warps take at least.
GPU_FEW_ROWS, GPU_FEW_BYTES, GPU_LINES = 8, 64 * 1024, 8
# Tiles of a CTA otherwise, the fastest first.
GPU_TILES = ((128, 128), (64, 128), (64, 64), (16, 128))
TURNED = ("transpose_input", "transpose_other")


def sizes(spec: Spec, transposed: object) -> tuple[Shape, int, int]:
    """Batch sizes, rows and columns of a matrix operand."""
    batch, (rows, columns) = spec.shape[:-2], spec.shape[-2:]
    return (batch, columns, rows) if transposed else (batch, rows, columns)


def result_spec(specs: Specs, attrs: Attrs) -> Spec:
    """Shape and dtype of the product; raises ValueError or TypeError."""
    a, b = specs
    check_dtypes("matmul", FLOATS, (a,) if b.dtype is INT8 else specs)
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
    if not isinstance(attrs["splitk"], int) or attrs["splitk"] < 1:
        raise ValueError(f"matmul: splitk is {attrs['splitk']!r}; it must be 1 or more")
    shape = (*broadcast_shapes("matmul", a_batch, b_batch), m, n)
    return Spec(shape, float_attr("matmul", attrs, a.dtype))


def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    """The rows of one factor and the columns of the other, all of K."""
    a, b = specs
    inner = (0, sizes(a, attrs["transpose_input"])[2])
    a_tail = (inner, box[-2]) if attrs["transpose_input"] else (box[-2], inner)
    b_tail = (box[-1], inner) if attrs["transpose_other"] else (inner, box[-1])
    return (
        (*broadcast_box(a.shape[:-2], box[:-2]), *a_tail),
        (*broadcast_box(b.shape[:-2], box[:-2]), *b_tail),
    )


def reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    """The product of what a tile reads."""
    a, b = tiles
    if attrs["transpose_input"]:
        a = a.swapaxes(-1, -2)
    if attrs["transpose_other"]:
        b = b.swapaxes(-1, -2)
    with np.errstate(all="ignore"):
        product: Array = np.matmul(a, b)
    return np.maximum(product, 0.0) if attrs["is_relu"] else product


def cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Factors are read once per tile, products and sums are two operations."""
    k = sizes(specs[0], attrs["transpose_input"])[2]
    read = zip(in_boxes(specs, out, attrs, box), specs, strict=True)
    size = sum(box_size(part) * spec.dtype.itemsize for part, spec in read)
    return Cost(size + box_size(box) * out.dtype.itemsize, 2 * box_size(box) * k)


def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    """Boxes that read as little as they can; on a GPU what one CTA multiplies at a time."""
    has_one = prod(specs[1].shape[:-2]) == 1
    if target.kind == "cuda":
        has_lines = bool(attrs["transpose_other"])
        return gpu_boxes(out.shape, has_lines, target.worker_count, has_one=has_one)
    parts = parts_worth(cost(specs, out, attrs, full_box(out.shape)), target)
    return cut_result(out.shape, parts, has_one=has_one)


def cut_result(shape: Shape, parts: int, *, has_one: bool = False) -> tuple[Box, ...]:
    """Cut (..., M, N) into about `parts` boxes: whole matrices, else rows and columns.

    `has_one`: all rows are multiplied by the same matrix, whose columns are worth cutting first.
    """
    *batch, m, n = shape
    if has_one:
        rows, columns = _grid(prod(batch) * m, n, parts)
        outer = spread((*batch, m), rows, (1,) * (len(batch) + 1))
        return tuple((*box, column) for column in cut(n, columns, LINE_ELEMENTS) for box in outer)
    if prod(batch) >= parts:
        return spread(shape, parts, (*(1,) * len(batch), max(m, 1), max(n, 1)))
    outer = spread(tuple(batch), parts, (1,) * len(batch)) if batch else ((),)
    rows, columns = _grid(m, n, -(-parts // max(len(outer), 1)))
    return tuple(
        (*box, row, column)
        for box in outer
        for column in cut(n, columns, LINE_ELEMENTS)
        for row in cut(m, rows, 1)
    )


def gpu_boxes(
    shape: Shape, has_lines: bool, workers: int, *, has_one: bool = False
) -> tuple[Box, ...]:
    """Cut (..., M, N) into what a CTA does at a time.

    With few rows all CTAs share the columns, else there are tiles, smaller ones where large
    ones would leave CTAs idle. `has_lines`: columns of B are contiguous; `has_one`: all rows are
    multiplied by the same one.
    """
    *batch, m, n = shape
    count = prod(batch)
    if has_one:
        return _shared_gpu_boxes(shape, has_lines, workers)
    if m <= GPU_FEW_ROWS:
        unit = GPU_LINES if has_lines else LINE_ELEMENTS
        pieces = min(-(-workers // max(count, 1)), -(-n // unit))
        rows, columns = [(0, m)] * (m > 0), cut(n, max(pieces, 1), unit)
    else:
        tile_m, tile_n = _gpu_tile(count, m, n, workers)
        rows, columns = cut(m, -(-m // tile_m), tile_m), cut(n, -(-n // tile_n), tile_n)
    outer = spread(tuple(batch), max(count, 1), (1,) * len(batch)) if batch else ((),)
    return tuple((*box, row, column) for box in outer for column in columns for row in rows)


def _shared_gpu_boxes(shape: Shape, has_lines: bool, workers: int) -> tuple[Box, ...]:
    """The same where rows of several matrices are multiplied by one: they count as one matrix's."""
    *outer, n = shape
    rows = prod(outer)
    if rows <= GPU_FEW_ROWS:
        unit = GPU_LINES if has_lines else LINE_ELEMENTS
        parts, columns = 1, cut(n, max(min(workers, -(-n // unit)), 1), unit)
    else:
        tile_m, tile_n = _gpu_tile(1, rows, n, workers)
        parts, columns = -(-rows // tile_m), cut(n, -(-n // tile_n), tile_n)
    boxes = spread(tuple(outer), parts, (1,) * len(outer))
    return tuple((*box, column) for box in boxes for column in columns)


def _gpu_tile(count: int, m: int, n: int, workers: int) -> tuple[int, int]:
    """The largest tile that leaves no CTA idle."""
    fits = (size for size in GPU_TILES if count * -(-m // size[0]) * -(-n // size[1]) >= workers)
    return next(fits, GPU_TILES[-1])


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


def _parts(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> int:
    """How many equal parts of K to compute side by side."""
    k = sizes(specs[0], attrs["transpose_input"])[2]
    hint = int_attr(attrs, "splitk")
    if prod(out.shape) == 0 or k == 0 or len(out.shape) == MAX_DIMS:
        return 1
    if hint > 1:
        return max(n for n in range(1, min(hint, k) + 1) if k % n == 0)
    boxes = tiles(specs, out, attrs, target)
    worth = parts_worth(cost(specs, out, attrs, full_box(out.shape)), target)
    if target.counters != "group" or len(boxes) >= worth:
        # Not wide, or cut as finely as it is worth.
        return 1
    whole = cost(specs, out, attrs, boxes[0])
    most = min(target.worker_count // len(boxes), k // MIN_PART)

    def seconds(count: int) -> float:
        part = target.seconds(Cost(whole.bytes // count, whole.ops // count))
        if count == 1:
            return part
        # The sums of one worker: it reads fp32 parts and adds them.
        moved = prod(out.shape) * count // target.worker_count
        return part + target.hop_s + target.seconds(Cost(4 * moved, moved))

    return min((n for n in range(1, most + 1) if k % n == 0), key=seconds, default=1)


def _expand(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Step, ...]:
    count = _parts(specs, out, attrs, target)
    if count == 1:
        return ()
    turned = (attrs["transpose_input"], attrs["transpose_other"])
    batch = len(out.shape) - 2
    looks = tuple(
        partial(_part_view, batch=batch, axis=axis, count=count)
        for axis in (-2 if turned[0] else -1, -1 if turned[1] else -2)
    )
    part_attrs = (("is_relu", False), *zip(TURNED, turned, strict=True))
    steps = [
        Step("matmul_part", (0, 1), part_attrs, looks),
        Step("reduce_sum", (-1,), (("axis", 0), ("keepdims", False))),
    ]
    if attrs["is_relu"]:
        steps.append(Step("relu", (-len(steps),), ()))
    if out.dtype.name != "fp32":
        steps.append(Step("cast", (-len(steps),), (("dtype", out.dtype.name),)))
    return tuple(steps)


def _takes_wide_rows(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> bool:
    """Everywhere but in tensor cores, which want both factors of one dtype."""
    rows, k = prod(out.shape[:-1]), sizes(specs[0], attrs["transpose_input"])[2]
    # Rows are counted up to the next power of 2.
    is_few = rows <= GPU_FEW_ROWS and 2 * rows * k * 4 <= GPU_FEW_BYTES
    return target.kind != "cuda" or is_few


def packings(attrs: Attrs) -> tuple[str, ...]:
    """How a CPU reads weights that are packed: the right operand's columns are in panels."""
    return "", "panels_t" if attrs["transpose_other"] else "panels"


def _sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
    # What is below zero is cut off from whole sums only.
    k = "K" if attrs["is_relu"] else "k"
    left = f"{k}m" if attrs["transpose_input"] else f"m{k}"
    right = f"n{k}" if attrs["transpose_other"] else f"{k}n"
    return f"...{left},...{right}->...mn"


def _part_view(view: View, *, batch: int, axis: int, count: int) -> View:
    """A matrix operand as `count` parts along K, a new first dimension of the batch."""
    missing = batch - (len(view.shape) - 2)
    shape, strides = list(view.shape), list(view.strides)
    shape[axis] //= count
    return replace(
        view,
        shape=(count, *(1,) * missing, *shape),
        strides=(shape[axis] * strides[axis], *(0,) * missing, *strides),
    )


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
            Argument("splitk", "int", "parts of K to compute side by side", "1"),
            Argument("dtype", "DTypeLike | None", "the dtype of the result", "None"),
        ),
        dtypes=FLOATS,
        infer=result_spec,
        view=None,
        in_boxes=in_boxes,
        reference=reference,
        tiles=tiles,
        cost=cost,
        sharding=_sharding,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("matmul", "ark_matmul", takes_wide_rows=_takes_wide_rows, packings=packings),
        expand=_expand,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
