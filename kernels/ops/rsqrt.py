"""Take the reciprocal square root of every element."""

import numpy as np

from ark_dist.kernels.rules import Floats, function

SUMMARY = "Divide 1 by the square root of every element: inf of 0, NaN of negative numbers."


def _rsqrt(a: Floats) -> Floats:
    return np.asarray(1.0 / np.sqrt(a))


function("rsqrt", SUMMARY, _rsqrt, ops_per_element=8)
