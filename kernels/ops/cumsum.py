"""Add up the elements of rows as far as each element."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array, Attrs, Kernel
from ark_dist.kernels.rows import AXIS, row_op
from ark_dist.kernels.rules import INPUT


def _cumsum(x: tuple[Array, ...], axis: int, attrs: Attrs) -> Array:
    return np.cumsum(x[0], axis=axis, dtype=x[0].dtype)


row_op(
    "cumsum",
    "Running sums along `axis`; floats accumulate in fp32, integers wrap in their own type.",
    (INPUT, AXIS),
    NUMBERS,
    _cumsum,
    Kernel("tile", "ark_cumsum", ("axis",)),
)
