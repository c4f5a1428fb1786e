"""Fail where two tensors differ."""

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Argument, Step
from ark_dist.kernels.checks import ALL, check_op
from ark_dist.kernels.rules import INPUT

# NaN differs from everything.
STEPS = (
    Step("sub", (0, 1), ()),
    Step("abs", (-1,), ()),
    Step("reduce_max", (-2,), ALL),
)

check_op(
    "check_equal",
    "Fail if `input` and `other` differ in a value, or have NaN.",
    (INPUT, Argument("other", "Tensor | None", "the second tensor", "None")),
    NUMBERS,
    "ranks have different results, or NaN",
    STEPS,
)
