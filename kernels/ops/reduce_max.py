"""Reduce dimensions to their largest element."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction


def _max(x: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(x.max(axis=axes))


reduction("reduce_max", "Largest element along `axis`; NaN wins.", NUMBERS, _max, combine="max")
