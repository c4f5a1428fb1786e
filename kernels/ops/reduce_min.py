"""Reduce dimensions to their smallest element."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction


def _min(x: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(x.min(axis=axes))


reduction("reduce_min", "Smallest element along `axis`; NaN wins.", NUMBERS, _min, combine="min")
