"""The real libnccl, where its wheel is installed, is what the binding takes it for."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ark_dist.comm.nccl import nccl_communicator
from ark_dist.comm.nccl_bootstrap import NcclOptions
from ark_dist.comm.nccl_library import (
    FUNCTIONS,
    OPTIONAL_FUNCTIONS,
    NCCLLibrary,
    wheel_libraries,
)
from ark_dist.comm.nccl_types import (
    CONFIG_FIELDS,
    CONFIG_MAGIC,
    HEAD_FIELDS,
    NEWEST_CONFIG,
    NO_COLOR,
    RESULT_NAMES,
    STRING_FIELDS,
    UNIQUE_ID_BYTES,
    WINDOW_ALIGNMENT_BYTES,
    WINDOW_DEFAULT,
    WINDOW_SYMMETRIC,
    config_fields,
    config_size,
    ncclConfig_t,
    ncclDataTypeEnum,
    ncclRedOpTypeEnum,
    version_text,
)
from ark_dist.core.errors import NcclError
from ark_dist.core.settings import child_environment
from tests.fake_nccl import STREAM, errors

pytestmark = pytest.mark.long
LIMIT_S = 120
# A child: without a GPU, the driver's absence must be an error and no crash, in bounded time.
INIT_WITHOUT_GPU = """
from ark_dist.comm.nccl_library import NCCLLibrary
from ark_dist.core.errors import NcclError
import ctypes
nccl, comm = NCCLLibrary(), ctypes.c_void_p()
try:
    config = nccl.make_config(blocking=0)
    nccl.ncclCommInitRankConfig(1, nccl.ncclGetUniqueId(), 0, config, comm)
    print("STATE", nccl.ncclCommGetAsyncError(comm))
except NcclError as error:
    print("ERROR", error)
"""

if not any(wheel_libraries()):
    pytest.skip(
        "the wheel nvidia-nccl-cu12 or nvidia-nccl-cu13 is not installed", allow_module_level=True
    )


@pytest.fixture(scope="module")
def library() -> NCCLLibrary:
    return NCCLLibrary(str(next(wheel_libraries())))


@pytest.fixture(scope="module")
def header() -> str:
    path = next(wheel_libraries()).parents[1] / "include" / "nccl.h"
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)


def constant(header: str, name: str) -> int:
    """The value of a #define."""
    found = re.search(rf"#define {name}\s+(\S+)", header)
    assert found is not None, name
    return int(found[1], 0)


def enumerators(header: str) -> Iterator[tuple[str, int]]:
    """Name and value of each enumerator that is a plain number."""
    yield from ((n, int(v)) for n, v in re.findall(r"\b(nccl\w+)\s*=\s*(\d+)\b", header))


def test_the_version_is_that_of_the_header(library: NCCLLibrary, header: str) -> None:
    assert library.version == constant(header, "NCCL_VERSION_CODE")
    assert library.ncclGetVersion() == version_text(library.version)


def test_a_config_has_the_fields_of_the_header(library: NCCLLibrary, header: str) -> None:
    found = re.search(r"typedef struct ncclConfig_v\d+ \{(.*?)\} ncclConfig_t;", header, re.DOTALL)
    assert found is not None
    declared = re.findall(r"(size_t|unsigned int|int|const char \*)\s*(\w+);", found[1])
    names = tuple(name for _, name in declared)
    known = (*HEAD_FIELDS, *config_fields(library.version))
    # A library newer than our table may know more, behind what we know.
    assert names == known if library.version <= NEWEST_CONFIG else names[: len(known)] == known
    c_types = {"size_t": ctypes.c_size_t, "unsigned int": ctypes.c_uint, "int": ctypes.c_int}
    ours = dict((field[0], field[1]) for field in ncclConfig_t._fields_)
    for c_type, name in declared[: len(known)]:
        assert ours[name] is c_types.get(c_type, ctypes.c_char_p)
        assert (name in STRING_FIELDS) == (c_type == "const char *")
    assert config_size(library.version) <= ctypes.sizeof(ncclConfig_t)
    assert CONFIG_FIELDS[0][1] == names[3:4]


