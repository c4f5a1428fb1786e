"""The simulator tells plausible times from the cost model, and touches no data."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import StallError
from ark_dist.core.graph import Graph
from ark_dist.core.plan import Plan, Wait
from ark_dist.core.target import Target, cpu_target, wide_target
from ark_dist.launch.devices.null import NullDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import make_plan
from tests.plan_models import block, loop, mlp, two_methods
from tests.random_graphs import random_model

BRANCHES = 8


def wide_graph() -> Graph:
    """Branches that have nothing to do with each other."""
    builder = GraphBuilder("wide")
    for _ in range(BRANCHES):
        x = builder.tensor((256, 256), "fp32")
        attrs = {"transpose_input": False, "transpose_other": False, "is_relu": False}
        builder.apply("matmul", [x, x], attrs)
    return builder.freeze()


def simulate(plan: Plan, turns: int = 1) -> float:
    device = NullDevice(plan)
    session = Session(plan, device, SessionOptions())
    session.compile(lambda path: None)
    session.launch()
    for name in plan.method_names:
        session.run(turns, name, {})
        assert session.wait() == turns
    session.close()
    return device.simulated_s


def work_s(plan: Plan) -> float:
    return sum(plan.target.seconds(t.cost) for m in plan.methods for t in m.tasks)


@pytest.mark.parametrize("graph", [block(), mlp(), loop(), two_methods()], ids=lambda g: g.name)
def test_one_worker_takes_the_sum_of_all_tasks(graph: Graph) -> None:
    plan = make_plan(graph, cpu_target(1))
    for turns in (1, 5):
        assert simulate(plan, turns) == pytest.approx(turns * work_s(plan))


def test_random_models_take_the_sum_of_all_tasks_on_one_worker() -> None:
    for seed in range(10):
        plan = make_plan(random_model(seed).graph, cpu_target(1))
        assert simulate(plan, 3) == pytest.approx(3 * work_s(plan)), seed


@pytest.mark.parametrize("make", [cpu_target, wide_target], ids=["clock", "group"])
def test_more_workers_are_faster_for_a_wide_graph(make: Callable[[int], Target]) -> None:
    times = [simulate(make_plan(wide_graph(), make(n))) for n in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)
    # Tiles read more bytes than the whole: eight workers are not eight times as fast.
    assert times[0] / times[3] > 2


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_time_lies_between_a_fair_share_and_the_sum(workers: int) -> None:
    for seed in range(10):
        plan = make_plan(random_model(seed).graph, cpu_target(workers))
        hops = sum(len(w) for m in plan.methods for w in m.waits) * plan.target.hop_s
        found = simulate(plan)
        assert work_s(plan) / workers * 0.999 <= found <= work_s(plan) + hops, seed


def test_a_chain_across_workers_pays_for_its_hops() -> None:
    graph = block()
    near = make_plan(graph, replace(cpu_target(4), hop_s=1e-12))
    far = replace(near, target=replace(near.target, hop_s=1e-3))
    assert simulate(far) >= simulate(near) + 1e-3


def test_turns_take_no_longer_together_than_one_by_one() -> None:
    plan = make_plan(mlp(), cpu_target(2))
    assert simulate(plan, 10) <= 10 * simulate(plan, 1) * 1.001


def test_a_new_start_sets_the_clock_to_zero() -> None:
    plan = make_plan(mlp(), cpu_target(2))
    device = NullDevice(plan)
    session = Session(plan, device, SessionOptions())
    session.compile(lambda path: None)
    times = []
    for _ in range(2):
        session.launch()
        session.run(2, "forward", {})
        session.wait()
        times.append(device.simulated_s)
        session.stop()
    assert times[0] == pytest.approx(times[1]) and times[0] > 0


def test_tensors_keep_what_the_host_wrote() -> None:
    graph = wide_graph()
    plan = make_plan(graph, wide_target(4))
    session = Session(plan, NullDevice(plan), SessionOptions())
    session.compile(lambda path: None)
    view = graph.methods[0].nodes[0].inputs[0]
    value = np.full(view.shape, 2.5, np.float32)
    session.write(view, value)
    session.launch()
    session.run(3, "forward", {})
    assert session.wait() == 3
    assert (session.read(view) == value).all()
    session.close()


def test_a_plan_that_can_not_go_on_says_who_waits_for_what() -> None:
    plan = make_plan(block(), cpu_target(2))
    (method,) = plan.methods
    stuck = ((Wait(1, 1_000, 0),), *method.waits[1:])
    plan = replace(plan, methods=(replace(method, waits=stuck),))
    device = NullDevice(plan)
    session = Session(plan, device, SessionOptions())
    session.compile(lambda path: None)
    session.launch()
    session.run(1, "forward", {})
    text = (
        r"rank 0, worker \d: task \d+ \(.*\) of method 'forward' waits for counter \d "
        r"\(clock of \d\): have \d+, want \d+; no worker can go on"
    )
    with pytest.raises(StallError, match=text):
        session.wait()
    assert session.state == "failed"
