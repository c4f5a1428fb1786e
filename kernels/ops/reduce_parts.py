"""Combine the ranks' parts of one tensor, in a fixed order."""

from functools import reduce

import numpy as np

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import check_dtypes, cut_map, map_boxes, map_cost, tiles_worth

SUMMARY = """Combine tensors of one shape element by element: their sum, maximum or minimum.

The order is that of the tensors; floats are combined in fp32 and rounded once, after `scale`."""
REDUCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_dtypes("reduce_parts", ALL_DTYPES, specs)
    if any(spec.shape != specs[0].shape for spec in specs):
        raise ValueError(f"reduce_parts: shapes {[s.shape for s in specs]} differ")
    if attrs["how"] not in REDUCTIONS:
        raise ValueError(f"reduce_parts: how is {attrs['how']!r}; it must be sum, max or min")
    if attrs["scale"] is not None and not specs[0].dtype.is_float:
        raise TypeError(f"reduce_parts: {specs[0].dtype} can't be scaled; use a float")
    return specs[0]


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    combine = REDUCTIONS[str(attrs["how"])]
    with np.errstate(all="ignore"):
        total: Array = reduce(combine, tiles)
        scale = attrs["scale"]
        return total if scale is None else total * np.float64(np.float32(scale))  # type: ignore[arg-type]  # a float


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    once = map_cost(specs, out, attrs, box)
    return Cost(once.bytes, once.ops * len(specs))


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    return cut_map(out.shape, tiles_worth(_cost(specs, out, attrs, full_box(out.shape)), target))


register(
    Op(
        name="reduce_parts",
        summary=SUMMARY,
        arguments=(
            Argument("parts", "Sequence[Tensor]", "what to combine, in order", None),
            Argument("how", "str", "sum, max or min", None),
            Argument("scale", "float | None", "factor of the result", None),
        ),
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=map_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("map", "ark_reduce_parts", ("how", "scale")),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)
