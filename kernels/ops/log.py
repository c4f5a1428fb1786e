"""Take the natural logarithm of every element."""

import numpy as np

from ark_dist.kernels.rules import function

SUMMARY = "Take the natural logarithm of every element: -inf of 0, NaN of negative numbers."

function("log", SUMMARY, np.log, ops_per_element=24)
