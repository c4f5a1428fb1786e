"""Convert a tensor to another dtype."""

import numpy as np

from ark_dist.core.data import rounded
from ark_dist.core.dtype import ALL_DTYPES, DTYPES, DType
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Specs
from ark_dist.core.shape import Box
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import INPUT, map_op

SUMMARY = """Convert a tensor to `dtype`.

Floats round to nearest even. Floats to integers cut the fraction off and stop at the
integer's range, NaN becomes 0; integers to narrower integers wrap; anything but 0 is True."""


def _dtype(attrs: Attrs) -> DType:
    name = attrs["dtype"]
    if not isinstance(name, str) or name not in DTYPES:
        raise TypeError(f"cast: dtype {name!r} is not supported; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return Spec(specs[0].shape, _dtype(attrs))


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    value, dtype = tiles[0], _dtype(attrs)
    if dtype.kind == "bool":
        return np.asarray(value != 0)
    if dtype.is_float:
        # Straight from float64, which holds every dtype; what is too large becomes infinite.
        return rounded(value.astype(np.float64), dtype)
    if np.issubdtype(value.dtype, np.floating):
        whole = np.nan_to_num(np.trunc(value.astype(np.float64)), nan=0.0)
        return np.asarray(np.clip(whole, *dtype.limits).astype(dtype.numpy))
    return value.astype(dtype.numpy)


map_op(
    "cast",
    SUMMARY,
    (INPUT, Argument("dtype", "DTypeLike", "the dtype of the result", None)),
    ALL_DTYPES,
    _infer,
    _reference,
    Kernel("map", "ark_cast", is_conversion=True),
)
