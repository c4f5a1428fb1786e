"""The proof over all ranks accepts what is planned, and names each rule that a change breaks."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import PlanError
from ark_dist.core.graph import HOST, Node, Raise
from ark_dist.core.plan import Method, Place, Plan
from ark_dist.core.verify_rank_data import strided_runs
from ark_dist.core.verify_ranks import verify_ranks
from tests.rank_cases import CASES, Build, counting, plans_of

ONE_SHOT = "ark_dist.scheduler.communicate.ONE_SHOT_BYTES"
NodeChange = Callable[[Node], Node]


def made(
    build: Build, size: int, *, workers: int = 2, is_wide: bool = False, transport: str = "auto"
) -> list[Plan]:
    """The plans of all ranks."""
    return plans_of(
        lambda rank: counting(build, rank, size)[0],
        size,
        workers=workers,
        is_wide=is_wide,
        transport=transport,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_all_that_is_planned_is_proven(
    case: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (0, 1 << 20):
        monkeypatch.setattr(ONE_SHOT, limit)
        for workers in (1, 3):
            for is_wide in (False, True):
                for transport in ("peer", "proxy") if workers == 3 else ("peer",):
                    plans = made(
                        CASES[case], size, workers=workers, is_wide=is_wide, transport=transport
                    )
                    verify_ranks(plans)


# Changes that break a rule.


def with_method(plan: Plan, method: Method) -> Plan:
    methods = tuple(method if m.name == method.name else m for m in plan.methods)
    return replace(plan, methods=methods)


def with_nodes(plan: Plan, change: NodeChange) -> Plan:
    (method,) = plan.methods
    return with_method(plan, replace(method, nodes=tuple(map(change, method.nodes))))


def refused(plans: Sequence[Plan]) -> str:
    with pytest.raises(PlanError) as caught:
        verify_ranks(plans)
    return str(caught.value)


def on_rank(plans: Sequence[Plan], rank: int, change: NodeChange) -> str:
    """What is said of plans of which one rank's nodes are changed."""
    found = [with_nodes(plan, change) if plan.rank == rank else plan for plan in plans]
    assert found != list(plans), "nothing was changed"
    return refused(found)


def everywhere(plans: Sequence[Plan], change: Callable[[Plan], Plan]) -> str:
    found = [change(plan) for plan in plans]
    assert found != list(plans), "nothing was changed"
    return refused(found)


def without(phase: str, *, field: str) -> NodeChange:
    """Drop the flags of a phase from a node's waits or raises."""

    def change(node: Node) -> Node:
        if field == "waits":
            return replace(node, waits=tuple(f for f in node.waits if f".{phase}" not in f))
        kept = tuple(item for item in node.raises if f".{phase}" not in item.flag)
        return replace(node, raises=kept)

    return change


def one_shot(workers: int = 2) -> list[Plan]:
    return made(CASES["all_reduce"], 2, workers=workers)


