"""Take the cosine of every element."""

import numpy as np

from ark_dist.kernels.rules import function

SUMMARY = """Take the cosine of every element, an angle in radians.

Angles of any size are reduced exactly."""

function("cos", SUMMARY, np.cos, ops_per_element=64)
