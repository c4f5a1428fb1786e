"""Put the ranks' tensors one after the other; all get the result."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.groups import cuts_problem, mine
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import normalize_axis
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import RANKS, check_group, communication, cuts_attr
from ark_dist.kernels.rules import INPUT

SUMMARY = """Put the tensors of all ranks one after the other along `axis`; all get the result.

They are in the order of the ranks. They have one shape and dtype, or else `cuts` says where each
begins in the result."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    count = check_group("all_gather", attrs)
    shape = specs[0].shape
    axis = normalize_axis("all_gather", attrs["axis"], len(shape))
    cuts = cuts_attr("all_gather", attrs)
    total = shape[axis] * count
    if cuts:
        problem = cuts_problem(cuts, count, None)
        if problem is not None:
            raise ValueError(f"all_gather: cuts is {cuts}; it {problem}")
        total, place = cuts[-1], mine(attrs)
        if shape[axis] != cuts[place + 1] - cuts[place]:
            raise ValueError(
                f"all_gather: cuts is {cuts}, so this rank has {cuts[place + 1] - cuts[place]} "
                f"positions; dimension {axis} of its tensor {shape} has {shape[axis]}"
            )
    return Spec((*shape[:axis], total, *shape[axis + 1 :]), specs[0].dtype)


communication(
    "all_gather",
    SUMMARY,
    (
        INPUT,
        Argument("axis", "int", "the dimension that grows; negative counts from the end", "0"),
        RANKS,
        Argument(
            "cuts",
            "Sequence[int]",
            "where the ranks' tensors begin, and where the last one ends; () is all of one size",
            "()",
        ),
    ),
    ALL_DTYPES,
    _infer,
)
