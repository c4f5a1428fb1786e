"""A rank that fails, leaves or is told to stop ends the job: plain mpirun never hangs."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ark_dist.core.settings import child_environment
from tests.mpi import Finished, is_running, run_mpi

LIMIT_S = 20.0
QUICK_S = 8.0  # a job that ends by itself; a hang would take LIMIT_S

# What a program of several ranks does: rank 1 goes wrong while the others are in a collective.
PROGRAM = """
import os, sys, threading, time
import numpy as np
from mpi4py import MPI
from ark_dist.core import errors
from ark_dist.launch.hooks import install_hooks
from ark_dist.launch.ranks import find_ranks

world = MPI.COMM_WORLD
ranks = find_ranks()
left = world.Dup()
BEFORE
def leave(code):
    # As a communicator does: whoever leaves before the others are done fails the job.
    if ranks.rank == 1 and EARLY:
        raise errors.PeerLost(f"rank 1 finished after 3 ops with code {code}")
EARLY = True
hooks = install_hooks(ranks, world.Abort, leave)
sys.stdout.write(f"pid {os.getpid()}\\n")
sys.stdout.flush()
one, total = np.ones(1), np.ones(1)
for turn in range(3):
    world.Allreduce(one, total)
if ranks.rank == 1:
    WRONG
