"""Take the hyperbolic tangent of every element."""

import numpy as np

from ark_dist.kernels.rules import function

function("tanh", "Take the hyperbolic tangent of every element.", np.tanh, ops_per_element=24)
