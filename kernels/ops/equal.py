"""Compare two tensors for equality."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.kernels.rules import comparison

SUMMARY = "Whether elements are equal, as bool; NaN equals nothing."

comparison("equal", SUMMARY, np.equal, (*NUMBERS, "bool"))
