"""Every task gets one worker; ready work is spread, dependent work stays where its data is."""

import random
from itertools import pairwise

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.target import Cost, cpu_target, wide_target
from ark_dist.core.task import Task
from ark_dist.scheduler.deps import Edges, accesses, predecessors, same_turn_edges
from ark_dist.scheduler.fuse import fuse
from ark_dist.scheduler.order import Queues, earliest_finish
from ark_dist.scheduler.plan import PlanOptions, make_plan
from ark_dist.scheduler.tile import tile
from tests.plan_models import eager
from tests.random_graphs import random_model


def task(number: int, group: int, ops: int = 40_000) -> Task:
    return Task(number, group, ((number, number + 1),), (), (), Cost(0, ops), "none")


def edges(pairs: list[tuple[int, int]]) -> list[Edges]:
    before, after = np.array(pairs, np.int64).reshape(-1, 2).T
    return [Edges(before, after, 0)]


@pytest.mark.parametrize("workers", [1, 2, 3, 16])
@pytest.mark.parametrize("seed", range(15))
def test_queues_hold_every_task_once_in_increasing_order(seed: int, workers: int) -> None:
    target = eager(cpu_target(workers) if workers < 4 else wide_target(workers))
    for method in make_plan(random_model(seed).graph, target).methods:
        assert len(method.queues) == workers
        assert sorted(t for q in method.queues for t in q) == list(range(len(method.tasks)))
        assert all(a < b for queue in method.queues for a, b in pairwise(queue))


def test_equal_independent_tasks_are_spread_evenly() -> None:
    tasks = [task(i, 0) for i in range(12)]
    queues = earliest_finish(tasks, [], cpu_target(3))
    assert [len(q) for q in queues] == [4, 4, 4]


def test_equal_tiles_keep_their_worker_from_group_to_group() -> None:
    tasks = [task(i, i // 4) for i in range(12)]
    pairs = [(i, i + 4) for i in range(8)]
    queues = earliest_finish(tasks, edges(pairs), cpu_target(4))
    assert queues == tuple((w, w + 4, w + 8) for w in range(4))


def test_a_chain_of_small_tasks_stays_on_one_worker() -> None:
    tasks = [task(i, i, ops=100) for i in range(10)]
    queues = earliest_finish(tasks, edges([(i, i + 1) for i in range(9)]), cpu_target(2))
    assert sorted(map(len, queues)) == [0, 10]


def test_a_long_task_does_not_hold_up_short_ones() -> None:
    tasks = [task(0, 0, ops=10_000_000), *(task(i, 1) for i in range(1, 9))]
    long, short = sorted(earliest_finish(tasks, [], cpu_target(2)), key=len)
    assert long == (0,) and short == tuple(range(1, 9))


def test_one_worker_does_all_in_order() -> None:
    tasks = [task(i, i) for i in range(5)]
    assert earliest_finish(tasks, edges([(0, 4)]), cpu_target(1)) == ((0, 1, 2, 3, 4),)


def test_no_tasks_give_empty_queues() -> None:
    assert earliest_finish([], [], cpu_target(3)) == ((), (), ())


def test_a_policy_of_ones_own_is_used() -> None:
    builder = GraphBuilder()
    x = builder.tensor((64, 64), "fp32")
    builder.apply("relu", [x])

    def backwards(tasks: object, some: object, target: object) -> Queues:
        return (1,), (0,)

    plan = make_plan(builder.freeze(), eager(cpu_target(2)), PlanOptions(policy=backwards))
    assert plan.methods[0].queues == ((1,), (0,))


def test_the_same_graph_gives_the_same_queues() -> None:
    for seed in range(5):
        plans = [make_plan(random_model(seed).graph, eager(cpu_target(3))) for _ in range(2)]
        assert plans[0] == plans[1]


@pytest.mark.parametrize("seed", range(20))
def test_dependencies_are_those_of_brute_force(seed: int) -> None:
    """Whatever writes what another touches, directly or through others, comes in order."""
    graph = random_model(seed, methods=1).graph
    nodes = graph.methods[0].nodes
    tasks = tile(fuse(nodes, graph.buffers), nodes, graph.buffers, eager(cpu_target(3)))
    found = predecessors(len(tasks), list(same_turn_edges(accesses(tasks, graph.buffers))))
    reached: list[set[int]] = []
    for before in found:
        reached.append({int(b) for b in before}.union(*(reached[int(b)] for b in before)))
    for later in tasks:
        for earlier in tasks[: later.id]:
            if earlier.group != later.group and _conflict(earlier, later):
                assert earlier.id in reached[later.id], (seed, earlier.id, later.id)
        assert all(b < later.id for b in reached[later.id])


def _conflict(a: Task, b: Task) -> bool:
    pairs = [(w, r) for w in a.writes for r in (*b.reads, *b.writes)]
    pairs += [(r, w) for r in a.reads for w in b.writes]
    return any(
        x.buffer == y.buffer
        and all(max(s, t) < min(e, f) for (s, e), (t, f) in zip(x.box, y.box, strict=True))
        for x, y in pairs
    )


def test_random_tasks_never_wait_longer_than_one_worker_would_take() -> None:
    for seed in range(20):
        pick = random.Random(seed)
        tasks = [task(i, i, ops=pick.randint(10_000, 500_000)) for i in range(40)]
        pairs = [(a, b) for b in range(40) for a in range(b) if pick.random() < 0.05]
        target = cpu_target(2)
        queues = earliest_finish(tasks, edges(pairs), target)
        busy = [sum(target.seconds(tasks[t].cost) for t in queue) for queue in queues]
        total = sum(target.seconds(t.cost) for t in tasks)
        assert max(busy) < 0.8 * total, f"seed {seed}"
