"""Multiply every element with its logistic function."""

import numpy as np

from ark_dist.kernels.rules import Floats, function

SUMMARY = """Take x / (1 + exp(-x)) of every element x, also called swish; 0 of -inf, the limit.

Elfwing, Uchibe and Doya 2018."""


def _silu(a: Floats) -> Floats:
    e = np.exp(-np.abs(a))
    value = np.where(a < 0, a * e, a) / (1.0 + e)
    return np.where(a == -np.inf, -0.0, value)


function("silu", SUMMARY, _silu, ops_per_element=24)
