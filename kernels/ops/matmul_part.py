"""Multiply matrices and leave the products in fp32, to be summed."""

from math import prod

from ark_dist.core.dtype import FLOATS, FP32
from ark_dist.core.op import Argument, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, full_box
from ark_dist.core.target import Target
from ark_dist.core.view import Spec
from ark_dist.kernels.ops import matmul
from ark_dist.kernels.rules import INPUT, parts_worth


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return Spec(matmul.result_spec(specs, {**attrs, "splitk": 1, "dtype": None}).shape, FP32)


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    """The tiles that one whole product would have, for each part."""
    parts, *shape = out.shape
    worth = parts_worth(matmul.cost(specs, out, attrs, full_box(out.shape)), target)
    has_one = prod(specs[1].shape[1:-2]) == 1  # in each part
    boxes = matmul.cut_result(tuple(shape), worth, has_one=has_one)
    return tuple(((part, part + 1), *box) for part in range(parts) for box in boxes)


register(
    Op(
        name="matmul_part",
        summary="Multiply matrices as `matmul` does; the first dimension counts parts of K.",
        arguments=(
            INPUT,
            Argument("other", "Tensor", "the right operand", None),
            *(Argument(name, "bool", "as in matmul", "False") for name in matmul.TURNED),
            Argument("is_relu", "bool", "replace negative results by zero", "False"),
        ),
        dtypes=FLOATS,
        infer=_infer,
        view=None,
        in_boxes=matmul.in_boxes,
        reference=matmul.reference,
        tiles=_tiles,
        cost=matmul.cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("matmul", "ark_matmul", packings=matmul.packings),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)
