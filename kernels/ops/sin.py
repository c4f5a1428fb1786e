"""Take the sine of every element."""

import numpy as np

from ark_dist.kernels.rules import function

SUMMARY = """Take the sine of every element, an angle in radians.

Angles of any size are reduced exactly."""

function("sin", SUMMARY, np.sin, ops_per_element=64)
