"""A NCCL communicator ends in order: closed, aborted, timed out, or failed in the background."""

import threading
import time

import pytest

from ark_dist.comm import nccl_handle
from ark_dist.comm.nccl import NcclCommunicator
from ark_dist.core.errors import CommAborted, CommTimeout, LifecycleError, NcclError
from tests.fake_nccl import LIMIT_S, Fake, errors, host, on_ranks, with_nccl

SHORT_S = 0.3
START_S = 1.0  # the start of all ranks has to fit in


@pytest.fixture
def fake() -> Fake:
    return Fake()


def require_no_dead_use(fake: Fake) -> None:
    assert [text for _, text in fake.log() if "DEAD" in text] == []


def test_an_asynchronous_error_shows_in_check(fake: Fake) -> None:
    fake.library.fake_async(0, 6, 2)

    def run(nccl: NcclCommunicator) -> None:
        nccl.all_reduce(host(1))
        nccl.check()
        with pytest.raises(NcclError, match=r"all_reduce of NCCL .* failed with code 6"):
            nccl.all_reduce(host(1))
        with pytest.raises(NcclError, match=r"ncclRemoteError.*abort this communicator"):
            nccl.check()

    on_ranks(1, with_nccl(fake, run))


def test_a_group_waits_for_what_it_starts(fake: Fake) -> None:
    fake.library.fake_async(0, 3, 1)

    def run(nccl: NcclCommunicator) -> None:
        with nccl.group():
            nccl.all_reduce(host(1))

    (error,) = errors(1, with_nccl(fake, run))
    assert "rank 0: group of NCCL 2.32.3 failed with code 3, ncclInternalError" in str(error)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6])
def test_every_code_of_a_call_is_an_error_with_its_name(fake: Fake, code: int) -> None:
    fake.fail("ncclAllReduce", code)
    (error,) = errors(1, with_nccl(fake, lambda nccl: nccl.all_reduce(host(1))))
    assert isinstance(error, NcclError)
    assert f"ncclAllReduce of NCCL 2.32.3 failed with code {code}, nccl" in str(error)
    assert "last error: fake: ncclAllReduce of rank 0; set NCCL_DEBUG=INFO" in str(error)


def test_a_call_that_never_ends_is_a_timeout(fake: Fake) -> None:
    fake.fail("ncclAllReduce", 7)
    run = with_nccl(fake, lambda nccl: nccl.all_reduce(host(1)), timeout_s=START_S)
    (error,) = errors(1, run)
    assert isinstance(error, CommTimeout)
    assert (error.rank, error.op, error.seq) == (0, "all_reduce", 1)


