"""Compare two tensors for equality."""

import numpy as np

from ark_dist.kernels.rules import comparison

comparison("equal", "Whether elements are equal, as bool; NaN equals nothing.", np.equal)
