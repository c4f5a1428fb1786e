"""Shift and scale rows to mean 0 and variance 1, then by a weight and a bias."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Argument, Array, Attrs, Kernel
from ark_dist.kernels.rows import AXIS, BIAS, WEIGHT, row_op
from ark_dist.kernels.rules import INPUT

SUMMARY = """(x - mean) / sqrt(variance + eps) * weight + bias along `axis` (Ba et al. 2016).

`weight` and `bias` have the input's dtype; what is left out is 1 and 0. Before a matmul it
runs inside the matmul."""


def _layernorm(x: tuple[Array, ...], axis: int, attrs: Attrs) -> Array:
    row, *affine = x
    centered = row - row.mean(axis=axis, keepdims=True)
    variance = (centered * centered).mean(axis=axis, keepdims=True)
    result = np.asarray(centered / np.sqrt(variance + attrs["eps"]))
    for apply, vector in zip((np.multiply, np.add), affine, strict=False):
        result = apply(result, vector)
    return result


row_op(
    "layernorm",
    SUMMARY,
    (INPUT, WEIGHT, BIAS, AXIS, Argument("eps", "float", "added to the variance", "1e-5")),
    FLOATS,
    _layernorm,
    Kernel("row", "ark_layernorm", ("eps",), has_prologue=True),
)
