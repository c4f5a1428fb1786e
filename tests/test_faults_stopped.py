"""Fault rows 4, 5, 6: a rank that stands still is a stall, unless it goes on in time."""

import re

import pytest

from tests.fault_runs import (
    DEVICES,
    LAUNCHERS,
    PROGRAM,
    QUICK_S,
    TIMEOUT_S,
    FaultRun,
    cause,
    check_failed,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]
STOP = "os.kill(os.getpid(), signal.SIGSTOP)"
SPIN = "import ctypes; ctypes.PyDLL(None).sleep(1000)"  # PyDLL keeps the GIL


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transport", ["peer", "proxy"])
@pytest.mark.parametrize(("n", "victim"), [(2, 0), (3, 1)])
def test_row_4_a_rank_stopped_in_a_sum_is_a_stall(
    n: int, victim: int, transport: str, device: str, by: str
) -> None:
    fault = f"op=all_reduce:3,rank={victim},kind=sigstop"
    done = FaultRun(fault=fault, device=device, transport=transport).on(n, by)
    check_failed(done, 75, by, TIMEOUT_S + QUICK_S)
    assert re.search(rf"rank {victim} \(pid \d+\) is stopped by a signal", done.stderr), done
    assert re.search(r"StallError: .*no progress for 2 s|CommTimeout: ", done.stderr), done


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("point", ["imported", "connected", "planned", "compiled", "launched"])
def test_row_4_a_rank_stopped_before_it_runs_is_noticed(point: str, by: str) -> None:
    done = FaultRun(point=point, wrong=STOP).on(2, by)
    check_failed(done, 75, by, TIMEOUT_S + QUICK_S)


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("point", ["waited", "stopped"])
def test_row_4_ranks_that_are_done_do_not_wait_for_a_stopped_one(point: str, by: str) -> None:
    done = FaultRun(point=point, wrong=STOP).on(3, by)
    check_failed(done, 75, by, TIMEOUT_S + QUICK_S)
    assert "is done and waits for rank 1, whose process" in done.stderr, done
    assert "is stopped by a signal for 2 s" in done.stderr, done


def test_ranks_that_are_done_wait_for_one_that_still_computes() -> None:
    wrong = f"time.sleep({3 * TIMEOUT_S})"
    done = FaultRun(point="waited", wrong=wrong).on(2, "mpirun")
    assert done.returncode == 0, done
    assert done.wall_s > 3 * TIMEOUT_S


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("wrong", ["time.sleep(1000)", SPIN])
def test_row_5_a_rank_that_never_runs_is_a_stall_with_or_without_the_gil(
    wrong: str, by: str
) -> None:
    done = FaultRun(point="before run", wrong=wrong).on(2, by)
    check_failed(done, 75, by, TIMEOUT_S + QUICK_S)
    assert re.search(r"StallError: .* rank 1 \('ready' of all_reduce", done.stderr), done


@pytest.mark.parametrize("by", LAUNCHERS)
def test_row_5_the_backstop_ends_a_wait_to_which_python_never_comes_back(by: str) -> None:
    # Rank 1 never comes; rank 0 waits for it when another thread takes the GIL for good.
    here = '        point("before run")\n'
    assert here in PROGRAM
    program = PROGRAM.replace(here, f"{here}        if rank == 1: time.sleep(1000)\n")
    wrong = (
        "import ctypes, threading\n"
        "threading.Timer(0.5, ctypes.PyDLL(None).sleep, (1000,)).start()\n"
    )
    done = FaultRun(point="before run", wrong=wrong, victim=0).on(2, by, program)
    check_failed(done, 75, by, TIMEOUT_S + QUICK_S)
    assert "Timeout (0:00:0" in done.stderr, done
    if by == "ark-dist":
        assert re.search(r"rank 0 .* was ended by its backstop\nTimeout", cause(done)), done


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("device", DEVICES)
def test_row_6_a_rank_that_goes_on_in_time_costs_a_warning(device: str, by: str) -> None:
    limit_s = 8.0
    wrong = (
        "import subprocess\n"
        f"subprocess.Popen(['sh', '-c', f'sleep {limit_s / 2}; kill -CONT {{os.getpid()}}'])\n"
    )
    done = FaultRun(
        fault="op=all_reduce:5,rank=1,kind=sigstop",
        point="before run",
        wrong=wrong,
        device=device,
        timeout_s=limit_s,
    ).on(2, by)
    assert done.returncode == 0, done
    assert sorted(re.findall(r"proper end of (\d)", done.stdout)) == ["0", "1"], done
    assert done.stderr.count("slow rank: no progress for") == 1, done
    assert "rank 1 (pid " in done.stderr, done
