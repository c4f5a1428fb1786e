"""Reduce one dimension to its sum."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction


def _sum(x: Array, axis: int) -> Array:
    return np.asarray(x.sum(axis=axis, dtype=x.dtype))


reduction(
    "reduce_sum", "Sum along `axis`; floats accumulate in fp32, integers wrap.", NUMBERS, _sum
)
