"""Rotate pairs of elements by the angles of their positions."""

import numpy as np
import numpy.typing as npt

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.per_row import check_per_row, per_row, per_row_box
from ark_dist.kernels.rules import (
    INPUT,
    broadcast_box,
    check_dtypes,
    float_attr,
    map_cost,
    per_row_term,
    spread,
    tiles_worth,
)

SUMMARY = """Rotate pairs of elements along the last dimension, as rotary position embedding does.

`other` has the angles as pairs (cos, sin, cos, sin, ...) along its last dimension, of even size
R <= D; the first R elements of each row of `input` (..., D) are rotated, the others are copied.
A pair is two neighbours if `interleaved` (ARK, GPT-J), else elements i and i + R/2 (Llama).

Without `position`, `other` broadcasts to `input`, up to the last dimension. With it, `other` is
a table (P, R), `input` is (B, T, H, D), and row t of batch index b uses row position[b] + t of
the table; `position` is int32 of shape (), (1,) or (B,). A row outside of the table ends the run
with a TaskError.

`other` is fp32 or has the dtype of `input`. Make it in float64: an angle of 100,000 radians has
no fraction left in fp32. The result has `dtype`, or that of `input`. Su et al. 2021."""
Floats = npt.NDArray[np.float64]
FAILURE = "position {value} is outside the table of {limit} rows"


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    x, table = specs[:2]
    check_dtypes("rope", FLOATS, (x,))
    if table.dtype != x.dtype and table.dtype.name != "fp32":
        raise TypeError(f"rope: dtypes differ, {x.dtype} and {table.dtype}; cast other to fp32")
    if not x.shape or not table.shape:
        raise ValueError("rope: a tensor has no dimensions; reshape it to (1, D)")
    if table.shape[-1] % 2 or table.shape[-1] > x.shape[-1]:
        raise ValueError(
            f"rope: other is {table.shape}; its last size must be even and at most {x.shape[-1]}"
        )
    if len(specs) == 3:
        _check_table(x, table, specs[2])
    else:
        _check_broadcast(x, table)
    return Spec(x.shape, float_attr("rope", attrs, x.dtype))


def _check_table(x: Spec, table: Spec, position: Spec) -> None:
    if len(x.shape) != 4 or len(table.shape) != 2:
        raise ValueError(
            f"rope: with a position, input is {x.shape} and other {table.shape}; "
            "they must be (B, T, H, D) and (positions, R)"
        )
    check_per_row("rope", "position", position, x.shape[0], ("int32",))


def _check_broadcast(x: Spec, table: Spec) -> None:
    outer, given = x.shape[:-1], table.shape[:-1]
    tail = outer[len(outer) - len(given) :]
    if len(given) > len(outer) or any(
        size not in (1, want) for size, want in zip(given, tail, strict=True)
    ):
        raise ValueError(
            f"rope: other is {table.shape}, input is {x.shape}; up to the last, sizes of other "
            "must be 1 or those of input; for a table of positions give `position`"
        )


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    table = specs[1]
    x_box = (*box[:-1], (0, out.shape[-1]))
    if len(specs) == 3:
        return x_box, full_box(table.shape), per_row_box(specs[2], box[0])
    return x_box, (*broadcast_box(table.shape[:-1], box[:-1]), (0, table.shape[-1]))


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    x, table = (np.asarray(tile, np.float64) for tile in tiles[:2])
    if len(tiles) == 3:
        table = _table_rows(table, tiles[2], box)
    cos, sin = table[..., 0::2], table[..., 1::2]
    half = cos.shape[-1]
    if attrs["interleaved"]:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    result: Floats = x.copy()
    with np.errstate(all="ignore"):
        result[..., first] = x[..., first] * cos - x[..., second] * sin
        result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result


def _table_rows(table: Floats, position: Array, box: Box) -> Floats:
    """The rows of the table for a tile, (B, T, 1, R)."""
    starts = per_row(position, box[0][1] - box[0][0]).astype(np.int64)
    rows = starts[:, None] + np.arange(*box[1])
    outside = rows[(rows < 0) | (rows >= len(table))]
    if outside.size:
        raise IndexError(FAILURE.format(value=int(outside[0]), limit=len(table)))
    return np.asarray(table[rows][:, :, None, :], np.float64)


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    parts = tiles_worth(_cost(specs, out, attrs, full_box(out.shape)), target)
    return spread(out.shape, parts, (*(1,) * (len(out.shape) - 1), max(out.shape[-1], 1)))


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    cost = map_cost((specs[0],), out, attrs, box)
    # Per element two products and a sum, and half a table entry that is mostly in cache.
    return Cost(cost.bytes, 3 * cost.ops)


def _sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
    if len(specs) == 2:
        return "...D,...R->...D"
    # The row of the table is the position plus the time, counted from the first.
    return f"bThD,NR,{per_row_term(specs[2], 'b')}->bThD"


register(
    Op(
        name="rope",
        summary=SUMMARY,
        arguments=(
            INPUT,
            Argument("other", "Tensor", "cosines and sines of the angles, in pairs", None),
            Argument(
                "position", "Tensor | None", "int32, the table's row for row 0 of input", "None"
            ),
            Argument("interleaved", "bool", "pair neighbours, not elements i and i + R/2", "True"),
            Argument("dtype", "DTypeLike | None", "the dtype of the result", "None"),
        ),
        dtypes=FLOATS,
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
        kernel=Kernel("tile", "ark_rope", params=("interleaved",), failure=FAILURE),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
