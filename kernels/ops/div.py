"""Divide one tensor by another, broadcasting as NumPy does."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.kernels.rules import INPUT, OTHER, elementwise

elementwise(
    "div",
    "Divide `input` by `other`, broadcasting as NumPy does.",
    (INPUT, OTHER),
    FLOATS,
    np.divide,
)
