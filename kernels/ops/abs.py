"""Take the magnitude of every element."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.kernels.rules import INPUT, elementwise

SUMMARY = "Take the magnitude of every element; the lowest integer, which has none, stays."

elementwise("abs", SUMMARY, (INPUT,), NUMBERS, np.abs)
