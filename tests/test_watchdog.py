"""A kernel that stalls, or meets bad data, ends with an error that says where and why."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import LifecycleError, StallError, TaskError
from ark_dist.core.plan import Plan
from ark_dist.core.target import Target
from ark_dist.core.task import Task
from ark_dist.launch.machine import in_task_order
from ark_dist.launch.session import Session
from ark_dist.scheduler.deps import Edges
from ark_dist.scheduler.order import Queues
from tests.lifecycle_models import (
    MATMUL,
    NEVER,
    adversaries,
    check_loop,
    looping,
    lopsided,
    plan_for,
    set_stop,
    start,
    starving,
)

LIMIT_S = 0.4
# The watchdog looks eight times per limit, and the machine may be busy.
PATIENCE_S = 5.0
STALL = re.compile(
    r"rank 0: no progress for 0\.4 s: worker (?P<worker>\d) waits in task (?P<task>\d+) "
    r"\((?P<ops>[a-z_+]+) '[a-z_0-9]+'\) of method 'forward', turn 0, counter (?P<counter>\d+) "
    r"\((clock of worker|group of group) \d+\): have (?P<have>\d+), want (?P<want>\d+)"
)


def with_impossible_wait(plan: Plan) -> tuple[Plan, int]:
    """Let the first task that waits within its turn ask for far more than will come."""
    method = plan.methods[0]
    task = next(t for t, row in enumerate(method.waits) if any(not w.turns_back for w in row))
    row = tuple(replace(w, threshold=w.threshold + 1000) for w in method.waits[task])
    waits = (*method.waits[:task], row, *method.waits[task + 1 :])
    return replace(plan, methods=(replace(method, waits=waits),)), task


def with_lost_task(plan: Plan) -> Plan:
    """Take the last task of worker 1 out of its queue: its clock falls behind every turn."""
    method = plan.methods[0]
    first, second, *others = method.queues
    queues = (first, second[:-1], *others)
    return replace(plan, methods=(replace(method, queues=queues),))


@pytest.mark.parametrize("counters", ["clock", "group"])
@pytest.mark.parametrize("workers", [2, 3])
def test_a_wait_that_never_holds_is_ended_by_the_watchdog(workers: int, counters: str) -> None:
    loop = looping(busy=2)
    good = plan_for(loop.graph, workers=workers, depth=2, counters=counters)
    plan, task = with_impossible_wait(good)
    session = start(plan, "cpu", timeout_s=LIMIT_S)
    for _ in range(2):
        began = time.monotonic()
        session.run(20, "forward", {})
        with pytest.raises(StallError) as caught:
            session.wait()
        assert LIMIT_S <= time.monotonic() - began < PATIENCE_S
        found = STALL.search(str(caught.value))
        assert found is not None, str(caught.value)
        method = plan.methods[0]
        assert re.search(rf"task {task} .*?have \d+, want 100\d", str(caught.value))
        assert int(found["have"]) < int(found["want"])
        assert int(found["task"]) in method.queues[int(found["worker"])]
        assert int(found["counter"]) in [w.counter for w in method.waits[int(found["task"])]]
        assert session.state == "failed"
        with pytest.raises(LifecycleError, match=r"launch\(\) to start it anew"):
            session.run(1, "forward", {})
        session.read(loop.readable["a"].view)
        session.launch()
    session.close()
    works(good)


def works(plan: Plan) -> None:
    loop = looping(busy=2)
    session = start(plan, "cpu")
    session.run(3, "forward", {})
    assert session.wait() == 3
    check_loop(session, loop, 3, "a new session")
    session.close()


def test_a_task_missing_from_its_queue_is_a_stall_that_names_the_counter() -> None:
    loop = looping(busy=2)
    plan = with_lost_task(plan_for(loop.graph, workers=2))
    session = start(plan, "cpu", timeout_s=LIMIT_S)
    session.run(20, "forward", {})
    with pytest.raises(StallError, match=r"have \d+, want \d+"):
        session.wait()
    session.close()


def test_the_numpy_device_sees_a_stall_at_once_and_can_be_launched_again() -> None:
    plan, task = with_impossible_wait(plan_for(looping().graph, workers=2))
    session = start(plan, "numpy")
    for _ in range(2):
        session.run(2, "forward", {})
        with pytest.raises(StallError, match=rf"task {task} .*no worker can go on"):
            session.wait()
        session.launch()


def test_a_full_queue_of_a_stalled_kernel_fails_the_run_that_finds_it() -> None:
    plan, _ = with_impossible_wait(plan_for(looping().graph, workers=2))
    session = start(plan, "cpu", timeout_s=LIMIT_S)
    with pytest.raises(StallError):
        for _ in range(1000):
            session.run(1, "forward", {})
    assert session.state == "failed"
    session.launch()
    session.close()


def test_waiting_for_a_worker_that_computes_is_no_stall_while_it_finishes_tasks() -> None:
    """Worker 1 waits for the end of a row of products that takes several limits."""
    builder = GraphBuilder("row")
    weight = builder.tensor((512, 512), "fp32", name="weight")
    value = weight
    for _ in range(120):
        value = builder.apply("matmul", [value, weight], MATMUL)
    last = builder.state((512, 512), "fp32", name="last")
    builder.apply("copy", [value], output=last)
    graph = builder.freeze()

    def policy(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
        is_last = {task.id: task.writes[0].buffer == last.view.buffer for task in tasks}
        return tuple(tuple(t.id for t in tasks if is_last[t.id] == w) for w in (False, True))

    plan = plan_for(graph, workers=2, policy=policy, counters="group")
    session = start(plan, "cpu", timeout_s=0.05)
    try:
        session.write(weight.view, np.eye(512, dtype=np.float32))
        began = time.monotonic()
        session.run(1, "forward", {})
        assert session.wait() == 1
        assert time.monotonic() - began > 0.1, "too fast to show anything"
        assert np.array_equal(session.read(last.view), np.eye(512))
    finally:
        session.close()


# Bad indices.


@dataclass
class Lookup:
    """A model that looks a row up per iteration and meets a bad index at `bad_at`."""

    builder: GraphBuilder
    bad_at: Value
    stop_at: Value
    total: Value
    count: Value


ROWS = 10


def lookup(bad: int, *, is_stoppable: bool) -> Lookup:
    """Add row 0 of a table up; at iteration `bad_at` the index is `bad`."""
    builder = GraphBuilder("lookup")
    apply = builder.apply
    model = Lookup(
        builder,
        builder.tensor((1,), "int32", name="bad_at"),
        builder.tensor((1,), "int32", name="stop_at"),
        builder.state((1, 4), "fp32", name="total"),
        builder.state((1,), "int32", name="count"),
    )
    table = builder.constant(np.ones((ROWS, 4), np.float32), name="table")
    hit = apply("cast", [apply("equal", [model.count, model.bad_at])], {"dtype": "int32"})
    found = apply("embedding", [apply("mul", [hit, bad]), table], name="found")
    apply("add", [model.total, found], output=model.total)
    apply("add", [model.count, 1], output=model.count)
    if is_stoppable:
        apply("stop_when", [apply("equal", [model.count, model.stop_at])])
    return model


def prepare(session: Session, model: Lookup, *, bad_at: int, stop_at: int = NEVER) -> None:
    session.write(model.bad_at.view, np.array([bad_at], np.int32))
    session.write(model.stop_at.view, np.array([stop_at], np.int32))


@pytest.mark.parametrize("bad", [-1, ROWS, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_bad_index_names_task_operator_iteration_value_and_limit(
    device: str, workers: int, bad: int
) -> None:
    model = lookup(bad, is_stoppable=False)
    session = start(plan_for(model.builder.freeze(), workers=workers), device)
    text = rf"rank 0.* task \d+ \(.*embedding.*method 'forward', iteration {{}}: index {bad} "
    text += rf"is outside the table of {ROWS} rows"
    try:
        for bad_at in (0, 50, 99):
            prepare(session, model, bad_at=bad_at)
            session.run(100, "forward", {})
            with pytest.raises(TaskError, match=text.format(bad_at)):
                session.wait()
            assert session.state == "failed"
            assert session.read(model.count.view)[0] >= bad_at
            session.reset_state()
            session.launch()
        prepare(session, model, bad_at=NEVER)
        session.run(100, "forward", {})
        assert session.wait() == 100
        assert session.read(model.total.view).tolist() == [[100.0] * 4]
    finally:
        session.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_only_an_error_after_the_last_iteration_is_ignored(
    device: str, workers: int, depth: int
) -> None:
    model = lookup(-1, is_stoppable=True)
    plan = plan_for(model.builder.freeze(), workers=workers, depth=depth)
    # The CPU's order is its own.
    choosers = adversaries(plan).values() if device == "numpy" else (in_task_order,)
    for choose in choosers:
        session = start(plan, device, choose=choose)
        for bad_at, stop_at in [(7, 8), (0, 1), (6, 8), (8, 8), (1, 1), (7, 7), (9, 8)]:
            prepare(session, model, bad_at=bad_at, stop_at=stop_at)
            session.run(64, "forward", {})
            if bad_at < stop_at:
                with pytest.raises(TaskError, match=f"iteration {bad_at}:"):
                    session.wait()
                session.launch()
            else:
                assert session.wait() == stop_at
                assert session.read(model.total.view).tolist() == [[float(stop_at)] * 4]
            session.reset_state()
        session.close()


def two_failures(depth: int) -> tuple[Plan, Value]:
    """Worker 1 fails in iteration 6 before slow worker 0 fails in iteration 5 and stops there.

    Worker 0 writes states and outputs alone: shared memory would order the two.
    """
    builder = GraphBuilder("two_failures")
    apply = builder.apply
    weight = builder.tensor((320, 320), "fp32", name="weight")
    count = builder.state((1,), "int32", name="count")
    before = builder.state((1,), "int32", name="before")
    flag = builder.state((1,), "bool", name="flag")
    table = builder.constant(np.ones((ROWS, 4), np.float32), name="table")

    def index(bad_at: int) -> Value:
        hit = apply("cast", [apply("equal", [count, bad_at])], {"dtype": "int32"})
        return apply("mul", [hit, -1])

    early = apply("embedding", [index(6), table], name="early")
    apply("reduce_max", [early], {"axis": 1, "keepdims": True})
    apply("copy", [index(5)], output=before)
    apply("add", [count, 1], output=count)
    second = {node.output.buffer for node in builder.freeze().methods[0].nodes}
    product = apply("matmul", [weight, weight], MATMUL)
    corner = apply("narrow", [product], {"axis": 0, "start": 0, "length": 1})
    corner = apply("narrow", [corner], {"axis": 1, "start": 0, "length": 1})
    one = apply("cast", [apply("reshape", [corner], {"shape": (1,)})], {"dtype": "int32"})
    late_index = apply("mul", [one, before])
    late = apply("embedding", [late_index, table], name="late")
    for value in (product, one, late_index, late):
        builder.keep(value)
    apply("stop_when", [apply("equal", [apply("mul", [one, count]), 6], output=flag)])

    def policy(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
        owner = {task.id: int(task.writes[0].buffer in second) for task in tasks}
        return tuple(tuple(t.id for t in tasks if owner[t.id] == w) for w in (0, 1))

    plan = plan_for(builder.freeze(), workers=2, depth=depth, policy=policy, counters="group")
    return plan, weight


@pytest.mark.parametrize("depth", [2, 3])
def test_an_error_of_a_skipped_turn_does_not_hide_one_of_the_last_turn(
    device: str, depth: int
) -> None:
    plan, weight = two_failures(depth)
    session = start(plan, device, choose=starving(0))
    session.write(weight.view, np.eye(320, dtype=np.float32))
    for _ in range(3):
        session.run(64, "forward", {})
        with pytest.raises(TaskError, match=r"'late'.* iteration 5:"):
            session.wait()
        session.reset_state()
        session.launch()
    session.close()


def test_after_a_stall_in_a_lopsided_loop_the_same_session_works_again() -> None:
    loop, plan = lopsided(2)
    broken, _ = with_impossible_wait(plan_for(looping().graph, workers=2))
    stalled = start(broken, "cpu", timeout_s=LIMIT_S)
    session = start(plan, "cpu")
    stalled.run(3, "forward", {})
    set_stop(session, loop, 7)
    session.run(64, "forward", {})
    assert session.wait() == 7
    with pytest.raises(StallError):
        stalled.wait()
    check_loop(session, loop, 7, "beside a stalled kernel")
    stalled.close()
    session.close()
