"""Reduce one dimension to its max."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction


def _max(x: Array, axis: int) -> Array:
    return np.asarray(x.max(axis=axis))


reduction("reduce_max", "Largest element along `axis`; NaN wins.", NUMBERS, _max)
