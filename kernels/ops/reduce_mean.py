"""Reduce one dimension to its mean."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction


def _mean(x: Array, axis: int) -> Array:
    return np.asarray(x.mean(axis=axis))


reduction("reduce_mean", "Mean along `axis`, accumulated in fp32.", FLOATS, _mean)
