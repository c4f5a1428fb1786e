"""Bring a user's NumPy array to the shape and dtype of a tensor, or say why it does not fit."""

from math import prod

import numpy as np

from ark_dist.core.dtype import BF16, DType
from ark_dist.core.op import Array
from ark_dist.core.shape import Shape


def as_ndarray(call: str, value: object) -> Array:
    """Return `value` if it is an array; TypeError otherwise."""
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{call}: found a {type(value).__name__}, wanted a numpy.ndarray; "
            "np.asarray(value) makes one"
        )
    return value


def fit_shape(call: str, name: str, array: Array, shape: Shape) -> Array:
    """Return the array in the tensor's shape.

    Dimensions of size 1 may be added or left out, and a flat array stands for any shape with
    as many elements. Everything else raises ValueError: a transposed array must not pass.
    """
    if array.shape == shape:
        return array
    found, wanted = _without_ones(array.shape), _without_ones(shape)
    is_flat = len(found) <= 1 or len(wanted) <= 1
    if array.size != prod(shape) or not (found == wanted or is_flat):
        raise ValueError(
            f"{call}: the array has shape {array.shape}, tensor {name!r} has {shape}; "
            f"{'transpose' if found == wanted[::-1] else 'reshape'} the array"
        )
    return array.reshape(shape)


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def is_same_dtype(dtype: np.dtype[np.generic], wanted: DType) -> bool:
    """Whether a NumPy dtype has the tensor's bits, in either byte order."""
    return bool(dtype.newbyteorder("=") == wanted.numpy)


def exact_dtype(call: str, name: str, array: Array, wanted: DType) -> Array:
    """Return the array in native byte order; TypeError if its dtype is not the tensor's."""
    if not is_same_dtype(array.dtype, wanted):
        raise TypeError(
            f"{call}: the array of shape {array.shape} is {array.dtype}, tensor {name!r} is "
            f"{wanted}; array.astype({wanted.numpy_name!r}) or tensor.from_numpy(array) converts"
        )
    return array.astype(wanted.numpy, copy=False)


def cast(call: str, name: str, array: Array, wanted: DType) -> Array:
    """Return the array converted to the tensor's dtype; TypeError if it holds no numbers."""
    if array.dtype.kind not in "biuf" and array.dtype != BF16.numpy:
        raise TypeError(
            f"{call}: the array is {array.dtype}, tensor {name!r} is {wanted}; "
            "only arrays of real numbers or bool convert"
        )
    with np.errstate(all="ignore"):
        return array.astype(wanted.numpy, copy=False)


def check_destination(call: str, name: str, array: Array, shape: Shape, dtype: DType) -> Array:
    """Return a user's array in the tensor's shape, ready to be written in place.

    Raises TypeError for another dtype, ValueError for another shape, or an array that is
    read-only or not C-contiguous.
    """
    if array.dtype != dtype.numpy:
        raise TypeError(
            f"{call}: the destination is {array.dtype}, tensor {name!r} is {dtype}; "
            f"make it with dtype {dtype.numpy_name!r}"
        )
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{call}: the destination is not C-contiguous; make it with np.empty or np.zeros"
        )
    if not array.flags.writeable:
        raise ValueError(f"{call}: the destination is read-only; pass a writable array")
    return fit_shape(call, name, array, shape)
