"""Round what a model file holds to a dtype, or say which tensor can't be."""

from __future__ import annotations

import numpy as np

from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.safetensors_file import Array, Dtype

# Where to go with what is too large for a dtype.
_WIDER = {"float16": "; convert it to bf16", "bfloat16": "; convert it to fp32"}


def rounded(exact: Array, dtype: Dtype, place: str) -> Array:
    """Return floats rounded to nearest in `dtype`; `place` is what errors call the tensor.

    Raises ShardCorruptError for values that are not finite, and CheckpointError for those that are
    not in `dtype`.
    """
    if not np.isfinite(exact).all():
        raise ShardCorruptError(f"{place} has values that are not finite; fetch it again")
    with np.errstate(all="ignore"):  # what is not finite is looked for
        found: Array = exact.astype(dtype, copy=False)
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"{place} has values up to {np.abs(exact).max():.3g}, too large for {dtype}"
            f"{_WIDER.get(dtype.name, '')}"
        )
    return found
