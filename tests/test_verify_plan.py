"""Each rule of verify_plan is broken once; random plans pass, and their waits are needed."""

import random
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace

import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import PlanError
from ark_dist.core.plan import Place, Plan, Wait
from ark_dist.core.target import Cost, cpu_target, wide_target
from ark_dist.core.verify_plan import plan_problems, verify_plan
from ark_dist.core.view import Region
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import (
    Break,
    adversary,
    at,
    block,
    changed,
    eager,
    execute,
    loop,
    mapping,
    mlp,
    random_plan,
    setting,
    two_methods,
)

HUGE = 2**61


def looping(depth: int = 2) -> Plan:
    return make_plan(loop(), eager(cpu_target(2)), PlanOptions(depth=depth))


def wide() -> Plan:
    return make_plan(block(), eager(wide_target(6)))


def target(**changes: object) -> Break:
    return lambda plan: replace(plan, target=replace(plan.target, **changes))  # type: ignore[arg-type]


def place(index: int, where: Place) -> Break:
    return lambda plan: replace(
        plan, places=(*plan.places[:index], where, *plan.places[index + 1 :])
    )


def waiting(task: int, *waits: Wait) -> Break:
    return mapping("waits", lambda w: (*w[:task], tuple(waits), *w[task + 1 :]))


def without_waits(turns_back: int) -> Break:
    return mapping(
        "waits", lambda ws: tuple(tuple(w for w in x if w.turns_back != turns_back) for x in ws)
    )


