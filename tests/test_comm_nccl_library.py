"""The binding of libnccl: how it is found, the bytes it passes, its errors, GPUs and arrays."""

import ctypes
import functools
import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ark_dist.comm import nccl_library, nccl_pynccl
from ark_dist.comm.communicator import Communicator
from ark_dist.comm.nccl_arrays import device_array, movable
from ark_dist.comm.nccl_gpu import cuda_gpu
from ark_dist.comm.nccl_library import NCCLLibrary, wheel_libraries
from ark_dist.comm.nccl_pynccl import PyNcclCommunicator, device_number, stream_handle
from ark_dist.comm.nccl_types import (
    IN_PROGRESS,
    RESULT_NAMES,
    UNDEFINED_INT,
    config_size,
    make_config,
    ncclConfig_t,
    ncclDataTypeEnum,
    ncclRedOpTypeEnum,
    ncclUniqueId,
    version_text,
)
from ark_dist.core.errors import DeviceNotFoundError, NcclError
from tests.fake_nccl import PACKAGE, Fake, empty_like, host, on_ranks, with_nccl

# sizeof(ncclConfig_t) of each released nccl.h that changed it, by hand from its fields.
CONFIG_BYTES = {
    21400: 24,
    21602: 24,
    21700: 40,
    21801: 48,
    22602: 48,
    22703: 72,
    22803: 80,
    22902: 88,
    23003: 96,
    23007: 96,
    23102: 112,
    23203: 120,
    29900: 120,
}


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def library(fake: Fake) -> NCCLLibrary:
    return NCCLLibrary(fake.path)


# --- finding ----------------------------------------------------------------------------------


def test_the_argument_comes_before_the_setting_and_both_may_be_folders(
    fake: Fake, tmp_path: Path
) -> None:
    (tmp_path / "libnccl.so.2").symlink_to(fake.path)
    assert NCCLLibrary(fake.path, setting="no-such-file.so").path == fake.path
    assert NCCLLibrary(setting=str(tmp_path)).path == str(tmp_path / "libnccl.so.2")


@pytest.mark.parametrize("name", ["so_file", "ARK_DIST_NCCL"])
def test_no_other_library_replaces_the_one_that_was_asked_for(name: str) -> None:
    given = {"so_file": "no-such.so"} if name == "so_file" else {"setting": "no-such.so"}
    with pytest.raises(NcclError, match=f"{name} is 'no-such.so', which can't be loaded"):
        NCCLLibrary(**given)


def test_the_wheel_is_found_without_importing_it(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "nvidia" / "nccl" / "lib"
    place.mkdir(parents=True)
    (place / "libnccl.so.2").symlink_to(fake.path)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia" / "nccl")])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert list(wheel_libraries()) == [place / "libnccl.so.2"]
    assert NCCLLibrary().path == str(place / "libnccl.so.2")


def test_no_library_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_library, "LIBRARY", "libnccl-of-nobody.so")
    with pytest.raises(NcclError, match=r"libnccl-of-nobody.so can't be loaded .*ark_dist\[cuda12"):
        NCCLLibrary()


def test_another_library_is_not_taken_for_nccl() -> None:
    with pytest.raises(NcclError, match=r"libm\.so\.6 has no function ncclGetVersion"):
        NCCLLibrary("libm.so.6")


# --- bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "size_bytes"), CONFIG_BYTES.items())
def test_a_config_is_as_long_as_its_version_knows(version: int, size_bytes: int) -> None:
    assert config_size(version) == size_bytes
    config = make_config(version, {"blocking": 0})
    assert (config.size, config.magic) == (size_bytes, 0xCAFEBEEF)
    assert config.version == min(version, 23203)


def test_the_library_gets_the_very_bytes_of_a_config() -> None:
    fake = Fake(22703)
    on_ranks(1, with_nccl(fake, lambda nccl: None, max_ctas=4))
    none = UNDEFINED_INT
    expected = struct.pack("<QII4iQ2iQ4i", 72, 0xCAFEBEEF, 22703, 0, none, none, 4, 0, *[none] * 2,
                           0, *[none] * 4)  # fmt: skip
    assert fake.config(0, 80) == expected + bytes(8)


