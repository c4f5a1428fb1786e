"""Offer NCCL under the names of vLLM's `PyNcclCommunicator`."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TypeVar

from ark_dist.comm.communicator import DEFAULT_TIMEOUT_S, Communicator
from ark_dist.comm.nccl import NcclCommunicator
from ark_dist.comm.nccl_arrays import device_array
from ark_dist.comm.nccl_bootstrap import NcclOptions, connect, open_rank
from ark_dist.comm.nccl_gpu import Gpu, cuda_gpu
from ark_dist.comm.nccl_handle import NcclHandle
from ark_dist.comm.nccl_library import NCCLLibrary
from ark_dist.comm.nccl_types import ncclWindow_t
from ark_dist.core.errors import NcclError

T = TypeVar("T")
TORCH_OPS = {"product": "prod", "avg": "mean"}


def device_number(device: object) -> int:
    """Return the number of a GPU: 1, "cuda:1", torch.device("cuda:1"), cupy.cuda.Device(1)."""
    if isinstance(device, int):
        return device
    if isinstance(device, str):
        kind, _, number = device.partition(":")
        if kind == "cuda" and (number.isdecimal() or not number):
            return int(number or 0)
        raise ValueError(f"device is {device!r}; it must be like 'cuda:0'")
    for name in ("index", "id"):
        found = getattr(device, name, None)
        if isinstance(found, int):
            return found
    raise ValueError(f"device is {device!r}; pass a number, 'cuda:0', or a device of torch or cupy")


def op_name(op: object) -> str:
    """Return the name of a reduction: of "sum", or of torch's ReduceOp.SUM."""
    name = str(op).rpartition(".")[2].lower()
    return TORCH_OPS.get(name, name)


def stream_handle(stream: object) -> int:
    """Return the handle of a stream: a number, or a stream of torch or cupy."""
    for name in ("cuda_stream", "ptr"):
        stream = getattr(stream, name, stream)
    if not isinstance(stream, int):
        raise TypeError(f"stream is {stream!r}; pass a handle, or a stream of torch or cupy")
    return stream


def current_stream(modules: Mapping[str, ModuleType]) -> object:
    """Return the current stream of torch, else of cupy, whichever is imported; else 0."""
    if torch := modules.get("torch"):
        return torch.cuda.current_stream()
    if cupy := modules.get("cupy"):
        return cupy.cuda.get_current_stream()
    return 0


def empty_like(array: T) -> T:
    """Make an array like another with the library that made that one."""
    package = sys.modules[type(array).__module__.partition(".")[0]]
    make: Callable[[T], T] | None = getattr(package, "empty_like", None)
    if make is None:
        raise TypeError(f"{package.__name__} has no empty_like; pass out_tensor to all_reduce")
    return make(array)


