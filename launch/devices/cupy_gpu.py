"""Reach one GPU through cupy: its properties, memory, modules, copies, launches and faults."""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.core.errors import (
    ArkError,
    DeviceBusy,
    DeviceNotFoundError,
    MemoryLimitError,
    StallError,
)
from ark_dist.core.plan import ALIGNMENT_BYTES
from ark_dist.core.settings import prefer_variable
from ark_dist.kernels.text import SHARED_BYTES

# Where cubins run, by compute capability. An architecture that ends in "a" runs on its own alone;
# 8.6 and 8.9 have too little shared memory for kernels of sm_80.
ARCHS = {(8, 0): "sm_80", (8, 7): "sm_80", (9, 0): "sm_90a", (10, 0): "sm_100a"}
# Of enum cudaError and CUresult, which agree on these.
SUCCESS, OUT_OF_MEMORY, NOT_READY = 0, 2, 600
# Copies go through a pinned block of this size.
STAGING_BYTES = 4 << 20
# How long one such block may take.
COPY_S = 10.0
# A wait looks without a pause for so long: even to let others run takes longer where there are any.
EAGER_S = 30e-6
# Then it lets them run, since a sleep takes 50 us and more; then it sleeps a share of the time that
# it has waited already, up to a limit.
SPIN_S, NAP_SHARE, NAP_S = 1e-3, 0.02, 100e-6

Bytes = npt.NDArray[np.uint8]


class GpuFaultError(ArkError):
    """CUDA reported an error: the kernel or its memory is gone."""


@dataclass(frozen=True, slots=True)
class GpuPart:
    """Which GPU of this machine, and which of its multiprocessors: all, unless a range is given."""

    gpu_id: int = 0
    sms: range | None = None

    def within(self, count: int) -> range:
        """The range, of a GPU that has so many; ValueError if it has fewer."""
        if self.sms is None:
            return range(count)
        if self.sms.stop > count:
            raise ValueError(
                f"sms is {self.sms}; GPU {self.gpu_id} has {count} multiprocessors, so it must "
                f"lie in range(0, {count})"
            )
        return self.sms


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
    runtime = _cupy().cuda.runtime
    try:
        count = runtime.getDeviceCount()
        if not 0 <= gpu_id < count:
            raise DeviceNotFoundError(
                f"device 'cuda': GPU {gpu_id} is not one of the {count} there are; "
                "use a gpu_id below that, or device='cpu'"
            )
        found = runtime.getDeviceProperties(gpu_id)
    except runtime.CUDARuntimeError as error:
        raise DeviceNotFoundError(f"device 'cuda': {error}; use device='cpu'") from None
    capability = (int(found["major"]), int(found["minor"]))
    if capability not in ARCHS:
        raise DeviceNotFoundError(
            f"device 'cuda': GPU {gpu_id} has compute capability {capability[0]}.{capability[1]}; "
            f"{', '.join(f'{a}.{b}' for a, b in ARCHS)} work; use another GPU, or device='cpu'"
        )
    arch = ARCHS[capability]
    assert found["sharedMemPerBlockOptin"] >= SHARED_BYTES[arch]
    return GpuProperties(found["name"].decode(), arch, int(found["multiProcessorCount"]))


def _cupy() -> Any:  # noqa: ANN401  # cupy has no types
    if _is_installed("cupy"):
        # What is loaded at its first use would wait for a resident kernel of ours: for ever.
        prefer_variable("CUDA_MODULE_LOADING", "EAGER")
    try:
        import cupy
    except ImportError as error:
        raise DeviceNotFoundError(
            f"device 'cuda' needs cupy ({error}); pip install \"ark_dist[cuda12]\" or "
            '"ark_dist[cuda13]", or use device="cpu"'
        ) from None
    return cupy


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return find_spec(name) is not None


def nap(waited_s: float) -> None:
    """Let other threads run, and the core rest once a wait is long."""
    if waited_s >= EAGER_S:
        time.sleep(0.0 if waited_s < SPIN_S else min(NAP_SHARE * waited_s, NAP_S))


@dataclass(slots=True)
class _Shared:
    """What the programs of this process share on one GPU.

    Attributes:
        residents: name and multiprocessors of each resident kernel, by whatever its owner chose.
        idle_modules: modules that no program uses, by file.
    """

    residents: dict[object, tuple[str, range]] = field(default_factory=dict)
    idle_modules: dict[str, list[Any]] = field(default_factory=dict)


@functools.cache
def _shared(gpu_id: int) -> _Shared:
    return _Shared()


