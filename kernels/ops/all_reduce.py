"""Combine the ranks' tensors element by element; all get the result."""

from ark_dist.core.op import Attrs, Specs
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import (
    RANKS,
    REDUCE,
    REDUCED_DTYPES,
    check_group,
    check_reduction,
    communication,
)
from ark_dist.kernels.rules import INPUT

SUMMARY = """Combine the tensors of all ranks element by element; all get the result.

Each rank gives a tensor of one shape and dtype. `reduce` is "sum", "mean" (floats), "max" or "min"
(these of bool too, as any and all). The ranks are combined in order, floats in fp32, so that all
get the same bits in every run."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_group("all_reduce", attrs)
    check_reduction("all_reduce", attrs, specs[0])
    return specs[0]


communication("all_reduce", SUMMARY, (INPUT, REDUCE, RANKS), REDUCED_DTYPES, _infer)
