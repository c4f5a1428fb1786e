"""Copy a tensor into memory of its own."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Array
from ark_dist.kernels.rules import INPUT, elementwise


def _copy(a: Array) -> Array:
    return a


elementwise("copy", "Copy a tensor into contiguous memory of its own.", (INPUT,), ALL_DTYPES, _copy)
