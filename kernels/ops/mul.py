"""Multiply two tensors, broadcasting as NumPy does."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.kernels.rules import INPUT, OTHER, elementwise

elementwise(
    "mul", "Multiply two tensors, broadcasting as NumPy does.", (INPUT, OTHER), NUMBERS, np.multiply
)
