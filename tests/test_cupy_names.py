"""The stand-in for cupy has nothing that cupy has not; these tests need cupy, but no GPU."""

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fake_cupy import CUDARuntimeError as FakeRuntimeError
from tests.fake_cupy import Fake, Function, MemoryPointer, Module, Stream
from tests.fake_gpu import FakeGpu

cuda = pytest.importorskip("cupy.cuda", exc_type=ImportError)

# Methods of the stand-in's classes that cupy's have, by their names there.
CLASSES = {
    "function.Function": Function,
    "Module": Module,
    "MemoryPointer": MemoryPointer,
    "Stream": Stream,
}
# What its own bookkeeping is.
INTERNAL = {
    "__init__",
    "__module__",
    "__dict__",
    "__weakref__",
    "__doc__",
    "__del__",
    "_copy",
    "address",
}
NOT_READY = 600  # of enum cudaError


def reach(name: str) -> Any:  # noqa: ANN401  # cupy has no types
    """An attribute of cupy.cuda by its dotted name."""
    found = cuda
    for part in name.split("."):
        found = getattr(found, part)
    return found


def names(space: object, prefix: str = "") -> list[str]:
    """Dotted names of all that is in a stand-in's module."""
    found = []
    for name, value in vars(space).items():
        if isinstance(value, SimpleNamespace):
            found += names(value, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


@pytest.mark.parametrize("name", names(Fake([FakeGpu(0)]).module().cuda))
def test_cupy_has_what_the_stand_in_has(name: str) -> None:
    found = reach(name)
    assert callable(found) or isinstance(found, int)


@pytest.mark.parametrize("name", CLASSES)
def test_its_classes_have_the_methods(name: str) -> None:
    methods = vars(CLASSES[name]).keys() - INTERNAL
    assert [method for method in methods if not hasattr(reach(name), method)] == []


def text_of(name: str) -> str:
    """The first line of a compiled function's docstring: its signature."""
    return str(reach(name).__doc__).splitlines()[0]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("MemoryPointer.copy_from_host_async", "mem, size_t size, stream=None"),
        ("MemoryPointer.copy_to_host_async", "mem, size_t size, stream=None"),
        ("Module.load_file", "filename"),
        ("Module.get_function", "name"),
        ("Module.get_global_var", "name"),
        ("alloc", "size"),
        ("alloc_pinned_memory", "size_t size"),
        ("runtime.streamQuery", "intptr_t stream"),
        ("runtime.getDeviceProperties", "int device"),
        ("driver.ctxGetCurrent", ""),
        ("driver.funcSetAttribute", "intptr_t f, int attribute, int value"),
        (
            "driver.occupancyMaxActiveBlocksPerMultiprocessor",
            "intptr_t func, int blockSize, size_t dynamicSMemSize",
        ),
    ],
)
def test_functions_take_what_they_are_given(name: str, parameters: str) -> None:
    taken = text_of(name).split("(", 1)[1].rsplit(")", 1)[0]
    assert taken.removeprefix("self, ") == parameters


@pytest.mark.parametrize(
    "name", ["Device.use", "Device.__enter__", "Device.__exit__", "function.Function.ptr"]
)
def test_objects_have_what_is_used_of_them(name: str) -> None:
    assert reach(name) is not None


def test_an_error_is_made_of_its_status() -> None:
    error = cuda.runtime.CUDARuntimeError(NOT_READY)
    assert error.status == FakeRuntimeError(NOT_READY).status == NOT_READY
    assert "not ready" in str(error)


def test_streams_wait_for_no_other_if_they_are_told() -> None:
    assert "non_blocking" in inspect.signature(cuda.Stream.__init__).parameters


def test_pointers_are_moved_by_adding() -> None:
    start = 0x1008
    memory = cuda.UnownedMemory(start, 0, None, 0)
    pointer = cuda.MemoryPointer(memory, 0)
    moved = pointer + -pointer.ptr % 256
    assert isinstance(moved, cuda.MemoryPointer)
    assert (pointer.ptr, moved.ptr, moved.mem) == (start, 0x1100, memory)


def test_pinned_memory_is_a_buffer_that_arrays_keep() -> None:
    data = np.zeros(512, np.uint8)
    owner = SimpleNamespace(ptr=data.ctypes.data, size=data.size)
    before = sys.getrefcount(owner)
    block = cuda.PinnedMemoryPointer(owner, 0)
    array = np.frombuffer(block, np.uint8, 100)
    del block
    array[:] = 7
    array[:4].view(np.uint32)[0] = 5
    assert data[:6].tolist() == [5, 0, 0, 0, 7, 7]
    assert sys.getrefcount(owner) == before + 1
    del array
    assert sys.getrefcount(owner) == before
