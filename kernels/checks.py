"""Make operators that fail when a number which must be 0 is not."""

from math import prod

import numpy as np

from ark_dist.core.dtype import UINT8
from ark_dist.core.graph import freeze_attrs
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, Step, register
from ark_dist.core.shape import Box, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import check_dtypes

ALL = freeze_attrs({"axis": None, "keepdims": True})


def check_op(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    failure: str,
    steps: tuple[Step, ...],
) -> Op:
    """Register a check; `steps` bring its tensors down to one number, which must be 0."""

    def infer(specs: Specs, attrs: Attrs) -> Spec:
        check_dtypes(name, dtypes, specs)
        return Spec((1,), UINT8)

    def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
        return tuple(full_box(spec.shape) for spec in specs)

    def reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
        # Only its last step is computed: of one number.
        if np.any(tiles[0] != 0):
            raise IndexError(failure)
        return np.zeros(1, np.uint8)

    def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
        return (full_box(out.shape),)

    def cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
        return Cost(sum(prod(s.shape) * s.dtype.itemsize for s in specs), 1)

    def expand(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Step, ...]:
        last = Step(name, (-len(steps),), ())
        return (*steps, last) if prod(specs[0].shape) else ()

    return register(
        Op(
            name=name,
            summary=summary,
            arguments=arguments,
            dtypes=dtypes,
            infer=infer,
            view=None,
            in_boxes=in_boxes,
            reference=reference,
            tiles=tiles,
            cost=cost,
            sharding=None,
            localize=None,
            gradient=None,
            effect="none",
            kernel=Kernel("tile", "ark_check", failure=failure),
            expand=expand,
            parts=None,
            pieces=None,
            is_public=False,
        )
    )
