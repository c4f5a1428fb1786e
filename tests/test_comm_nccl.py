"""The NCCL backend starts, moves data and ends in the right order, against a fake libnccl."""

import dataclasses
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ark_dist.comm.communicator import CAPABILITIES, Communicator
from ark_dist.comm.nccl import NcclCommunicator, nccl_communicator
from ark_dist.comm.nccl_bootstrap import RankFacts, environment_advice, require_fit
from ark_dist.comm.nccl_types import RESULT_NAMES
from ark_dist.core.errors import (
    CommMismatch,
    CommTimeout,
    LifecycleError,
    NcclError,
)
from tests.fake_nccl import STREAM, Fake, HostArray, errors, host, on_ranks, with_nccl

SHORT_S = 1.0  # the start of all ranks has to fit in
INIT = "ncclCommInitRankConfig"
FACTS = RankFacts(0, "host", 1, "1.0", 23203, 12080, 0, "GPU-a", "")


@pytest.fixture
def fake() -> Fake:
    return Fake()


def start(fake: Fake, **changes: Any) -> Any:  # noqa: ANN401  # any of the options
    return with_nccl(fake, lambda nccl: nccl, **changes)


def require_no_dead_use(fake: Fake) -> None:
    assert [text for _, text in fake.log() if "DEAD" in text] == []


# --- start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_rank_makes_its_gpu_current_and_joins_with_the_id_of_rank_0(
    fake: Fake, size: int
) -> None:
    comms = on_ranks(size, start(fake))
    assert [(c.rank, c.size, c.backend) for c in comms] == [(r, size, "nccl") for r in range(size)]
    log = fake.log()
    assert [text for _, text in log].count("ncclGetUniqueId") == 1
    for rank, nccl in enumerate(comms):
        assert log.index((-1, f"cuCtxSetCurrent device={rank}")) < log.index((rank, INIT))
        assert fake.calls(rank) == [INIT]
        assert nccl.handle.library.ncclCommCuDevice(nccl.handle.comm) == rank
        assert nccl.capabilities == {"stream", "symmetric", "device_api"}
        assert nccl.capabilities <= CAPABILITIES


def test_ranks_on_one_gpu_are_refused_before_nccl_with_the_map_of_gpus(fake: Fake) -> None:
    for error in errors(2, start(fake, device=0)):
        assert isinstance(error, NcclError)
        assert "ranks share a GPU: rank 0 (" in str(error) and "; rank 1 (" in str(error)
        assert str(error).count("GPU-00000000-0000-0000-0000-000000000000") == 2
        assert "NCCL_MULTI_RANK_GPU_ENABLE=1" in str(error)
    assert [text for _, text in fake.log() if text.startswith("nccl")] == []


def test_ranks_share_a_gpu_when_told_to(fake: Fake) -> None:
    assert len(on_ranks(2, start(fake, device=0, share_gpu=True))) == 2


def test_sharing_a_gpu_needs_a_new_nccl() -> None:
    for error in errors(2, start(Fake(22902), device=0, share_gpu=True)):
        assert "that needs NCCL 2.30.3, and this is 2.29.2" in str(error)


def test_too_few_visible_gpus_are_told_on_every_rank(fake: Fake) -> None:
    fake.library.fake_devices(1)
    for error in errors(2, start(fake)):
        assert "rank 1: DeviceNotFoundError: GPU 1 is not one of the 1" in str(error)
        assert "CUDA_VISIBLE_DEVICES" in str(error)


def test_a_rank_without_nccl_fails_all(fake: Fake) -> None:
    def run(control: Communicator) -> NcclCommunicator:
        lost = {"so_file": "no-such-file.so"} if control.rank == 1 else {}
        return nccl_communicator(control, stream=STREAM, options=fake.options(**lost))

    for error in errors(2, run):
        assert "NCCL can't start: rank 1: NcclError: so_file is 'no-such-file.so'" in str(error)