HEADER: dict[str, tuple[Break, str]] = {
    "version": (lambda p: replace(p, version=2), "version is 2; this ark_dist works with"),
    "world": (lambda p: replace(p, world_size=0), "world_size is 0"),
    "rank": (lambda p: replace(p, rank=1), "rank 1 is not one of 1 ranks"),
    "places": (lambda p: replace(p, places=p.places[1:]), "places for .* buffers"),
    "arenas": (lambda p: replace(p, arena_bytes=(1, 2)), "2 arena sizes for 5 arenas"),
    "arena": (lambda p: replace(p, arena_bytes=(-1, 0, 0, 0, 0)), "'weights' of -1 bytes"),
    "no methods": (lambda p: replace(p, methods=()), "it has no methods"),
    "names": (lambda p: replace(p, methods=p.methods * 2), "two methods have one name"),
    "kind": (target(kind="tpu"), "target: kind 'tpu' is not one of"),
    "counters": (target(counters="sundial"), "target: counters 'sundial' is not one of"),
    "no workers": (target(worker_count=0), "worker_count is 0; it must be 1 to"),
    "workers": (target(worker_count=HUGE), "worker_count is .* it must be 1 to"),
    "cache": (target(cache_bytes=-1), "cache_bytes is -1"),
    "rate": (target(bytes_per_s=0.0), "bytes_per_s is 0.0"),
    "nan": (target(ops_per_s=float("nan")), "ops_per_s is nan"),
    "hop": (target(hop_s=-1.0), "hop_s is -1.0"),
    "buffer": (
        lambda p: replace(p, buffers=(replace(p.buffers[0], slots=0), *p.buffers[1:])),
        "in 0 slots are too many",
    ),
    "type": (target(worker_count="2"), "target.worker_count is '2'; it must be int"),
    "bool": (lambda p: replace(p, rank=False), "rank is False; it must be int"),
    "list": (lambda p: replace(p, methods=[]), "methods is a list; it must be a tuple"),  # type: ignore[arg-type]
    "pair": (at("tasks", 0, box=((0, 1, 2),)), r"tasks\[0\].box\[0\] has 3 items; it must have 2"),
    "class": (at("tasks", 0, cost=None), r"tasks\[0\].cost is None; it must be a Cost"),
    "range": (lambda p: replace(p, rank=2**70), "an integer of 71 bits, which is out of range"),
}
# What `loop` has: weights none; buffers total, step, constants, activations.
GROUPS: dict[str, tuple[Break, str]] = {
    "id": (at("groups", 1, id=5), "group 1: its id is 5"),
    "no nodes": (at("groups", 0, nodes=()), r"group 0: nodes \(\) are not some of"),
    "unknown node": (at("groups", 0, nodes=(0, 99)), "are not some of"),
    "many nodes": (at("groups", 0, nodes=(0,) * 65), "65 nodes; at most 64 work"),
    "node order": (at("groups", 0, nodes=(1, 0)), r"nodes \(1, 0\) do not increase"),
    "order": (
        mapping("groups", lambda g: tuple(replace(x, id=i) for i, x in enumerate(g[::-1]))),
        "ends in node .*, after one that ends in",
    ),
    "two homes": (
        mapping("groups", lambda g: (g[0], replace(g[1], nodes=(g[0].nodes[-1], *g[1].nodes)))),
        "group 0: its last node 1 is in another group too",
    ),
    "left out": (at("groups", 0, nodes=(1,)), r"node 0 \(mul\) is in no group"),
    "effect": (at("groups", 0, effect="none"), "effect is 'none'; it must be 'effect'"),
    "no stop": (at("groups", -1, effect="none"), "effect is 'none'; it must be 'stop'"),
}
TASKS: dict[str, tuple[Break, str]] = {
    "id": (at("tasks", 1, id=0), "task 1: its id is 0"),
    "group": (at("tasks", 1, group=99), "task 1: group 99 is not 0 to"),
    "group order": (at("tasks", 0, group=1), "task 1: group 0 is not 1 to"),
    "box outside": (at("tasks", 0, box=((0, 9), (0, 4))), r"tile .* is not inside the output"),
    "box dimensions": (at("tasks", 0, box=((0, 4),)), r"tile .* is not inside the output"),
    "box empty": (at("tasks", 0, box=((0, 0), (0, 4))), r"tile .* is not inside the output"),
    "box missing": (at("tasks", 0, box=((0, 1), (0, 4))), "the tiles have .* elements"),
    "effect": (at("tasks", 0, effect="none"), "task 0: effect is 'none', its group's is 'effect'"),
    "cost": (at("tasks", 0, cost=Cost(-1, 0)), "task 0: cost .* is negative"),
    "reads": (at("tasks", 0, reads=()), r"task 0: reads \(\); they leave out"),
    "writes": (at("tasks", 0, writes=()), r"task 0: writes \(\); it must be"),
    "region": (
        at("tasks", 0, reads=(Region(0, ((0, 99), (0, 4))),)),
        "task 0: region .* is not inside its buffer",
    ),
    "region's buffer": (at("tasks", 0, reads=(Region(99, ()),)), "is not inside its buffer"),
}
SYNC: dict[str, tuple[Break, str]] = {
    "queues": (mapping("queues", lambda q: q[:1]), "1 queues for 2 workers"),
    "queue order": (mapping("queues", lambda q: (q[0][::-1], q[1])), "tasks do not increase"),
    "queued twice": (
        mapping("queues", lambda q: (tuple(sorted({*q[0], *q[1]})), q[1])),
        "is missing, there twice, or unknown",
    ),
    "not queued": (mapping("queues", lambda q: (q[0][:-1], q[1])), "is missing, there twice"),
    "queued unknown": (mapping("queues", lambda q: ((*q[0], 99), q[1])), "there twice, or unknown"),
    "clocks": (mapping("counters", lambda c: c[:1]), "1 clocks for 2 workers"),
    "counter id": (at("counters", 0, id=1), "counter 0: its id is 1"),
    "counter kind": (at("counters", 0, kind="group"), "counter 0: kind is 'group'"),
    "counter owner": (at("counters", 0, owner=1), "counter 0: belongs to worker 1"),
    "counter signals": (at("counters", 0, signals=1), "counter 0: 1 signals, its clock has"),
    "signal count": (mapping("signals", lambda s: s[1:]), "signals and .* lists of waits"),
    "wait count": (mapping("waits", lambda w: w[1:]), "signals and .* lists of waits"),
    "signal": (mapping("signals", lambda s: (1 - s[0], *s[1:])), "task 0: signals counter 1, not"),
    "wait's counter": (waiting(3, Wait(7, 1, 0)), "task 3: waits for counter 7 of 2"),
    "threshold 0": (waiting(3, Wait(0, 0, 0)), "task 3: waits for 0 signals of counter 0"),
    "threshold": (waiting(3, Wait(0, 99, 1)), "task 3: waits for 99 signals of counter 0"),
    "turns": (waiting(3, Wait(0, 1, 2)), "task 3: waits for 2 turns back; it must be 0 or 1"),
    "negative turns": (waiting(3, Wait(0, 1, -1)), "waits for -1 turns back"),
    "itself": (waiting(0, Wait(0, 1, 0)), "task 0: waits for task 0, which comes no earlier"),
    "later": (waiting(0, Wait(1, 2, 0)), "task 0: waits for task .*, which comes no earlier"),
    "depth": (setting(depth=0), "depth is 0; it must be 1 to"),
    "deep": (setting(depth=HUGE), "depth is .*; it must be 1 to"),
    "no stop": (setting(stop_task=None), "stop_task is None; it must be"),
    "stop": (setting(stop_task=0), "stop_task is 0; it must be"),
}
PLACES: dict[str, tuple[Break, str]] = {
    "arena": (place(0, Place("io", 0)), "state lies in arena 'io'; it belongs in 'state'"),
    "unknown arena": (place(0, Place("attic", 0)), "state lies in arena 'attic'"),
    "negative": (place(0, Place("state", -256)), "offset -256 is not a multiple of 256"),
    "alignment": (place(0, Place("state", 8)), "offset 8 is not a multiple of 256"),
    "end": (place(0, Place("state", 256)), "ends at byte 384 of arena 'state', which has 256"),
    "far": (place(0, Place("state", 2**61)), "ends at byte .* of arena 'state', which has 256"),
}


