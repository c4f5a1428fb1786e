"""Run a program on several ranks for a test: a hard limit, its output, and no process left over."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MPIRUN = Path(sys.executable).parent / "mpirun"  # not resolved: the interpreter may be a link
MARK = "ARK_DIST_TEST_RUN"  # a variable by whose value the processes of one run are found
TERM_GRACE_S = 3.0
GONE_WITHIN_S = 5.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Finished:
    """What a run left behind.

    Attributes:
        returncode: of mpirun; negative if a signal ended it.
        stdout: of all ranks, mixed by line.
        stderr: of all ranks, mixed by line.
        wall_s: from the start of mpirun to its end, in seconds.
        pids: of all processes seen, mpirun first; those of lines "pid N" in stdout included.
        is_timed_out: whether it ran past the limit and was killed.
    """

    returncode: int
    stdout: str
    stderr: str
    wall_s: float
    pids: tuple[int, ...]
    is_timed_out: bool

    def __str__(self) -> str:
        late = ", past its limit" if self.is_timed_out else ""
        head = f"mpirun ended with {self.returncode} after {self.wall_s:.1f} s{late}"
        return f"{head}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def run_mpi(
    n: int,
    program: Path | str,
    *args: str,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
    is_guarded: bool = True,
    options: tuple[str, ...] = (),
    by: str = "mpirun",
) -> Finished:
    """Run a program on n ranks; assert that no process of it is left.

    Args:
        n: how many ranks; more than there are cores is fine.
        program: path of a Python file, or the source itself.
        *args: the program's arguments.
        env: variables to add to this process' environment.
        timeout_s: limit for the whole run; then TERM, and KILL after 3 s, goes to all of it.
        is_guarded: run under `-m mpi4py`, so that an exception in one rank ends all of them.
        options: further options of mpirun, such as "-disable-auto-cleanup".
        by: "mpirun", or "ark-dist" for `ark-dist run`, which has no guard.
    """
    with tempfile.TemporaryDirectory(prefix="ark-mpi-") as folder:
        if not isinstance(program, Path):
            source = program
            program = Path(folder, "program.py")
            program.write_text(source)
        guard = ["-m", "mpi4py"] if is_guarded else []
        command = [str(MPIRUN), *options, "-n", str(n), sys.executable, *guard, str(program), *args]
        if by == "ark-dist":
            start = [sys.executable, "-m", "ark_dist.cli", "run"]
            command = [*start, *options, "-n", str(n), str(program), *args]
        mark = uuid.uuid4().hex
        # Buffered: a line comes in one piece, and ranks do not mix theirs.
        environment = {**os.environ, "PYTHONUNBUFFERED": "", **(env or {}), MARK: mark}
        path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        return _run(command, environment, mark, Path(folder), timeout_s)


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _run(
    command: list[str], environment: dict[str, str], mark: str, folder: Path, timeout_s: float
) -> Finished:
    out, err = folder / "stdout", folder / "stderr"
    # Files, not pipes: a process that is left behind can't keep the reader waiting.
    with out.open("wb") as out_file, err.open("wb") as err_file:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
            start_new_session=True,
        )
        seen = {process.pid: None}
        segments: dict[int, list[Path]] = {}
        is_late = False
        try:
            while process.poll() is None and not is_late:
                time.sleep(POLL_S)
                for pid in _marked(mark):
                    seen[pid] = None
                    segments[pid] = segments.get(pid) or _mpi_segments(pid)
                is_late = time.monotonic() - start > timeout_s
        finally:
            _end(process, mark)
        wall_s = time.monotonic() - start
    stdout, stderr = (path.read_text(errors="replace") for path in (out, err))
    printed = [int(pid) for pid in re.findall(r"^pid (\d+)$", stdout, re.MULTILINE)]
    seen.update(dict.fromkeys(printed))
    left = _kill_rest(mark, seen)
    for segment in {path for paths in segments.values() for path in paths}:
        segment.unlink(missing_ok=True)  # MPICH leaves it behind when a rank is killed
    result = Finished(process.returncode, stdout, stderr, wall_s, tuple(seen), is_late)
    assert not left, f"processes {left} outlived mpirun by {GONE_WITHIN_S} s\n{result}"
    return result


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """End a run that is not over: TERM to its group, KILL after the grace."""
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(TERM_GRACE_S)
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in _marked(mark):
            _kill(pid)
        process.wait(TERM_GRACE_S)


def _kill_rest(mark: str, seen: Iterable[int]) -> list[int]:
    """Wait until the run's processes are gone; kill and return those that stay."""
    deadline = time.monotonic() + GONE_WITHIN_S
    # One that is about to end has no environment any more, but still runs.
    while (left := _marked(mark)) or any(map(is_running, seen)):
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    for pid in left:
        _kill(pid)
    return left


def _mpi_segments(pid: int) -> list[Path]:
    """List the shared memory files of MPI that a process has mapped."""
    with suppress(OSError):
        names = re.findall(r"/dev/shm/mpich_shm_\w+", Path(f"/proc/{pid}/maps").read_text())
        return [Path(name) for name in {*names}]
    return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _marked(mark: str) -> list[int]:
    """List the running processes that were started with the mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return [pid for pid in found if is_running(pid)]
