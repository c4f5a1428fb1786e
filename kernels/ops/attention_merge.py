"""Put the parts of an attention together."""

import numpy as np

from ark_dist.core.dtype import FLOATS, as_dtype
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, box_size, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import check_dtypes, moved_bytes, share, spread, tiles_worth

SUMMARY = """Merge what attention gave for parts of the keys; a row that saw no key is zeros."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_dtypes("attention_merge", ("fp32",), specs)
    shape = specs[0].shape
    if attrs["dtype"] not in FLOATS or len(shape) != 5 or shape[0] < 1 or shape[4] < 2:
        raise ValueError(
            f"attention_merge: input is {shape} for {attrs['dtype']!r}; it must be "
            "(parts, B, T, H, Dv + 2), for a floating type"
        )
    return Spec((*shape[1:4], shape[4] - 2), as_dtype(str(attrs["dtype"])))


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    shape = specs[0].shape
    return (((0, shape[0]), *box[:-1], (0, shape[4])),)


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    sums, tops, totals = tiles[0][..., :-2], tiles[0][..., -2:-1], tiles[0][..., -1:]
    with np.errstate(all="ignore"):
        weights = np.where(totals == 0, 0.0, np.exp(tops - tops.max(axis=0)))
        total = (weights * totals).sum(axis=0)
        return np.where(total == 0, 0.0, (weights * sums).sum(axis=0) / total)


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    parts = tiles_worth(_cost(specs, out, attrs, full_box(out.shape)), target)
    return spread(out.shape, parts, (1, 1, 1, max(out.shape[-1], 1)))


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    return Cost(share(moved_bytes(specs, out), box, out), 2 * specs[0].shape[0] * box_size(box))


def _scratch(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> int:
    return specs[0].shape[0]


register(
    Op(
        name="attention_merge",
        summary=SUMMARY,
        arguments=(
            Argument("input", "Tensor", "the parts, (parts, B, T, H, Dv + 2)", None),
            Argument("dtype", "DTypeLike", "the result's dtype", None),
        ),
        dtypes=("fp32",),
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("tile", "ark_attention_merge", scratch=_scratch),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)
