"""Multiply a tensor with a number."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Argument, Attrs
from ark_dist.kernels.rules import INPUT, Floats, elementwise

SUMMARY = """Multiply a tensor with a number that is known now.

The number is kept in fp32, whatever the tensor's dtype: `scale(x, 0.1)` of an fp16 tensor is more
precise than `x * 0.1`, whose 0.1 is one of fp16."""


def _check(attrs: Attrs) -> None:
    val = attrs["val"]
    assert isinstance(val, float), f"val is {val!r}"
    with np.errstate(over="ignore"):
        is_too_large = np.isfinite(val) and np.isinf(np.float32(val))
    if is_too_large:
        raise ValueError(f"scale: val is {val!r}; it must fit fp32, so scale in two steps")


def _scale(a: Floats, val: float) -> Floats:
    return np.asarray(a * np.float64(np.float32(val)))


elementwise(
    "scale",
    SUMMARY,
    (INPUT, Argument("val", "float", "the number", None)),
    FLOATS,
    _scale,
    params=("val",),
    check=_check,
)
