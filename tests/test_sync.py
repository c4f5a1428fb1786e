"""Waits are enough: whatever order workers step in, the bits are those of in-order execution."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder, whole_view
from ark_dist.core.errors import TaskError
from ark_dist.core.graph import Graph
from ark_dist.core.op import Array
from ark_dist.core.plan import Method, Plan
from ark_dist.core.target import Target, cpu_target, wide_target
from ark_dist.core.task import Task
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.machine import Chooser, in_task_order
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.deps import Edges
from ark_dist.scheduler.order import Queues
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import RandomGraph, eager, loop, two_methods
from tests.random_graphs import fill, random_model

Ready = Sequence[tuple[int, int]]
SEEDS = range(24)
TURNS = 4
TARGETS: dict[str, Callable[[int], Target]] = {
    "clock": cpu_target,
    "group": lambda workers: replace(cpu_target(workers), counters="group"),
}


def at_random(seed: int) -> Chooser:
    """Anyone, any time."""
    pick = random.Random(seed)
    return lambda ready: pick.choice(ready)[0]


def starving(victim: int) -> Chooser:
    """One worker steps only when nobody else can."""
    return lambda ready: max(ready, key=lambda item: (item[0] != victim, -item[1]))[0]


def leader_first() -> Chooser:
    """Who did most steps goes on, as far ahead as waits allow."""
    steps: dict[int, int] = {}

    def choose(ready: Ready) -> int:
        worker = max(ready, key=lambda item: (steps.get(item[0], 0), item[0]))[0]
        steps[worker] = steps.get(worker, 0) + 1
        return worker

    return choose


def last_task_first(ready: Ready) -> int:
    """The task that comes last in the plan's order goes first."""
    return max(ready, key=lambda item: item[1])[0]


def orders(workers: int, seed: int) -> dict[str, Chooser]:
    """The orders that every plan is tried in."""
    found: dict[str, Chooser] = {f"random {i}": at_random(seed * 10 + i) for i in range(2)}
    found |= {f"starve {w}": starving(w) for w in range(min(workers, 3))}
    return found | {"leader first": leader_first(), "last task first": last_task_first}


def run(plan: Plan, choose: Chooser, data: dict[int, Array]) -> dict[str, bytes]:
    """Run all methods twice; return the turns done and the bits of states and outputs."""
    session = Session(plan, NumpyDevice(plan, choose=choose), SessionOptions())
    session.compile(lambda path: None)
    for buffer in plan.buffers:
        if buffer.kind in ("input", "weight"):
            value = data.get(buffer.id)
            if value is None:
                rng = np.random.default_rng(buffer.id)
                value = rng.integers(-2, 3, buffer.shape).astype(buffer.dtype.numpy)
            session.write(whole_view(buffer), value)
    session.launch()
    bits = {}
    for number, name in enumerate(plan.method_names * 2):
        # The first turn finds poison where something came too early, later ones find old values.
        for counts in ((1,), (TURNS, 1)):
            for count in counts:
                session.run(count, name, {})
            bits[f"{number} {counts} turns"] = bytes([session.wait()])
            for buffer in plan.buffers:
                if buffer.kind in ("state", "output"):
                    found = session.read(whole_view(buffer)).tobytes()
                    bits[f"{number} {counts} {buffer.name}"] = found
    session.close()
    return bits


def check_orders(
    graph: Graph, target: Target, depth: int, seed: int, data: dict[int, Array]
) -> None:
    """All orders of a plan give what one worker gives in order, fused or not."""
    wanted = run(make_plan(graph, cpu_target(1)), in_task_order, data)
    is_fused = seed % 4 != 3
    plan = make_plan(graph, eager(target), PlanOptions(depth=depth, is_fused=is_fused))
    for name, choose in orders(target.worker_count, seed).items():
        found = run(plan, choose, data)
        wrong = [key for key in wanted if found[key] != wanted[key]]
        assert not wrong, f"seed {seed}, {target.counters}, depth {depth}, {name}: {wrong}"