def test_texts_and_numbers_of_a_config_lie_where_nccl_reads_them() -> None:
    config = make_config(23203, {"netName": "Socket", "nvlsHostMode": 5})
    data = bytes(config)
    assert struct.unpack_from("<i", data, ncclConfig_t.nvlsHostMode.offset) == (5,)
    assert ctypes.string_at(struct.unpack_from("<Q", data, 32)[0]) == b"Socket"


def test_a_setting_that_a_version_lacks_is_refused() -> None:
    with pytest.raises(NcclError, match=r"ncclConfig_t.maxCTAs needs NCCL 2\.17\.0, and this is"):
        make_config(21602, {"maxCTAs": 4})
    with pytest.raises(ValueError, match="ncclConfig_t has no field 'maxctas'"):
        make_config(23203, {"maxctas": 4})
    with pytest.raises(NcclError, match=r"NCCL 2\.13\.4 has no ncclConfig_t"):
        make_config(21304, {})


def test_versions_are_written_with_dots() -> None:
    assert [version_text(v) for v in (2804, 21003, 23203)] == ["2.8.4", "2.10.3", "2.32.3"]


def test_dtypes_and_reductions_have_nccls_numbers() -> None:
    assert ncclDataTypeEnum.from_name("bfloat16") == ncclDataTypeEnum.ncclBfloat16 == 9
    assert ncclDataTypeEnum.from_name("torch.float16") == 6
    assert ncclRedOpTypeEnum.from_name("mean") == ncclRedOpTypeEnum.ncclAvg == 4
    with pytest.raises(TypeError, match="NCCL has no dtype complex64"):
        ncclDataTypeEnum.from_name("complex64")


# --- calls ------------------------------------------------------------------------------------


def test_ids_pass_through_bytes(library: NCCLLibrary) -> None:
    unique_id = library.ncclGetUniqueId()
    data = bytes(unique_id)
    assert len(data) == ctypes.sizeof(ncclUniqueId) == 128
    assert bytes(library.unique_id_from_bytes(data)) == data
    with pytest.raises(ValueError, match="a ncclUniqueId has 128 bytes, and this has 5"):
        library.unique_id_from_bytes(b"short")


def test_one_process_may_hold_all_ranks(library: NCCLLibrary) -> None:
    comms = library.ncclCommInitAll([3, 5])
    assert [library.ncclCommUserRank(comm) for comm in comms] == [0, 1]
    assert [library.ncclCommCuDevice(comm) for comm in comms] == [3, 5]
    assert library.ncclCommCount(comms[1]) == 2
    for comm in comms:
        library.ncclCommDestroy(comm)


def test_a_single_rank_joins_and_registers_memory(library: NCCLLibrary) -> None:
    comm = library.ncclCommInitRank(1, library.ncclGetUniqueId(), 0)
    assert library.ncclCommGetAsyncError(comm) == 0
    handle = library.ncclCommRegister(comm, 4096, 16)
    library.ncclCommDeregister(comm, handle)
    library.ncclCommDestroy(comm)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6])
def test_a_code_is_an_error_with_call_name_last_words_and_hint(
    fake: Fake, library: NCCLLibrary, code: int
) -> None:
    fake.fail("ncclGroupStart", code)
    with pytest.raises(NcclError) as caught:
        library.ncclGroupStart()
    text = str(caught.value)
    assert text.startswith(f"ncclGroupStart of NCCL 2.32.3 failed with code {code}")
    assert f", {RESULT_NAMES[code]} (" in text
    assert "; last error: fake: ncclGroupStart" in text
    assert text.endswith("set NCCL_DEBUG=INFO to see what NCCL did")
    library.ncclGroupEnd()


def test_in_progress_is_no_error(library: NCCLLibrary) -> None:
    config = library.make_config(blocking=0)
    comm = library.ncclCommInitRankConfig(2, library.ncclGetUniqueId(), 0, config)
    assert library.ncclCommGetAsyncError(comm) == IN_PROGRESS
    library.ncclCommAbort(comm)


