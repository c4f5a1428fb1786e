"""Run a program on several ranks: start them, show what they print, end them, and say why."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ark_dist.core.errors import ConfigError
from ark_dist.launch.cause import Outcome, read_outcomes, root_cause, testimony
from ark_dist.launch.exit_codes import BAD_CONFIG, BY_SIGNAL, USER_ERROR, WATCHDOG
from ark_dist.launch.jobs import kill_job, signal_job
from ark_dist.launch.mpirun import Mpirun, mpirun_command, mpirun_environment, require_mpirun
from ark_dist.launch.parent import die_with_parent
from ark_dist.launch.printer import STDERR, STDOUT, Printer, Tail
from ark_dist.launch.supervise import output_paths, start_command

POLL_S = 0.02
CHECK_S = 0.2
# How long ranks may go on after one has failed, to say so themselves, and after SIGTERM.
FAIL_GRACE_S = 3.0
STOP_GRACE_S = 3.0
GONE_GRACE_S = 1.0
# How long a reader of stdout may take once a run was interrupted.
READER_GRACE_S = 1.0
MAX_RANKS = 4096


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What `ark-dist run` was asked for.

    Attributes:
        count: number of ranks.
        program: the command of a rank.
        hosts: a host file of the MPI launcher; None is this host alone.
        timeout_s: limit for the whole run; None is none.
        log_dir: folder for logs and error files; None is a temporary one, kept if the run fails.
        launcher: "mpich", "openmpi" or "auto".
        has_prefix: whether lines begin with [r<rank>].
        stdout: the file descriptor that ranks' stdout goes to.
        stderr: the same for their stderr.
    """

    count: int
    program: tuple[str, ...]
    hosts: Path | None = None
    timeout_s: float | None = None
    log_dir: Path | None = None
    launcher: str = "auto"
    has_prefix: bool = True
    stdout: int = STDOUT
    stderr: int = STDERR


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run went.

    Attributes:
        code: the exit code of the whole.
        reason: why it failed, for people; "" if it did not.
        outcomes: how each rank ended.
        log_dir: where its logs are; None if they are gone.
    """

    code: int
    reason: str
    outcomes: tuple[Outcome, ...]
    log_dir: Path | None


def run_ranks(request: RunRequest) -> RunResult:
    """Run a program on all ranks, to its end.

    Raises:
        ConfigError: it can't be started: no launcher, no host file, a log folder that is in use.
    """
    _check(request)
    mpirun = None
    if request.count > 1 or request.hosts is not None or request.launcher != "auto":
        mpirun = require_mpirun(request.launcher)
    log_dir = _make_log_dir(request)
    run = _Run(request, mpirun, log_dir)
    result = run.finish(run.watch())
    if request.log_dir is None and result.code == 0:
        shutil.rmtree(log_dir, ignore_errors=True)
        return RunResult(result.code, result.reason, result.outcomes, None)
    return result


class _Run:
    """One run under way."""

    def __init__(self, request: RunRequest, mpirun: Mpirun | None, log_dir: Path) -> None:
        self.request = request
        self.log_dir = log_dir
        self.job = uuid.uuid4().hex
        self.log = log_dir / "mpirun.log"
        self.signals: list[int] = []
        self.stop_at: float | None = None  # when SIGKILL follows
        self.reason = ""
        self.code = 0
        self.limit = time.monotonic() + (request.timeout_s or float("inf"))
        self.process = self._start(mpirun)

    def _start(self, mpirun: Mpirun | None) -> subprocess.Popen[bytes]:
        request = self.request
        command = start_command(self.log_dir, request.count, request.program)
        if mpirun is not None:
            command = mpirun_command(mpirun, request.count, request.hosts, command)
        kind = mpirun or Mpirun(Path(), "mpich", "")
        environment = mpirun_environment(kind, request.count, ARK_DIST_JOB=self.job)
        environment.setdefault("PYTHONUNBUFFERED", "1")  # what a rank printed before it died
        with self.log.open("wb") as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL if os.isatty(0) else None,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def watch(self) -> int:
        """Wait for the end, and see that it comes; return the launcher's exit code."""
        failed_at = check_at = None
        printer = Printer(self._tails())
        with self._handling():
            printer.start()
            while self.process.poll() is None:
                time.sleep(POLL_S)
                now = time.monotonic()
                if self.stop_at is not None:
                    if now > self.stop_at:
                        kill_job(self.job, self.process.pid)
                    continue
                if now > self.limit:
                    self._time_out()
                elif check_at is None or now > check_at:
                    check_at = now + CHECK_S
                    if failed_at is None and self._has_failure():
                        failed_at = now
                    if failed_at is not None and now > failed_at + FAIL_GRACE_S:
                        self.stop()
            self._clean_up()
            printer.finish(READER_GRACE_S if self.signals else None)
        return self.process.returncode

    def stop(self) -> None:
        """Tell all ranks to end; SIGKILL follows if they do not."""
        if self.stop_at is None:
            self.stop_at = time.monotonic() + STOP_GRACE_S
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def finish(self, returncode: int) -> RunResult:
        """Put together how it went."""
        outcomes = read_outcomes(self.log_dir, self.request.count)
        cause = root_cause(outcomes)
        if self.signals:
            code = BY_SIGNAL + self.signals[0]
            name = signal.Signals(self.signals[0]).name
            return RunResult(code, f"{name}: all ranks were ended", outcomes, self.log_dir)
        if self.code:
            return RunResult(self.code, self.reason, outcomes, self.log_dir)
        said = _read_text(self.log)
        if cause is None:
            code = returncode if returncode >= 0 else BY_SIGNAL - returncode
            reason = f"the launcher ended with exit code {code}\n{said}" if code else ""
            return RunResult(code, reason.rstrip(), outcomes, self.log_dir)
        if not any(outcome.pid or outcome.error for outcome in outcomes):
            text = f"the launcher ended with {returncode} and started no rank\n{said}"
            return RunResult(BAD_CONFIG, text.rstrip(), outcomes, self.log_dir)
        reason = "\n".join(filter(None, (cause.describe(), testimony(cause, outcomes))))
        if cause.code is None and cause.error is None:
            reason = f"{reason} when the launcher ended with {returncode}\n{said}".rstrip()
        return RunResult(cause.exit_code or USER_ERROR, reason, outcomes, self.log_dir)

    def _tails(self) -> list[Tail]:
        tails = []
        for rank in range(self.request.count):
            prefix = f"[r{rank}] ".encode() if self.request.has_prefix else b""
            out, err = output_paths(self.log_dir, rank)
            tails += [
                Tail(out, self.request.stdout, prefix),
                Tail(err, self.request.stderr, prefix),
            ]
        return tails

    def _has_failure(self) -> bool:
        return any(
            outcome.has_failed for outcome in read_outcomes(self.log_dir, self.request.count)
        )

    def _time_out(self) -> None:
        outcomes = read_outcomes(self.log_dir, self.request.count)
        running = ", ".join(str(o.rank) for o in outcomes if o.code is None) or "none"
        self.code = WATCHDOG
        self.reason = (
            f"the run took longer than --timeout, {self.request.timeout_s:g} s; ranks that still "
            f"ran: {running}"
        )
        self.stop()

    def _clean_up(self) -> None:
        """See that nothing is left of the job when the launcher has ended."""
        end = time.monotonic() + GONE_GRACE_S
        while signal_job(self.job, 0) and time.monotonic() < end:
            time.sleep(POLL_S)
        kill_job(self.job, None)

    @contextmanager
    def _handling(self) -> Iterator[None]:
        """Turn SIGINT, SIGTERM and SIGHUP into the end of all ranks; the second one is SIGKILL."""

        def handle(signum: int, frame: FrameType | None) -> None:
            self.signals.append(signum)
            if len(self.signals) == 1:
                self.stop()
            else:
                kill_job(self.job, self.process.pid)

        with _handlers(handle, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            yield


@contextmanager
def _handlers(handle: Callable[[int, FrameType | None], None], *signums: int) -> Iterator[None]:
    old = {}
    for signum in signums:
        with suppress(ValueError):  # not in the main thread: then nobody sends us any
            old[signum] = signal.signal(signum, handle)
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)


def _check(request: RunRequest) -> None:
    if not 1 <= request.count <= MAX_RANKS:
        raise ConfigError(f"-n is {request.count}; it must be 1 to {MAX_RANKS}")
    if request.hosts is not None and not request.hosts.is_file():
        raise ConfigError(f"--hosts: {request.hosts} is not a file; name a host file")
    if request.timeout_s is not None and not 0 < request.timeout_s < float("inf"):
        raise ConfigError(f"--timeout is {request.timeout_s:g}; it must be seconds, above 0")


def _make_log_dir(request: RunRequest) -> Path:
    """Make the folder for logs, without those of a run before."""
    if request.log_dir is None:
        # All hosts must see it: the current folder is shared if the program is.
        place = Path.cwd() if request.hosts else None
        return Path(tempfile.mkdtemp(prefix="ark-dist-run-", dir=place))
    folder = request.log_dir.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("rank-*.*"):
            if old.suffix in (".out", ".err", ".json", ".hooked"):
                old.unlink()
    except OSError as error:
        raise ConfigError(f"--log-dir: {folder} can't be used: {error}; choose another") from error
    return folder


def _read_text(path: Path) -> str:
    with suppress(OSError):
        return path.read_bytes().decode("utf-8", "replace")
    return ""
