"""What makes large plans fast changes nothing: results are those of slow and simple ways."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ark_dist.benchmarks import llama_70b, planned_rank
from ark_dist.core import verify_tasks
from ark_dist.core.dtype import DTYPES
from ark_dist.core.graph import Buffer, Graph, Node
from ark_dist.core.likeness import Likeness, likeness
from ark_dist.core.plan import ARENAS, Method, Plan
from ark_dist.core.target import Target, cpu_target, wide_target
from ark_dist.core.task import Group, Task
from ark_dist.core.verify_plan import plan_problems
from ark_dist.core.view import Region, View
from ark_dist.scheduler import plan as planning
from ark_dist.scheduler.deps import Edges
from ark_dist.scheduler.order import Policy, Queues, earliest_finish
from ark_dist.scheduler.plan import PlanOptions, make_plan
from ark_dist.scheduler.sync import Sync, sync
from ark_dist.scheduler.tile import tile
from tests.naive_planning import NaiveSync, naive_queues
from tests.plan_models import eager, loop, two_methods
from tests.random_graphs import random_model
from tests.transformer import Config, transformer

TARGETS = {
    "clocks": eager(cpu_target(3)),
    "groups": eager(wide_target(4)),
    "cuda": eager(wide_target(5, kind="cuda")),
}
MIXED = transformer(Config(layers=2, end=3)).graph
LAYERS = transformer(Config(layers=3)).graph
PLANNED = make_plan(LAYERS, TARGETS["groups"])
# In turn on all workers, by chance, in one place: the last ones make groups that take turns.
POLICIES = ("earliest", "chance", "crowd")


def graphs(seed: int) -> list[Graph]:
    return [random_model(seed).graph, *([loop(), two_methods(), MIXED] if seed == 0 else [])]


def policy(name: str, seed: int) -> Policy:
    def place(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
        if name == "earliest":
            return earliest_finish(tasks, edges, target)
        pick = random.Random(seed)
        weights = [1.0] * target.worker_count if name == "chance" else [8.0, 1.0]
        owners = pick.choices(range(len(weights)), weights, k=len(tasks))
        return tuple(
            tuple(t for t, owner in enumerate(owners) if owner == worker)
            for worker in range(target.worker_count)
        )

    return place


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("seed", range(8))
def test_waits_are_those_of_sets_of_tasks(
    seed: int, name: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def compared(*arguments: object) -> Sync:
        result: Sync = sync(*arguments)  # type: ignore[arg-type]  # passed on as they are
        naive = NaiveSync(*arguments)  # type: ignore[arg-type]  # passed on as they are
        assert result.waits == tuple(naive.waits)
        seen.append(result)
        return result

    monkeypatch.setattr(planning, "sync", compared)
    for graph in graphs(seed):
        for one in POLICIES:
            make_plan(graph, TARGETS[name], PlanOptions(depth=depth, policy=policy(one, seed)))
    assert any(any(result.waits) for result in seen)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("seed", range(12))
def test_queues_are_those_of_one_task_after_the_other(seed: int, name: str) -> None:
    seen = []

    def compared(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
        queues = earliest_finish(tasks, edges, target)
        assert queues == naive_queues(tasks, edges, target)
        seen.append(queues)
        return queues

    for graph in graphs(seed):
        make_plan(graph, TARGETS[name], PlanOptions(policy=compared))
    assert seen


@pytest.mark.parametrize("name", TARGETS)
def test_a_copied_group_has_the_tiles_it_would_get_by_itself(name: str) -> None:
    plan = make_plan(LAYERS, TARGETS[name])
    forms = set()
    for method in plan.methods:
        tasks = iter(method.tasks)
        for group in method.groups:
            forms.add(likeness(group, method.nodes, plan.buffers).form)
            for alone in tile((group,), method.nodes, plan.buffers, plan.target):
                task = next(tasks)
                assert replace(alone, id=task.id) == task
        assert next(tasks, None) is None
    assert len(forms) < sum(len(m.groups) for m in plan.methods)


def view(buffer: int, **changes: object) -> View:
    given = {"offset": 0, "shape": (4, 6), "strides": (6, 1)} | changes
    return View(buffer, DTYPES["fp32"], **given)  # type: ignore[arg-type]


def like(nodes: Sequence[Node], sizes: Sequence[int] = (4,) * 6, dtype: str = "fp32") -> Likeness:
    """The likeness of a group of all these nodes, on buffers of so many rows."""
    buffers = [
        Buffer(i, f"b{i}", (rows, 6), DTYPES[dtype], "activation", "forward")
        for i, rows in enumerate(sizes)
    ]
    return likeness(Group(0, tuple(range(len(nodes))), "none"), nodes, buffers)


def add(number: int, *views: View, attrs: object = 1, after: tuple[View, ...] = ()) -> Node:
    return Node(number, "add", "x", views[:-1], views[-1], (("value", attrs),), after)  # type: ignore[arg-type]


PLAIN = [add(0, view(0), view(1), view(2)), add(1, view(2), view(0), view(3))]


def test_groups_on_other_buffers_of_the_same_shapes_are_alike() -> None:
    others = [add(4, view(5), view(2), view(0)), add(9, view(0), view(5), view(1))]
    assert like(others).form == like(PLAIN).form
    assert like(PLAIN).buffers == (0, 1, 2, 3)
    assert like(others).buffers == (5, 2, 0, 1)


@pytest.mark.parametrize(
    "nodes",
    [
        [add(0, view(0), view(0), view(2)), PLAIN[1]],
        [PLAIN[0], add(1, view(2), view(1), view(3))],
        [PLAIN[0], add(1, view(2), view(0), view(2))],
        [PLAIN[0]],
        [replace(PLAIN[0], op="sub"), PLAIN[1]],
        [add(0, view(0), view(1), view(2), attrs=1.0), PLAIN[1]],
        [add(0, view(0), view(1), view(2), attrs=True), PLAIN[1]],
        [add(0, view(0), view(1), view(2), attrs=2), PLAIN[1]],
        [add(0, view(0, offset=6), view(1), view(2)), PLAIN[1]],
        [add(0, view(0, strides=(0, 1)), view(1), view(2)), PLAIN[1]],
        [add(0, view(0, shape=(3, 6)), view(1), view(2)), PLAIN[1]],
        [add(0, view(0), view(1), view(2), after=(view(1),)), PLAIN[1]],
        [replace(PLAIN[0], takes=(view(1),)), PLAIN[1]],
    ],
)
def test_groups_that_differ_in_more_than_buffers_are_not_alike(nodes: list[Node]) -> None:
    assert like(nodes).form != like(PLAIN).form


def test_groups_on_buffers_of_other_shapes_or_dtypes_are_not_alike() -> None:
    assert like(PLAIN, (4, 8, 4, 4)).form != like(PLAIN).form
    assert like(PLAIN, dtype="fp16").form != like(PLAIN).form


def broken(plan: Plan, seed: int) -> Plan:
    """The plan with one thing changed in one task of the last layers."""
    pick = random.Random(seed)
    method = plan.methods[-1]
    task = pick.choice([t for t in method.tasks if t.reads][len(method.tasks) // 2 :])
    other = pick.choice([t for t in method.tasks if t.group == task.group])
    side = pick.choice(["reads", "writes"])
    regions = list(getattr(task, side))
    at = pick.randrange(len(regions))
    region = regions[at]
    moved = pick.choice([b for b in plan.buffers if b.shape == plan.buffers[region.buffer].shape])
    changes: list[dict[str, object]] = [
        {side: _with(regions, at, replace(region, buffer=moved.id))},
        {side: _with(regions, at, replace(region, box=tuple((a, b - 1) for a, b in region.box)))},
        {side: _with(regions, at, replace(region, buffer=len(plan.buffers)))},
        {side: tuple(regions[:at] + regions[at + 1 :])},
        {side: getattr(other, side)},
        {"box": other.box},
        {"cost": replace(task.cost, ops=-1)},
        {"effect": "stop" if task.effect == "none" else "none"},
    ]
    tasks = list(method.tasks)
    tasks[task.id] = replace(task, **pick.choice(changes))  # type: ignore[arg-type]
    return replace(plan, methods=(*plan.methods[:-1], replace(method, tasks=tuple(tasks))))


def _with(regions: Sequence[Region], index: int, region: Region) -> tuple[Region, ...]:
    return (*regions[:index], region, *regions[index + 1 :])


@pytest.mark.parametrize("seed", range(60))
def test_a_fault_in_a_group_that_is_like_another_is_found_as_in_any(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = broken(PLANNED, seed)
    found = list(plan_problems(plan))
    numbers = iter(range(10**6))
    # No two groups are alike: each is proven by itself.
    monkeypatch.setattr(verify_tasks, "likeness", lambda *_: Likeness(next(numbers), ()))
    assert found == list(plan_problems(plan))


def test_most_of_these_faults_break_a_rule() -> None:
    faulty = [seed for seed in range(60) if list(plan_problems(broken(PLANNED, seed)))]
    assert len(faulty) > 40


@pytest.mark.parametrize("kind", ["cuda", "null"])
def test_a_rank_of_a_large_model_has_few_waits_and_equal_layers(kind: str) -> None:
    check_llama(4, kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["cuda", "null"])
def test_a_rank_of_llama_3_70b_can_be_planned_for_a_gpu(kind: str) -> None:
    plan = check_llama(80, kind)
    assert len(plan.methods[0].tasks) > 50_000


def is_message(plan: Plan, method: Method, group: Group) -> bool:
    """Whether a group is a handshake, or reads or writes memory of other ranks."""
    nodes = [method.nodes[n] for n in group.nodes]
    touched = {view.buffer for node in nodes for view in (*node.inputs, node.output)}
    is_far = any(plan.buffers[b].kind == "peer" for b in touched)
    return is_far or nodes[-1].op == "handshake"


def check_llama(layers: int, kind: str) -> Plan:
    """Plan one rank's part; making a plan proves its order, memory and progress."""
    plan = planned_rank(llama_70b(layers).freeze(), kind)
    (method,) = plan.methods
    assert all(method.queues)
    # A wait per task: counters count groups, and most dependencies imply the others.
    assert sum(map(len, method.waits)) < 1.3 * len(method.tasks)
    # Messages have names of their own in every layer.
    alike = [g for g in method.groups if not is_message(plan, method, g)]
    forms = [likeness(g, method.nodes, plan.buffers).form for g in alike]
    per_layer = [n for n in Counter(forms).values() if n % layers == 0]
    assert sum(per_layer) > 0.8 * len(forms)
    sizes = dict(zip(ARENAS, plan.arena_bytes, strict=True))
    caches = layers * 2 * 4096 * 128 * 2
    assert caches <= sizes["state"] < caches + 4096
    assert sizes["activations"] < 2**20
    return plan
