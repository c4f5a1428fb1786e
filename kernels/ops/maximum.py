"""Take the larger of two elements."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.kernels.rules import INPUT, OTHER, elementwise

SUMMARY = "Take the larger of two elements; NaN wins."

elementwise("maximum", SUMMARY, (INPUT, OTHER), NUMBERS, np.maximum)
