"""Run a plan on a GPU: one cooperative launch, then commands through pinned memory."""

import importlib.util
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.data import as_array
from ark_dist.core.errors import ArkError, DeviceNotFoundError, StallError, TaskError
from ark_dist.core.op import Array
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import Settings
from ark_dist.core.view import View
from ark_dist.kernels.emit import Tables, emit_cuda
from ark_dist.kernels.text import SHARED_BYTES, shared_layout
from ark_dist.launch.devices.commands import CommandRing
from ark_dist.launch.devices.gpu import HOST_BLOCKS, THREADS, Blocks, first_failure, make_blocks
from ark_dist.launch.devices.report import failure_text, stall_text
from ark_dist.launch.machine import Command
from ark_dist.launch.memory import POISON, Arenas, reset_state
from ark_dist.launch.nvrtc import compile_cuda

# How long the host sleeps between two looks at the completion word, once it has looked often.
POLL_S, SPIN_POLLS = 20e-6, 2000
# How long a stopped kernel may take to leave its loops.
EXIT_S = 10.0
# Where cubins of one architecture run, by compute capability.
ARCHS = {8: "sm_80", 9: "sm_90a", 10: "sm_100a"}


@dataclass(frozen=True, slots=True)
class GpuProperties:
    """What planning needs to know about a GPU."""

    name: str
    arch: str
    worker_count: int


def gpu_properties(gpu_id: int) -> GpuProperties:
    """Ask for a GPU's properties.

    Raises:
        DeviceNotFoundError: cupy or the GPU is missing, or is too old or too new.
    """
    cupy = _cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceNotFoundError(f"device 'cuda': {error}; use device='cpu'") from None
    if not 0 <= gpu_id < count:
        raise DeviceNotFoundError(
            f"device 'cuda': GPU {gpu_id} is not one of the {count} there are"
        )
    found = cupy.cuda.runtime.getDeviceProperties(gpu_id)
    major = int(found["major"])
    if major not in ARCHS:
        raise DeviceNotFoundError(
            f"device 'cuda': GPU {gpu_id} has compute capability {major}.{found['minor']}; "
            f"{', '.join(f'{m}.x' for m in ARCHS)} work"
        )
    return GpuProperties(found["name"].decode(), ARCHS[major], int(found["multiProcessorCount"]))


def has_gpu() -> bool:
    """Whether there is a GPU that plans can be made for."""
    if importlib.util.find_spec("cupy") is None:
        return False
    try:
        gpu_properties(0)
    except DeviceNotFoundError:
        return False
    return True


def _cupy() -> Any:  # noqa: ANN401  # cupy has no types
    try:
        import cupy
    except ImportError as error:
        raise DeviceNotFoundError(
            f"device 'cuda' needs cupy ({error}); pip install \"ark_dist[cuda12]\" or "
            '"ark_dist[cuda13]", or use device="cpu"'
        ) from None
    return cupy


@dataclass(frozen=True, slots=True)
class CudaArenas(Arenas):
    """Arenas in a GPU's memory; only copies reach them while the kernel is resident."""

    bases: dict[str, Any]
    stream: Any

    def address(self, arena: str) -> int:
        """Where the arena starts, on the GPU."""
        return int(self.bases[arena].ptr)

    def buffer(self, buffer_id: int) -> Array:
        """A copy of a buffer in the host's memory."""
        buffer = self.plan.buffers[buffer_id]
        data = np.empty(buffer.shape, buffer.dtype.numpy)
        if data.nbytes:
            self._place(buffer_id).copy_to_host_async(data.ctypes.data, data.nbytes, self.stream)
            self.stream.synchronize()
        return data

    def write(self, view: View, value: Array) -> None:
        """Store an array of the view's shape and dtype; what is between strides stays."""
        buffer = self.plan.buffers[view.buffer]
        if view.is_contiguous and view.offset == 0 and view.shape == buffer.shape:
            self.store(view.buffer, value)
            return
        whole = self.buffer(view.buffer)
        flat = whole.reshape(-1)[view.offset :]
        steps = tuple(s * flat.itemsize for s in view.strides)
        np.lib.stride_tricks.as_strided(flat, view.shape, steps)[...] = value
        self.store(view.buffer, whole)

    def store(self, buffer_id: int, data: Array) -> None:
        """Fill a buffer from an array of its shape and dtype."""
        array = np.ascontiguousarray(data)
        if array.nbytes:
            self._place(buffer_id).copy_from_host_async(
                array.ctypes.data, array.nbytes, self.stream
            )
            self.stream.synchronize()

    def _place(self, buffer_id: int) -> Any:  # noqa: ANN401  # a cupy pointer
        place = self.plan.places[buffer_id]
        return self.bases[place.arena] + place.offset


