"""Hooks in one process: what they leave alone, chain, give back, and which exit codes they give."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ark_dist.core import errors
from ark_dist.core.settings import child_environment
from ark_dist.launch.error_file import log_folder
from ark_dist.launch.exit_codes import exit_code
from ark_dist.launch.hooks import install_hooks, is_interactive
from ark_dist.launch.ranks import ALONE


def python(code: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env=child_environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK is 5, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MPI started it as rank 0 of 1"),
    ],
)
def test_ranks_that_can_not_be_end_with_the_exit_code_of_the_configuration(
    env: dict[str, str], text: str
) -> None:
    code = (
        "from ark_dist.launch.hooks import hooked_ranks\n"
        "from ark_dist.launch.ranks import check_world\n"
        "ranks = hooked_ranks()\n"
        "from mpi4py import MPI\n"
        "check_world(ranks, MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)\n"
    )
    start = time.monotonic()
    done = python(code, **env)
    assert (done.returncode, text in done.stderr) == (78, True), done.stderr
    assert time.monotonic() - start < 8  # 5 s are promised, others run here too


def test_every_class_has_its_exit_code() -> None:
    assert exit_code(ValueError("x")) == 70
    assert exit_code(errors.TaskError("x")) == 70
    assert exit_code(errors.CommMismatch("x")) == 76
    assert exit_code(errors.PlanFormatError("x")) == 77
    assert exit_code(errors.ShardCorruptError("x")) == 77
    assert exit_code(errors.DeviceNotFoundError("x")) == 78
    assert exit_code(errors.CompilerNotFoundError("x")) == 78
    assert exit_code(errors.CompileError("x")) == 70
    assert exit_code(KeyboardInterrupt()) == 130
    assert [exit_code(SystemExit(code)) for code in (None, 0, 3, "text")] == [0, 0, 3, 1]


def test_a_second_call_changes_the_callbacks_of_the_first() -> None:
    code = (
        "import os\n"
        "from ark_dist.launch.hooks import install_hooks\n"
        "from ark_dist.launch.ranks import ALONE\n"
        "first = install_hooks(ALONE, lambda code: print('old'))\n"
        "assert install_hooks(ALONE, lambda code: print('new', code, flush=True)) is first\n"
        "raise errors_are_names\n"
    )
    done = python(code)
    assert (done.returncode, done.stdout) == (70, "new 70\n"), done.stderr


def test_hooks_can_be_taken_away_again() -> None:
    code = (
        "import signal, sys, threading\n"
        "before = sys.excepthook, threading.excepthook, signal.getsignal(15), signal.getsignal(2)\n"
        "from ark_dist.launch.hooks import install_hooks\n"
        "from ark_dist.launch.ranks import ALONE\n"
        "install_hooks(ALONE, print).uninstall()\n"
        "after = sys.excepthook, threading.excepthook, signal.getsignal(15), signal.getsignal(2)\n"
        "assert before == after, after\n"
        "assert signal.set_wakeup_fd(-1) == -1\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_an_interactive_session_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    assert is_interactive()
    hook = sys.excepthook
    assert not install_hooks(ALONE, print).is_installed
    assert sys.excepthook is hook


def test_python_i_is_an_interactive_session() -> None:
    code = (
        "from ark_dist.launch.hooks import install_hooks\n"
        "from ark_dist.launch.ranks import ALONE\n"
        "print(install_hooks(ALONE, print).is_installed)\n"
    )
    assert python(code, "-i").stdout == "False\n"
    assert python(code).stdout == "True\n"


def test_without_a_log_folder_error_files_go_to_a_private_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ARK_DIST_LOG_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = log_folder()
    assert folder.parent.parent == tmp_path
    assert folder.parent.stat().st_mode & 0o777 == 0o700


def test_a_log_folder_that_somebody_else_could_have_made_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ARK_DIST_LOG_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    base = log_folder().parent
    (base / log_folder().name).rmdir()
    base.rmdir()
    base.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="belongs to somebody else; set ARK_DIST_LOG_DIR"):
        log_folder()


def test_sigint_prints_one_line_and_has_the_code_of_ctrl_c() -> None:
    code = (
        "import os, time\n"
        "from ark_dist.launch.hooks import install_hooks\n"
        "from ark_dist.launch.ranks import ALONE\n"
        "install_hooks(ALONE, os._exit)\n"
        "os.kill(os.getpid(), 2)\n"
        "time.sleep(30)\n"
    )
    done = python(code)
    assert done.returncode == 128 + signal.SIGINT
    assert re.fullmatch(r"rank 0 \(host \S+, pid \d+\): interrupted\n", done.stderr), done.stderr
