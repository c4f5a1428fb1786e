"""Reduce dimensions to their mean."""

from math import prod

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction

SUMMARY = """Mean along `axis`, accumulated in fp32.

The mean of no elements is NaN."""


def _mean(x: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(x.sum(axis=axes) / np.float64(prod(x.shape[d] for d in axes)))


reduction("reduce_mean", SUMMARY, FLOATS, _mean, combine=None, of_nothing=True)
