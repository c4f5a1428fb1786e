"""Shift and scale rows to mean 0 and variance 1."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Argument, Array, Attrs
from ark_dist.kernels.rows import AXIS, row_op
from ark_dist.kernels.rules import INPUT


def _layernorm(x: Array, axis: int, attrs: Attrs) -> Array:
    centered = x - x.mean(axis=axis, keepdims=True)
    variance = (centered * centered).mean(axis=axis, keepdims=True)
    return np.asarray(centered / np.sqrt(variance + attrs["eps"]))


row_op(
    "layernorm",
    "(x - mean) / sqrt(variance + eps) along `axis`, without affine parameters (Ba et al. 2016).",
    (INPUT, AXIS, Argument("eps", "float", "added to the variance", "1e-5")),
    FLOATS,
    _layernorm,
    params=("eps",),
    has_prologue=True,
)