world.Allreduce(one, total)
EARLY = False
sys.stdout.write(f"proper end of {ranks.rank}\\n")  # one piece, where print may make more
"""


def run(wrong: str, tmp_path: Path, n: int = 2, before: str = "", **env: str) -> Finished:
    """Run the program with something that goes wrong in rank 1; error files go to `tmp_path`."""
    lines = wrong.replace("\n", "\n    ")
    program = PROGRAM.replace("WRONG", lines).replace("BEFORE", before)
    return run_mpi(
        n,
        program,
        env={"ARK_DIST_LOG_DIR": str(tmp_path), **env},
        timeout_s=LIMIT_S,
        is_guarded=False,
    )


def test_a_program_without_faults_ends_well_and_leaves_no_files(tmp_path: Path) -> None:
    done = run("pass", tmp_path)
    assert done.returncode == 0, done
    assert sorted(re.findall(r"proper end of (\d)", done.stdout)) == ["0", "1"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [2, 3])
def test_an_exception_in_one_rank_ends_all(n: int, tmp_path: Path) -> None:
    done = run("raise ValueError('bad number \\u00e9')", tmp_path, n)
    assert done.returncode == 70, done  # MPI_Abort's code, here passed on
    assert done.wall_s < QUICK_S
    header = re.search(
        r"^rank 1 \(host \S+, pid (\d+)\): ValueError: bad number", done.stderr, re.M
    )
    assert header, done
    assert int(header[1]) in done.pids
    after = done.stderr[header.start() :].splitlines()
    assert after[1] == "Traceback (most recent call last):"
    assert "proper end" not in done.stdout
    record = json.loads((tmp_path / "rank-1.error.json").read_text("utf-8"))
    assert record["message"] == "bad number \u00e9"
    assert (record["rank"], record["world_size"], record["code"]) == (1, n, 70)
    assert record["pid"] == int(header[1])
    assert "raise ValueError" in record["traceback"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("StallError('x')", 75),
        ("CommTimeout('x')", 75),
        ("PlanMismatchError('x')", 76),
        ("PlanWorldSizeError('x')", 76),
        ("CheckpointError('x')", 77),
        ("ConfigError('x')", 78),
    ],
)
def test_an_error_of_ours_has_the_exit_code_of_its_kind(
    error: str, code: int, tmp_path: Path
) -> None:
    done = run(f"raise errors.{error}", tmp_path)
    assert done.returncode == code, done


def test_an_error_before_mpi_is_up_ends_all(tmp_path: Path) -> None:
    program = (
        "from ark_dist.launch.fault import fault_point\n"
        "from ark_dist.launch.hooks import hooked_ranks\n"
        "fault_point('init', hooked_ranks().rank)\n"
        "from mpi4py import MPI\n"
    )
    env = {"ARK_DIST_LOG_DIR": str(tmp_path), "ARK_DIST_FAULT": "init,rank=1,kind=raise"}
    done = run_mpi(3, program, env=env, timeout_s=LIMIT_S, is_guarded=False)
    assert done.returncode != 0
    assert done.wall_s < QUICK_S, done
    assert "InjectedError: fault at init, pass 1, rank 1" in done.stderr
    assert json.loads((tmp_path / "rank-1.error.json").read_text())["code"] == 70


def test_an_exception_in_a_thread_ends_all(tmp_path: Path) -> None:
    wrong = "threading.Thread(target=lambda: 1 / 0, name='feeder').start()\ntime.sleep(30)"
    done = run(wrong, tmp_path)
    assert done.returncode == 70, done
    assert re.search(r"^rank 1 \(host .*ZeroDivisionError", done.stderr, re.M), done
    record = json.loads((tmp_path / "rank-1.error.json").read_text("utf-8"))
    assert record["thread"] == "feeder"


@pytest.mark.parametrize("wrong", ["sys.exit(0)", "sys.exit(3)", "raise SystemExit"])
def test_a_rank_that_leaves_early_lets_the_others_know(wrong: str, tmp_path: Path) -> None:
    done = run(wrong, tmp_path)
    # The launcher passes on the abort's code, or that of a rank which it killed.
    assert done.returncode != 0, done
    assert done.wall_s < QUICK_S
    assert "PeerLost: rank 1 finished after 3 ops" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    ["os.kill(os.getpid(), 9)", "os.abort()", "import ctypes; ctypes.string_at(0)", "os._exit(3)"],
)
def test_a_rank_that_dies_ends_all(wrong: str, tmp_path: Path) -> None:
    done = run(wrong, tmp_path, 3)
    assert done.returncode != 0, done
    assert done.wall_s < QUICK_S
    assert "proper end" not in done.stdout


def test_a_crash_leaves_the_stack_of_its_rank(tmp_path: Path) -> None:
    done = run("import ctypes; ctypes.string_at(0)", tmp_path)
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "in string_at" in done.stderr


def test_the_backstop_ends_a_rank_that_holds_the_gil(tmp_path: Path) -> None:
    wrong = (
        "hooks.backstop.arm(30)\nhooks.backstop.arm(1)\n"
        "from ark_dist.launch.fault import fault_point\nfault_point('run', 1)"
    )
    done = run(wrong, tmp_path, ARK_DIST_FAULT="run,kind=spin")
    assert done.returncode != 0, done
    assert done.wall_s < QUICK_S
    assert "Timeout (0:00:01)!" in done.stderr
    assert "in fault_point" in done.stderr


def test_a_disarmed_backstop_ends_nothing(tmp_path: Path) -> None:
    wrong = "hooks.backstop.arm(0.5)\nhooks.backstop.disarm()\ntime.sleep(1)"
    assert run(wrong, tmp_path).returncode == 0


def test_exceptions_while_cleaning_up_do_not_hang(tmp_path: Path) -> None:
    wrong = (
        "class Bad:\n    def __del__(self): raise RuntimeError('in del')\n"
        "bad = Bad()\nbad.me = bad\n"
        "import atexit\natexit.register(lambda: 1 / 0)"
    )
    done = run(wrong, tmp_path)
    assert not done.is_timed_out, done
    assert done.wall_s < QUICK_S
    assert "ZeroDivisionError" in done.stderr


def test_a_hook_of_the_users_is_called_too(tmp_path: Path) -> None:
    before = "sys.excepthook = lambda kind, error, trace: print('mine:', error, file=sys.stderr)"
    done = run("raise ValueError('boom')", tmp_path, before=before)
    assert done.returncode == 70, done
    assert re.search(r"^rank 1 .*: ValueError: boom\nmine: boom$", done.stderr, re.M), done


def test_a_hook_that_is_set_later_and_chains_nothing_does_not_hang_the_job(tmp_path: Path) -> None:
    wrong = "sys.excepthook = lambda *arguments: None\nraise ValueError('swallowed')"
    done = run(wrong, tmp_path)
    assert done.returncode == 70, done
    assert "ValueError: swallowed" in done.stderr


def test_an_abort_that_fails_ends_all_the_same(tmp_path: Path) -> None:
    wrong = "hooks.rebind(lambda code: 1 / 0, None)\nraise ValueError('boom')"
    done = run(wrong, tmp_path)
    # The launcher passes on this rank's code, or that of the other one, which it kills.
    assert done.returncode != 0, done
    assert json.loads((tmp_path / "rank-1.error.json").read_text("utf-8"))["code"] == 70
    assert "ZeroDivisionError" in done.stderr


def test_sigterm_unwinds_the_program(tmp_path: Path) -> None:
    # A file: what is printed last may be lost with the launcher that the rank aborts then.
    cleaned = tmp_path / "cleaned"
    wrong = (
        "try:\n    os.kill(os.getpid(), 15)\n    time.sleep(30)\n"
        f"finally:\n    open({str(cleaned)!r}, 'w').close()"
    )
    done = run(wrong, tmp_path)
    assert done.returncode != 0, done
    assert done.wall_s < QUICK_S
    assert cleaned.exists()


def test_sigterm_ends_a_rank_that_is_deep_in_c_code(tmp_path: Path) -> None:
    wrong = "threading.Timer(0.3, os.kill, (os.getpid(), 15)).start()\nworld.Recv(one, 0, 99)"
    done = run(wrong, tmp_path)
    assert done.returncode != 0, done
    assert done.wall_s < QUICK_S
    assert "signal 15 while deep in C code" in done.stderr


def test_handlers_of_the_users_stay(tmp_path: Path) -> None:
    before = "import signal\nsignal.signal(15, lambda *_: print('mine', flush=True))"
    wrong = "os.kill(os.getpid(), 15)\nassert signal.getsignal(2) is not signal.default_int_handler"
    done = run(wrong, tmp_path, before=before)
    assert done.returncode == 0, done
    assert "mine" in done.stdout


def test_a_forked_child_is_no_rank(tmp_path: Path) -> None:
    wrong = (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    import signal\n"
        "    assert signal.getsignal(15) == signal.SIG_DFL\n"
        "    assert sys.excepthook is sys.__excepthook__\n"
        "    assert signal.set_wakeup_fd(-1) == -1\n"
        "    hooks._at_exit()\n"
        "    os._exit(1)\n"
        "_, status = os.waitpid(child, 0)\n"
        "assert os.waitstatus_to_exitcode(status) == 1, status"
    )
    done = run(wrong, tmp_path)
    assert done.returncode == 0, done
    assert list(tmp_path.iterdir()) == []


def test_ranks_die_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys, time\n"
        "from ark_dist.launch.hooks import install_hooks\n"
        "from ark_dist.launch.ranks import find_ranks\n"
        "ranks = find_ranks()\n"
        "install_hooks(ranks, os._exit)\n"
        "path = pathlib.Path(sys.argv[1], f'pid-{ranks.rank}')\n"
        "path.with_suffix('.new').write_text(str(os.getpid()))\n"
        "path.with_suffix('.new').rename(path)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[1]
    mpirun = Path(sys.executable).parent / "mpirun"
    launcher = subprocess.Popen(
        [mpirun, "-n", "2", sys.executable, program, tmp_path],
        env=child_environment(PYTHONPATH=str(root)),
        start_new_session=True,
    )
    paths = [tmp_path / f"pid-{rank}" for rank in range(2)]
    try:
        wait_until(lambda: all(path.exists() for path in paths))
    finally:
        launcher.kill()
        launcher.wait(10)
    pids = [int(path.read_text()) for path in paths]
    wait_until(lambda: not any(map(is_running, pids)))


def wait_until(is_true: object, limit_s: float = 15.0) -> None:
    """Wait for something to become true; fail after the limit."""
    assert callable(is_true)
    deadline = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
