"""Turn numbers and arrays into the data of tensors, and refuse what would change."""

import numpy as np
import numpy.typing as npt

from ark_dist.core.dtype import BF16, DType
from ark_dist.core.op import Array
from ark_dist.core.shape import Shape


def check_number(op_name: str, item: float | np.number | np.bool_, dtype: DType) -> None:
    """Raise unless a number among the inputs has a value in the tensor's dtype."""
    if not dtype.is_integer:
        converted(op_name, item, dtype)
        return
    if isinstance(item, (float, np.floating)) and not float(item).is_integer():
        raise TypeError(
            f"{op_name}: {item!r} does not fit a tensor of {dtype}; cast the tensor first"
        )
    low, high = dtype.limits
    if not low <= int(item) <= high:
        raise ValueError(f"{op_name}: {item!r} is out of the range of {dtype}")


def converted(what: str, value: object, dtype: DType) -> Array:
    """Return numbers as an array of the dtype; integers must keep their value."""
    array = np.asarray(value)
    try:
        # Floats round, and may become infinite; what integers may not do is checked below.
        with np.errstate(all="ignore"):
            result = array.astype(dtype.numpy)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{what}: {repr(value)[:60]} can't be stored as {dtype}") from None
    if dtype.kind in ("int", "uint", "byte") and not np.array_equal(result, array):
        raise ValueError(f"{what}: {repr(value)[:60]} does not fit {dtype}; take a wider dtype")
    return result


def default_dtype(value: object) -> str:
    """The dtype a Python number or sequence has if none is given."""
    if isinstance(value, bool):
        return "bool"
    return "int32" if isinstance(value, int) else "fp32"


def bits_dtype(dtype: DType) -> np.dtype[np.generic]:
    """The unsigned integer of the same size, to look at bits."""
    return np.dtype(f"u{dtype.itemsize}")


def as_array(data: bytes, dtype: DType, shape: Shape) -> Array:
    """Read the initial bytes of a buffer as an array."""
    return np.frombuffer(data, dtype.numpy).reshape(shape)


def rounded(value: npt.NDArray[np.float64], dtype: DType) -> npt.NDArray[np.generic]:
    """Convert float64 to a dtype in one rounding, to nearest even; too large becomes infinite."""
    with np.errstate(all="ignore"):
        # ml_dtypes would go through fp32 and round twice.
        source = _cut_to_odd(value) if dtype is BF16 else value
        return np.asarray(source.astype(dtype.numpy))


def _cut_to_odd(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Cut to fp32; the last bit is 1 where something was lost, so that rounding again is safe."""
    near = np.atleast_1d(value).astype(np.float32)
    bits = near.view(np.uint32).copy()
    is_cut = (near != value) & ~np.isnan(near)
    bits -= is_cut & (np.abs(near) > np.abs(value))
    bits |= is_cut
    cut: npt.NDArray[np.float32] = bits.view(np.float32).reshape(value.shape)
    return cut
