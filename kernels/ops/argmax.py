"""Find where the largest element of each row is."""

import numpy as np

from ark_dist.core.dtype import INT32, NUMBERS
from ark_dist.core.op import Array
from ark_dist.kernels.rows import reduction


def _argmax(x: Array, axis: int) -> Array:
    return np.asarray(np.argmax(x, axis=axis))


reduction(
    "argmax",
    "Index of the largest element along `axis`, as int32; the first of equals, the first NaN.",
    NUMBERS,
    _argmax,
    result=INT32,
    keepdims="False",
)
