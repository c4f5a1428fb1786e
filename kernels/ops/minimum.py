"""Take the smaller of two elements."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.kernels.rules import INPUT, OTHER, elementwise

SUMMARY = "Take the smaller of two elements; NaN wins."

elementwise("minimum", SUMMARY, (INPUT, OTHER), NUMBERS, np.minimum)
