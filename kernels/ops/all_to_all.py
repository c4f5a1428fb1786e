"""Swap pieces of the ranks' tensors: each gets one from everybody."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import normalize_axis
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import RANKS, check_group, communication
from ark_dist.kernels.rules import INPUT

SUMMARY = """Cut each rank's tensor into one piece per rank, and give everybody theirs.

Dimension `axis` is cut evenly; piece k goes to the group's rank k. The result has the pieces that
this rank got, in the order of the ranks they came from."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    count = check_group("all_to_all", attrs)
    shape = specs[0].shape
    axis = normalize_axis("all_to_all", attrs["axis"], len(shape))
    if shape[axis] % count:
        raise ValueError(
            f"all_to_all: dimension {axis} of {shape} does not divide among {count} ranks; "
            "cut another dimension, or pad it"
        )
    return specs[0]


communication(
    "all_to_all",
    SUMMARY,
    (
        INPUT,
        Argument("axis", "int", "the dimension to cut; negative counts from the end", "0"),
        RANKS,
    ),
    ALL_DTYPES,
    _infer,
)
