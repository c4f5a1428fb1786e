"""Change the sign of every element."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.kernels.rules import INPUT, elementwise

SUMMARY = "Change the sign of every element; integers wrap."

elementwise("neg", SUMMARY, (INPUT,), NUMBERS, np.negative)
