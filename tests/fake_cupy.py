"""Stand in for cupy without a GPU: memory is the host's, kernels are emulated, each by a thread.

What hangs, corrupts or is forbidden on a GPU is a problem that `Fake.check` tells of: allocating
and loading while a kernel is resident, a stream of another GPU, copies from memory that is not
pinned, memory that goes away under a kernel. Copies land only when their stream is looked at.
"""

import ctypes
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.settings import Settings
from ark_dist.core.source import Binary, Source
from ark_dist.launch.devices import cupy_gpu
from ark_dist.launch.emulation import Program, _declared, compile_emulated
from tests.fake_gpu import LAUNCH_FAILURE, POLL_S, FakeGpu, Kernel, entry_of

NOT_READY, NO_DEVICE = 600, 100
SHARED_BYTES_OPTIN = 227 * 1024
# What cupy's pool rounds to; ours is worse aligned, as other allocators may be.
POOL_BYTES, MISALIGNMENT_BYTES = 512, 64
GARBAGE = 0xA5


class CudaError(RuntimeError):
    """Both of cupy's error classes."""

    def __init__(self, status: int) -> None:
        names = {NO_DEVICE: "cudaErrorNoDevice", LAUNCH_FAILURE: "cudaErrorLaunchFailure"}
        super().__init__(f"{names.get(status, 'cudaError')}: status {status}")
        self.status = status


class CUDADriverError(CudaError):
    pass


class CUDARuntimeError(CudaError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class Memory:
    """Memory of one GPU, or pinned memory if that is None."""

    def __init__(self, fake: "Fake", gpu: FakeGpu | None, size: int) -> None:
        self.fake, self.gpu, self.size = fake, gpu, size
        # Not freed with this object: a kernel that writes to it shall not crash the tests.
        raw = np.full(size + 2 * POOL_BYTES, GARBAGE, np.uint8)
        start = -raw.ctypes.data % POOL_BYTES + (MISALIGNMENT_BYTES if gpu is not None else 0)
        self.data = raw[start : start + size]
        self.ptr = int(self.data.ctypes.data)

    def holds(self, addresses: set[int]) -> bool:
        return any(self.ptr <= address < self.ptr + self.size for address in addresses)

    def __del__(self) -> None:
        for kernel in self.fake.kernels():
            if kernel.is_resident and not kernel.error and self.holds(kernel.addresses):
                self.fake.graveyard.append(self.data)
                self.fake.problems.append(f"{self.size} bytes were freed under a kernel")


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:  # noqa: ANN401  # Memory or UnownedMemory
        self.mem = mem
        self.ptr = mem.ptr + offset

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def copy_from_host_async(self, host: int, size: int, stream: "Stream") -> None:
        self._copy(self.ptr, host, host, size, stream)

    def copy_to_host_async(self, host: int, size: int, stream: "Stream") -> None:
        self._copy(host, self.ptr, host, size, stream)

    def _copy(self, target: int, source: int, host: int, size: int, stream: "Stream") -> None:
        fake = stream.fake
        fake.raise_fault(stream.gpu)
        if stream.gpu is not self.mem.gpu or fake.current() is not stream.gpu:
            fake.problems.append("a copy with a stream or a current device of another GPU")
        if self.mem.size and not 0 <= self.ptr - self.mem.ptr <= self.mem.size - size:
            fake.problems.append(f"a copy of {size} bytes leaves its memory")
        if not fake.is_pinned(host, size):
            fake.problems.append("a copy from or to host memory that is not pinned")
        stream.copies.append((target, source, size))


class Stream:
    def __init__(self, fake: "Fake", *, non_blocking: bool = False) -> None:
        assert non_blocking, "a stream that waits for the legacy stream"
        self.fake, self.gpu, self.ptr = fake, fake.current(), id(self)
        self.copies: list[tuple[int, int, int]] = []
        self.has_answered = False
        self.kernel: Kernel | None = None
        fake.streams[self.ptr] = self


class Module:
    """A loaded program, with constants of its own."""

    def __init__(self, fake: "Fake") -> None:
        self.fake, self.gpu = fake, fake.current()

    def load_file(self, path: str) -> None:
        self.fake.forbid_while_resident("loading a module")
        # A copy: one file gives one library, whose constants two programs would share.
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(path, Path(folder) / "kernel.so")
            library = ctypes.CDLL(str(copy))
        binary = Binary(Path(path), Path(path), "", True)
        self.program = Program(_declared(library), binary, False)
        self.fake.loads += 1

    def get_global_var(self, name: str) -> int:
        self.fake.forbid_while_resident("loading a constant")
        return self.address(name)

    def address(self, name: str) -> int:
        return ctypes.addressof(ctypes.c_char.in_dll(self.program.library, name))

    def get_function(self, name: str) -> "Function":
        self.fake.forbid_while_resident("loading a function")
        return Function(self, name)

    def __del__(self) -> None:
        if self.gpu.residents and not self.fake.is_over:
            self.fake.problems.append("a module was unloaded while a kernel was resident")


class Function:
    def __init__(self, module: Module, name: str) -> None:
        self.entry = entry_of(name)
        self.module, self.ptr, self.shared_limit = module, id(self), 48 * 1024
        module.fake.functions[self.ptr] = self

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[object, ...],
        shared_mem: int = 0,
        stream: Stream | None = None,
        enable_cooperative_groups: bool = False,
    ) -> None:
        assert stream is not None and (stream.kernel is None or not stream.kernel.is_resident)
        fake, gpu = self.module.fake, stream.gpu
        fake.raise_fault(gpu)
        assert fake.current() is gpu and self.module.gpu is gpu, "another device is current"
        assert enable_cooperative_groups and args == ()
        library = self.module.program.library
        threads = ctypes.c_uint32.in_dll(library, f"{self.entry.name}_threads").value
        most = gpu.sm_count * gpu.ctas_per_sm
        assert block == (threads,) and len(grid) == 1 and grid[0] <= most
        if shared_mem > self.shared_limit:
            raise CUDADriverError(1)
        symbol = self.module.address(self.entry.constant)
        record = ctypes.string_at(symbol, self.entry.record.dtype.itemsize)
        memory = [(m.ptr, m.size) for m in fake.memory if m.gpu in (gpu, None)]
        program = self.module.program
        stream.kernel = Kernel(gpu, program, self.entry, grid[0], shared_mem, record, memory)
        gpu.kernels.append(stream.kernel)
        stream.kernel.start()


