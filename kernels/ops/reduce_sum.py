"""Reduce dimensions to their sum."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction

SUMMARY = """Sum along `axis`; floats accumulate in fp32, integers wrap in their own type.

The sum of no elements is 0."""


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    return np.asarray(x.sum(axis=axes, dtype=x.dtype))


reduction("reduce_sum", SUMMARY, NUMBERS, _sum, combine="sum", of_nothing=True)
