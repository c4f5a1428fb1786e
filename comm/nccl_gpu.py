"""Find this rank's GPU with the CUDA driver alone: its uuid, and how to make it current."""

import ctypes
import uuid
from dataclasses import dataclass
from typing import Protocol

from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import DeviceNotFoundError

DRIVER = "libcuda.so.1"
UUID_BYTES = 16


class Gpu(Protocol):
    """One GPU as far as NCCL's start is concerned.

    Attributes:
        ordinal: its number among the GPUs this process sees.
        uuid: its name on all machines, a part of a GPU (MIG) has its own.
        driver: the CUDA version of the driver, such as 12080.
    """

    @property
    def ordinal(self) -> int:
        """Its number among the GPUs this process sees."""

    @property
    def uuid(self) -> str:
        """Its name on all machines."""

    @property
    def driver(self) -> int:
        """The CUDA version of the driver."""

    def activate(self) -> None:
        """Make it current in this thread, as NCCL and CUDA expect."""


class CudaDriver:
    """The few calls of the CUDA driver that a start of NCCL needs."""

    def __init__(self, so_file: str = DRIVER) -> None:
        """Load and start the driver.

        Raises:
            DeviceNotFoundError: there is no driver, or it finds no GPU.
        """
        try:
            self.library = ctypes.CDLL(so_file)
        except OSError as error:
            raise DeviceNotFoundError(
                f"no CUDA driver: {error}; NCCL needs a GPU, use the backends mpi or shm"
            ) from error
        self.library.cuCtxSetCurrent.argtypes = (ctypes.c_void_p,)
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        """Make a call; DeviceNotFoundError names it and its code if it fails."""
        code = getattr(self.library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(text))
            reason = (text.value or b"unknown error").decode(errors="replace")
            raise DeviceNotFoundError(f"{name} of the CUDA driver: code {code}, {reason}")

    def number(self, name: str) -> int:
        """Return what a call writes to its one argument."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value))
        return value.value


@dataclass(frozen=True, slots=True)
class CudaGpu:
    """A GPU, found by `cuda_gpu`."""

    api: CudaDriver
    handle: int
    ordinal: int
    uuid: str
    driver: int

    def activate(self) -> None:
        """Make the GPU's primary context, which CUDA's runtime uses too, current here."""
        context = ctypes.c_void_p()
        self.api.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.handle)
        self.api.call("cuCtxSetCurrent", context)


def cuda_gpu(ordinal: int, so_file: str = DRIVER) -> CudaGpu:
    """Find a GPU by its number.

    Raises:
        DeviceNotFoundError: there is no driver, or no such GPU.
    """
    api = CudaDriver(so_file)
    count = api.number("cuDeviceGetCount")
    if not 0 <= ordinal < count:
        raise DeviceNotFoundError(
            f"GPU {ordinal} is not one of the {count} this process sees; start fewer ranks per "
            "node, or let CUDA_VISIBLE_DEVICES name more GPUs"
        )
    handle = ctypes.c_int()
    api.call("cuDeviceGet", ctypes.byref(handle), ordinal)
    name = (ctypes.c_ubyte * UUID_BYTES)()
    # _v2, of CUDA 11.4: the part's own uuid where the GPU is cut in parts (MIG).
    v2 = hasattr(api.library, "cuDeviceGetUuid_v2")
    api.call("cuDeviceGetUuid_v2" if v2 else "cuDeviceGetUuid", name, handle)
    driver = api.number("cuDriverGetVersion")
    return CudaGpu(api, handle.value, ordinal, f"GPU-{uuid.UUID(bytes=bytes(name))}", driver)


def local_rank(control: Communicator) -> int:
    """Count the ranks of this node before this one: by custom, the number of its GPU."""
    return control.node_ranks.index(control.rank)
