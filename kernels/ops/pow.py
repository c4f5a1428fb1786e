"""Raise one tensor to the power of another."""

import numpy as np

from ark_dist.core.dtype import NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rules import INPUT, OTHER, elementwise

SUMMARY = """Raise `input` to the power of `other`, broadcasting as NumPy does.

x^0 and 1^y are 1 even for NaN; a negative number to a power that is not whole is NaN. Integers
wrap; a negative power of an integer is what division leaves of it: 1 or -1 for those two, else 0.
Cast integers for fractions."""


def _pow(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.power(a, b)
    # NumPy refuses negative powers of integers: of their results only those of 1 and -1 are not 0.
    is_inverse = np.less(b, 0)
    power = np.power(a, np.where(is_inverse, np.bitwise_and(b, 1), b))
    has_inverse = np.equal(a, 1) | np.equal(a, -1)
    return np.where(is_inverse & ~has_inverse, np.zeros((), a.dtype), power)


elementwise("pow", SUMMARY, (INPUT, OTHER), NUMBERS, _pow, ops_per_element=96)