@pytest.mark.parametrize("counters", TARGETS)
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_models_do_not_depend_on_the_order(seed: int, workers: int, counters: str) -> None:
    model = random_model(seed)
    # Tiles of a reduction never cut a row: its bits do not depend on the number of workers.
    depth = 1 + (seed + workers) % 3
    check_orders(model.graph, TARGETS[counters](workers), depth, seed, fill(model, seed))


@pytest.mark.parametrize("counters", TARGETS)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_runs_that_end_early_do_not_depend_on_the_order(
    seed: int, depth: int, counters: str
) -> None:
    graph = RandomGraph(seed).grow(has_stop=True)
    check_orders(graph, TARGETS[counters](2 + seed % 2), depth, seed, {})


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("graph", [loop(), two_methods()], ids=["loop", "two methods"])
def test_wide_targets_do_not_depend_on_the_order(graph: Graph, depth: int) -> None:
    for seed in range(3):
        check_orders(graph, wide_target(8, kind="numpy"), depth, seed, {})


@pytest.mark.parametrize("seed", range(6))
def test_random_models_on_wide_targets_do_not_depend_on_the_order(seed: int) -> None:
    model = random_model(seed)
    check_orders(model.graph, wide_target(8, kind="numpy"), 1 + seed % 3, seed, fill(model, seed))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 400))
def test_many_random_models_do_not_depend_on_the_order(seed: int) -> None:
    counters, workers = ("clock", "group")[seed % 2], 2 + seed % 3
    check_orders(
        RandomGraph(seed).grow(has_stop=seed % 4 < 3),
        TARGETS[counters](workers),
        1 + seed % 3,
        seed,
        {},
    )


def without_waits(plan: Plan) -> Plan:
    """The plan with nothing to hold any task."""

    def bare(method: Method) -> Method:
        return replace(method, waits=((),) * len(method.tasks))

    return replace(plan, methods=tuple(bare(m) for m in plan.methods))


def test_the_orders_find_plans_without_waits() -> None:
    """Otherwise the tests above would prove nothing."""
    caught = dict.fromkeys(orders(2, 0), 0)
    for seed in range(10):
        model = random_model(seed)
        plan = make_plan(model.graph, eager(cpu_target(2)))
        wanted = run(plan, in_task_order, fill(model, seed))
        for name, choose in orders(2, 0).items():
            try:
                caught[name] += run(without_waits(plan), choose, fill(model, seed)) != wanted
            except TaskError:  # poison was taken for an index
                caught[name] += 1
    assert all(count >= 3 for count in caught.values()), caught


def test_one_worker_waits_for_nothing() -> None:
    for seed in range(10):
        plan = make_plan(random_model(seed).graph, eager(cpu_target(1)))
        assert all(not waits for m in plan.methods for waits in m.waits)


def test_a_part_that_seems_to_be_all_hides_no_earlier_write() -> None:
    """Boxes of two tiles overlap and leave a hole, yet their sizes add up to the state's."""
    builder = GraphBuilder()
    state = builder.state((6, 48), "fp32", name="s")
    x, y = builder.tensor((6, 48), "fp32"), builder.tensor((240,), "fp32")
    builder.apply("relu", [x], output=state)
    flat = builder.apply("reshape", [state], {"shape": (288,)})
    part = builder.apply("narrow", [flat], {"axis": 0, "start": 0, "length": 240})
    builder.apply("relu", [y], output=part)
    builder.apply("copy", [builder.apply("narrow", [state], {"axis": 0, "start": 5, "length": 1})])

    def crossed(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
        return (0, 2, 4), (1, 3)

    options = PlanOptions(is_fused=False, policy=crossed)
    (method,) = make_plan(builder.freeze(), eager(cpu_target(2)), options).methods
    assert [task.group for task in method.tasks] == [0, 0, 1, 1, 2]
    assert [(w.counter, w.threshold, w.turns_back) for w in method.waits[4]] == [(1, 1, 0)]
