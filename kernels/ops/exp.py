"""Raise e to the power of every element."""

import numpy as np

from ark_dist.kernels.rules import function

function("exp", "Raise e to the power of every element.", np.exp, ops_per_element=16)
