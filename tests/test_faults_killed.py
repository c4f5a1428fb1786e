"""Fault rows 1, 2, 3, 9, 28: whenever a rank dies, all are soon gone, and it is told."""

import re

import pytest

from tests.fault_runs import (
    DEVICES,
    LAUNCHERS,
    QUICK_S,
    TIMEOUT_S,
    FaultRun,
    cause,
    check_failed,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]
POINTS = (
    *("import", "imported", "connected", "planned", "compiled", "launched", "before run"),
    *("running", "waited", "stopped", "exit"),
)


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize(("n", "victim"), [(2, 0), (3, 1), (4, 0), (4, 3)])
def test_rows_1_and_2_any_rank_may_be_killed_in_a_sum(n: int, victim: int, by: str) -> None:
    done = FaultRun(fault=f"op=all_reduce:3,rank={victim},kind=sigkill").on(n, by)
    check_failed(done, 137, by, QUICK_S)
    assert "proper end" not in done.stdout
    if by == "ark-dist":
        told = cause(done)
        assert re.search(rf"^rank {victim} \(host .*\) was killed by SIGKILL$", told, re.M)
        assert re.search(rf"rank {victim} \(pid \d+\) ended .*of all_reduce forward/\S+#[01]", told)


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("point", POINTS)
def test_a_rank_may_be_killed_at_any_point(point: str, by: str) -> None:
    done = FaultRun(point=point).on(2, by)
    check_failed(done, 137, by, QUICK_S)
    if by == "ark-dist":
        assert re.search(r"^rank 1 \(host .*\) was killed by SIGKILL$", cause(done), re.M), done


@pytest.mark.parametrize("by", LAUNCHERS)
def test_row_3_a_rank_killed_before_mpi_is_up_is_the_missing_one(by: str) -> None:
    done = FaultRun(fault="init,rank=1,kind=sigkill").on(3, by)
    check_failed(done, 137, by, QUICK_S)
    if by == "ark-dist":
        assert "at the start of MPI, ranks seen: 0, 2; missing: 1" in cause(done), done


@pytest.mark.parametrize("by", LAUNCHERS)
def test_row_3_a_rank_that_never_comes_is_the_missing_one(by: str) -> None:
    done = FaultRun(fault="init,rank=1,kind=sleep=100").on(3, by)
    check_failed(done, 75, by, TIMEOUT_S + QUICK_S)
    assert "Timeout (0:00:0" in done.stderr, done
    if by == "ark-dist":
        assert "at the start of MPI, ranks seen: 0, 2; missing: 1" in cause(done), done


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize(
    ("kind", "name", "code"), [("sigsegv", "SIGSEGV", 139), ("abort", "SIGABRT", 134)]
)
def test_row_9_a_crash_leaves_its_stack(kind: str, name: str, code: int, by: str) -> None:
    done = FaultRun(fault=f"op=all_reduce:3,rank=1,kind={kind}").on(2, by)
    check_failed(done, code, by, QUICK_S)
    assert "Fatal Python error" in done.stderr
    if by == "ark-dist":
        assert f"was killed by {name}" in cause(done), done


def test_row_9_sigbus_is_named() -> None:
    wrong = "os.kill(os.getpid(), signal.SIGBUS)"
    done = FaultRun(point="before run", wrong=wrong).on(2, "ark-dist")
    check_failed(done, 135, "ark-dist", QUICK_S)
    assert "was killed by SIGBUS" in cause(done), done


@pytest.mark.parametrize("device", DEVICES)
def test_row_9_a_rank_that_exits_without_a_word_is_a_failure(device: str) -> None:
    fault = "op=all_reduce:3,rank=1,kind=exit0"
    done = FaultRun(fault=fault, device=device).on(2, "ark-dist")
    check_failed(done, 70, "ark-dist", QUICK_S)
    assert re.search(r"rank 1 .* left without coming to its end, by os\._exit", cause(done)), done


def test_row_9_mpirun_ends_all_when_a_rank_exits_without_a_word() -> None:
    # MPICH's mpirun ends with 0 then: docs/launching.md says so.
    done = FaultRun(fault="op=all_reduce:3,rank=1,kind=exit0").on(2, "mpirun")
    assert done.wall_s < QUICK_S, done
    assert "proper end" not in done.stdout, done


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transport", ["peer", "proxy"])
@pytest.mark.parametrize("victim", [0, 1])
def test_row_28_a_kernel_that_waits_for_a_dead_peer_ends(
    victim: int, transport: str, device: str
) -> None:
    fault = f"op=all_reduce:4,rank={victim},kind=sigkill"
    done = FaultRun(fault=fault, device=device, transport=transport, timeout_s=30.0).on(
        3, "ark-dist"
    )
    check_failed(done, 137, "ark-dist", QUICK_S)
    told = cause(done)
    assert re.search(rf"rank \d .* saw: .*rank {victim} \(pid \d+\) ended without a word", told), (
        done
    )
    assert "of all_reduce forward/0-1-2#" in told, done