def test_ranks_with_different_versions_of_nccl_are_refused_with_both(fake: Fake) -> None:
    other = Fake(22902)

    def run(control: Communicator) -> NcclCommunicator:
        options = (fake, other)[control.rank].options()
        return nccl_communicator(control, stream=STREAM, options=options)

    for error in errors(2, run):
        assert isinstance(error, CommMismatch)
        assert "NCCL differ: rank 0 has 23203, rank 1 has 22902; install one" in str(error)


@pytest.mark.parametrize(
    ("change", "title"),
    [({"ark_dist": "2.0"}, "ark_dist differ"), ({"driver": 13000}, "CUDA driver differ")],
)
def test_other_mixes_of_versions_are_refused(change: dict[str, Any], title: str) -> None:
    ranks = [FACTS, dataclasses.replace(FACTS, rank=1, uuid="GPU-b", **change)]
    with pytest.raises(CommMismatch, match=title):
        require_fit(ranks, share_gpu=False)


def test_an_old_nccl_is_refused() -> None:
    for error in errors(1, start(Fake(21400))):
        assert "NCCL is 2.14.0, and 2.17.0 or later is needed" in str(error)


def test_every_rank_hears_that_rank_0_has_no_id(fake: Fake) -> None:
    fake.fail("ncclGetUniqueId", 2)
    for error in errors(3, start(fake)):
        assert "rank 0 has no id for NCCL: ncclGetUniqueId" in str(error)
        assert "code 2, ncclSystemError" in str(error)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6])
def test_a_rank_that_fails_to_start_fails_all_and_no_communicator_stays(
    fake: Fake, code: int
) -> None:
    fake.fail(INIT, code, rank=1)
    for error in errors(3, start(fake, timeout_s=SHORT_S)):
        assert isinstance(error, NcclError)
        assert f"{INIT} failed on rank 1 of 3: rank 1: {INIT} of NCCL 2.32.3" in str(error)
        assert f"failed with code {code}, {RESULT_NAMES[code]}" in str(error)
        assert f"last error: fake: {INIT} of rank 1; set NCCL_DEBUG=INFO" in str(error)
        assert "ranks 0, 2 waited for nothing" in str(error)
    assert fake.calls(0) == fake.calls(2) == [INIT, "ncclCommAbort"]
    require_no_dead_use(fake)


def test_a_start_that_hangs_ends_in_time_on_every_rank(fake: Fake) -> None:
    fake.fail(INIT, 7, rank=0)
    start_s = time.monotonic()
    for error in errors(2, start(fake, timeout_s=SHORT_S)):
        assert isinstance(error, CommTimeout)
        assert f"{INIT} of NCCL was still in progress after 1." in str(error)
        assert "NCCL_DEBUG=INFO" in str(error)
        assert error.waited_s >= SHORT_S
    assert time.monotonic() - start_s < 10
    assert fake.calls(0)[-1] == fake.calls(1)[-1] == "ncclCommAbort"


def test_a_start_that_does_not_even_return_ends_in_time_on_every_rank(fake: Fake) -> None:
    fake.library.fake_sleep(INIT.encode(), 0, 5000)
    start_s = time.monotonic()
    for error in errors(2, start(fake, timeout_s=SHORT_S)):
        assert isinstance(error, CommTimeout)
        assert f"rank 0: {INIT} did not end in 1.0 s" in str(error)
    assert time.monotonic() - start_s < 5


def test_the_advice_never_overrides_the_user() -> None:
    assert environment_advice({}) == {
        "CUDA_MODULE_LOADING": "EAGER",
        "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "NCCL_RUNTIME_CONNECT": "0",
        "NCCL_LAUNCH_ORDER_IMPLICIT": "1",
    }
    assert "NCCL_RUNTIME_CONNECT" not in environment_advice({"NCCL_RUNTIME_CONNECT": ""})
    shared = environment_advice({}, share_gpu=True)
    assert shared["NCCL_MULTI_RANK_GPU_ENABLE"] == "1"


