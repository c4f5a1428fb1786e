"""Choose between two tensors."""

import numpy as np

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument
from ark_dist.kernels.rules import elementwise

CONDITION = Argument("condition", "Tensor", "what decides, of dtype bool", None, "bool")
INPUT = Argument("input", "Operand", "what to take where it is True: a tensor or a number", None)
OTHER = Argument("other", "Operand", "what to take elsewhere: a tensor or a number", None)
SUMMARY = """Take elements of `input` where `condition` is True, of `other` elsewhere.

All three broadcast as in NumPy. One of `input` and `other` is a tensor; a number has its dtype."""

elementwise("where", SUMMARY, (CONDITION, INPUT, OTHER), ALL_DTYPES, np.where)
