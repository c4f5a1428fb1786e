"""Fail where a tensor has a value that is not finite."""

from ark_dist.core.dtype import FLOATS
from ark_dist.core.graph import freeze_attrs
from ark_dist.core.op import Step
from ark_dist.kernels.checks import ALL, check_op
from ark_dist.kernels.rules import INPUT

# Zero times a finite number is 0; times NaN or infinity it is NaN, and so is the sum.
STEPS = (Step("scale", (0,), freeze_attrs({"val": 0.0})), Step("reduce_sum", (-1,), ALL))

check_op(
    "check_finite",
    "Fail if a value of `input` is NaN or infinite.",
    (INPUT,),
    FLOATS,
    "a value is NaN or infinite",
    STEPS,
)