# --- data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, ml_dtypes.bfloat16])
def test_collectives_compute_what_they_say(fake: Fake, size: int, dtype: Any) -> None:  # noqa: ANN401  # a dtype
    def run(nccl: NcclCommunicator) -> None:
        rank, ranks = nccl.rank, np.arange(size)

        def full(*shape: int) -> HostArray:
            return HostArray(np.full(shape, rank + 1, dtype))

        summed = nccl.all_reduce(full(3)).data
        np.testing.assert_array_equal(summed, np.full(3, (ranks + 1).sum(), dtype))
        largest = nccl.all_reduce(full(3), full(3), "max").data
        np.testing.assert_array_equal(largest, np.full(3, size, dtype))
        gathered = nccl.all_gather(full(2), full(size, 2)).data
        np.testing.assert_array_equal(gathered[:, 1], (ranks + 1).astype(dtype))
        part = nccl.reduce_scatter(HostArray(np.arange(size * 2).astype(dtype)), full(2)).data
        np.testing.assert_array_equal(part, (np.arange(2) + 2 * rank).astype(dtype) * dtype(size))
        sent = nccl.broadcast(full(3), size - 1).data
        np.testing.assert_array_equal(sent, np.full(3, size, dtype))
        kept = nccl.reduce(full(3), full(3), size - 1).data
        expected = (ranks + 1).sum() if rank == size - 1 else rank + 1
        np.testing.assert_array_equal(kept, np.full(3, expected, dtype))

    on_ranks(size, with_nccl(fake, run))


