"""Combine the ranks' tensors element by element; each gets a part of the result."""

from ark_dist.core.groups import cuts_of, mine
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import normalize_axis
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import (
    RANKS,
    REDUCE,
    REDUCED_DTYPES,
    check_cuts,
    check_group,
    check_reduction,
    communication,
)
from ark_dist.kernels.rules import INPUT

SUMMARY = """Combine the tensors of all ranks element by element; each gets a part of the result.

Each rank gives a tensor of one shape and dtype. Dimension `axis` of the result is cut among the
ranks: evenly, or at `cuts`. `reduce` is as in `all_reduce`."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    count = check_group("reduce_scatter", attrs)
    check_reduction("reduce_scatter", attrs, specs[0])
    shape = specs[0].shape
    axis = normalize_axis("reduce_scatter", attrs["axis"], len(shape))
    check_cuts("reduce_scatter", attrs, count, axis, shape)
    cuts, place = cuts_of(attrs, shape[axis]), mine(attrs)
    size = cuts[place + 1] - cuts[place]
    return Spec((*shape[:axis], size, *shape[axis + 1 :]), specs[0].dtype)


communication(
    "reduce_scatter",
    SUMMARY,
    (
        INPUT,
        REDUCE,
        Argument("axis", "int", "the dimension to cut; negative counts from the end", "0"),
        RANKS,
        Argument(
            "cuts",
            "Sequence[int]",
            "where the ranks' parts begin, and where the last one ends; () is evenly",
            "()",
        ),
    ),
    REDUCED_DTYPES,
    _infer,
)
