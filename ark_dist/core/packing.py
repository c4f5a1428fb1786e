"""Store matrices in panels of 16 columns, as the CPU's matrix kernels read them."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ark_dist.core.dtype import FLOATS, INT8, DType
from ark_dist.core.op import Array
from ark_dist.core.shape import Box, Shape, box_shape, full_box, row_major_strides
from ark_dist.core.view import View

# Columns of a panel: as many fp32 products as the widest registers hold.
PANEL_WIDTH = 16
# Each column of a panel has 4 bytes of K after one another: one fp32, two of 16 bits, or 4 int8.
GROUP_BYTES = 4
# A matrix's logical dimensions are (K, N) or (N, K); K is contracted, N are columns of the product.
PACKINGS = ("panels", "panels_t")
PACKED_DTYPES = (*FLOATS, INT8.name)


def group_elems(dtype: DType) -> int:
    """How many elements along K lie beside one another."""
    return GROUP_BYTES // dtype.itemsize


def packing_problem(packing: str, shape: Shape, dtype: DType) -> str | None:
    """Why a tensor can't be stored in a packing, or None."""
    if packing not in PACKINGS:
        return f"packing {packing!r} is not one of {PACKINGS}"
    if len(shape) < 2 or dtype.name not in PACKED_DTYPES:
        return f"packing {packing!r} is for matrices of {', '.join(PACKED_DTYPES)}"
    return None


def packed_shape(packing: str, shape: Shape, dtype: DType) -> Shape:
    """The stored shape: (*batch, panels, groups of K, 16, elements of a group)."""
    inner, width = _inner_and_columns(packing)
    group = group_elems(dtype)
    panels, groups = -(-shape[width] // PANEL_WIDTH), -(-shape[inner] // group)
    return (*shape[:-2], panels, groups, PANEL_WIDTH, group)


def packed_strides(packing: str, shape: Shape, dtype: DType) -> Shape:
    """Elements from one to the next: (*batch, along K, along N).

    They hold where k is a multiple of a group's elements, and n one of `PANEL_WIDTH`.
    """
    panels, groups, width, group = packed_shape(packing, shape, dtype)[-4:]
    matrix = panels * groups * width * group
    batch = (step * matrix for step in row_major_strides(shape[:-2]))
    return (*batch, width, groups * group)


def packed_view(packing: str, shape: Shape, view: View) -> View | None:
    """Where a view's matrices lie in a packed tensor of `shape`; None if it can't be read there.

    The result counts stored elements, and its strides are those of `packed_strides`. The view's
    last two dimensions must be the tensor's own, and leading ones count matrices, parts of K, or
    the same matrix again. Matrices begin with a panel and with a group of K, and what does not
    end with a group ends with K: else the kernel would read a neighbour's elements.
    """
    if len(view.shape) < 2 or 0 in view.shape or 0 in shape:
        return None
    (rows, columns), group = shape[-2:], group_elems(view.dtype)
    steps = zip(view.shape[-2:], view.strides[-2:], (columns, 1), strict=True)
    if any(size > 1 and step != own for size, step, own in steps):
        return None
    inner, width = _inner_and_columns(packing)
    inner_step = (columns, 1)[inner]
    batch_step, *steps_packed = packed_strides(packing, (1, rows, columns), view.dtype)
    matrix, rest = divmod(view.offset, rows * columns)
    start = divmod(rest, columns)
    strides, stop = [], start[inner] + view.shape[inner]
    for size, step in zip(view.shape[:-2], view.strides[:-2], strict=True):
        if size == 1 or step % (rows * columns) == 0:
            strides.append(0 if size == 1 else step // (rows * columns) * batch_step)
        elif step % (inner_step * group) == 0:
            strides.append(step // inner_step * steps_packed[0])
            stop += (size - 1) * step // inner_step
        else:
            return None
    is_inside = stop <= shape[inner] and start[width] + view.shape[width] <= shape[width]
    is_closed = view.shape[inner] % group == 0 or start[inner] + view.shape[inner] == shape[inner]
    if not is_inside or not is_closed or start[inner] % group or start[width] % PANEL_WIDTH:
        return None
    own = (steps_packed[inner], steps_packed[width])
    offset = matrix * batch_step + sum(at * step for at, step in zip(start, own, strict=True))
    return replace(view, offset=offset, strides=(*strides, *own))


def pack(packing: str, value: Array, out: Array) -> None:
    """Fill a packed array from a logical one with any strides; what is beyond its edges is zero."""
    inner, width = _inner_and_columns(packing)
    panels, lanes = divmod(value.shape[width], PANEL_WIDTH)
    groups, places = divmod(value.shape[inner], out.shape[-1])
    out[..., panels:, :, lanes:, :] = 0
    out[..., groups:, :, places:] = 0
    pack_box(packing, value, out, full_box(value.shape))


def pack_box(packing: str, value: Array, out: Array, box: Box) -> None:
    """Store a box of the tensor in its packed array; the rest of that stays."""
    for stored, part in _pairs(packing, out, value, box):
        stored[...] = part


def unpack(packing: str, packed: Array, shape: Shape) -> Array:
    """Return a new logical array of this shape."""
    return unpack_box(packing, packed, full_box(shape))


def unpack_box(packing: str, packed: Array, box: Box) -> Array:
    """Return a new array of a box of the tensor."""
    value = np.empty(box_shape(box), packed.dtype)
    for stored, part in _pairs(packing, packed, value, box):
        part[...] = stored
    return value


def _inner_and_columns(packing: str) -> tuple[int, int]:
    """Which of a tensor's dimensions are K and N, counted from its end."""
    return (-2, -1) if packing == "panels" else (-1, -2)


def _pairs(packing: str, packed: Array, value: Array, box: Box) -> Iterator[tuple[Array, Array]]:
    """Yield views of a packed array and of a box's array, in turn, that hold the same elements.

    There is one for every place in a group, and for the panels that the box cuts.
    """
    inner, width = _inner_and_columns(packing)
    first, (left, right) = box[inner][0], box[width]
    bits = np.dtype(f"u{packed.dtype.itemsize}")
    stored = packed.view(bits)[tuple(slice(a, b) for a, b in box[:-2])]
    matrix = value.view(bits) if packing == "panels" else value.view(bits).swapaxes(-1, -2)
    group = stored.shape[-1]
    for place in range(group):
        begin = first + (place - first) % group
        rows = matrix[..., begin - first :: group, :]
        groups = slice(begin // group, begin // group + rows.shape[-2])
        for a, b in _segments(left, right):
            count = min(b - a, PANEL_WIDTH)
            lanes = slice(a % PANEL_WIDTH, a % PANEL_WIDTH + count)
            part = rows[..., a - left : b - left]
            split = part.reshape(*part.shape[:-1], (b - a) // count, count)
            panels = slice(a // PANEL_WIDTH, -(-b // PANEL_WIDTH))
            yield stored[..., panels, groups, lanes, place], split.swapaxes(-2, -3)


def _segments(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Cut columns into whole panels, and what lies in one panel before and after them."""
    first = min(stop, -(-start // PANEL_WIDTH) * PANEL_WIDTH)
    last = max(first, stop // PANEL_WIDTH * PANEL_WIDTH)
    for a, b in ((start, first), (first, last), (last, stop)):
        if a < b:
            yield a, b
