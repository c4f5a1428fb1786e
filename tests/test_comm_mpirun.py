"""The helper that runs programs on ranks: output, exit codes, limits, and nothing left over."""

import sys
from pathlib import Path

import pytest

from tests.mpi import is_running, run_mpi

HELLO = """
import os, sys
from mpi4py import MPI
print("pid", os.getpid(), flush=True)
print(f"rank {MPI.COMM_WORLD.rank} {sys.argv[1]} {os.environ['WORD']}", flush=True)
"""


def test_a_program_runs_on_every_rank_with_arguments_and_variables(tmp_path: Path) -> None:
    program = tmp_path / "hello.py"
    program.write_text(HELLO)
    for form in (program, HELLO):
        done = run_mpi(3, form, "one", env={"WORD": "two"})
        assert done.returncode == 0, done
        lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
        assert lines == [f"rank {rank} one two" for rank in range(3)]
        assert len(done.pids) >= 4
        assert not any(is_running(pid) for pid in done.pids)


def test_an_exception_in_one_rank_ends_all() -> None:
    source = "from mpi4py import MPI\nc = MPI.COMM_WORLD\nassert c.rank != 1\nc.Barrier()"
    done = run_mpi(2, source)
    assert done.returncode != 0
    assert not done.is_timed_out
    assert "AssertionError" in done.stderr


def test_a_killed_run_leaves_no_shared_memory_of_mpi_behind() -> None:
    source = (
        "import os, re, time\nfrom mpi4py import MPI\nMPI.COMM_WORLD.Barrier()\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(*{*re.findall(r'/dev/shm/mpich_shm_[0-9a-f_]+', maps)}, flush=True)\n"
        "time.sleep(0.5)\nos.kill(os.getpid(), 9)"
    )
    done = run_mpi(2, source)
    names = {word for word in done.stdout.split() if word.startswith("/dev/shm/")}
    assert names, done
    assert not any(Path(name).exists() for name in names)


@pytest.mark.parametrize("how", ["", "import signal\nsignal.signal(15, signal.SIG_IGN)\n"])
def test_a_run_past_its_limit_is_killed(how: str) -> None:
    source = f"import os, time\n{how}print('pid', os.getpid(), flush=True)\ntime.sleep(60)"
    done = run_mpi(2, source, timeout_s=1.0)
    assert done.is_timed_out
    assert done.returncode != 0
    assert 1.0 <= done.wall_s < 8.0
    assert "past its limit" in str(done)
    assert not any(is_running(pid) for pid in done.pids)


def test_the_interpreter_of_the_ranks_is_ours() -> None:
    done = run_mpi(1, "import sys; print(sys.executable)", is_guarded=False)
    assert done.stdout.strip() == sys.executable
