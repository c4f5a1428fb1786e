"""Compare two tensors for order."""

import numpy as np

from ark_dist.kernels.rules import comparison

comparison("greater", "Whether `input` is greater than `other`, as bool.", np.greater)
