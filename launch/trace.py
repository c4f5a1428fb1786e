"""Turn recorded tasks into a trace file for Perfetto or chrome://tracing."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.plan import Plan
from ark_dist.launch.devices.report import task_ops

# Tasks that waited less than this show no wait of their own.
MIN_WAIT_NS = 100


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


def chrome_events(plan: Plan, events: Sequence[TraceEvent], pid: int) -> list[dict[str, object]]:
    """Events in Chrome's trace format: one process per program, one thread per worker."""
    label = f"rank {plan.rank} {plan.name}"
    rows: list[dict[str, object]] = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": label}}
    ]
    for worker in range(plan.target.worker_count):
        rows.append(
            {
                "ph": "M",
                "name": "thread_name",
                "pid": pid,
                "tid": worker,
                "args": {"name": f"worker {worker}"},
            }
        )
    for event in events:
        method = plan.methods[event.method]
        args = {"task": event.task, "turn": event.turn, "method": method.name}
        if event.start_ns - event.wait_begin_ns >= MIN_WAIT_NS:
            rows.append(_slice("wait", event.wait_begin_ns, event.start_ns, event, pid, args))
        name = task_ops(method, event.task)
        rows.append(_slice(name, event.start_ns, event.end_ns, event, pid, args))
    return rows


def _slice(
    name: str, start_ns: int, end_ns: int, event: TraceEvent, pid: int, args: dict[str, object]
) -> dict[str, object]:
    return {
        "ph": "X",
        "name": name,
        "pid": pid,
        "tid": event.worker,
        "ts": start_ns / 1e3,
        "dur": (end_ns - start_ns) / 1e3,
        "args": args,
    }


def add_to_trace_file(path: Path, plan: Plan, events: Sequence[TraceEvent]) -> None:
    """Add a program's events to a trace file, making it if need be; the file is replaced whole."""
    document: dict[str, list[dict[str, object]]] = {"traceEvents": []}
    if path.exists():
        document = json.loads(path.read_text("utf-8"))
    rows = document["traceEvents"]
    pid = 1 + sum(1 for row in rows if row["name"] == "process_name")
    rows += chrome_events(plan, events, pid)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".trace-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file)
    Path(temporary).replace(path)
