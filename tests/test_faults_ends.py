"""Fault rows 7, 8, 10, 11, 12: exceptions, early ends, signals, and what cleans up after them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ark_dist.core.settings import child_environment
from tests.fault_runs import DEVICES, LAUNCHERS, PROGRAM, QUICK_S, FaultRun, cause, check_failed
from tests.mpi import MPIRUN, ROOT, is_running

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]
GONE_S = 5.0

# The program, but it runs for ever.
ENDLESS = PROGRAM.replace("for turn in range(5):", 'say("begins")\nfor turn in iter(int, 1):')


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transport", ["peer", "proxy"])
def test_row_7_an_exception_in_a_kernel_ends_all_with_its_traceback(
    transport: str, device: str, by: str
) -> None:
    fault = "op=all_reduce:3,rank=1,kind=raise"
    done = FaultRun(fault=fault, device=device, transport=transport).on(3, by)
    check_failed(done, 70, by, QUICK_S)
    assert re.search(
        r"rank 1 \(host .*\): InjectedError: fault at op=all_reduce, pass 3", done.stderr
    )
    if by == "ark-dist":
        assert re.search(r"rank 1 .* failed: InjectedError", cause(done)), done


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("point", ["imported", "connected", "compiled", "launched", "running"])
def test_row_7_an_exception_anywhere_is_the_cause(point: str, by: str) -> None:
    done = FaultRun(point=point, wrong="raise ValueError('mine')").on(3, by)
    check_failed(done, 70, by, QUICK_S)
    assert "ValueError: mine" in done.stderr, done
    if point != "imported":  # before, the rank has no hooks, and is not named
        assert re.search(r"rank 1 \(host .*\): ValueError: mine", done.stderr), done
    if by == "ark-dist" and point != "imported":
        assert cause(done).endswith("ValueError: mine\n"), done


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("point", ["launched", "before run", "running"])
def test_row_8_a_rank_that_leaves_early_fails_the_others_at_once(
    point: str, device: str, by: str
) -> None:
    done = FaultRun(point=point, wrong="sys.exit(0)", device=device, timeout_s=30.0).on(3, by)
    check_failed(done, 75, by, QUICK_S)
    runs = 0 if point == "launched" else 2
    assert f"rank 1 finished after {runs} runs, this rank has posted {runs + 1}" in done.stderr, (
        done
    )


@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("point", ["connected", "planned", "compiled"])
def test_row_8_a_rank_that_leaves_before_it_runs_is_noticed(point: str, by: str) -> None:
    done = FaultRun(point=point, wrong="sys.exit(0)", timeout_s=30.0).on(2, by)
    check_failed(done, 75, by, QUICK_S)
    assert "rank 1 closed its communicator" in done.stderr, done


@pytest.mark.parametrize("by", LAUNCHERS)
def test_row_10_exceptions_while_cleaning_up_do_not_hang(by: str) -> None:
    wrong = (
        "class Bad:\n    def __del__(self): raise RuntimeError('in del')\n"
        "import builtins\nbuiltins.bad = Bad()\n"
        "atexit.register(lambda: 1 / 0)\n"
    )
    done = FaultRun(point="stopped", wrong=wrong).on(2, by)
    assert done.returncode == 0, done
    assert done.wall_s < QUICK_S
    assert "ZeroDivisionError" in done.stderr and "in del" in done.stderr, done


@contextmanager
def started(
    by: str, folder: Path, **env: str
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """Start two ranks of ENDLESS; give the launcher and the ranks' pids once they run."""
    script, out = folder / "program.py", folder / "out"
    script.write_text(ENDLESS)
    launcher = [sys.executable, "-m", "ark_dist.cli", "run", "-n", "2"]
    command = [*launcher, str(script)]
    if by == "mpirun":
        command = [str(MPIRUN), "-n", "2", sys.executable, str(script)]
    with out.open("wb") as file:
        process = subprocess.Popen(
            command,
            env=child_environment(PYTHONPATH=str(ROOT), ARK_DIST_WORKERS="1", **env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    pids: list[int] = []
    try:
        deadline = time.monotonic() + 30
        while len(pids) < 2 or out.read_text().count("begins") < 2:
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.02)
            pids = [int(pid) for pid in re.findall(r"pid (\d+)\n", out.read_text())]
        time.sleep(0.3)
        yield process, pids
    finally:
        process.kill()
        process.wait(10)
        for pid in pids:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


def wait_gone(pids: list[int]) -> None:
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + GONE_S
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.02)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("by", LAUNCHERS)
def test_row_11_a_signal_ends_all_and_the_trace_is_kept(
    by: str, signum: signal.Signals, code: int, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    with started(by, tmp_path, ARK_DIST_TRACE=str(trace)) as (process, pids):
        os.killpg(process.pid, signum)
        returncode = process.wait(GONE_S)
        wait_gone(pids)
    if by == "ark-dist":
        assert returncode == code
        assert json.loads(trace.read_text()), "no events"
    assert returncode != 0


@pytest.mark.parametrize("by", LAUNCHERS)
def test_row_12_ranks_end_with_a_launcher_that_is_killed(by: str, tmp_path: Path) -> None:
    with started(by, tmp_path) as (process, pids):
        process.kill()
        wait_gone(pids)
