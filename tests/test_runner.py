"""`ark-dist run` starts ranks, shows what they print, ends them all, and says why they failed."""

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
from ark_dist.launch.exit_codes import BAD_CONFIG, USER_ERROR, WATCHDOG
from tests.mpi import is_running

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60
GONE_S = 5.0
COMMAND = [sys.executable, "-m", "ark_dist.cli", "run"]

HEAD = "import os, sys, time\nrank = int(os.environ['ARK_DIST_RANK'])\n"
HOOKED = (
    f"{HEAD}from mpi4py import MPI\n"
    "from ark_dist.core import errors\n"
    "from ark_dist.launch.hooks import install_hooks\n"
    "from ark_dist.launch.ranks import find_ranks\n"
    "hooks = install_hooks(find_ranks(), MPI.COMM_WORLD.Abort)\n"
)
FOREVER = "print('pid', os.getpid(), flush=True)\ntime.sleep(120)\n"


def variables(**changes: str) -> dict[str, str]:
    """The environment of `ark-dist run`."""
    return child_environment(PYTHONPATH=str(ROOT), **changes)


def run(
    tmp_path: Path, source: str, *options: str, arguments: tuple[str, ...] = (), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a program on ranks with `ark-dist run`; logs go to `tmp_path`/logs."""
    script = tmp_path / "program.py"
    script.write_text(source, "utf-8")
    command = [*COMMAND, "--log-dir", str(tmp_path / "logs"), *options, str(script), *arguments]
    return subprocess.run(
        command,
        env=variables(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT_S,
        check=False,
    )


@contextmanager
def started(
    tmp_path: Path, source: str, *options: str, ranks: int = 2
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """Start ranks that print "pid N" each; give the launcher and the pids, and clean up."""
    script, out = tmp_path / "program.py", tmp_path / "out"
    script.write_text(source)
    with out.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, "-n", str(ranks), *options, str(script)],
            env=variables(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    pids: list[int] = []
    try:
        deadline = time.monotonic() + 30
        while len(pids) < ranks:
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.02)
            pids = [int(pid) for pid in re.findall(r"pid (\d+)\n", out.read_text())]
        yield process, pids
    finally:
        process.kill()
        process.wait(10)
        for pid in pids:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


def wait_gone(pids: list[int], limit_s: float = GONE_S) -> None:
    """Wait until none of the processes runs; fail after the limit."""
    deadline = time.monotonic() + limit_s
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.02)


def test_ranks_run_with_arguments_prefixes_and_logs(tmp_path: Path) -> None:
    source = f"{HEAD}print('hello', *sys.argv[1:])\nprint('oops', file=sys.stderr)\n"
    done = run(tmp_path, source, "-n", "3", arguments=("--timeout", "5", "a b"))
    assert done.returncode == 0, done.stderr
    lines = [f"[r{rank}] hello --timeout 5 a b" for rank in range(3)]
    assert sorted(done.stdout.splitlines()) == lines
    assert sorted(done.stderr.splitlines()) == [f"[r{rank}] oops" for rank in range(3)]
    assert (tmp_path / "logs" / "rank-2.out").read_text() == "hello --timeout 5 a b\n"
    assert (tmp_path / "logs" / "rank-2.err").read_text() == "oops\n"


def test_every_rank_knows_its_number_through_mpi_too(tmp_path: Path) -> None:
    source = (
        f"{HEAD}from mpi4py import MPI\n"
        "from ark_dist.launch.ranks import check_world, find_ranks\n"
        "world, ranks = MPI.COMM_WORLD, find_ranks()\n"
        "check_world(ranks, world.rank, world.size)\n"
        "assert rank == ranks.rank\n"
        "print(world.allreduce(rank))\n"
    )
    done = run(tmp_path, source, "-n", "3")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[r0] 3", "[r1] 3", "[r2] 3"]


def test_lines_of_ranks_do_not_mix(tmp_path: Path) -> None:
    source = (
        f"{HEAD}for turn in range(2000):\n"
        "    sys.stdout.write(str(rank) * 40)\n"
        "    sys.stdout.write(str(rank) * 40 + '\\n')\n"
        "sys.stdout.write('last')\n"
    )
    done = run(tmp_path, source, "-n", "3", "--no-prefix")
    lines = done.stdout.splitlines()
    assert set(lines) == {"0" * 80, "1" * 80, "2" * 80, "last"}
    assert len(lines) == 3 * 2001


def test_one_rank_needs_no_mpi(tmp_path: Path) -> None:
    done = run(tmp_path, f"{HEAD}print(rank, 'mpi4py' in sys.modules)", PATH="/nowhere")
    assert (done.returncode, done.stdout) == (0, "[r0] 0 False\n")


def test_the_cause_of_a_failure_is_printed_last(tmp_path: Path) -> None:
    wrong = (
        "if rank == 1:\n"
        "    time.sleep(0.2)\n"
        "    raise ValueError('the cause')\n"
        "MPI.COMM_WORLD.Barrier()\n"
    )
    done = run(tmp_path, HOOKED + wrong, "-n", "3")
    assert done.returncode == USER_ERROR, done.stderr
    told = done.stderr.partition("ark-dist run: exit code 70\n")[2]
    assert told.startswith(f"logs: {tmp_path / 'logs'}\nrank 1 (host ")
    assert told.endswith("ValueError: the cause\n")
    assert json.loads((tmp_path / "logs" / "rank-1.error.json").read_text())["rank"] == 1


def test_an_exception_before_any_hook_has_the_exit_code_of_the_users_errors(
    tmp_path: Path,
) -> None:
    wrong = f"{HEAD}if rank == 0:\n    raise ValueError('early')\ntime.sleep(120)\n"
    done = run(tmp_path, wrong, "-n", "2")
    assert done.returncode == USER_ERROR
    assert done.stderr.endswith("ValueError: early\n")


@pytest.mark.parametrize(
    ("wrong", "code", "text"),
    [
        ("raise errors.StallError('x')", 75, "StallError: x"),
        ("raise errors.PlanMismatchError('x')", 76, "PlanMismatchError: x"),
        ("raise errors.CheckpointError('x')", 77, "CheckpointError: x"),
        ("raise errors.ConfigError('x')", 78, "ConfigError: x"),
        ("os.kill(os.getpid(), 9)", 137, "rank 1 .* was killed by SIGKILL"),
        ("os.abort()", 134, "rank 1 .* was killed by SIGABRT\nFatal Python error: Aborted"),
        ("os._exit(0)", 70, "rank 1 .* left without coming to its end, by os._exit"),
        ("os._exit(9)", 9, "rank 1 .* ended with exit code 9"),
        ("hooks.backstop.arm(0.5); time.sleep(60)", 75, "rank 1 .* ended by its backstop\nTimeout"),
    ],
)
def test_the_exit_code_tells_what_happened(
    wrong: str, code: int, text: str, tmp_path: Path
) -> None:
    source = f"{HOOKED}if rank == 1:\n    {wrong}\nMPI.COMM_WORLD.Barrier()\n"
    done = run(tmp_path, source, "-n", "2")
    assert done.returncode == code, done.stderr
    assert re.search(text, done.stderr.partition("ark-dist run: exit code")[2]), done.stderr


def test_a_rank_that_fails_alone_ends_the_others(tmp_path: Path) -> None:
    start = time.monotonic()
    done = run(tmp_path, f"{HEAD}if rank == 1:\n    sys.exit(5)\ntime.sleep(120)\n", "-n", "2")
    assert done.returncode == 5
    assert "rank 1" in done.stderr.partition("ark-dist run: exit code 5")[2]
    assert time.monotonic() - start < 20


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    stubborn = f"{HEAD}import signal\nsignal.signal(15, signal.SIG_IGN)\n{FOREVER}"
    start = time.monotonic()
    done = run(tmp_path, stubborn, "-n", "2", "--timeout", "2")
    assert done.returncode == WATCHDOG
    assert "took longer than --timeout, 2 s; ranks that still ran: 0, 1" in done.stderr
    assert time.monotonic() - start < 15
    wait_gone([int(pid) for pid in re.findall(r"pid (\d+)", done.stdout)])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_ranks_within_five_seconds(
    signum: int, code: int, tmp_path: Path
) -> None:
    with started(tmp_path, HEAD + FOREVER) as (process, pids):
        process.send_signal(signum)
        assert process.wait(GONE_S) == code
        wait_gone(pids, 1.0)


def test_ranks_clean_up_when_the_run_is_interrupted(tmp_path: Path) -> None:
    source = f"{HOOKED}try:\n    {FOREVER.replace(chr(10), chr(10) + '    ')}\n"
    source += "finally:\n    open(f'{sys.path[0]}/cleaned-{rank}', 'w').close()\n"
    with started(tmp_path, source) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(GONE_S) == 143
    # The first rank that is through aborts the job, and may cut the other one short.
    cleaned = {path.name for path in tmp_path.glob("cleaned-*")}
    assert cleaned and cleaned <= {"cleaned-0", "cleaned-1"}


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    stubborn = f"{HEAD}import signal\nsignal.signal(15, signal.SIG_IGN)\n{FOREVER}"
    with started(tmp_path, stubborn) as (process, pids):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(GONE_S) == 143
        assert time.monotonic() - start < 2.5  # the grace is 3 s
        wait_gone(pids, 1.0)


def test_ranks_that_are_stopped_are_ended_too(tmp_path: Path) -> None:
    source = f"{HEAD}print('pid', os.getpid(), flush=True)\nos.kill(os.getpid(), 19)\n"
    with started(tmp_path, source) as (process, pids):
        process.send_signal(signal.SIGINT)
        assert process.wait(GONE_S + 1) == 130
        wait_gone(pids, 1.0)


def test_what_ranks_start_is_ended_with_them(tmp_path: Path) -> None:
    source = (
        f"{HEAD}import subprocess\n"
        "child = subprocess.Popen(['sleep', '120'], start_new_session=True)\n"
        "print('pid', child.pid, flush=True)\ntime.sleep(120)\n"
    )
    with started(tmp_path, source) as (process, pids):
        process.send_signal(signal.SIGTERM)
        process.wait(GONE_S)
        wait_gone(pids, 1.0)


def test_ranks_die_with_a_run_that_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, HEAD + FOREVER) as (process, pids):
        process.kill()
        wait_gone(pids)


def test_a_closed_stdout_does_not_end_the_run(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        f"{HEAD}for turn in range(5000):\n    print('line', turn)\n"
        "open(f'{sys.path[0]}/done-{rank}', 'w').close()\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "-n", "2", str(script)], env=variables(), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(LIMIT_S) == 0
    assert len(list(tmp_path.glob("done-*"))) == 2


def test_text_that_the_locale_can_not_spell_comes_through(tmp_path: Path) -> None:
    source = f"{HOOKED}sys.stdout.buffer.write('gr\\u00fc\\u00df \\u2713\\n'.encode())\n"
    source += "sys.stdout.flush()\nMPI.COMM_WORLD.Barrier()\nassert rank == 0, '\\u2717 \\u00fc'\n"
    source += "MPI.COMM_WORLD.Barrier()\n"
    done = run(tmp_path, source, "-n", "2", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == USER_ERROR
    assert "[r1] gr\u00fc\u00df \u2713\n" in done.stdout
    assert "AssertionError: \u2717 \u00fc" in done.stderr


def test_json_tells_how_every_rank_ended(tmp_path: Path) -> None:
    source = f"{HOOKED}print('text')\nMPI.COMM_WORLD.Barrier()\nassert rank == 0, 'no'\n"
    source += "MPI.COMM_WORLD.Barrier()\n"
    done = run(tmp_path, source, "-n", "2", "--json")
    told = json.loads(done.stdout)
    assert told["code"] == done.returncode == USER_ERROR
    assert [rank["rank"] for rank in told["ranks"]] == [0, 1]
    assert told["ranks"][1]["error"]["message"] == "no"
    assert "[r0] text" in done.stderr


def test_the_temporary_logs_go_after_a_success_and_stay_after_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(f"{HEAD}sys.exit(len(sys.argv) - 1)")
    place = tmp_path / "temporary"
    place.mkdir()
    for extra, kept in (((), 0), (("fail",), 1)):
        command = [*COMMAND, "-n", "1", str(script), *extra]
        env = variables(TMPDIR=str(place))
        done = subprocess.run(command, env=env, timeout=LIMIT_S, check=False, capture_output=True)
        assert done.returncode == kept
        assert len(list(place.glob("ark-dist-run-*"))) == kept


def test_old_files_of_a_log_folder_are_not_believed(tmp_path: Path) -> None:
    assert run(tmp_path, "raise SystemExit(3)", "-n", "2").returncode == 3
    (tmp_path / "logs" / "rank-1.error.json").write_text('{"code": 70}')
    assert run(tmp_path, "", "-n", "2").returncode == 0


def test_a_run_inside_a_rank_is_a_run_of_its_own(tmp_path: Path) -> None:
    inner = tmp_path / "inner.py"
    inner.write_text(f"{HEAD}print('inner', rank, os.environ['ARK_DIST_WORLD_SIZE'])")
    outer = (
        f"{HEAD}import subprocess\n"
        f"command = [sys.executable, '-m', 'ark_dist.cli', 'run', '-n', '2', {str(inner)!r}]\n"
        "sys.exit(subprocess.run(command).returncode if rank == 1 else 0)\n"
    )
    done = run(tmp_path, outer, "-n", "3")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[r1] [r0] inner 0 2", "[r1] [r1] inner 1 2"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("-n", "0"), "-n is 0; it must be 1 to 4096"),
        (("-n", "2", "--timeout", "0"), "--timeout is 0; it must be seconds, above 0"),
        (("-n", "2", "--hosts", "/no/such"), "--hosts: /no/such is not a file"),
        (("-n", "2", "--launcher", "lam"), "--launcher is 'lam'; it must be auto, mpich or openm"),
    ],
)
def test_bad_options_are_named(options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    done = run(tmp_path, "", *options)
    assert done.returncode == BAD_CONFIG
    assert text in done.stderr


def test_a_missing_program_and_a_bad_log_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    done = run(tmp_path, "", "-n", "2")
    assert (done.returncode, "--log-dir: " in done.stderr) == (BAD_CONFIG, True)
    missing = subprocess.run(
        [*COMMAND, "-n", "2", "no.py"], env=variables(), capture_output=True, timeout=LIMIT_S
    )
    assert missing.returncode == BAD_CONFIG
    assert b"no.py is not a file" in missing.stderr


def test_a_launcher_that_starts_no_rank_is_quoted(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("no.such.host.invalid:2\n")
    done = run(tmp_path, "", "-n", "2", "--hosts", str(hosts), "--timeout", "30")
    assert done.returncode in (BAD_CONFIG, WATCHDOG), done.stderr
