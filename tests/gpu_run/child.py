"""Run a command with a hard limit, and leave no process of it behind."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.settings import child_environment
from ark_dist.launch.parent import die_with_parent

MARK = "ARK_DIST_TEST_GPU_RUN"
POLL_S = 0.05
TERM_GRACE_S = 3.0
# A driver takes its time to end a process whose kernel hangs.
KILL_GRACE_S = 20.0
TAIL_LINES = 40

Watch = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        rc: its exit code, negative for a signal; None where even SIGKILL did not end it.
        killed: why it was killed, or "".
        log: the file of what it wrote to stderr, and to stdout unless that had a file of its own.
    """

    rc: int | None
    killed: str
    wall_s: float
    log: Path

    def tail(self) -> str:
        """The last lines of the log."""
        lines = self.log.read_text("utf-8", "replace").rstrip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])


def run_child(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    *,
    stdout: Path | None = None,
    watch: Watch = lambda: None,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command in a session of its own, with /dev/null for stdin; `log` is appended to.

    It is killed, and whatever it started, after `limit_s` seconds or as soon as `watch` gives a
    reason. A program that can't be started ends with 127.
    """
    began = time.monotonic()
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    killed = ""
    with log.open("ab") as errors, (stdout or log).open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                env=child_environment(**{MARK: mark, "PYTHONUNBUFFERED": "1", **(env or {})}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            errors.write(f"{error}\n".encode())
            return Ended(127, "", 0.0, log)
        try:
            while process.poll() is None and not killed:
                time.sleep(POLL_S)
                is_late = time.monotonic() - began > limit_s
                killed = f"it took more than {limit_s:.0f} s" if is_late else watch() or ""
        finally:  # Ctrl-C and SIGTERM come through here too
            _end(process, mark)
    return Ended(process.poll(), killed, time.monotonic() - began, log)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """See that a command and all that it started are gone: SIGTERM, then SIGKILL."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(TERM_GRACE_S)
    deadline = time.monotonic() + KILL_GRACE_S
    while left := [*_marked(mark), *([process.pid] if process.poll() is None else [])]:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
        if time.monotonic() > deadline:
            break


def _marked(mark: str) -> Iterator[int]:
    """The running processes that have the mark in their environment: those that we started."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)
