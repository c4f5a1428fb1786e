"""Find where the largest element of each row is."""

from math import prod

import numpy as np

from ark_dist.core.dtype import INT32, NUMBERS
from ark_dist.core.op import Argument, Array
from ark_dist.kernels.rows import reduction

SUMMARY = """Index of the largest element along `axis`, as int32: the first of equals, or a NaN.

Where `axis` is None, all elements count as one row, the last dimension fastest."""
AXIS = Argument(
    "axis", "int | None", "the dimension to search, None for all; negative is from the end", "-1"
)


def _argmax(x: Array, axes: tuple[int, ...]) -> Array:
    kept = [d for d in range(x.ndim) if d not in axes]
    rows = x.transpose(*kept, *axes)
    count = prod(x.shape[d] for d in axes)
    return np.asarray(np.argmax(rows.reshape(*rows.shape[: len(kept)], count), axis=-1))


reduction(
    "argmax", SUMMARY, NUMBERS, _argmax,
    combine=None, axis=AXIS, keepdims="False", result=INT32,
)  # fmt: skip