def test_the_mean_and_empty_arrays_go_through(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> list[float]:
        nccl.all_reduce(host())
        return [float(v) for v in nccl.all_reduce(host(nccl.rank, 4), op="mean").data]

    assert on_ranks(2, with_nccl(fake, run)) == [[0.5, 4.0]] * 2


def test_a_dtype_that_nccl_lacks_moves_as_bytes_and_does_not_reduce(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> list[list[int]]:
        flags = HostArray(np.array([nccl.rank == 1, True]))
        out: list[list[int]] = nccl.all_gather(
            flags, HostArray(np.zeros((2, 2), bool))
        ).data.tolist()
        with pytest.raises(TypeError, match="NCCL has no dtype int16"):
            nccl.all_reduce(host(1, dtype=np.int16))
        return out

    assert on_ranks(2, with_nccl(fake, run)) == [[[False, True], [True, True]]] * 2


def test_a_group_exchanges_without_a_cycle(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> float:
        mine, theirs = host(nccl.rank), host(-1)
        with nccl.group():
            nccl.recv(theirs, 1 - nccl.rank)
            nccl.send(mine, 1 - nccl.rank)
        return float(theirs.data[0])

    assert on_ranks(2, with_nccl(fake, run)) == [1.0, 0.0]
    grouped = ["ncclGroupStart", "ncclRecv", "ncclSend", "ncclGroupEnd"]
    assert fake.calls(0)[-4:] == fake.calls(1)[-4:] == grouped


def test_an_error_inside_a_group_leaves_no_group_open(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> float:
        with pytest.raises(ValueError, match="dst is 9; the ranks are 0 to 1"), nccl.group():
            nccl.send(host(1), 9)
        return float(nccl.all_reduce(host(1)).data[0])

    assert on_ranks(2, with_nccl(fake, run)) == [2.0, 2.0]
    assert all("depth=0" in text for _, text in fake.log() if "ncclAllReduce" in text)


def test_calls_go_to_the_stream_that_is_named(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> None:
        nccl.all_reduce(host(1))
        nccl.all_reduce(host(1), stream=5)
        with pytest.raises(ValueError, match="can't work on cudaStreamPerThread"):
            nccl.all_reduce(host(1), stream=2)
        nccl.stream = None
        with pytest.raises(ValueError, match="all_reduce has no stream"):
            nccl.all_reduce(host(1))

    on_ranks(1, with_nccl(fake, run))
    streams = [text.split("stream=")[1].split()[0] for _, text in fake.log() if "stream=" in text]
    assert streams == [str(STREAM), "5"]


def test_the_legacy_stream_is_refused(fake: Fake) -> None:
    for error in errors(1, lambda c: nccl_communicator(c, stream=0, options=fake.options())):
        assert "stream is the legacy default stream" in str(error)


def test_arrays_that_do_not_belong_together_are_refused(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> None:
        with pytest.raises(ValueError, match="recv must have 2 times the 3 elements of send"):
            nccl.all_gather(host(1, 2, 3), host(1, 2, 3))
        with pytest.raises(ValueError, match="recv must have 1/2 of the 3 elements of send"):
            nccl.reduce_scatter(host(1, 2, 3), host(1))
        with pytest.raises(TypeError, match="send is float32 and recv is float64"):
            nccl.all_reduce(host(1), host(1, dtype=np.float64))
        with pytest.raises(ValueError, match="op is 'xor'"):
            nccl.all_reduce(host(1), op="xor")

    on_ranks(2, with_nccl(fake, run))


@pytest.mark.parametrize("version", [23203, 21700])
def test_a_part_has_its_own_ranks_with_and_without_nccls_split(version: int) -> None:
    fake = Fake(version)

    def run(nccl: NcclCommunicator) -> tuple[int, int, float]:
        part = nccl.split(nccl.rank % 2, -nccl.rank)
        total = float(part.all_reduce(host(nccl.rank)).data[0])
        nccl.close()
        with pytest.raises(LifecycleError, match="closed this communicator"):
            part.check()
        return part.rank, part.size, total

    assert on_ranks(4, with_nccl(fake, run)) == [(1, 2, 2), (1, 2, 4), (0, 2, 2), (0, 2, 4)]
    assert ("ncclCommSplit" in fake.calls(0)) == (version > 21700)
    require_no_dead_use(fake)


def test_a_split_that_fails_on_a_rank_fails_on_all(fake: Fake) -> None:
    fake.fail("ncclCommSplit", 3, rank=-1)
    for error in errors(2, with_nccl(fake, lambda nccl: nccl.split(0, 0))):
        assert "ncclCommSplit failed on ranks 0, 1 of 2" in str(error)


# --- windows ----------------------------------------------------------------------------------


def test_a_window_is_registered_memory_that_arrays_see(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> int:
        window = nccl.allocate_window(5000)
        assert window.pointer and window.handle.value == window.pointer
        assert nccl.broadcast(window, 0) is window
        window.close()
        window.close()
        return window.size_bytes

    assert on_ranks(2, with_nccl(fake, run)) == [8192, 8192]
    order = ("ncclMemAlloc", "ncclCommWindowRegister", "ncclBroadcast")
    assert fake.calls(1)[1:] == [*order, "ncclCommWindowDeregister", "ncclMemFree"]


def test_gpus_that_do_not_reach_each_other_have_no_windows(fake: Fake) -> None:
    fake.library.fake_no_windows()
    for error in errors(2, with_nccl(fake, lambda nccl: nccl.allocate_window(1))):
        assert "NCCL makes no windows here: they need CUDA P2P" in str(error)
    assert fake.calls(0)[-1] == "ncclMemFree"


def test_an_old_nccl_has_no_windows() -> None:
    fake = Fake(22602)
    for error in errors(1, with_nccl(fake, lambda nccl: nccl.allocate_window(1))):
        assert "ncclCommWindowRegister needs NCCL 2.27.3" in str(error)


def test_a_rank_without_memory_fails_all(fake: Fake) -> None:
    fake.fail("ncclMemAlloc", 1, rank=1)
    for error in errors(2, with_nccl(fake, lambda nccl: nccl.allocate_window(1))):
        assert "ncclMemAlloc failed on rank 1 of 2" in str(error)
    assert fake.calls(0)[-1] == "ncclMemFree"
    assert "ncclCommWindowRegister" not in fake.calls(0)
