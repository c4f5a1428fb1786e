"""Replace negative elements by zero."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rules import INPUT, elementwise


def _relu(a: Array) -> Array:
    return np.maximum(a, np.zeros((), a.dtype))


elementwise("relu", "Replace negative elements by zero; NaN stays NaN.", (INPUT,), NUMBERS, _relu)