@pytest.fixture
def two_shot(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    monkeypatch.setattr(ONE_SHOT, 0)
    return made(CASES["all_reduce"], 3)


def test_plans_of_other_ranks_or_programs_are_refused() -> None:
    plans = one_shot()
    assert "plan 0 is that of rank 1 of 2" in refused(plans[::-1])
    assert "plan 0 is that of rank 0 of 2" in refused(plans[:1])
    named = replace(plans[1], name="other")
    assert "rank 1 runs 'other', rank 0 'ranks'" in refused([plans[0], named])
    (method,) = plans[1].methods
    renamed = replace(plans[1], methods=(replace(method, name="step"),))
    assert "rank 1 has methods ('step',), rank 0 ('forward',)" in refused([plans[0], renamed])


@pytest.mark.parametrize("phase", ["ready", "taken"])
def test_a_flag_that_nobody_raises_is_found(phase: str) -> None:
    text = on_rank(one_shot(), 1, without(phase, field="raises"))
    assert re.search(rf"rank 0 waits for '[^']*\.{phase}\.1' in task \d+; nobody raises it", text)


@pytest.mark.parametrize("phase", ["ready", "taken"])
def test_a_flag_that_nobody_waits_for_is_found(phase: str) -> None:
    text = on_rank(one_shot(), 1, without(phase, field="waits"))
    assert re.search(rf"rank 0 raises '[^']*\.{phase}\.0' of rank 1, which does not wait", text)


def test_flags_that_two_raise_or_two_wait_for_are_found() -> None:
    plans = made(CASES["all_reduce"], 3)

    def steal(node: Node) -> Node:
        raises = (Raise(item.rank, re.sub(r"\d$", "1", item.flag)) for item in node.raises)
        return replace(node, raises=tuple(raises))

    text = on_rank(plans, 2, steal)
    assert re.search(r"rank 2: raises '[^']*\.ready\.1' of rank 0, which rank 1 raises too", text)

    def repeat(node: Node) -> Node:
        waits = (re.sub(r"taken", "ready", flag) for flag in node.waits)
        return replace(node, waits=tuple(waits))

    assert "rank 0: two handshakes wait for" in on_rank(plans, 0, repeat)


def test_flags_of_ranks_that_do_not_exist_are_found() -> None:
    def far(node: Node) -> Node:
        return replace(node, raises=tuple(Raise(7, item.flag) for item in node.raises))

    assert "of rank 7; there are 2 ranks" in on_rank(one_shot(), 0, far)


def test_a_flag_belongs_to_one_method() -> None:
    def graph(rank: int) -> GraphBuilder:
        builder = GraphBuilder("two", rank=rank, world_size=2)
        x = builder.state((4,), "fp32", name="x", init=1)
        for name in ("one", "two"):
            builder.select_method(name)
            builder.apply("all_reduce", [x], name=name)
        return builder

    plans = plans_of(lambda rank: graph(rank).freeze(), 2)
    verify_ranks(plans)
    one, two = plans[1].methods
    swapped = (replace(two, name="one"), replace(one, name="two"))
    text = refused([plans[0], replace(plans[1], methods=swapped)])
    assert re.search(r"method 'one': rank 0 raises '[^']*' of rank 1, which .* method 'two'", text)


def test_what_raises_a_flag_runs_once_a_turn() -> None:
    plans = one_shot()
    (method,) = plans[0].methods
    task = next(t for t in method.tasks if len(t.box) == 2)
    last = method.groups[task.group].nodes[-1]

    def change(node: Node) -> Node:
        is_it = node.id == last
        return replace(node, raises=(Raise(1, "odd"),)) if is_it else node

    assert re.search(r"node \d+ \(.*\) has flags and does not end one", on_rank(plans, 0, change))


# Requests to the host.


def proxied() -> list[Plan]:
    return made(CASES["all_reduce"], 2, transport="proxy")


def test_a_request_is_waited_for() -> None:
    text = on_rank(proxied(), 0, without("done", field="waits"))
    assert "rank 0 asks its host for" in text and "no handshake waits until that is done" in text


def test_what_is_awaited_of_the_host_was_asked_for() -> None:
    text = on_rank(proxied(), 0, without("ask", field="raises"))
    assert re.search(r"rank 0 waits for '[^']*\.done' in task \d+; nobody raises it", text)


def test_all_ranks_ask_their_hosts() -> None:
    def leave(node: Node) -> Node:
        if node.op == "request":
            return replace(node, op="handshake", inputs=(), attrs=(), raises=(), takes=())
        return replace(node, waits=())

    assert "rank 0 asks its host" in (text := on_rank(proxied(), 1, leave))
    assert "rank 1 does not" in text


def test_only_a_request_talks_to_the_host() -> None:
    def ask(node: Node) -> Node:
        raises = tuple(Raise(HOST, item.flag) for item in node.raises)
        return replace(node, raises=raises)

    assert "for the host, which is no request's" in on_rank(one_shot(), 0, ask)


def test_what_the_host_raises_nobody_else_does() -> None:
    plans = proxied()
    flags = [flag for m in plans[0].methods for node in m.nodes for flag in node.waits]

    def also(node: Node) -> Node:
        return replace(node, raises=(*node.raises, Raise(0, flags[0]))) if node.raises else node

    assert "of rank 0, which its host raises too" in on_rank(plans, 1, also)


def test_ranks_ask_in_the_same_groups() -> None:
    def alone(node: Node) -> Node:
        attrs = (("ranks", (1,)) if name == "ranks" else (name, x) for name, x in node.attrs)
        return replace(node, attrs=tuple(attrs))

    assert "asks for" in (text := on_rank(proxied(), 1, alone))
    assert "of ranks (1,), others say (0, 1)" in text


# Buffers.


def test_what_a_rank_uses_of_another_one_is_there() -> None:
    plans = one_shot()

    def changed(**fields: object) -> str:
        buffers = tuple(
            replace(b, **fields) if b.kind == "peer" else b  # type: ignore[arg-type]  # any field
            for b in plans[0].buffers
        )
        return refused([replace(plans[0], buffers=buffers), plans[1]])

    assert "of rank 1, which has nothing of that name" in changed(export="odd")
    assert "as 12 bytes of fp32; there it has 240 of fp32" in changed(shape=(3,))
    assert "of rank 5, which is not one of the other 2" in changed(peer=5)
    assert "of rank 0, which is not one of the other 2" in changed(peer=0)
    assert "as 480 bytes of fp32; there it has 240" in changed(slots=2)


def test_a_name_stands_for_one_buffer() -> None:
    plans = one_shot()
    name = next(b.export for b in plans[0].buffers if b.export and b.kind != "peer")
    buffers = tuple(replace(b, export=name) if not b.export else b for b in plans[0].buffers)
    text = refused([replace(plans[0], buffers=buffers), plans[1]])
    assert f"rank 0 has two buffers that others know as '{name}'" in text


# Order.


def test_ranks_that_wait_for_each_other_are_found() -> None:
    plans = made(CASES["unfinished_ring"], 2)

    def late(node: Node) -> Node:
        # The sender says that data is there only after it was fetched.
        if any(".ready." in item.flag for item in node.raises):
            return replace(node, waits=waited)
        return replace(node, waits=()) if node.waits == waited else node

    for plan in plans:
        waited = next(
            n.waits for m in plan.methods for n in m.nodes if any(".ready." in f for f in n.waits)
        )
        plans[plan.rank] = with_nodes(plan, late)
    text = refused(plans)
    assert "tasks wait for one another in a circle" in text
    assert "rank 0's task" in text and "rank 1's task" in text and "(handshake" in text


def test_hosts_that_wait_for_each_other_are_found() -> None:
    def build(builder: GraphBuilder, x: Value) -> Value:
        first = builder.apply("all_reduce", [x], {"ranks": (0, 1)}, name="first")
        return builder.apply("all_gather", [first], {"ranks": (0, 1)}, name="second")

    plans = made(build, 2, transport="proxy")
    verify_ranks(plans)
    (method,) = plans[1].methods
    first, second = (n for n in method.nodes if n.op == "request")

    def swap(node: Node) -> Node:
        other = {first.id: second, second.id: first}.get(node.id)
        if other is not None:
            return replace(node, attrs=other.attrs, raises=other.raises)
        done = [f"{dict(n.attrs)['key']}.done" for n in (first, second)]
        if node.waits and node.waits[0] in done:
            return replace(node, waits=(done[1 - done.index(node.waits[0])],))
        return node

    assert "tasks wait for one another in a circle" in on_rank(plans, 1, swap)


def test_readers_wait_until_the_data_is_there() -> None:
    # Ready and taken change places: the reader reads first, the owner computes later.
    def swapped(flag: str) -> str:
        for old, new in (("ready", "taken"), ("taken", "ready")):
            if f".{old}." in flag:
                return flag.replace(f".{old}.", f".{new}.")
        return flag

    def change(node: Node) -> Node:
        raises = tuple(Raise(item.rank, swapped(item.flag)) for item in node.raises)
        return replace(node, raises=raises)

    text = everywhere(one_shot(), lambda plan: with_nodes(plan, change))
    assert "tasks wait for one another in a circle" in text and "(reduce_parts" in text


def both(phase: str) -> NodeChange:
    """Neither raise nor wait for the flags of a phase."""
    raised, awaited = without(phase, field="raises"), without(phase, field="waits")
    return lambda node: raised(awaited(node))


def test_a_reader_that_does_not_say_so_is_found() -> None:
    text = everywhere(one_shot(), lambda plan: with_nodes(plan, both("taken")))
    assert "which ends its turn without waiting for that" in text


def test_a_reader_that_waits_for_nothing_is_found() -> None:
    text = everywhere(one_shot(), lambda plan: with_nodes(plan, both("ready")))
    assert "before it knows that rank" in text


@pytest.mark.parametrize("phase", ["ready", "arrived"])
def test_a_writer_that_says_nothing_is_found(phase: str, two_shot: list[Plan]) -> None:
    text = everywhere(two_shot, lambda plan: with_nodes(plan, both(phase)))
    assert {"ready": "before it knows", "arrived": "without waiting"}[phase] in text


def test_a_handshake_that_takes_nothing_over_orders_nothing() -> None:
    """Its readers need not come after it, so that sync leaves the waits out."""
    plans = one_shot(workers=3)

    def idle(plan: Plan) -> Plan:
        (method,) = plan.methods
        starts = {
            task.id
            for task in method.tasks
            if "reduce_parts" in [method.nodes[n].op for n in method.groups[task.group].nodes]
        }
        waits = tuple(() if t in starts else some for t, some in enumerate(method.waits))
        return with_method(plan, replace(method, waits=waits))

    assert "before it knows" in everywhere(plans, idle)


# A barrier moves no data, a chain's sums follow one another, and of pieces of nothing flags
# are raised too.
HELD_BY_FLAGS = [c for c in CASES if c not in ("barrier", "chain", "moved_part")]


@pytest.mark.parametrize("limit", [0, 1 << 20])
@pytest.mark.parametrize("case", HELD_BY_FLAGS)
def test_no_flag_can_be_left_out(case: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)
    plans = made(CASES[case], 3)
    flags = [f for p in plans for m in p.methods for node in m.nodes for f in node.waits]
    assert len(flags) >= 2
    for flag in dict.fromkeys(flags):

        def change(node: Node, flag: str = flag) -> Node:
            raises = tuple(item for item in node.raises if item.flag != flag)
            return replace(node, waits=tuple(f for f in node.waits if f != flag), raises=raises)

        refused([with_nodes(plan, change) for plan in plans])


def test_memory_that_moves_onto_what_others_read_is_found() -> None:
    plans = made(CASES["chain"], 2, workers=1)
    shared = [b for b in plans[0].buffers if b.kind == "activation" and b.export and b.size_bytes]
    said_of: list[str] = []
    for buffer in shared[1:]:
        places = list(plans[0].places)
        places[buffer.id] = Place("symmetric", places[shared[0].id].offset)
        try:
            verify_ranks([replace(plans[0], places=tuple(places)), plans[1]])
        except PlanError as error:
            said_of.append(str(error))
    # What is made after the first one was read may lie there.
    assert 0 < len(said_of) < len(shared) - 1
    assert all("nothing orders the two" in text for text in said_of)
    assert any(f"reads {shared[0].name!r} there" in text for text in said_of)


def test_a_part_of_an_exported_buffer_is_compared_byte_by_byte(two_shot: list[Plan]) -> None:
    """Slices of a two-dimensional sum meet in rows, but not in elements."""
    verify_ranks(two_shot)
    (method,) = two_shot[0].methods
    copies = [n for n in method.nodes if n.op == "copy"]

    def wider(node: Node) -> Node:
        view = node.output
        if two_shot[0].buffers[view.buffer].kind != "peer":
            return node
        return replace(node, output=replace(view, shape=(60,), offset=0))

    assert copies
    nodes = tuple(wider(n) if n in copies else n for n in method.nodes)
    tasks = tuple(
        replace(task, writes=tuple(replace(w, box=((0, 60),)) for w in task.writes))
        if method.nodes[method.groups[task.group].nodes[-1]] in copies
        and two_shot[0].buffers[task.writes[0].buffer].kind == "peer"
        else task
        for task in method.tasks
    )
    changed = with_method(two_shot[0], replace(method, nodes=nodes, tasks=tasks))
    text = refused([changed, *two_shot[1:]])
    assert "nothing orders the two" in text and "writes" in text


def test_ranks_that_may_end_in_different_turns_are_found() -> None:
    def graph(rank: int, *, stops: bool) -> GraphBuilder:
        builder = GraphBuilder("stops", rank=rank, world_size=2)
        x = builder.state((1,), "fp32", name="x", init=0)
        total = builder.apply("all_reduce", [builder.apply("add", [x, 1], output=x)])
        if stops:
            builder.apply("stop_when", [builder.apply("greater", [total, 4])])
        return builder

    stopping = plans_of(lambda rank: graph(rank, stops=True).freeze(), 2)
    deeper = plans_of(lambda rank: graph(rank, stops=True).freeze(), 2, depth=2)
    going_on = plans_of(lambda rank: graph(rank, stops=False).freeze(), 2)
    verify_ranks(deeper)
    text = refused([stopping[0], going_on[1]])
    assert "rank 0 may end early, with depth 1, rank 1 never ends early" in text
    text = refused([stopping[0], deeper[1]])
    assert "with depth 1, rank 1 may end early, with depth 2; ranks that communicate must" in text


def test_plans_that_are_too_large_to_prove_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = one_shot()
    monkeypatch.setattr("ark_dist.core.verify_ranks.MAX_CLOCK_ENTRIES", 10)
    assert re.search(r"takes \d+ clocks; at most 10 work", refused(plans))
    monkeypatch.undo()
    monkeypatch.setattr("ark_dist.core.verify_rank_data.MAX_RUNS", 3)
    assert "in more than 3 pieces" in refused(plans)
    monkeypatch.undo()
    monkeypatch.setattr("ark_dist.core.verify_rank_data.MAX_PAIRS", 0)
    assert "by more than 0 pairs of tasks" in refused(plans)


def test_stretches_of_a_view_are_those_of_its_elements() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        shape = tuple(rng.integers(0, 5, int(rng.integers(0, 4))).tolist())
        strides = tuple(rng.integers(0, 7, len(shape)).tolist())
        offset = int(rng.integers(0, 9))
        wanted = {
            offset + sum(i * s for i, s in zip(where, strides, strict=True))
            for where in np.ndindex(shape)
        }
        runs = strided_runs(offset, shape, strides).tolist()
        assert {e for a, b in runs for e in range(a, b)} == wanted, (shape, strides)
        assert all(b < c for (_, b), (c, _) in pairwise(runs))


def test_views_with_too_many_stretches_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ark_dist.core.verify_rank_data.MAX_VIEW_RUNS", 3)
    assert strided_runs(2, (2, 2, 3), (20, 5, 1)).tolist() == [[2, 30]]
