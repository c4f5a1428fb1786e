"""Make the fake libnccl, and run functions on ranks that are threads."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.inproc import inproc_world
from ark_dist.comm.nccl import NcclCommunicator, nccl_communicator
from ark_dist.comm.nccl_bootstrap import NcclOptions
from ark_dist.comm.nccl_gpu import cuda_gpu

T = TypeVar("T")
SOURCE = Path(__file__).with_name("fake_nccl.c")
NEWEST = 23203
LIMIT_S = 30.0
COMPILE_LIMIT_S = 60
PACKAGE = "arrays_on_the_host"
STREAM = 77  # any number but those of the default streams


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="ark_dist-fake-nccl-")


@functools.cache
def fake_library(version: int = NEWEST) -> str:
    """Compile libnccl as of a version; return its path."""
    compiler = shutil.which("cc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C compiler makes the fake libnccl")
    path = Path(_folder().name, f"libnccl-{version}.so")
    flags = ["-x", "c", "-std=gnu11", "-O1", "-fPIC", "-shared", "-pthread"]
    command = [compiler, *flags, f"-DFAKE_VERSION={version}", str(SOURCE), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return str(path)


class Fake:
    """What a test asks of the fake, and what it saw."""

    def __init__(self, version: int = NEWEST) -> None:
        self.path = fake_library(version)
        self.library = ctypes.CDLL(self.path)
        self.library.fake_log.restype = ctypes.c_char_p
        self.library.fake_config.restype = ctypes.POINTER(ctypes.c_ubyte)
        self.library.fake_reset()

    def fail(self, call: str, code: int, rank: int = -1, after: int = 0) -> None:
        """Let a call fail with a code; 7 never ends."""
        self.library.fake_fail(call.encode(), rank, code, after)

    def note(self, rank: int, text: str) -> None:
        """Add a line to the log."""
        self.library.fake_note(rank, b"%s", text.encode())

    def log(self) -> list[tuple[int, str]]:
        """What was called, with the rank."""
        lines = self.library.fake_log().decode().splitlines()
        return [(int(rank), text) for rank, _, text in (line.partition(" ") for line in lines)]

    def calls(self, rank: int) -> list[str]:
        """The names of a rank's calls."""
        return [text.split()[0] for caller, text in self.log() if caller == rank]

    def config(self, rank: int, size_bytes: int) -> bytes:
        """The first bytes of a rank's last ncclConfig_t."""
        return bytes(self.library.fake_config(rank)[:size_bytes])

    def options(self, **changes: Any) -> NcclOptions:  # noqa: ANN401  # any of the options
        """Options with the fake as library and as driver."""
        values = {"so_file": self.path, "find_gpu": functools.partial(cuda_gpu, so_file=self.path)}
        return NcclOptions(**{"timeout_s": LIMIT_S, **values, **changes})


def on_ranks(size: int, function: Callable[[Communicator], T]) -> list[T]:
    """Run a function on ranks that are threads; raise what the lowest rank raised."""
    results = outcomes(size, function)
    for _, error in results:
        if error is not None:
            raise error
    return [result for result, _ in results if result is not None]


def outcomes(
    size: int, function: Callable[[Communicator], T]
) -> list[tuple[T | None, Exception | None]]:
    """Run a function on ranks that are threads; return result or error of each."""
    results: list[tuple[T | None, Exception | None]] = [(None, None)] * size

    def run(control: Communicator) -> None:
        try:
            results[control.rank] = (function(control), None)
        except Exception as error:
            results[control.rank] = (None, error)

    world = inproc_world(size, timeout_s=LIMIT_S)
    threads = [threading.Thread(target=run, args=(c,), daemon=True) for c in world]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    return results


def errors(size: int, function: Callable[[Communicator], object]) -> list[Exception]:
    """Run a function that has to fail on every rank; return the errors."""
    found = [error for _, error in outcomes(size, function) if error is not None]
    assert len(found) == size, f"only {found} failed"
    return found


def with_nccl(
    fake: Fake,
    function: Callable[[NcclCommunicator], T],
    **changes: Any,  # noqa: ANN401  # any of the options
) -> Callable[[Communicator], T]:
    """Wrap a function of a NCCL communicator for `on_ranks`."""

    def run(control: Communicator) -> T:
        nccl = nccl_communicator(control, stream=STREAM, options=fake.options(**changes))
        return function(nccl)

    return run


class HostArray:
    """An array that claims to be in GPU memory, of a package like cupy."""

    __module__ = f"{PACKAGE}.core"

    def __init__(self, data: npt.NDArray[Any]) -> None:
        self.data = data
        self.dtype = data.dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return dict(self.data.__array_interface__)


def host(*values: float, dtype: npt.DTypeLike = np.float32) -> HostArray:
    """An array of these values."""
    return HostArray(np.array(values, dtype))


def empty_like(array: HostArray) -> HostArray:
    """What the package of an array offers."""
    return HostArray(np.zeros_like(array.data))
