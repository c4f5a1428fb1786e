"""Look rows of a table up by index."""

import numpy as np

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, box_size
from ark_dist.core.target import Cost
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import map_tiles, share

SUMMARY = """Return weight[input]: row `input[i]` of the table for each index.

`input` is int32 of any shape, `weight` is (rows, width); the result is (*input.shape, width).
An index outside [0, rows) ends the run with a TaskError that names it."""
FAILURE = "index {value} is outside the table of {limit} rows"


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    index, table = specs
    if index.dtype.name != "int32":
        raise TypeError(f"embedding: indices are {index.dtype}; cast them to int32")
    if len(table.shape) != 2:
        raise ValueError(f"embedding: the table is {table.shape}; it must be (rows, width)")
    return Spec((*index.shape, table.shape[1]), table.dtype)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    # Which rows are read is known at run time only: the whole height counts as read.
    return box[:-1], ((0, specs[1].shape[0]), box[-1])


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    index, table = tiles[0].astype(np.int64), tiles[1]
    outside = index[(index < 0) | (index >= len(table))]
    if outside.size:
        raise IndexError(FAILURE.format(value=int(outside[0]), limit=len(table)))
    return np.asarray(table[index])


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    index, _ = specs
    row_bytes = 2 * box_size(box) * out.dtype.itemsize
    return Cost(row_bytes + share(index.dtype.itemsize, box, out), box_size(box))


register(
    Op(
        name="embedding",
        summary=SUMMARY,
        arguments=(
            Argument("input", "Tensor", "int32 indices", None, dtype="int32"),
            Argument("weight", "Tensor", "the table, (rows, width)", None),
        ),
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=map_tiles,
        cost=_cost,
        sharding=None,
        gradient=None,
        effect="none",
        kernel=Kernel("gather", "ark_embedding", failure=FAILURE),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
