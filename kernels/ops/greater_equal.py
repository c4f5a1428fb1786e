"""Compare two tensors for order."""

import numpy as np

from ark_dist.kernels.rules import comparison

comparison("greater_equal", "Whether `input` is at least `other`, as bool.", np.greater_equal)
