"""Fault rows 1, 4, 7, 8, 13, 15, 16: what every run of the tests looks at; the rest is long."""

import re

import pytest

from tests.fault_runs import DEVICES, QUICK_S, TIMEOUT_S, FaultRun, cause, check_failed
from tests.plan_faults import DIFFERENT, run_different

BY = "ark-dist"


def test_row_1_a_killed_rank_is_the_cause_and_the_others_say_what_they_waited_for() -> None:
    done = FaultRun(fault="op=all_reduce:3,rank=1,kind=sigkill").on(2, BY)
    check_failed(done, 137, BY, QUICK_S)
    told = cause(done)
    assert re.search(r"rank 1 \(host .*\) was killed by SIGKILL\n", told), done
    assert re.search(
        r"rank 0 \(host .* saw: rank 1 \(pid \d+\) ended without a word; rank 0 waits for "
        r"rank 1 \('\w+' of all_reduce forward/0-1#[01]\) in turn 1",
        told,
    ), done


def test_row_4_a_stopped_rank_is_a_stall_that_names_rank_and_operator() -> None:
    done = FaultRun(fault="op=all_reduce:3,rank=1,kind=sigstop").on(2, BY)
    check_failed(done, 75, BY, TIMEOUT_S + QUICK_S)
    assert re.search(
        r"StallError: rank 0: no progress for 2 s: .* rank 1 \('\w+' of all_reduce "
        r"forward/0-1#[01]\): have \d, want \d; rank 1 \(pid \d+\) is stopped by a signal",
        cause(done),
    ), done


def test_row_7_the_traceback_of_the_rank_that_failed_is_told() -> None:
    done = FaultRun(fault="op=all_reduce:3,rank=1,kind=raise").on(2, BY)
    check_failed(done, 70, BY, QUICK_S)
    told = cause(done)
    assert re.search(r"rank 1 \(host .*\) failed: InjectedError: fault at op=all_reduce", told)
    assert "Traceback (most recent call last):" in told, done


@pytest.mark.parametrize("device", DEVICES)
def test_row_8_a_rank_that_leaves_early_is_noticed_at_once(device: str) -> None:
    fault = "op=all_reduce:3,rank=1,kind=sysexit0"
    done = FaultRun(fault=fault, device=device, timeout_s=30.0).on(2, BY)
    check_failed(done, 75, BY, QUICK_S)
    assert "rank 1 finished after 1 runs, this rank has posted 2" in cause(done), done


@pytest.mark.parametrize("name", ["row 13", "row 15", "row 16"])
def test_ranks_that_do_not_fit_are_refused_before_anything_runs(name: str) -> None:
    text = DIFFERENT[name][1]
    done = run_different(name, 2, BY)
    check_failed(done, 76, BY, QUICK_S)
    assert re.search(text, cause(done)), done
    assert "launched" not in done.stdout