def require_none_resident(gpu_id: int, program: str) -> None:
    """Raise DeviceBusy where a resident kernel would let loading wait for ever."""
    for name, _ in list(_shared(gpu_id).residents.values()):
        raise DeviceBusy(
            f"compile() of program {program!r} would wait for the kernel of program {name!r}, "
            f"which GPU {gpu_id} runs; stop() that first, or compile before it is launched"
        )


def require_free(gpu_id: int, program: str, sms: range) -> None:
    """Raise DeviceBusy where resident kernels of this process hold some of these."""
    for name, held in list(_shared(gpu_id).residents.values()):
        if held.start < sms.stop and sms.start < held.stop:
            raise DeviceBusy(
                f"launch() of program {program!r} wants multiprocessors {sms.start} to "
                f"{sms.stop - 1} of GPU {gpu_id}, and program {name!r} holds {held.start} to "
                f"{held.stop - 1}; stop() that first, or give each its own, as "
                "Executor(sms=range(...)) does"
            )


class Gpu:
    """One GPU; every call may come from any thread.

    A persistent kernel never ends by itself, so whatever waits for the whole GPU waits for ever:
    allocating and freeing memory of either side, loading and unloading modules, the legacy
    stream, and all that is a kernel itself, such as memset. So while one is resident

    - nothing is allocated. cupy's pool takes memory back without freeing it (it does free when it
      runs out, which only an allocation can bring about);
    - no module goes away: `load` hands out again what `unload` got back;
    - only this class's copies, between pinned memory and the GPU's, are made. They use a stream
      that waits for no other, and the GPU's copy engines.

    cupy's RawModule would not do: two of one file share one module, with its constants; nor
    Stream.done, which is never true after a fault; nor `with Device`, see `_calling`.
    """

    def __init__(self, gpu_id: int) -> None:
        """Open the GPU's context and make streams and staging memory."""
        self.id = gpu_id
        self._cuda = _cupy().cuda
        self._device = self._cuda.Device(gpu_id)
        with self._calling("making streams"):
            self._kernel_stream = self._cuda.Stream(non_blocking=True)
            self._copy_stream = self._cuda.Stream(non_blocking=True)
        self._staging = self.pinned(STAGING_BYTES)
        self._word = self.pinned(4).view(np.uint32)

    @contextmanager
    def _calling(self, what: str) -> Iterator[Any]:
        """Make the GPU current in this thread, yield cupy.cuda, and turn its errors into ours."""
        cuda = self._cuda
        try:
            if cuda.driver.ctxGetCurrent() == 0:
                # Nothing to go back to: "device 0" would be opened, which takes memory on it.
                self._device.use()
                yield cuda
            else:
                with self._device:
                    yield cuda
        except cuda.memory.OutOfMemoryError as error:
            raise self._too_large(what, error) from error
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            if error.status == OUT_OF_MEMORY:
                raise self._too_large(what, error) from error
            raise GpuFaultError(
                f"GPU {self.id}: {what} failed: {error}; if a kernel's fault is behind it, the GPU "
                "serves this process no more: start a new one"
            ) from error

    def _too_large(self, what: str, error: Exception) -> MemoryLimitError:
        return MemoryLimitError(
            f"GPU {self.id}: {what} failed: {error}; use a smaller model, or more ranks"
        )

    # Memory.

    def alloc(self, size_bytes: int) -> Any:  # noqa: ANN401  # a cupy pointer
        """Allocate memory of the GPU, aligned to what plans rely on; its content is arbitrary."""
        with self._calling(f"allocating {size_bytes} bytes") as cuda:
            # cupy's own allocators align by 512 bytes; programs may have set another one.
            pointer = cuda.alloc(size_bytes + ALIGNMENT_BYTES)
            return pointer + -pointer.ptr % ALIGNMENT_BYTES

    def pinned(self, size_bytes: int) -> Bytes:
        """Allocate pinned memory of the host, which the GPU sees at the same address."""
        with self._calling(f"allocating {size_bytes} bytes of pinned memory") as cuda:
            return np.frombuffer(cuda.alloc_pinned_memory(size_bytes), np.uint8, size_bytes)

    def copy_in(self, target: Any, data: npt.NDArray[Any]) -> None:  # noqa: ANN401
        """Copy a contiguous array to the GPU; one thread at a time copies or fills."""
        source = data.reshape(-1).view(np.uint8)
        with self._calling("copying to it"):
            for start in range(0, source.size, STAGING_BYTES):
                part = source[start : start + STAGING_BYTES]
                self._finish_copies()
                self._staging[: part.size] = part
                self._send(target + start, self._staging, part.size)
            self._finish_copies()

    def fill(self, target: Any, size_bytes: int, byte: int) -> None:  # noqa: ANN401
        """Set all bytes; not by memset, which is a kernel."""
        with self._calling("copying to it"):
            self._finish_copies()
            self._staging[:] = byte
            for start in range(0, size_bytes, STAGING_BYTES):
                self._send(target + start, self._staging, min(STAGING_BYTES, size_bytes - start))
                self._finish_copies()

    def copy_out(self, source: Any, data: npt.NDArray[Any]) -> None:  # noqa: ANN401
        """Copy from the GPU into a contiguous array."""
        target = data.reshape(-1).view(np.uint8)
        with self._calling("copying from it"):
            for start in range(0, target.size, STAGING_BYTES):
                part = target[start : start + STAGING_BYTES]
                self._finish_copies()
                (source + start).copy_to_host_async(
                    self._staging.ctypes.data, part.size, self._copy_stream
                )
                self._finish_copies()
                part[:] = self._staging[: part.size]

    def store_word(self, target: Any, value: int) -> None:  # noqa: ANN401
        """Write a word of 4 bytes, beside copies of another thread; always of the same value."""
        with self._calling("copying to it"):
            self._word[0] = value
            self._send(target, self._word, self._word.nbytes)
            self._finish_copies()

    def _send(self, target: Any, pinned: npt.NDArray[Any], size_bytes: int) -> None:  # noqa: ANN401
        target.copy_from_host_async(pinned.ctypes.data, size_bytes, self._copy_stream)

    def _finish_copies(self) -> None:
        """Wait for the copies; by looking, so that there is a limit and Ctrl-C works."""
        began = time.monotonic()
        while not self._is_through(self._copy_stream):
            waited_s = time.monotonic() - began
            if waited_s > COPY_S:
                raise StallError(
                    f"GPU {self.id}: a copy of {STAGING_BYTES >> 20} MiB at most is not through "
                    f"after {COPY_S:.0f} s; does nvidia-smi still find the GPU?"
                )
            nap(waited_s)

    def _is_through(self, stream: Any) -> bool:  # noqa: ANN401  # a cupy stream
        runtime = self._cuda.runtime
        status = runtime.streamQuery(stream.ptr)
        if status not in (SUCCESS, NOT_READY):
            raise runtime.CUDARuntimeError(status)
        return bool(status == SUCCESS)

    # Programs.

    def load(self, path: str) -> Any:  # noqa: ANN401  # a cupy module
        """Load a cubin, or take a module of it that nobody uses."""
        idle = _shared(self.id).idle_modules.get(path)
        if idle:
            return idle.pop()
        with self._calling(f"loading {path}") as cuda:
            module = cuda.Module()
            module.load_file(path)
            return module

    def unload(self, path: str, module: Any) -> None:  # noqa: ANN401  # a cupy module
        """Take a module back, for the next program of the same file."""
        _shared(self.id).idle_modules.setdefault(path, []).append(module)

    def constant(self, module: Any, name: str) -> Any:  # noqa: ANN401  # cupy's
        """Where a module's __constant__ variable is."""
        with self._calling(f"finding {name!r}") as cuda:
            address = module.get_global_var(name)
            return cuda.MemoryPointer(cuda.UnownedMemory(address, 0, module, self.id), 0)

    def function(self, module: Any, name: str, shared_bytes: int) -> Any:  # noqa: ANN401  # cupy's
        """A module's kernel, allowed to use so much dynamic shared memory."""
        with self._calling(f"finding {name!r}") as cuda:
            function, driver = module.get_function(name), cuda.driver
            attribute = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, attribute, shared_bytes)
            return function

    def ctas_per_sm(self, function: Any, threads: int, shared_bytes: int) -> int:  # noqa: ANN401
        """How many CTAs of a kernel fit on one multiprocessor."""
        with self._calling("counting CTAs") as cuda:
            occupancy = cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor
            return int(occupancy(function.ptr, threads, shared_bytes))

    def launch(self, function: Any, ctas: int, threads: int, shared_bytes: int) -> None:  # noqa: ANN401
        """Launch a cooperative kernel without arguments."""
        with self._calling("launching the kernel"):
            function((ctas,), (threads,), (), shared_bytes, self._kernel_stream, True)

    def has_exited(self) -> bool:
        """Whether the kernel has ended; ArkError if by a fault."""
        with self._calling("the kernel"):
            return self._is_through(self._kernel_stream)

    def hold(self, owner: object, program: str, sms: range) -> None:
        """Note that a program's kernel is resident."""
        _shared(self.id).residents[owner] = (program, sms)

    def release(self, owner: object) -> None:
        """Note that it is no more."""
        _shared(self.id).residents.pop(owner, None)
