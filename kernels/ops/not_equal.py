"""Compare two tensors for inequality."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.kernels.rules import comparison

SUMMARY = "Whether elements differ, as bool; NaN differs from everything."

comparison("not_equal", SUMMARY, np.not_equal, (*NUMBERS, "bool"))
