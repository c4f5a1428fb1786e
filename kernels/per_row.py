"""Rules for values known at run time: one for all rows of a batch, or one for each."""

import numpy as np

from ark_dist.core.op import Array
from ark_dist.core.shape import Box
from ark_dist.core.view import Spec


def check_per_row(op_name: str, name: str, spec: Spec, rows: int, dtypes: tuple[str, ...]) -> None:
    """Raise TypeError or ValueError unless `spec` is of these dtypes, with 1 or `rows` values."""
    if spec.dtype.name not in dtypes:
        raise TypeError(
            f"{op_name}: {name} is {spec.dtype}; it must be {' or '.join(dtypes)}, cast it"
        )
    if spec.shape not in ((), (1,), (rows,)):
        raise ValueError(
            f"{op_name}: {name} is {spec.shape}; it must be (), (1,) or ({rows},), one for each row"
        )


def per_row_box(spec: Spec, rows: tuple[int, int]) -> Box:
    """What rows [start, stop) of the batch read of such values."""
    return tuple((0, 1) if size == 1 else rows for size in spec.shape)


def per_row(values: Array, count: int) -> Array:
    """The values of `count` rows, from those that their box reads."""
    return np.broadcast_to(values.reshape(-1), (count,))