def test_numbers_are_those_of_the_header(header: str) -> None:
    declared = dict(enumerators(header))
    for ours in (ncclDataTypeEnum, ncclRedOpTypeEnum):
        numbers = {n: v for n, v in vars(ours).items() if n.startswith("nccl")}
        # The counts grow when NCCL does.
        numbers = {n: v for n, v in numbers.items() if not n.startswith("ncclNum")}
        assert numbers == {name: declared[name] for name in numbers}
    for number, name in enumerate(RESULT_NAMES):
        assert declared.get(name, number) == number
    assert constant(header, "NCCL_API_MAGIC") == CONFIG_MAGIC
    assert constant(header, "NCCL_UNIQUE_ID_BYTES") == UNIQUE_ID_BYTES
    assert constant(header, "NCCL_SPLIT_NOCOLOR") == NO_COLOR
    if "NCCL_WIN_DEFAULT" in header:
        assert constant(header, "NCCL_WIN_DEFAULT") == WINDOW_DEFAULT
        assert constant(header, "NCCL_WIN_COLL_SYMMETRIC") == WINDOW_SYMMETRIC
    if "NCCL_WIN_REQUIRED_ALIGNMENT" in header:
        assert constant(header, "NCCL_WIN_REQUIRED_ALIGNMENT") == WINDOW_ALIGNMENT_BYTES


def test_every_function_has_as_many_arguments_as_in_the_header(
    library: NCCLLibrary, header: str
) -> None:
    declared = {
        name: [] if text.strip() in ("", "void") else text.split(",")
        for name, text in re.findall(r"ncclResult_t\s+(nccl\w+)\s*\(([^)]*)\)", header)
    }
    ours = {**FUNCTIONS, **{n: arguments for n, (_, arguments) in OPTIONAL_FUNCTIONS.items()}}
    for name, arguments in ours.items():
        if name in declared:
            assert len(arguments) == len(declared[name]), name
            for ours_type, text in zip(arguments, declared[name], strict=True):
                is_size = ours_type is ctypes.c_size_t
                assert is_size == text.strip().startswith("size_t"), (name, text)
    for name, (since, _) in OPTIONAL_FUNCTIONS.items():
        assert library.has(name) == (library.version >= since), name
    assert set(FUNCTIONS) <= set(declared)


def test_ids_are_random_and_errors_have_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine without a network has lo alone, which NCCL does not take by itself.
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    library = NCCLLibrary(str(next(wheel_libraries())))
    ids = [bytes(library.ncclGetUniqueId()) for _ in range(2)]
    assert len(ids[0]) == UNIQUE_ID_BYTES and ids[0] != ids[1]
    assert library.ncclGetErrorString(0) == "no error"
    assert "cuda" in library.ncclGetErrorString(1)


def test_ranks_without_a_driver_fail_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs are made up, and NCCL's own look for them fails."""

    @dataclass(frozen=True, slots=True)
    class NoGpu:
        ordinal: int
        uuid: str
        driver: int

        def activate(self) -> None:
            """There is nothing to make current."""

    if has_driver():
        pytest.skip("this machine has a CUDA driver")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    options = NcclOptions(
        so_file=str(next(wheel_libraries())),
        find_gpu=lambda ordinal: NoGpu(ordinal, f"GPU-{ordinal}", 12080),
    )
    for error in errors(2, lambda c: nccl_communicator(c, stream=STREAM, options=options)):
        assert isinstance(error, NcclError)
        assert "failed on ranks 0, 1 of 2: rank 0: ncclCommInitRankConfig of NCCL" in str(error)
        assert "code 1, ncclUnhandledCudaError" in str(error)


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_a_start_without_a_gpu_is_a_clean_error() -> None:
    if has_driver():
        pytest.skip("this machine has a CUDA driver")
    paths = ":".join([str(Path(__file__).resolve().parents[1]), *sys.path])
    environment = child_environment(NCCL_SOCKET_IFNAME="lo", PYTHONPATH=paths)
    command = [sys.executable, "-c", INIT_WITHOUT_GPU]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    assert done.returncode == 0, done.stderr
    assert "ERROR ncclCommInitRankConfig of NCCL" in done.stdout, done.stdout
    assert "failed with code 1, ncclUnhandledCudaError (unhandled cuda error" in done.stdout
    assert "CUDA driver version is insufficient" in done.stdout
    assert "NCCL_DEBUG=INFO" in done.stdout