class PyNcclCommunicator:
    """NCCL between the ranks of a group, as vLLM's class of this name has it.

    With one rank, or where a rank has no libnccl, it is disabled, and its calls do nothing.

    Attributes:
        rank: this rank.
        world_size: how many ranks there are.
        group: the control communicator.
        device: number of this rank's GPU.
        available: whether NCCL runs.
        disabled: whether calls do nothing.
        stream: the stream of calls that name none; None means the current one.
        nccl: the library, where it is available.
        nccl_version: NCCL_VERSION_CODE.
        comm: the communicator itself, where it is available.
    """

    def __init__(
        self,
        group: Communicator,
        device: object,
        library_path: str | None = None,
        *,
        setting: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_ctas: int | None = None,
        find_gpu: Callable[[int], Gpu] = cuda_gpu,
    ) -> None:
        """Start NCCL over all ranks of the group: collective.

        Raises:
            NcclError: libnccl is there, and the start failed on a rank.
            CommMismatch: versions differ between ranks.
            CommTimeout: the start did not end in time.
        """
        self.rank = group.rank
        self.world_size = group.size
        self.group = group
        self.device = device_number(device)
        self.stream: object = None
        self.available = False
        self.disabled = True
        if group.size == 1 or not self._all_have_nccl(library_path, setting, timeout_s):
            return
        options = NcclOptions(
            device=self.device,
            max_ctas=max_ctas,
            timeout_s=timeout_s,
            so_file=library_path,
            setting=setting,
            find_gpu=find_gpu,
        )
        self.nccl, gpu = open_rank(group, options)
        self.nccl_version = self.nccl.version
        comm = connect(group, self.nccl, gpu, options)
        self.comm = NcclCommunicator(NcclHandle(group, self.nccl, gpu, comm, options), None)
        self.available = True
        self.disabled = False

    def _all_have_nccl(
        self, library_path: str | None, setting: str | None, timeout_s: float
    ) -> bool:
        try:
            NCCLLibrary(library_path, setting=setting)
            found = b"\x01"
        except NcclError:
            found = b""
        return all(self.group.all_gather_bytes(found, timeout_s=timeout_s))

    def _on(self, stream: object) -> int:
        for given in (stream, self.stream):
            if given is not None:
                return stream_handle(given)
        return stream_handle(current_stream(sys.modules))

    def all_reduce(
        self,
        in_tensor: T,
        out_tensor: T | None = None,
        op: object = "sum",
        stream: object = None,
    ) -> T | None:
        """Reduce over all ranks into a new array, or into `out_tensor`; None while disabled."""
        if self.disabled:
            return None
        target = empty_like(in_tensor) if out_tensor is None else out_tensor
        return self.comm.all_reduce(in_tensor, target, op_name(op), stream=self._on(stream))

    def all_gather(
        self, output_tensor: object, input_tensor: object, stream: object = None
    ) -> None:
        """Gather every rank's array into `output_tensor`."""
        if not self.disabled:
            self.comm.all_gather(input_tensor, output_tensor, stream=self._on(stream))

    def reduce_scatter(
        self,
        output_tensor: object,
        input_tensor: object,
        op: object = "sum",
        stream: object = None,
    ) -> None:
        """Reduce over all ranks; each gets its part in `output_tensor`."""
        if not self.disabled:
            on = self._on(stream)
            self.comm.reduce_scatter(input_tensor, output_tensor, op_name(op), stream=on)

    def send(self, tensor: object, dst: int, stream: object = None) -> None:
        """Send an array to a rank."""
        if not self.disabled:
            self.comm.send(tensor, dst, stream=self._on(stream))

    def recv(self, tensor: object, src: int, stream: object = None) -> None:
        """Receive an array from a rank."""
        if not self.disabled:
            self.comm.recv(tensor, src, stream=self._on(stream))

    def broadcast(self, tensor: object, src: int, stream: object = None) -> None:
        """Fill every rank's array with that of `src`."""
        if not self.disabled:
            self.comm.broadcast(tensor, src, stream=self._on(stream))

    def group_start(self) -> None:
        """Begin a group: its calls start together at the end."""
        if not self.disabled:
            self.comm.handle.group_start()

    def group_end(self) -> None:
        """Start the calls of the group."""
        if not self.disabled:
            self.comm.handle.group_end()

    def register_comm_window(self, tensor: object) -> ncclWindow_t | None:
        """Make an array's memory, of ncclMemAlloc, a window: collective."""
        array = device_array(tensor)
        return self.register_comm_window_raw(array.pointer, array.size_bytes)

    def register_comm_window_raw(self, ptr: int, size: int) -> ncclWindow_t | None:
        """Make memory of ncclMemAlloc a window: collective."""
        return None if self.disabled else self.comm.register_window(ptr, size)

    def deregister_comm_window(self, window: ncclWindow_t) -> None:
        """Undo `register_comm_window`."""
        if not self.disabled:
            self.comm.deregister_window(window)

    @contextlib.contextmanager
    def change_state(self, enable: bool | None = None, stream: object = None) -> Iterator[None]:
        """Enable (as far as available) or disable it inside, and set its stream there."""
        before = (self.disabled, self.stream)
        enabled = self.available if enable is None else enable and self.available
        self.disabled = not enabled
        self.stream = self.stream if stream is None else stream
        try:
            yield
        finally:
            self.disabled, self.stream = before

    def destroy(self) -> None:
        """Free the communicator: collective."""
        if self.available:
            self.comm.close()
            self.available, self.disabled = False, True
