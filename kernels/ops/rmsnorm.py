"""Scale rows to a mean square of 1, then by a weight."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Argument, Array, Attrs, Kernel
from ark_dist.kernels.rows import AXIS, WEIGHT, row_op
from ark_dist.kernels.rules import INPUT

SUMMARY = """Scale rows: x / sqrt(mean(x^2) + eps) * weight along `axis` (Zhang and Sennrich 2019).

`weight` has the input's dtype; left out, it is 1. Beside an fp32 input it may be of 16 bits, as is
the result then. Before a matmul it runs inside the matmul."""


def _rmsnorm(x: tuple[Array, ...], axis: int, attrs: Attrs) -> Array:
    row, *weight = x
    square = np.multiply(row, row).mean(axis=axis, keepdims=True)
    result = np.asarray(row / np.sqrt(square + attrs["eps"]))
    return np.multiply(result, *weight) if weight else result


row_op(
    "rmsnorm",
    SUMMARY,
    (INPUT, WEIGHT, AXIS, Argument("eps", "float", "added to the mean square", "1e-6")),
    FLOATS,
    _rmsnorm,
    Kernel("row", "ark_rmsnorm", ("eps",), has_prologue=True),
    can_narrow=True,
)
