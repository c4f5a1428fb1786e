"""Put tensors one after the other along one dimension."""

from itertools import accumulate

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Attrs, Op, Specs, register
from ark_dist.core.shape import normalize_axis
from ark_dist.core.view import Spec, View
from ark_dist.kernels.ops.narrow import narrowed
from ark_dist.kernels.rules import (
    check_dtypes,
    map_boxes,
    map_cost,
    map_tiles,
    no_reference,
)

SUMMARY = """Put tensors one after the other along dimension `axis`.

Their other sizes must be equal. Each is written to its place in the result, by the operator that
computes it where that is possible, else by a copy."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_dtypes("concat", ALL_DTYPES, specs)
    first = specs[0].shape
    axis = normalize_axis("concat", attrs["axis"], len(first))
    for position, spec in enumerate(specs):
        if len(spec.shape) != len(first) or any(
            a != b for d, (a, b) in enumerate(zip(spec.shape, first, strict=True)) if d != axis
        ):
            raise ValueError(
                f"concat: tensor 0 is {first}, tensor {position} is {spec.shape}; all sizes but "
                f"that of dimension {axis} must be equal"
            )
    total = sum(spec.shape[axis] for spec in specs)
    return Spec((*first[:axis], total, *first[axis + 1 :]), specs[0].dtype)


def _pieces(specs: Specs, attrs: Attrs, result: View) -> tuple[View, ...]:
    axis = normalize_axis("concat", attrs["axis"], len(result.shape))
    lengths = [spec.shape[axis] for spec in specs]
    starts = accumulate(lengths[:-1], initial=0)
    return tuple(
        narrowed(result, axis, start, length) for start, length in zip(starts, lengths, strict=True)
    )


register(
    Op(
        name="concat",
        summary=SUMMARY,
        arguments=(
            Argument("tensors", "Sequence[Tensor]", "what to put together, in order", None),
            Argument("axis", "int", "the dimension that grows; negative counts from the end", "0"),
        ),
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=map_boxes,
        reference=no_reference,
        tiles=map_tiles,
        cost=map_cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="none",
        kernel=None,
        expand=None,
        parts=None,
        is_public=True,
        pieces=_pieces,
    )
)
