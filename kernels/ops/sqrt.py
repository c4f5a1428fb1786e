"""Take the square root of every element."""

import numpy as np

from ark_dist.kernels.rules import function

SUMMARY = "Take the square root of every element: NaN of negative numbers."

function("sqrt", SUMMARY, np.sqrt, ops_per_element=4)