class Fake:
    """The machine behind a module that looks like cupy."""

    def __init__(self, gpus: Sequence[FakeGpu]) -> None:
        self.gpus = list(gpus)
        self.problems: list[str] = []
        self.graveyard: list[npt.NDArray[np.uint8]] = []
        self.memory: weakref.WeakSet[Memory] = weakref.WeakSet()
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.functions: weakref.WeakValueDictionary[int, Function] = weakref.WeakValueDictionary()
        self.loads = 0
        self.is_over = False
        self._local = threading.local()

    # What a thread sees.

    def current(self) -> FakeGpu:
        return self.gpus[getattr(self._local, "device", 0)]

    def use(self, gpu_id: int) -> None:
        self._local.device = gpu_id
        self._local.has_context = self.gpus[gpu_id].has_context = True

    def context(self) -> int:
        return 1 + self.current().id if getattr(self._local, "has_context", False) else 0

    def device(self, gpu_id: int) -> Any:  # noqa: ANN401  # a Device of cupy
        fake, before = self, []

        class Device:
            def use(self) -> None:
                fake.use(gpu_id)

            def __enter__(self) -> None:
                before.append(fake.current().id)
                fake.use(gpu_id)

            def __exit__(self, *error: object) -> None:
                fake.use(before.pop())

        return Device()

    # What all see.

    def kernels(self) -> list[Kernel]:
        return [kernel for gpu in self.gpus for kernel in gpu.kernels]

    def forbid_while_resident(self, what: str) -> None:
        if self.current().residents:
            self.problems.append(f"{what} while a kernel is resident waits for it")

    def raise_fault(self, gpu: FakeGpu) -> None:
        if gpu.fault:
            raise CUDARuntimeError(gpu.fault)

    def is_pinned(self, address: int, size: int) -> bool:
        blocks = [m for m in self.memory if m.gpu is None]
        return any(m.ptr <= address and address + size <= m.ptr + m.size for m in blocks)

    def alloc(self, size: int) -> MemoryPointer:
        gpu = self.current()
        self.raise_fault(gpu)
        self.forbid_while_resident("allocating")
        if size > gpu.memory_bytes:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        memory = Memory(self, gpu, size)
        self.memory.add(memory)
        return MemoryPointer(memory, 0)

    def alloc_pinned_memory(self, size: int) -> Any:  # noqa: ANN401  # has the buffer protocol
        self.forbid_while_resident("allocating pinned memory")
        memory = Memory(self, None, size)
        self.memory.add(memory)
        block = (ctypes.c_char * size).from_buffer(memory.data)  # type: ignore[arg-type]  # has it
        block.owner = memory  # type: ignore[attr-defined]  # arrays of ctypes have a __dict__
        return block

    def memory_info(self) -> tuple[int, int]:
        total = self.current().memory_bytes
        return total - sum(m.size for m in self.memory if m.gpu is self.current()), total

    def stream_query(self, ptr: int) -> int:
        stream = self.streams[ptr]
        if stream.gpu.fault:
            return stream.gpu.fault
        if stream.copies and not stream.has_answered:
            stream.has_answered = True
            return NOT_READY
        stream.has_answered = False
        for target, source, size in stream.copies:
            ctypes.memmove(target, source, size)
        stream.copies.clear()
        return NOT_READY if stream.kernel is not None and stream.kernel.is_resident else 0

    def set_attribute(self, ptr: int, attribute: int, value: int) -> None:
        if value > SHARED_BYTES_OPTIN:
            raise CUDADriverError(1)
        self.functions[ptr].shared_limit = value

    def device_count(self) -> int:
        if not self.gpus:
            raise CUDARuntimeError(NO_DEVICE)
        return len(self.gpus)

    def properties(self, gpu_id: int) -> dict[str, Any]:
        gpu = self.gpus[gpu_id]
        return {
            "name": b"Fake GPU",
            "major": gpu.capability[0],
            "minor": gpu.capability[1],
            "multiProcessorCount": gpu.sm_count,
            "sharedMemPerBlockOptin": SHARED_BYTES_OPTIN,
        }

    def module(self) -> ModuleType:
        """What `import cupy` is to find."""
        cupy = ModuleType("cupy")
        # Of a pool that keeps nothing.
        pool = SimpleNamespace(free_all_blocks=lambda: None)
        cupy.get_default_memory_pool = lambda: pool  # type: ignore[attr-defined]  # as cupy has it
        cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]  # as cupy has it
            Device=self.device,
            Stream=lambda **options: Stream(self, **options),
            Module=lambda: Module(self),
            MemoryPointer=MemoryPointer,
            UnownedMemory=self._unowned,
            alloc=self.alloc,
            alloc_pinned_memory=self.alloc_pinned_memory,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDeviceCount=self.device_count,
                getDeviceProperties=self.properties,
                streamQuery=self.stream_query,
                memGetInfo=self.memory_info,
            ),
            driver=SimpleNamespace(
                CUDADriverError=CUDADriverError,
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8,
                ctxGetCurrent=self.context,
                funcSetAttribute=self.set_attribute,
                occupancyMaxActiveBlocksPerMultiprocessor=lambda *_: self.current().ctas_per_sm,
            ),
        )
        return cupy

    def _unowned(self, ptr: int, size: int, owner: object, device_id: int) -> SimpleNamespace:
        return SimpleNamespace(ptr=ptr, size=size, owner=owner, gpu=self.gpus[device_id])

    def check(self) -> None:
        """At the end of a test: no kernel is left, and nothing was done that a GPU forbids."""
        deadline = time.monotonic() + 5
        while any(k.is_resident for k in self.kernels()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        left = sum(kernel.is_resident for kernel in self.kernels())
        self.is_over = True
        # A GPU that comes after this one has other programs.
        cupy_gpu._shared.cache_clear()
        assert not self.problems, self.problems
        assert not left, f"{left} kernels are resident"


def install(patch: pytest.MonkeyPatch, *gpus: FakeGpu, race: bool = False) -> Fake:
    """Let `import cupy` find a fake one with these GPUs, and kernels be built for it.

    With `race` the kernels that measure a GPU have every access checked.
    """
    fake = Fake(gpus)
    patch.setitem(sys.modules, "cupy", fake.module())
    patch.setattr("ark_dist.launch.devices.cuda.compile_cuda", _compile)
    patch.setattr("ark_dist.bench.gpu_kernels.compile_cuda", partial(_compile, race=race))
    cupy_gpu._shared.cache_clear()
    return fake


def _compile(
    source: Source,
    *,
    arch: str,
    settings: Settings,
    on_compile: Callable[[Path], None],
    race: bool = False,
) -> tuple[Binary, None]:
    number = 80 if arch == "sm_80" else 90
    program = compile_emulated(
        source.text, settings=settings, name=source.name, arch=number, race=race
    )
    on_compile(program.binary.source_path)
    return program.binary, None
