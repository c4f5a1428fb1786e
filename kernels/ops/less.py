"""Compare two tensors for order."""

import numpy as np

from ark_dist.kernels.rules import comparison

comparison("less", "Whether `input` is less than `other`, as bool.", np.less)
