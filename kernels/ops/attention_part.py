"""Attention over one of several parts of the keys, to be merged."""

import numpy as np

from ark_dist.core.dtype import FLOATS, FP32
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.ops import attention
from ark_dist.kernels.rules import int_attr

SUMMARY = """Attention over parts of the keys: part c has the blocks c, c + splits, ... of 64 keys.

The result is fp32 (splits, B, T, H, Dv + 2): for each row the sum over values, weighted by
exp(score - largest), then the largest score and the sum of the weights; minus infinity and 0
where the part sees no key. Parts are interleaved so that any length is balanced."""


def _whole(specs: Specs, attrs: Attrs) -> Spec:
    return attention.result_spec(specs, attrs)


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    splits = attrs["splits"]
    if not isinstance(splits, int) or splits < 1:
        raise ValueError(f"attention_part: splits is {splits!r}; it must be 1 or more")
    *rows, width = _whole(specs, attrs).shape
    return Spec((splits, *rows, width + 2), FP32)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    return attention.in_boxes(specs, _whole(specs, attrs), attrs, box[1:])


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    heads = attention.key_heads(tiles, attrs, box[3][0])
    score = attention.scores(tiles, attrs, box[2], heads)
    block = np.arange(score.shape[3]) // attention.BLOCK_KEYS
    parts = []
    for part in range(*box[0]):
        mine = np.where(block % int_attr(attrs, "splits") == part, score, -np.inf)
        sums, tops, totals = attention.mix(mine, tiles[2], heads)
        parts.append(np.concatenate([sums, tops[..., None], totals[..., None]], axis=3))
    return np.stack(parts)


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    boxes = attention.tiles(specs, _whole(specs, attrs), attrs, target)
    return tuple(
        ((part, part + 1), *box[:-1], (0, out.shape[-1]))
        for box in boxes
        for part in range(out.shape[0])
    )


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    whole = attention.cost(specs, _whole(specs, attrs), attrs, box[1:])
    count = int_attr(attrs, "splits")
    return Cost(whole.bytes // count, whole.ops // count)


register(
    Op(
        name="attention_part",
        summary=SUMMARY,
        arguments=(
            *attention.ARGUMENTS,
            Argument("splits", "int", "how many parts", None),
        ),
        dtypes=FLOATS,
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
        # attention.h has both.
        kernel=Kernel(
            "tile",
            "ark_attention",
            params=("causal", "scale", "heads_per_key", "first_head", "splits"),
            scratch=attention.scratch,
            failure=attention.FAILURE,
            cuda=attention.cuda,
        ),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)