RULES = {
    f"{topic}: {name}": rule
    for topic, rules in (
        ("header", HEADER), ("groups", GROUPS), ("tasks", TASKS), ("sync", SYNC), ("places", PLACES)
    )
    for name, rule in rules.items()
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_named(name: str) -> None:
    change, text = RULES[name]
    plan = looping()
    verify_plan(plan)
    with pytest.raises(PlanError, match=text):
        verify_plan(change(plan))


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="it must be a Plan"):
        verify_plan("a plan")  # type: ignore[arg-type]  # on purpose


def test_nodes_obey_the_rules_of_graphs() -> None:
    with pytest.raises(PlanError, match="the operator is unknown"):
        verify_plan(at("nodes", 0, op="nope")(looping()))


def test_attributes_that_crash_an_operator_are_refused() -> None:
    plan = make_plan(mlp(64), cpu_target(1))
    node = next(n for n in plan.methods[0].nodes if n.op == "layernorm")
    for value in (None, "x", 1.5, 99, (1, 2)):
        with pytest.raises(PlanError, match=r"refuses its inputs|it must be int"):
            verify_plan(at("nodes", node.id, attrs=(("axis", value), ("eps", 1e-5)))(plan))


def test_tiles_that_overlap_are_refused() -> None:
    plan = make_plan(loop(), eager(cpu_target(3)))
    tasks = [t for t in plan.methods[0].tasks if t.group == 0]
    (start, _), columns = tasks[0].box
    assert len(tasks) == 3, "rows 0 to 8 in three tiles"
    # The middle tile covers what the first does; its size is right, its place is not.
    size = tasks[1].box[0][1] - tasks[1].box[0][0]
    moved = ((start, start + size), columns)
    with pytest.raises(PlanError, match=r"tiles .* and .* overlap"):
        verify_plan(at("tasks", 1, box=moved)(plan))


def test_lasting_buffers_may_not_overlap() -> None:
    plan = make_plan(two_methods(), cpu_target(1))
    cache, scale = (next(b.id for b in plan.buffers if b.name == n) for n in ("cache", "scale"))
    with pytest.raises(PlanError, match="buffers 'cache' and 'scale' overlap in arena 'state'"):
        verify_plan(place(scale, plan.places[cache])(plan))


def test_activations_in_use_may_not_share_memory() -> None:
    plan = make_plan(block(), cpu_target(1))
    touched = {r.buffer for t in plan.methods[0].tasks for r in t.writes}
    one, two = [b.id for b in plan.buffers if b.kind == "activation" and b.id in touched][:2]
    with pytest.raises(PlanError, match=r"activations .* and .* share memory in use"):
        verify_plan(place(two, plan.places[one])(plan))


def test_memory_may_not_be_reused_before_its_readers_are_done() -> None:
    plan = make_plan(block(), eager(cpu_target(2)))
    with pytest.raises(PlanError, match=r"reuses memory of .*, but its tasks do not come after"):
        raise PlanError("; ".join(plan_problems(without_waits(1)(plan))))


def test_data_must_be_written_before_it_is_read() -> None:
    with pytest.raises(PlanError, match=r"tasks \d+ and \d+ touch the same part of"):
        verify_plan(without_waits(0)(looping(1)))


def test_a_state_is_ordered_across_turns() -> None:
    builder = GraphBuilder("normalized")
    state = builder.state((8, 4), "fp32", name="total", init=1)
    largest = builder.apply("reduce_max", [state], {"axis": 0, "keepdims": True})
    builder.apply("sub", [state, largest], output=state)
    plan = make_plan(builder.freeze(), eager(cpu_target(2)))
    text = r"tasks \d+ and the next turn's \d+ touch the same part of 'total'"
    with pytest.raises(PlanError, match=text):
        verify_plan(without_waits(1)(plan))


def test_effects_wait_for_the_decision_of_the_turn_before() -> None:
    with pytest.raises(PlanError, match="has an effect and does not come after stop task"):
        raise PlanError("; ".join(plan_problems(without_waits(1)(looping(2)))))


def test_a_group_counter_is_complete_before_it_is_raised_again() -> None:
    builder = GraphBuilder("tiles")
    builder.apply("relu", [builder.tensor((8, 4), "fp32")])
    plan = make_plan(builder.freeze(), eager(wide_target(4)))
    with pytest.raises(PlanError, match="may raise it while others of the group are still in"):
        verify_plan(without_waits(1)(plan))


