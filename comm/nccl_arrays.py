"""Describe arrays in GPU memory to NCCL: address, count, and number of the dtype."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ark_dist.comm.nccl_types import DATA_TYPES, ncclDataTypeEnum

BFLOAT16_TYPESTR = "<V2"  # how ml_dtypes' bfloat16 shows in the array interface


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """A contiguous array in GPU memory.

    Attributes:
        pointer: address of its first element.
        shape: its shape.
        dtype: name of its dtype, as numpy says it.
        itemsize: bytes per element.
        read_only: whether nothing may be written to it.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    read_only: bool

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return self.count * self.itemsize


def device_array(array: object) -> DeviceArray:
    """Read what an array of cupy, torch, or anything with `__cuda_array_interface__` is.

    Raises:
        TypeError: it is not in GPU memory.
        ValueError: it is not C-contiguous.
    """
    if isinstance(array, DeviceArray):
        return array
    # torch first: its array interface does not know bfloat16.
    if hasattr(array, "data_ptr") and hasattr(array, "is_cuda"):
        return _of_torch(array)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise TypeError(
            f"{type(array).__name__} is not in GPU memory: it has no __cuda_array_interface__; "
            "pass an array of cupy or torch, or use the control communicator for numpy's"
        )
    shape, typestr = tuple(interface["shape"]), str(interface["typestr"])
    itemsize = np.dtype(typestr).itemsize
    strides = interface.get("strides")
    if strides is not None and math.prod(shape) and not _is_contiguous(shape, strides, itemsize):
        raise ValueError(
            f"an array of shape {shape} has strides {tuple(strides)}; NCCL needs it C-contiguous, "
            "copy it first"
        )
    pointer, read_only = interface["data"]
    name = "bfloat16" if typestr == BFLOAT16_TYPESTR else np.dtype(typestr).name
    dtype = str(getattr(array, "dtype", name))
    return DeviceArray(int(pointer), shape, dtype, itemsize, bool(read_only))


def _of_torch(array: object) -> DeviceArray:
    tensor: _Tensor = array  # type: ignore[assignment]  # no torch here to check it against
    if not tensor.is_cuda:
        raise TypeError("the tensor is not in GPU memory; move it there with .cuda()")
    if not tensor.is_contiguous():
        raise ValueError("the tensor is not contiguous; pass tensor.contiguous()")
    name = str(tensor.dtype).removeprefix("torch.")
    size = int(tensor.element_size())
    return DeviceArray(int(tensor.data_ptr()), tuple(tensor.shape), name, size, False)


class _Tensor(Protocol):
    """What we use of a torch.Tensor."""

    is_cuda: bool
    dtype: object
    shape: tuple[int, ...]

    def is_contiguous(self) -> bool: ...
    def element_size(self) -> int: ...
    def data_ptr(self) -> int: ...


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def movable(array: DeviceArray) -> tuple[int, int]:
    """Return count and NCCL's dtype for moving an array: bytes, where NCCL lacks the dtype."""
    number = DATA_TYPES.get(array.dtype)
    if number is None:
        return array.size_bytes, ncclDataTypeEnum.ncclUint8
    return array.count, number


def check_pair(what: str, send: DeviceArray, recv: DeviceArray, times: int, per: int) -> None:
    """Require that `recv` holds `times / per` as many elements as `send`, of the same dtype."""
    if send.dtype != recv.dtype:
        raise TypeError(f"{what}: dtypes differ, send is {send.dtype} and recv is {recv.dtype}")
    if recv.read_only:
        raise ValueError(f"{what}: recv is read-only; pass an array that can be written")
    if recv.count * per != send.count * times:
        raise ValueError(
            f"{what}: send has shape {send.shape} and recv {recv.shape}; recv must have "
            f"{f'{times} times' if per == 1 else f'1/{per} of'} the {send.count} elements of send"
        )
