"""Look rows of a table up by index."""

import numpy as np

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, box_size
from ark_dist.core.target import Cost
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import int_attr, map_tiles, share

SUMMARY = """Return weight[input]: row `input[i]` of the table for each index.

`input` is int32 of any shape, `weight` is (rows, width); the result is (*input.shape, width).
An index outside [0, rows) ends the run with a TaskError that names it.

With `rows`, `weight` is a part of a table of so many rows, from `first_row` on; other rows of it
give zeros, so that the results of all parts add up to that of the table."""
FAILURE = "index {value} is outside the table of {limit} rows"
ARGUMENTS = (
    Argument("input", "Tensor", "int32 indices", None, dtype="int32"),
    Argument("weight", "Tensor", "the table, (rows, width)", None),
    Argument("first_row", "int", "the row of the whole table that `weight` begins with", "0"),
    Argument("rows", "int | None", "rows of the whole table; None is those of `weight`", "None"),
)


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    """Shape and dtype of the result; raises ValueError or TypeError."""
    index, table = specs
    if index.dtype.name != "int32":
        raise TypeError(f"embedding: indices are {index.dtype}; cast them to int32")
    if len(table.shape) != 2:
        raise ValueError(f"embedding: the table is {table.shape}; it must be (rows, width)")
    first, height = attrs["first_row"], table.shape[0]
    rows = height if attrs["rows"] is None else attrs["rows"]
    if not isinstance(first, int) or not isinstance(rows, int) or not 0 <= first <= rows - height:
        raise ValueError(
            f"embedding: first_row is {first!r} and rows {attrs['rows']!r}; the {height} rows of "
            "the table must lie inside"
        )
    return Spec((*index.shape, table.shape[1]), table.dtype)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    """The rows' columns; which rows are read is known at run time only, so all count as read."""
    return box[:-1], ((0, specs[1].shape[0]), box[-1])


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    """Rows of the table, zeros for those that others have."""
    index, table = tiles[0].astype(np.int64), tiles[1]
    rows = len(table) if attrs["rows"] is None else int_attr(attrs, "rows")
    outside = index[(index < 0) | (index >= rows)]
    if outside.size:
        raise IndexError(FAILURE.format(value=int(outside[0]), limit=rows))
    index = index - int_attr(attrs, "first_row")
    is_here = (index >= 0) & (index < len(table))
    found = np.zeros((*index.shape, table.shape[1]), table.dtype)
    found[is_here] = table[index[is_here]]
    return found


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Each index, and each row twice."""
    index, _ = specs
    row_bytes = 2 * box_size(box) * out.dtype.itemsize
    return Cost(row_bytes + share(index.dtype.itemsize, box, out), box_size(box))


def _packings(attrs: Attrs) -> tuple[str, ...]:
    # Rows of the table are what a matmul with transpose_other has as columns.
    return "", "panels_t"


def _sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
    # Parts of bools don't add up, and a part has no parts.
    is_cut = attrs["rows"] is None and out.dtype.name != "bool"
    row = "r" if is_cut else "R"
    return f"...,{row}w->...w"


def _localize(specs: Specs, out: Spec, attrs: Attrs, boxes: tuple[Box, ...], box: Box) -> Attrs:
    rows, (start, stop) = specs[1].shape[0], boxes[1][0]
    if (start, stop) == (0, rows):
        return attrs
    return {**attrs, "first_row": start, "rows": rows}


register(
    Op(
        name="embedding",
        summary=SUMMARY,
        arguments=ARGUMENTS,
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=map_tiles,
        cost=_cost,
        sharding=_sharding,
        localize=_localize,
        gradient=None,
        effect="none",
        kernel=Kernel("gather", "ark_embedding", failure=FAILURE, packings=_packings),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
