"""Fault rows 66 and 68: what crashed ranks leave behind, closed pipes, and poor locales."""

import subprocess
import sys
from pathlib import Path

import pytest

from ark_dist.core.settings import child_environment
from tests.fault_runs import LIMIT_S, PROGRAM, FaultRun
from tests.mpi import ROOT, run_mpi

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
MEMORY = Path("/dev/shm")
CRASHES = 20
# A file lives only until all ranks have mapped it: a crash in that moment leaves those of one run.
RANKS = 2


def own_files() -> set[str]:
    """Our files of shared memory."""
    return {path.name for path in MEMORY.glob("ark-dist-*")}


def test_row_66_crashes_leave_no_files_of_shared_memory() -> None:
    before = own_files()
    for turn in range(CRASHES):
        point = ("connected", "planned", "compiled", "running")[turn % 4]
        done = FaultRun(point=point, victim=turn % RANKS).on(RANKS, "mpirun")
        assert done.returncode != 0, done
    assert len(own_files() - before) <= 2 * RANKS


def test_row_66_a_run_removes_what_a_dead_one_left() -> None:
    code = (
        "import os\nfrom ark_dist.comm import window\n"
        "window._create(window.SHARED_FOLDER, 1000)\nos.kill(os.getpid(), 9)"
    )
    before = own_files()
    env = child_environment(PYTHONPATH=str(ROOT))
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code], env=env, timeout=LIMIT_S)
    assert own_files() - before
    assert FaultRun().on(RANKS, "mpirun").returncode == 0
    assert not own_files() - before


def test_row_68_a_reader_that_leaves_ends_no_rank(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        f"{PROGRAM}\nfor line in range(20000):\n    print('line', line)\n"
        f"open(os.path.join({str(tmp_path)!r}, f'done-{{rank}}'), 'w').close()\n"
    )
    run = f"{sys.executable} -m ark_dist.cli run -n 2 {script}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{run} | head -1"],
        env=child_environment(PYTHONPATH=str(ROOT), ARK_DIST_WORKERS="1"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.glob("done-*")) == ["done-0", "done-1"]


def test_row_68_a_locale_without_letters_breaks_nothing() -> None:
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    wrong = "raise ValueError('gr\\u00fc\\u00df \\u2713')"
    done = FaultRun(point="waited", wrong=wrong, env=env).on(2, "ark-dist")
    assert done.returncode == 70, done
    assert "ValueError: gr" in done.stderr, done
    assert FaultRun(env=env).on(2, "ark-dist").returncode == 0


def test_row_68_lines_of_ranks_do_not_mix() -> None:
    program = (
        "import os, sys\nrank = os.environ['PMI_RANK']\n"
        "for line in range(3000):\n    print(rank * 60)\n    print(rank * 60, file=sys.stderr)\n"
    )
    done = run_mpi(3, program, timeout_s=LIMIT_S, is_guarded=False, by="ark-dist")
    assert done.returncode == 0, done.stderr[-1000:]
    wanted = {f"[r{rank}] {str(rank) * 60}" for rank in range(3)}
    assert {*done.stdout.splitlines()} == {*done.stderr.splitlines()} == wanted
