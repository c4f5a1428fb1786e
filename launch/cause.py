"""Tell from what the ranks left in the log folder whether a run went well, and why it did not."""

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ark_dist.launch.error_file import (
    CONNECTED,
    STARTS_MPI,
    Record,
    error_path,
    read_record,
    read_stage,
    status_path,
)
from ark_dist.launch.exit_codes import BY_SIGNAL, USER_ERROR, WATCHDOG
from ark_dist.launch.supervise import output_paths

TAIL_LINES = 30
TAIL_BYTES = 1 << 16
# The first line of faulthandler's when a backstop ends the process; of Python's for an exception
# that no hook of ours saw; and the exit code of both.
BACKSTOP = "Timeout ("
TRACEBACK = "Traceback (most recent call last):"
PYTHON_FAILED = 1
STACKS = (BACKSTOP, "Fatal Python error")  # where stacks begin
STOPPING = (signal.SIGTERM, signal.SIGINT)
STOPPED = (*(-s for s in STOPPING), *(BY_SIGNAL + s for s in STOPPING))
# How near to the cause a failure is.
OWN, STALLED, AFTER_ANOTHER, UNSEEN = range(4)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one rank ended.

    Attributes:
        rank: the rank.
        host: where it ran; "" if it never started.
        pid: its process; 0 if it never started.
        code: its exit code, negative for a signal; None if nobody saw it end.
        stage: how far it was, if its hooks still waited for the proper end of the program.
        time: when it ended, seconds since 1970; infinite if nobody saw it.
        error: what its error file says.
        tail: the last lines of its stderr.
    """

    rank: int
    host: str
    pid: int
    code: int | None
    stage: str
    time: float
    error: Record | None
    tail: tuple[str, ...]

    @property
    def is_unfinished(self) -> bool:
        """Whether its hooks still waited for the proper end of the program."""
        return bool(self.stage)

    @property
    def is_good(self) -> bool:
        """Whether the rank came to its proper end."""
        return self.code == 0 and not self.is_unfinished and self.error is None

    @property
    def has_failed(self) -> bool:
        """Whether the rank ended, and not well."""
        return not self.is_good and (self.code is not None or self.error is not None)

    @property
    def exit_code(self) -> int:
        """The exit code that this rank gives the run."""
        if self.error is not None:
            return _whole(self.error.get("code"), USER_ERROR)
        if self.code is None:
            return USER_ERROR
        if self.code < 0:
            return BY_SIGNAL - self.code
        if self.code == PYTHON_FAILED and self._is_backstop:
            return WATCHDOG
        if self.code == PYTHON_FAILED and any(line.startswith(TRACEBACK) for line in self.tail):
            return USER_ERROR
        return self.code or (USER_ERROR if self.is_unfinished else 0)

    @property
    def name(self) -> str:
        """How messages name the rank."""
        place = f" (host {self.host}, pid {self.pid})" if self.pid else ""
        return f"rank {self.rank}{place}"

    @property
    def _is_backstop(self) -> bool:
        return any(line.startswith(BACKSTOP) for line in self.tail)

    @property
    def order(self) -> tuple[int, float]:
        """The smaller, the nearer to the cause: kind of the failure, then time."""
        when = self.time
        if self.error is not None:
            stamp = self.error.get("time")
            when = stamp if isinstance(stamp, float) else when
            if self.error.get("is_consequence"):
                return AFTER_ANOTHER, when
        elif self.code is None:
            return UNSEEN, when
        elif self.code in STOPPED:
            return AFTER_ANOTHER, when
        return (STALLED if self.exit_code == WATCHDOG else OWN), when

    def describe(self) -> str:
        """What happened, in words: first the line that says it, then stacks."""
        if self.error is not None:
            return (
                f"{self.name} failed: {self.error.get('type')}: {self.error.get('message')}\n"
                f"{self.error.get('traceback')}".rstrip()
            )
        lines = "\n".join(self.tail)
        if self.code is None:
            return f"{self.name} was still running" if self.pid else f"{self.name} never started"
        if self.code < 0:
            return f"{self.name} was killed by {_signal_name(-self.code)}\n{lines}".rstrip()
        if self.code == 0:
            return f"{self.name} left without coming to its end, by os._exit() or the like"
        if self._is_backstop and self.code == PYTHON_FAILED:
            return f"{self.name} made no progress and was ended by its backstop\n{lines}".rstrip()
        return f"{self.name} ended with exit code {self.code}\n{lines}".rstrip()

    def as_dict(self) -> Record:
        """The outcome for JSON."""
        return {
            "rank": self.rank,
            "host": self.host,
            "pid": self.pid,
            "code": self.code,
            "is_good": self.is_good,
            "error": self.error,
        }


def read_outcomes(log_dir: Path, count: int) -> tuple[Outcome, ...]:
    """Read how each rank ended."""
    return tuple(_outcome(log_dir, rank) for rank in range(count))


def root_cause(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The rank whose failure came before the others'; None if all went well.

    An error of a rank's own comes before a watchdog's, that before the loss of a peer, and that
    before ranks that were told to stop; among equals the earliest counts.
    """
    bad = [outcome for outcome in outcomes if not outcome.is_good]
    return min(bad, key=lambda outcome: outcome.order, default=None)


def testimony(cause: Outcome, outcomes: Sequence[Outcome]) -> str:
    """What other ranks have to say about one that ended without an error of its own, in lines."""
    if cause.error is not None:
        return ""
    lines = [
        f"{outcome.name} saw: {_first_line(outcome.error.get('message'), outcome.rank)}"
        for outcome in outcomes
        if outcome is not cause and outcome.error is not None
    ]
    if any(o.stage == STARTS_MPI for o in outcomes) and all(o.stage != CONNECTED for o in outcomes):
        seen = {o.rank for o in outcomes if o.stage == STARTS_MPI}
        missing = [o.rank for o in outcomes if o.rank not in seen]
        lines.append(
            f"at the start of MPI, ranks seen: {_listed(seen)}; missing: {_listed(missing)}"
        )
    return "\n".join(lines)


def _first_line(message: object, rank: int) -> str:
    return str(message).partition("\n")[0].removeprefix(f"rank {rank}: ")


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ranks))) or "none"


def _outcome(log_dir: Path, rank: int) -> Outcome:
    status = read_record(status_path(log_dir, rank)) or {}
    code, ended = status.get("code"), status.get("time")
    return Outcome(
        rank=rank,
        host=str(status.get("host", "")),
        pid=_whole(status.get("pid"), 0),
        code=code if isinstance(code, int) else None,
        stage=read_stage(log_dir, rank),
        time=ended if isinstance(ended, float) else float("inf"),
        error=read_record(error_path(log_dir, rank)),
        tail=_tail(output_paths(log_dir, rank)[1]),
    )


def _tail(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ()
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith(STACKS)]
    return tuple(lines[starts[-1] :][:TAIL_LINES] if starts else lines[-TAIL_LINES:])


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) else default


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