@dataclass(frozen=True, slots=True)
class _Running:
    """A resident kernel and the memory it shares with the host."""

    blocks: Blocks
    memory: dict[str, Any]
    ring: CommandRing
    arenas: CudaArenas


class CudaDevice:
    """One GPU's persistent kernel: one CTA per streaming multiprocessor."""

    def __init__(self, plan: Plan, settings: Settings, gpu_id: int = 0) -> None:
        """Take a plan made for a GPU."""
        if plan.target.kind != "cuda":
            raise ValueError(
                f"program {plan.name!r} was planned for {plan.target.kind!r}, not for 'cuda'; "
                "plan the graph again for this device"
            )
        found = gpu_properties(gpu_id)
        if plan.target.arch != found.arch or plan.target.worker_count > found.worker_count:
            raise ValueError(
                f"program {plan.name!r} was planned for {plan.target.worker_count} workers of "
                f"{plan.target.arch}; GPU {gpu_id} ({found.name}) has {found.worker_count} of "
                f"{found.arch}; plan the graph again"
            )
        self.plan = plan
        self._settings = settings
        self._cupy = _cupy()
        self._gpu = self._cupy.cuda.Device(gpu_id)
        self._tables: Tables | None = None
        self._module: Any = None
        self._shared_bytes = 0
        self._running: _Running | None = None
        with self._gpu:
            self._kernel_stream = self._cupy.cuda.Stream(non_blocking=True)
            self._copy_stream = self._cupy.cuda.Stream(non_blocking=True)
        self._end: weakref.finalize[..., CudaDevice] | None = None

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """Emit the source, compile it or take it from the cache, and load it."""
        source, self._tables = emit_cuda(self.plan)
        arch = self.plan.target.arch
        layout = shared_layout(arch, self._tables.shared_bytes, self._tables.has_stream)
        assert layout.bytes <= SHARED_BYTES[arch]
        self._shared_bytes = layout.bytes
        binary, _ = compile_cuda(source, arch=arch, settings=self._settings, on_compile=on_compile)
        with self._gpu:
            path = str(binary.path)
            self._module = self._cupy.RawModule(path=path, enable_cooperative_groups=True)

    def allocate(self) -> Arenas:
        """Allocate the arenas on the GPU, poison and fill them."""
        sizes = dict(zip(ARENAS, self.plan.arena_bytes, strict=True))
        with self._gpu:
            bases = {name: self._cupy.cuda.alloc(max(size, 1)) for name, size in sizes.items()}
            bases["activations"].memset_async(
                POISON, max(sizes["activations"], 1), self._copy_stream
            )
        arenas = CudaArenas(self.plan, {}, bases, self._copy_stream)
        for buffer in self.plan.buffers:
            if buffer.kind == "output":
                poison = bytes([POISON]) * buffer.size_bytes
                arenas.store(buffer.id, as_array(poison, buffer.dtype, buffer.shape))
        reset_state(arenas, kinds=("constant", "state"))
        return arenas

    def start(self, arenas: Arenas) -> None:
        """Launch the kernel: from now on it holds the GPU."""
        assert self._tables is not None and isinstance(arenas, CudaArenas)
        addresses = {name: arenas.address(name) for name in ARENAS}
        blocks = make_blocks(self.plan, self._tables, addresses, self._settings, 0)
        with self._gpu:
            memory = self._place(blocks)
            arrays = blocks.arrays
            ring = CommandRing(self.plan, self._tables, arrays["host"], arrays["host_commands"])
            self._running = _Running(blocks, memory, ring, arenas)
            kernel = self._module.get_function("ark_kernel")
            kernel.max_dynamic_shared_size_bytes = self._shared_bytes
            with self._kernel_stream:
                grid = (self.plan.target.worker_count,)
                kernel(grid, (THREADS,), (), shared_mem=self._shared_bytes)
        self._end = weakref.finalize(self, _end_kernel, self._running, self._copy_stream)

    def _place(self, blocks: Blocks) -> dict[str, Any]:
        """Copy the blocks where the kernel finds them, and tell it where that is."""
        memory: dict[str, Any] = {}
        addresses: dict[str, int] = {}
        for name, array in list(blocks.arrays.items()):
            if name in HOST_BLOCKS:
                memory[name] = self._cupy.cuda.alloc_pinned_memory(array.nbytes)
                pinned = np.frombuffer(memory[name], array.dtype, array.size)
                pinned[...] = array.reshape(-1)
                blocks.arrays[name] = pinned
            else:
                memory[name] = self._cupy.cuda.alloc(array.nbytes)
                self._to_gpu(memory[name], array)
            addresses[name] = int(memory[name].ptr)
        self._to_gpu(self._module.get_global("ark_kernel_launch"), blocks.launch_record(addresses))
        return memory

    def _to_gpu(self, pointer: Any, array: npt.NDArray[Any]) -> None:  # noqa: ANN401
        pointer.copy_from_host_async(array.ctypes.data, array.nbytes, self._copy_stream)
        self._copy_stream.synchronize()

    def post(self, command: Command) -> None:
        """Write the command into the ring, once there is room, and let the kernel see it."""
        assert self._running is not None
        ring = self._running.ring
        if ring.is_full:
            self._await(ring.oldest, float("inf"))
            ring.collect()
        ring.post(command)

    def wait(self, timeout_s: float) -> list[int]:
        """Block until all commands are done."""
        assert self._running is not None
        ring = self._running.ring
        self._await(ring.posted, timeout_s)
        return ring.take_results()

    def _await(self, sequence: int, timeout_s: float) -> None:
        assert self._running is not None
        ring = self._running.ring
        deadline = time.monotonic() + timeout_s
        polls = 0
        while ring.completed < sequence:
            polls += 1
            if polls < SPIN_POLLS:
                continue
            if self._kernel_stream.done:
                raise self._failure()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"program {self.plan.name!r} is still running after {timeout_s} s; "
                    "wait again, or stop it"
                )
            time.sleep(POLL_S)

    def abort(self) -> None:
        """End the kernel at once; a wait() in another thread raises then."""
        running = self._running
        if running is not None:
            _abort(running, self._copy_stream)

    def stop(self) -> None:
        """Let the kernel exit; commands that are not done are dropped."""
        if self._running is None:
            return
        running = self._running
        if running.ring.completed < running.ring.posted:
            _abort(running, self._copy_stream)
        running.ring.post_exit()
        deadline = time.monotonic() + EXIT_S
        while not self._kernel_stream.done:
            if time.monotonic() > deadline:
                statuses = self._read("statuses")
                raise StallError(
                    f"rank {self.plan.rank}: the kernel did not exit within {EXIT_S:.0f} s; "
                    f"{stall_text(self.plan, statuses)}"
                )
            time.sleep(POLL_S)
        assert self._end is not None
        self._end.detach()
        self._running = None

    def _failure(self) -> ArkError:
        """Why the kernel exited by itself."""
        control, statuses = self._read("control"), self._read("statuses")
        failures = self._read("failures")
        assert self._end is not None
        self._end.detach()
        self._running = None
        reason = int(control["abort"][0])
        if reason == abi.TASK_FAILED:
            return TaskError(failure_text(self.plan, first_failure(failures)))
        if reason == abi.STALLED:
            limit_s = self._settings.timeout_s
            return StallError(stall_text(self.plan, statuses, limit_s=limit_s))
        return ArkError(f"rank {self.plan.rank}: the kernel was aborted")

    def _read(self, name: str) -> npt.NDArray[Any]:
        """A copy of one of the kernel's blocks."""
        assert self._running is not None
        array = np.empty_like(self._running.blocks.arrays[name])
        pointer = self._running.memory[name]
        pointer.copy_to_host_async(array.ctypes.data, array.nbytes, self._copy_stream)
        self._copy_stream.synchronize()
        return array


def _abort(running: _Running, stream: Any) -> None:  # noqa: ANN401  # a cupy stream
    """Set the abort word, which comes first in its record."""
    word = np.array([abi.HOST_ABORT], np.uint32)
    running.memory["control"].copy_from_host_async(word.ctypes.data, word.nbytes, stream)
    stream.synchronize()


def _end_kernel(running: _Running, stream: Any) -> None:  # noqa: ANN401  # a cupy stream
    """End a kernel that nobody stopped."""
    _abort(running, stream)
