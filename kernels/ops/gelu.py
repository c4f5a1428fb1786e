"""Multiply every element with the chance that a normal number is below it."""

from math import erfc, pi, sqrt

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Argument, Attrs
from ark_dist.kernels.rules import INPUT, Floats, elementwise

FORMS = ("none", "tanh")
SUMMARY = """Multiply every element with the chance that a normal number is below it.

This is x / 2 * (1 + erf(x / sqrt(2))), or with approximate="tanh"
x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))); 0 of -inf, the limit
(Hendrycks and Gimpel 2016)."""


def _check(attrs: Attrs) -> None:
    if attrs["approximate"] not in FORMS:
        raise ValueError(
            f"gelu: approximate is {attrs['approximate']!r}; it must be one of {', '.join(FORMS)}"
        )


def _gelu(a: Floats, approximate: str) -> Floats:
    if approximate == "tanh":
        # 1 + tanh(t) is 2 / (1 + exp(-2 t)), also far below 0.
        double = 2 * sqrt(2 / pi) * (a + 0.044715 * a**3)
        e = np.exp(-np.abs(double))
        chance = np.where(a < 0, e, 1.0) / (1.0 + e)
    else:
        chance = np.vectorize(erfc, otypes=[np.float64])(a * -sqrt(0.5)) / 2
    return np.where(a == -np.inf, -0.0, a * chance)


elementwise(
    "gelu",
    SUMMARY,
    (INPUT, Argument("approximate", "str", '"none" for the exact form, or "tanh"', '"none"')),
    FLOATS,
    _gelu,
    params=("approximate",),
    check=_check,
    ops_per_element=48,
)