def test_group_counters_have_the_groups_size_and_one_owner() -> None:
    plan = wide()
    with pytest.raises(PlanError, match="counter 0: group 99 does not exist"):
        verify_plan(at("counters", 0, owner=99)(plan))
    with pytest.raises(PlanError, match=r"counter 1: .* signals, its group has|has another one"):
        verify_plan(at("counters", 1, owner=0)(plan))


def test_a_result_inside_a_group_is_read_nowhere_else() -> None:
    plan = make_plan(mlp(64), eager(cpu_target(1)), PlanOptions(is_fused=False))
    # matmul, matmul, add, layernorm: fuse the first matmul alone into the add.
    change = mapping(
        "groups",
        lambda g: tuple(
            replace(x, id=i) for i, x in enumerate((g[1], replace(g[2], nodes=(0, 2)), g[3]))
        ),
    )
    with pytest.raises(PlanError, match="is read by node 1 outside of it"):
        verify_plan(change(plan))


def test_an_effect_may_not_stay_inside_a_group() -> None:
    plan = looping()
    change = mapping("groups", lambda g: (replace(g[0], nodes=(0,), effect="none"), *g[1:]))
    with pytest.raises(PlanError, match="is in no group"):
        verify_plan(change(plan))
    first, second, *rest = plan.methods[0].groups
    merged = (replace(second, id=0, nodes=(*first.nodes, *second.nodes)),)
    others = tuple(replace(g, id=i + 1) for i, g in enumerate(rest))
    with pytest.raises(PlanError, match="is an effect; only a group's last node may have one"):
        verify_plan(setting(groups=(*merged, *others))(plan))


@pytest.mark.parametrize("seed", range(60))
def test_plans_of_random_graphs_verify_and_survive_an_adversary(seed: int) -> None:
    plan = random_plan(seed)
    verify_plan(plan)
    if seed % 3 == 0:
        assert execute(plan, adversary(seed)) == execute(plan), f"seed {seed}"


def removals(plan: Plan, count: int, rng: random.Random) -> Iterator[Plan]:
    """Yield the plan without one of its waits, for up to `count` of them."""
    sites = [
        (m, task, wait)
        for m, method in enumerate(plan.methods)
        for task, waits in enumerate(method.waits)
        for wait in waits
    ]
    for m, task, wait in rng.sample(sites, min(count, len(sites))):
        waits = list(plan.methods[m].waits)
        waits[task] = tuple(w for w in waits[task] if w != wait)
        rest = tuple(waits)
        yield changed(plan, lambda method, rest=rest: replace(method, waits=rest), m)  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["clock", "group"])
def test_nearly_every_wait_is_needed_and_the_rest_is_not(kind: str) -> None:
    plans = (plan for seed in range(60) if (plan := random_plan(seed)).target.counters == kind)
    rng = random.Random(0)
    missed = found = 0
    for plan in plans:
        expected = None
        for damaged in removals(plan, 8, rng):
            if next(plan_problems(damaged), None) is not None:
                found += 1
                continue
            missed += 1
            expected = expected or execute(plan)
            for seed in range(2):
                assert execute(damaged, adversary(seed)) == expected, plan.name
    assert found >= 0.9 * (found + missed), f"{missed} of {found + missed} {kind} waits are idle"


NASTY: tuple[object, ...] = (
    -1, 0, 1, 7, 2**31, 2**48, 2**61, -(2**61), 2**63, 10**30, True, None, 1.5, float("nan"),
    "", "x", b"", (), (0,), (-1, 2**60), ((0, 2**60),), [], {}, object,
)  # fmt: skip


def mutate(value: object, rng: random.Random) -> object:
    """Return the value with one field, somewhere inside it, changed to something nasty."""
    if is_dataclass(value) and not isinstance(value, type):
        name = rng.choice([f.name for f in fields(value)])
        return replace(value, **{name: mutate(getattr(value, name), rng)})
    if isinstance(value, tuple) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:index] + value[index + 1 :]
        return (*value[:index], mutate(value[index], rng), *value[index + 1 :])
    if type(value) is int and rng.random() < 0.4:
        return value + rng.choice([-1, 1])
    return rng.choice(NASTY)


@pytest.mark.parametrize("seed", range(8))
def test_a_plan_with_any_field_changed_is_refused_or_still_right(seed: int) -> None:
    rng = random.Random(seed)
    plan = [looping(), wide(), make_plan(two_methods(), eager(cpu_target(2))), random_plan(3)][
        seed % 4
    ]
    started = time.monotonic()
    for _ in range(300):
        damaged = mutate(plan, rng)
        assert isinstance(damaged, Plan)
        try:
            verify_plan(damaged)
        except PlanError as error:
            assert str(error)
    assert time.monotonic() - started < 30
