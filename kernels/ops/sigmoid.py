"""Take the logistic function of every element."""

import numpy as np

from ark_dist.kernels.rules import Floats, function


def _sigmoid(a: Floats) -> Floats:
    # Of the exponential of a negative number, which does not overflow.
    e = np.exp(-np.abs(a))
    return np.asarray(np.where(a < 0, e, 1.0) / (1.0 + e))


function("sigmoid", "Take 1 / (1 + exp(-x)) of every element x.", _sigmoid, ops_per_element=24)