def test_what_a_version_lacks_is_named() -> None:
    old = NCCLLibrary(Fake(21304).path)
    assert (old.version, old.ncclGetVersion()) == (21304, "2.13.4")
    assert not old.has("ncclCommSplit") and old.has("ncclSend")
    with pytest.raises(NcclError, match=r"ncclMemAlloc needs NCCL 2\.19\.1, and .* is 2\.13\.4"):
        old.ncclMemAlloc(16)
    with pytest.raises(NcclError, match=r"ncclCommFinalize needs NCCL 2\.14\.0"):
        old.ncclCommFinalize(ctypes.c_void_p(1))


# --- GPUs -------------------------------------------------------------------------------------


def test_a_gpu_has_a_uuid_and_becomes_current(fake: Fake) -> None:
    gpu = cuda_gpu(3, fake.path)
    assert (gpu.ordinal, gpu.driver) == (3, 12080)
    assert gpu.uuid == "GPU-00000000-0000-0000-0000-000000000003"
    gpu.activate()
    assert fake.log()[-1] == (-1, "cuCtxSetCurrent device=3")


def test_no_driver_and_no_gpu_are_told(fake: Fake) -> None:
    with pytest.raises(DeviceNotFoundError, match=r"no CUDA driver: .*backends mpi or shm"):
        cuda_gpu(0, "libcuda-of-nobody.so")
    fake.fail("cuInit", 100)
    with pytest.raises(DeviceNotFoundError, match="cuInit of the CUDA driver: code 100, no CUDA-"):
        cuda_gpu(0, fake.path)


# --- arrays -----------------------------------------------------------------------------------


class Tensor:
    """What NCCL needs of a torch.Tensor."""

    def __init__(self, *, is_cuda: bool = True, contiguous: bool = True) -> None:
        self.is_cuda = is_cuda
        self.shape = (2, 3)
        self.dtype = "torch.bfloat16"
        self.contiguous = contiguous

    def data_ptr(self) -> int:
        return 4096

    def is_contiguous(self) -> bool:
        return self.contiguous

    def element_size(self) -> int:
        return 2


class Interface:
    """A bare array interface."""

    def __init__(self, **fields: object) -> None:
        self.__cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", **fields}


def test_arrays_of_cupy_and_torch_are_read() -> None:
    array = device_array(Interface(data=(4096, True), version=3))
    assert (array.pointer, array.count, array.dtype, array.size_bytes) == (4096, 6, "float32", 24)
    assert array.read_only
    tensor = device_array(Tensor())
    assert (tensor.pointer, tensor.count, tensor.dtype) == (4096, 6, "bfloat16")
    assert movable(tensor) == (6, ncclDataTypeEnum.ncclBfloat16)
    half = device_array(Interface(data=(4096, False), typestr="<V2"))
    assert half.dtype == "bfloat16"
    assert device_array(host(1, dtype=ml_dtypes.bfloat16)).dtype == "bfloat16"
    assert device_array(Interface(data=(0, False), shape=(4, 1), strides=(4, 99))).count == 4
    assert device_array(array) is array


