"""The numpy device defines what is correct: rounding, poison, errors and stalls included."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import StallError, TaskError
from ark_dist.core.plan import Plan, Wait
from ark_dist.core.target import cpu_target, wide_target
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.machine import Chooser, in_task_order
from ark_dist.launch.memory import POISON
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import adversary, eager, loop, two_methods


def started(plan: Plan, choose: Chooser = in_task_order) -> Session:
    session = Session(plan, NumpyDevice(plan, choose=choose), SessionOptions())
    session.compile(lambda path: None)
    session.launch()
    return session


def lookup() -> tuple[GraphBuilder, Value, Value]:
    builder = GraphBuilder("lookup")
    index, table = builder.tensor((4,), "int32"), builder.tensor((9, 3), "fp32")
    return builder, index, builder.apply("embedding", [index, table], name="rows")


@pytest.mark.parametrize("bad", [9, -1, 2**31 - 1])
def test_a_bad_index_names_task_operator_method_iteration_and_value(bad: int) -> None:
    builder, index, _ = lookup()
    session = started(make_plan(builder.freeze(), cpu_target(1)))
    session.write(index.view, np.array([1, 2, bad, 3], np.int32))
    session.run(2, "forward", {})
    text = (
        r"^rank 0: task 0 \(embedding 'rows'\) of method 'forward', iteration 0: "
        rf"index {bad} is outside the table of 9 rows$"
    )
    with pytest.raises(TaskError, match=text):
        session.wait()
    assert session.state == "failed"
    session.write(index.view, np.array([0, 0, 8, 8], np.int32))
    session.stop()
    session.launch()
    session.run(2, "forward", {})
    assert session.wait() == 2
    session.close()


def test_a_bad_index_in_a_later_iteration_names_it() -> None:
    builder = GraphBuilder()
    position = builder.state((1,), "int32", name="position", init=7)
    builder.apply("embedding", [position, builder.tensor((9, 3), "fp32")], name="row")
    builder.apply("add", [position, 1], output=position)
    session = started(make_plan(builder.freeze(), eager(cpu_target(2))), adversary(1))
    session.run(5, "forward", {})
    with pytest.raises(TaskError, match="iteration 2: index 9 is outside the table of 9 rows"):
        session.wait()
    session.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["clock", "group"])
def test_a_wait_that_is_never_met_is_a_stall_that_says_what_is_missing(
    kind: str, workers: int
) -> None:
    builder = GraphBuilder()
    x = builder.tensor((64, 64), "fp32")
    builder.apply("softmax", [builder.apply("softmax", [x], {"axis": 0})], {"axis": 1})
    target = replace(eager(cpu_target(workers)), counters=kind)
    plan = make_plan(builder.freeze(), target)
    (method,) = plan.methods
    last = len(method.tasks) - 1
    group = [task.id for task in method.tasks if task.group == 0]
    others = method.queues[0] if kind == "clock" else group
    signals, have = method.counters[0].signals, len(set(others) - {last})
    stuck = (*method.waits[:last], (Wait(0, signals + 1, 0),))
    session = started(replace(plan, methods=(replace(method, waits=stuck),)))
    session.run(1, "forward", {})
    text = (
        rf"^rank 0, worker \d: task {last} \(softmax\) of method 'forward' waits for counter 0 "
        rf"\({kind} of 0\): have {have}, want {signals + 1}; no worker can go on$"
    )
    with pytest.raises(StallError, match=text):
        session.wait()


def test_activations_and_outputs_start_as_poison() -> None:
    builder, _, rows = lookup()
    session = started(make_plan(builder.freeze(), cpu_target(1)))
    assert (session.read(rows.view).view(np.uint8) == POISON).all()
    assert np.isnan(session.read(rows.view)).all()
    session.close()


def test_every_operator_of_a_chain_rounds_to_its_dtype() -> None:
    """The device rounds between fused operators, so that fusion changes no bit of it."""
    for is_fused in (True, False):
        builder = GraphBuilder()
        x = builder.tensor((1000,), "bf16")
        value = builder.apply("mul", [x, 1.3])
        for _ in range(3):
            value = builder.apply("add", [builder.apply("mul", [value, 0.7]), 0.1])
        session = started(make_plan(builder.freeze(), cpu_target(1), PlanOptions(is_fused)))
        data = np.random.default_rng(0).uniform(-1, 1, 1000).astype(ml_dtypes.bfloat16)
        session.write(x.view, data)
        session.run(1, "forward", {})
        session.wait()
        wanted = data * ml_dtypes.bfloat16(1.3)
        for _ in range(3):
            wanted = wanted * ml_dtypes.bfloat16(0.7) + ml_dtypes.bfloat16(0.1)
        assert (session.read(value.view) == wanted).all(), is_fused
        session.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("make", [cpu_target, wide_target], ids=["clock", "group"])
def test_a_run_ends_with_the_turn_that_decides_it(make: object, depth: int) -> None:
    assert callable(make)
    plan = make_plan(loop(), eager(make(3)), PlanOptions(depth=depth))
    step = next(b for b in plan.buffers if b.name == "step")
    total = next(b for b in plan.buffers if b.name == "total")
    for seed in range(5):
        session = started(plan, adversary(seed))
        session.memory.buffer(step.id)[...] = 0.6  # doubled each turn: 5 is passed in turn 5
        session.run(100, "forward", {})
        session.run(7, "forward", {})  # of the same epoch: nothing is left to do
        assert session.wait() == 5
        assert session.memory.buffer(total.id)[0, 0] == pytest.approx(6.0)
        session.run(3, "forward", {})
        assert session.wait() == 1
        assert session.memory.buffer(total.id)[0, 0] == pytest.approx(7.2)
        session.close()


def test_a_command_sets_its_scalar_in_the_first_iteration_only() -> None:
    plan = make_plan(two_methods(), cpu_target(2))
    session = started(plan)
    scale = next(b for b in plan.buffers if b.name == "scale")
    assert session.memory.buffer(scale.id)[0] == 1.0
    session.run(2, "prefill", {"scale": 0.5})
    session.wait()
    assert session.memory.buffer(scale.id)[0] == 0.5
    session.run(1, "prefill", {})
    session.wait()
    assert session.memory.buffer(scale.id)[0] == 0.5
    session.close()
