"""Divide one tensor by another, broadcasting as NumPy does."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.kernels.rules import INPUT, OTHER, elementwise

SUMMARY = """Divide `input` by `other`, broadcasting as NumPy does.

A quotient of integers is no integer: cast them to a floating dtype first."""

elementwise("div", SUMMARY, (INPUT, OTHER), FLOATS, np.divide)