@pytest.mark.parametrize(
    ("array", "kind", "text"),
    [
        (np.zeros(3), TypeError, "ndarray is not in GPU memory"),
        (Tensor(is_cuda=False), TypeError, "the tensor is not in GPU memory"),
        (Tensor(contiguous=False), ValueError, "the tensor is not contiguous"),
        (Interface(data=(1, False), strides=(4, 8)), ValueError, r"has strides \(4, 8\)"),
    ],
)
def test_arrays_that_nccl_can_not_use_are_refused(
    array: object, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        device_array(array)


# --- vLLM's names -----------------------------------------------------------------------------


def pynccl(fake: Fake, control: Communicator, **changes: Any) -> PyNcclCommunicator:  # noqa: ANN401
    driver = functools.partial(cuda_gpu, so_file=fake.path)
    values = {"library_path": fake.path, "find_gpu": driver, **changes}
    return PyNcclCommunicator(control, f"cuda:{control.rank}", **values)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType(PACKAGE)
    monkeypatch.setitem(sys.modules, PACKAGE, module)
    module.empty_like = empty_like  # type: ignore[attr-defined]
    return module


def test_pynccl_moves_arrays_under_vllms_names(fake: Fake, package: ModuleType) -> None:
    def run(control: Communicator) -> list[float]:
        comm = pynccl(fake, control)
        rank = control.rank
        assert (comm.rank, comm.world_size, comm.device) == (rank, 2, rank)
        assert comm.available and not comm.disabled and comm.nccl_version == 23203
        mine = host(rank + 1)
        total = comm.all_reduce(mine)
        assert total is not None and total is not mine and mine.data[0] == rank + 1
        comm.all_reduce(mine, mine, "ReduceOp.MAX", stream=SimpleNamespace(cuda_stream=9))
        gathered, part, other = host(0, 0), host(0), host(0)
        comm.all_gather(gathered, mine)
        comm.reduce_scatter(part, host(rank, 5), "ReduceOp.SUM")
        comm.group_start()
        comm.send(mine, 1 - rank)
        comm.recv(other, 1 - rank)
        comm.group_end()
        comm.broadcast(other, 0)
        window = comm.register_comm_window(mine)
        assert window is not None
        comm.deregister_comm_window(window)
        comm.destroy()
        comm.destroy()
        assert comm.disabled
        return [float(a.data[0]) for a in (total, mine, gathered, part, other)]

    assert on_ranks(2, run) == [[3, 2, 2, 1, 2], [3, 2, 2, 10, 2]]


def test_pynccl_needs_an_output_for_arrays_of_other_packages(
    fake: Fake, package: ModuleType
) -> None:
    del package.empty_like
    with pytest.raises(TypeError, match="has no empty_like; pass out_tensor to all_reduce"):
        on_ranks(2, lambda control: pynccl(fake, control).all_reduce(host(1)))


def test_pynccl_state_changes_inside_a_block_only(fake: Fake, package: ModuleType) -> None:
    def run(control: Communicator) -> None:
        comm = pynccl(fake, control)
        with comm.change_state(enable=False):
            assert comm.all_reduce(host(1)) is None
        with comm.change_state(stream=SimpleNamespace(ptr=5)):
            comm.all_reduce(host(1))
        assert not comm.disabled and comm.stream is None

    on_ranks(2, run)
    (call,) = [text for rank, text in fake.log() if rank == 0 and "ncclAllReduce" in text]
    assert "stream=5" in call


def test_pynccl_is_disabled_alone_and_where_a_rank_has_no_library(fake: Fake) -> None:
    def run(control: Communicator) -> bool:
        path = fake.path if control.rank == 0 else "no-such.so"
        comm = pynccl(fake, control, library_path=path)
        for call in (comm.send, comm.recv, comm.broadcast):
            call(host(1), 0)
        comm.all_gather(host(1), host(1))
        comm.reduce_scatter(host(1), host(1))
        comm.group_start()
        comm.group_end()
        comm.destroy()
        with comm.change_state(enable=True):
            return comm.available or not comm.disabled

    assert on_ranks(1, run) == [False]
    assert on_ranks(2, run) == [False, False]


def test_devices_and_streams_have_many_forms() -> None:
    forms: list[object] = [1, "cuda:1", SimpleNamespace(index=1), SimpleNamespace(id=1)]
    assert [device_number(form) for form in forms] == [1, 1, 1, 1]
    for bad in ("cpu", "cuda:x", object()):
        with pytest.raises(ValueError, match="device is"):
            device_number(bad)
    with pytest.raises(TypeError, match="pass a handle, or a stream of torch or cupy"):
        stream_handle("main")


def test_the_current_stream_is_torchs_then_cupys() -> None:
    torch, cupy = ModuleType("torch"), ModuleType("cupy")
    torch.cuda = SimpleNamespace(current_stream=lambda: 8)  # type: ignore[attr-defined]
    cupy.cuda = SimpleNamespace(get_current_stream=lambda: 9)  # type: ignore[attr-defined]
    assert nccl_pynccl.current_stream({"torch": torch, "cupy": cupy}) == 8
    assert nccl_pynccl.current_stream({"cupy": cupy}) == 9
    assert nccl_pynccl.current_stream({}) == 0
