"""Turn recorded tasks into a trace file for Perfetto or chrome://tracing."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.plan import Plan
from ark_dist.launch.devices.report import task_ops

# Tasks that waited less than this show no wait of their own.
MIN_WAIT_NS = 100
NS_PER_US = 1e3
LOOKS = 32

# One event of a trace file.
Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One executed task; times are nanoseconds of the monotonic clock.

    Attributes:
        worker: who ran it.
        method: index of the method in the plan.
        task: its id.
        turn: in which turn of the method.
        wait_begin_ns: when the worker came to it.
        start_ns: when its waits held.
        end_ns: when it was done.
    """

    worker: int
    method: int
    task: int
    turn: int
    wait_begin_ns: int
    start_ns: int
    end_ns: int


def chrome_events(plan: Plan, events: Sequence[TraceEvent], pid: int) -> list[Row]:
    """Events in Chrome's trace format: one process per program, one thread per worker."""
    rows = [metadata("process_name", pid, name=f"rank {plan.rank} {plan.name}")]
    for worker in range(plan.target.worker_count):
        rows.append(metadata("thread_name", pid, worker, name=f"worker {worker}"))
    return rows + slices(plan, events, pid)


def metadata(what: str, pid: int, tid: int | None = None, **args: object) -> Row:
    """A row that names or sorts a process or a thread."""
    place = {"pid": pid} if tid is None else {"pid": pid, "tid": tid}
    return {"ph": "M", "name": what, **place, "args": args}


def slices(
    plan: Plan, events: Sequence[TraceEvent], pid: int, *, first_tid: int = 0, shift_ns: int = 0
) -> list[Row]:
    """One row per task, and one per wait that is long enough to see; times move by `shift_ns`."""
    rows: list[Row] = []
    for event in events:
        method = plan.methods[event.method]
        args = {"task": event.task, "turn": event.turn, "method": method.name}
        parts = [(task_ops(method, event.task), event.start_ns, event.end_ns)]
        if event.start_ns - event.wait_begin_ns >= MIN_WAIT_NS:
            parts.insert(0, ("wait", event.wait_begin_ns, event.start_ns))
        for name, start_ns, end_ns in parts:
            rows.append(
                {
                    "ph": "X",
                    "name": name,
                    "pid": pid,
                    "tid": first_tid + event.worker,
                    "ts": (start_ns + shift_ns) / NS_PER_US,
                    "dur": (end_ns - start_ns) / NS_PER_US,
                    "args": args,
                }
            )
    return rows


def read_together(read: Callable[[], int], now_ns: Callable[[], int]) -> tuple[int, int]:
    """A clock's value, and what `now_ns` says at that time, from the quickest of several looks."""
    found = []
    for _ in range(LOOKS):
        begin_ns, value, end_ns = now_ns(), read(), now_ns()
        found.append((end_ns - begin_ns, int(value), (begin_ns + end_ns) // 2))
    return min(found)[1:]


def add_to_trace_file(path: Path, plan: Plan, events: Sequence[TraceEvent]) -> None:
    """Add a program's events to a trace file, making it if need be; the file is replaced whole."""
    document: dict[str, list[Row]] = {"traceEvents": []}
    if path.exists():
        document = json.loads(path.read_text("utf-8"))
    rows = document["traceEvents"]
    pid = 1 + sum(1 for row in rows if row["name"] == "process_name")
    rows += chrome_events(plan, events, pid)
    replace_file(path, [json.dumps(document)])


def replace_file(path: Path, pieces: Iterable[str]) -> None:
    """Write a file beside it and rename it: readers see the old text or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".trace-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(pieces)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
