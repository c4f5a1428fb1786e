"""Check the arrays of communication calls, and combine those of several ranks in rank order."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np

from ark_dist.comm.communicator import REDUCE_OPS, Bytes
from ark_dist.core.dtype import as_dtype
from ark_dist.core.op import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_COMBINE = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}
# Elements combined at a time: partial results stay in the cache.
_BLOCK = 1 << 15


def dtype_name(dtype: np.dtype[np.generic]) -> str:
    """ARK's name of an element type; NumPy's where ARK has none."""
    try:
        return as_dtype(dtype).name
    except TypeError:
        return str(dtype.name)


def spelled(array: Array) -> str:
    """Say in a message what an array is."""
    return f"{dtype_name(array.dtype)}{list(array.shape)}"


def check_array(op: str, what: str, array: Array, *, is_written: bool = False) -> Array:
    """Return an array that can be sent or filled; raise if it is not one."""
    if not isinstance(array, np.ndarray):
        kind = type(array).__name__
        raise TypeError(f"{op}: {what} is a {kind}; pass a NumPy array (np.asarray)")
    dtype = array.dtype
    if not dtype.isnative or dtype.hasobject or dtype.names or dtype.itemsize == 0:
        raise TypeError(f"{op}: {what} has dtype {dtype}; numbers of this machine can be sent")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{op}: {what} {spelled(array)} is not C-contiguous, strides {array.strides}; "
            "pass np.ascontiguousarray(...)"
        )
    if is_written and not array.flags.writeable:
        raise ValueError(f"{op}: {what} {spelled(array)} is read-only; pass a copy")
    return array


def check_like(op: str, recv: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """Return an array for a result; raise unless it has the result's shape and dtype."""
    check_array(op, "recv", recv, is_written=True)
    if recv.shape != shape or recv.dtype != dtype:
        raise ValueError(
            f"{op}: recv is {spelled(recv)}; the result is {dtype_name(dtype)}{list(shape)}"
        )
    return recv


def check_reduction(op: str, reduce: str, dtype: np.dtype[np.generic]) -> None:
    """Raise unless arrays of a dtype can be combined in this way."""
    if reduce not in REDUCE_OPS:
        raise ValueError(f"{op}: op is {reduce!r}; use one of {', '.join(REDUCE_OPS)}")
    is_float = dtype.kind == "f" or dtype == _BFLOAT16
    if not is_float and dtype.kind not in "biu":
        raise TypeError(f"{op}: {dtype_name(dtype)} can't be combined; cast it to fp32")
    if reduce == "mean" and not is_float:
        raise TypeError(f"{op}: mean of {dtype_name(dtype)}; cast it to fp32, or use sum")


def as_bytes(array: Array) -> Bytes:
    """Look at a C-contiguous array as bytes."""
    return array.reshape(-1).view(np.uint8)


def reduce_in_order(parts: Sequence[Array], reduce: str, out: Array) -> None:
    """Combine equal arrays from first to last into `out`, which may be one of them.

    16-bit floats are added in fp32 and rounded once; integers wrap; the sum of bool is "or".
    """
    flat = [part.reshape(-1) for part in parts]
    target = out.reshape(-1)
    is_short = out.dtype == np.float16 or out.dtype == _BFLOAT16
    wide = np.dtype(np.float32) if is_short else out.dtype
    combine = _COMBINE[reduce]
    with np.errstate(all="ignore"):
        for start in range(0, target.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            total = flat[0][block].astype(wide)
            for part in flat[1:]:
                combine(total, part[block].astype(wide, copy=False), out=total)
            if reduce == "mean":
                np.divide(total, wide.type(len(flat)), out=total)
            target[block] = total


def is_same(a: Array, b: Array) -> bool:
    """Tell whether two arrays are the very same memory."""
    return a.ctypes.data == b.ctypes.data and a.nbytes == b.nbytes


def apart(send: Array, recv: Array) -> Array:
    """The array to send from: a copy where the result would overwrite a part of it too early."""
    if is_same(send, recv) or not np.may_share_memory(send, recv):
        return send
    copy: Array = send.copy()
    return copy
