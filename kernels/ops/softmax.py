"""Turn rows into probabilities."""

import numpy as np

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import Array, Attrs, Kernel
from ark_dist.kernels.rows import AXIS, row_op
from ark_dist.kernels.rules import INPUT


def _softmax(x: tuple[Array, ...], axis: int, attrs: Attrs) -> Array:
    e = np.exp(x[0] - x[0].max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


row_op(
    "softmax",
    "exp(x) / sum(exp(x)) along `axis`, computed from x - max(x) so that nothing overflows.",
    (INPUT, AXIS),
    FLOATS,
    _softmax,
    Kernel("row", "ark_softmax"),
)
