"""Traces of GPU kernels: every task is there once per turn, at the host's times."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ark_dist.core import abi
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import TaskError
from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_settings
from ark_dist.launch.devices.emulated import EmulatedDevice
from ark_dist.launch.devices.gpu import DRIFT, GpuClock, trace_events
from ark_dist.launch.session import Session, SessionOptions
from tests.emulated import gpu_plan
from tests.lifecycle_models import NEVER, looping, set_stop

PS_PER_NS = 1e3


def check_trace(path: Path, plan: Plan, turns: int, began_ns: int) -> None:
    """Compare a trace file with the plan: tasks, workers, turns, order, names."""
    rows = json.loads(path.read_text("utf-8"))["traceEvents"]
    assert sum(row["name"] == "process_name" for row in rows) == 1
    tasks = [row for row in rows if row["ph"] == "X" and row["name"] != "wait"]
    method = plan.methods[0]
    wanted = Counter(
        (worker, task, turn)
        for worker, queue in enumerate(method.queues)
        for task in queue
        for turn in range(turns)
    )
    assert Counter((r["tid"], r["args"]["task"], r["args"]["turn"]) for r in tasks) == wanted
    assert all(row["dur"] >= 0 and row["ts"] * 1e3 >= began_ns for row in tasks)
    for worker, queue in enumerate(method.queues):
        mine = [row for row in tasks if row["tid"] == worker]
        assert [row["args"]["task"] for row in mine] == list(queue) * turns
        ends = [row["ts"] + row["dur"] for row in mine]
        # Microseconds of the monotonic clock, in a double: good to a nanosecond or so.
        assert all(b["ts"] >= a - 1e-2 for a, b in zip(ends, mine[1:], strict=False))
    names = {"+".join(method.nodes[n].op for n in group.nodes) for group in method.groups}
    assert {row["name"] for row in tasks} == names


def session_of(plan: Plan, path: Path) -> Session:
    settings = replace(read_settings(), trace_path=path)
    session = Session(plan, EmulatedDevice(plan, settings), SessionOptions())
    session.compile(lambda path: None)
    session.launch()
    return session


def test_the_emulated_gpu_traces_every_task_of_every_turn(tmp_path: Path) -> None:
    loop, path = looping(), tmp_path / "trace.json"
    session = session_of(gpu_plan(loop.graph), path)
    set_stop(session, loop, NEVER)
    session.run(3, "forward", {})
    session.run(2, "forward", {})
    assert session.wait() == 5
    session.stop()
    check_trace(path, session.plan, 5, 0)
    session.launch()
    session.run(1, "forward", {})
    session.close()
    rows = json.loads(path.read_text("utf-8"))["traceEvents"]
    assert [row["pid"] for row in rows if row["name"] == "process_name"] == [1, 2]


def test_a_kernel_that_fails_leaves_its_trace(tmp_path: Path) -> None:
    builder = GraphBuilder("lookup")
    index = builder.tensor((1,), "int32")
    table = builder.constant(np.ones((5, 4), np.float32))
    builder.apply("embedding", [index, table])
    session = session_of(gpu_plan(builder.freeze()), tmp_path / "trace.json")
    session.write(index.view, np.array([9], np.int32))
    session.run(2, "forward", {})
    with pytest.raises(TaskError):
        session.wait()
    session.close()
    rows = json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]
    assert any(row["ph"] == "X" and row["name"] == "embedding" for row in rows)


def test_only_the_last_tasks_are_kept() -> None:
    plan = gpu_plan(looping().graph, workers=2)
    counts, traces = np.zeros(2, abi.COUNTER.dtype), np.zeros(8, abi.TRACE.dtype)
    counts["value"] = [6, 1]
    for number in range(6):
        traces[number % 4] = (10 * number, 10 * number + 1, 10 * number + 2, number, 7, 0)
    traces[4] = (5, 6, 7, 0, 3, 0)
    events = trace_events(plan, counts, traces, GpuClock(100, 1000))
    found = [(e.worker, e.turn, e.task, e.wait_begin_ns, e.start_ns, e.end_ns) for e in events]
    first = [(0, n, 7, 900 + 10 * n, 901 + 10 * n, 902 + 10 * n) for n in range(2, 6)]
    assert found == [*first, (1, 0, 3, 905, 906, 907)]


def test_two_looks_at_the_clocks_make_a_line() -> None:
    one = GpuClock(10**18, 5000)
    assert one.host(10**18 + 700) == 5700
    two = one.through(10**18 + 10**9, 5000 + 10**9 + 20_000)
    assert two.host(10**18) == 5000
    assert two.host(10**18 + 10**9) == 5000 + 10**9 + 20_000
    assert two.host(10**18 + 5 * 10**8) == 5000 + 5 * 10**8 + 10_000


def test_a_late_look_does_not_bend_the_line() -> None:
    line = GpuClock(0, 0).through(1000, 3_000_000)
    assert line.host_per_gpu == 1 + DRIFT
    assert GpuClock(0, 0).through(0, 0).host_per_gpu == 1 - DRIFT