def test_an_abort_stops_kernels_then_opens_gates_then_ends_nccl_then_the_job(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> None:
        part = nccl.split(0, nccl.rank)
        note = fake.note
        nccl.on_abort(release=lambda: note(nccl.rank, "gate"))
        nccl.on_abort(stop=lambda: note(nccl.rank, "stop"))
        part.on_abort(lambda: note(nccl.rank, "stop of part"), lambda: note(nccl.rank, "gate 2"))
        if nccl.rank == 1:
            with pytest.raises(CommAborted, match="out of cheese"):
                nccl.abort(75, "out of cheese")
            for member in (nccl, part):
                with pytest.raises(CommAborted, match="rank 1 aborted NCCL: out of cheese"):
                    member.all_reduce(host(1))
            nccl.close()

    on_ranks(2, with_nccl(fake, run))
    log = [text for rank, text in fake.log() if rank == 1]
    stops, gates = ["stop of part", "stop"], ["gate 2", "gate"]
    assert log[-6:] == [*stops, *gates, "ncclCommAbort", "ncclCommAbort"]
    require_no_dead_use(fake)


def test_an_abort_goes_on_where_a_callback_fails_or_hangs(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_handle, "ABORT_S", SHORT_S)
    released = threading.Event()

    def fails() -> None:
        raise RuntimeError("the kernel is gone")

    def hangs() -> None:
        released.wait(LIMIT_S)

    def run(nccl: NcclCommunicator) -> list[str]:
        nccl.on_abort(stop=fails)
        nccl.on_abort(release=hangs)
        return nccl.handle.end("test")

    (problems,) = on_ranks(1, with_nccl(fake, run))
    released.set()
    assert problems == ["the kernel is gone", "release before the abort did not end in 0.3 s"]
    assert fake.calls(0)[-1] == "ncclCommAbort"


def test_an_abort_of_nccl_that_hangs_is_given_up(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ark_dist.comm.nccl_bootstrap.ABORT_S", SHORT_S)
    fake.library.fake_sleep(b"ncclCommAbort", 0, 1000)
    (problems,) = on_ranks(1, with_nccl(fake, lambda nccl: nccl.handle.end("test")))
    assert problems == ["ncclCommAbort did not end in 0.3 s"]


def test_another_thread_aborts_a_call_that_waits(fake: Fake) -> None:
    fake.fail("ncclAllReduce", 7)

    def run(nccl: NcclCommunicator) -> float:
        watchdog = threading.Timer(SHORT_S, nccl.handle.end, ["watchdog"])
        watchdog.start()
        start_s = time.monotonic()
        with pytest.raises(CommAborted, match="all_reduce: rank 0 aborted NCCL: watchdog"):
            nccl.all_reduce(host(1))
        watchdog.join(LIMIT_S)
        return time.monotonic() - start_s

    (waited_s,) = on_ranks(1, with_nccl(fake, run))
    assert waited_s < LIMIT_S / 2
    require_no_dead_use(fake)


def test_another_thread_aborts_a_group_that_stays_open(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl_handle, "LOCK_S", SHORT_S)

    def run(nccl: NcclCommunicator) -> None:
        watchdog = threading.Thread(target=nccl.handle.end, args=["watchdog"])
        with pytest.raises(CommAborted, match="watchdog"), nccl.group():
            watchdog.start()
            watchdog.join(LIMIT_S)
            nccl.all_reduce(host(1))

    on_ranks(1, with_nccl(fake, run))
    assert fake.calls(0)[-1] == "ncclCommAbort"
    require_no_dead_use(fake)


def test_an_abort_inside_a_group_ends_the_group_first(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> None:
        with pytest.raises(CommAborted), nccl.group():
            nccl.handle.end("test")
            nccl.all_reduce(host(1))

    on_ranks(1, with_nccl(fake, run))
    assert fake.calls(0)[-3:] == ["ncclGroupStart", "ncclGroupEnd", "ncclCommAbort"]


def test_two_threads_abort_once(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> None:
        threads = [threading.Thread(target=nccl.handle.end, args=[str(n)]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)

    on_ranks(1, with_nccl(fake, run))
    assert fake.calls(0).count("ncclCommAbort") == 1


def test_closing_flushes_and_then_frees_once(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> None:
        nccl.close()
        nccl.close()
        assert nccl.handle.end("late") == []
        with pytest.raises(LifecycleError, match=r"all_reduce: rank \d closed this communicator"):
            nccl.all_reduce(host(1))

    on_ranks(2, with_nccl(fake, run))
    assert fake.calls(0)[-2:] == ["ncclCommFinalize", "ncclCommDestroy"]
    assert "ncclCommAbort" not in fake.calls(1)


@pytest.mark.parametrize(("code", "kind"), [(7, CommTimeout), (2, NcclError)])
def test_closing_that_fails_aborts(fake: Fake, code: int, kind: type[Exception]) -> None:
    fake.fail("ncclCommFinalize", code)
    run = with_nccl(fake, lambda nccl: nccl.close(), timeout_s=START_S)
    (error,) = errors(1, run)
    assert isinstance(error, kind)
    assert fake.calls(0)[-2:] == ["ncclCommFinalize", "ncclCommAbort"]


def test_a_group_end_without_a_start_is_refused(fake: Fake) -> None:
    (error,) = errors(1, with_nccl(fake, lambda nccl: nccl.handle.group_end()))
    assert "group_end without group_start" in str(error)


def test_a_thread_that_stays_inside_of_nccl_does_not_block_others_for_ever(fake: Fake) -> None:
    def run(nccl: NcclCommunicator) -> list[Exception]:
        found: list[Exception] = []

        def check() -> None:
            try:
                nccl.check()
            except CommTimeout as error:
                found.append(error)

        with nccl.group():
            thread = threading.Thread(target=check)
            thread.start()
            thread.join(LIMIT_S)
        return found

    ((error,),) = on_ranks(1, with_nccl(fake, run, timeout_s=START_S))
    assert "check: another thread of rank 0 is inside of NCCL" in str(error)
