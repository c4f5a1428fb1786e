"""Compare two tensors for order."""

import numpy as np

from ark_dist.kernels.rules import comparison

comparison("less_equal", "Whether `input` is at most `other`, as bool.", np.less_equal)
