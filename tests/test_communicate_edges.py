"""Communication in odd places: several methods, early ends, empty tensors, views, groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.settings import read_settings
from ark_dist.core.target import cpu_target, topology_of
from ark_dist.core.verify_ranks import verify_ranks
from ark_dist.launch.open import open_session
from ark_dist.launch.session import Session
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.rank_cases import SHAPE, first_of, plans_of, totals, values
from tests.rank_threads import on_ranks
from tests.rank_world import RankWorld

ONE_SHOT = "ark_dist.scheduler.communicate.ONE_SHOT_BYTES"
BOTH_WAYS = pytest.mark.parametrize("limit", [0, 1 << 20], ids=["two-shot", "one-shot"])
BOTH_TRANSPORTS = pytest.mark.parametrize("transport", ["peer", "proxy"])
SEEDS = 4


@dataclass(frozen=True, slots=True)
class Program:
    """What a rank runs, and the tensors that a test looks at."""

    graph: Graph
    seen: dict[str, Value]


Make = Callable[[int], Program]


def world_of(
    make: Make, size: int, seed: int = 0, **options: int
) -> tuple[RankWorld, list[Program]]:
    programs = [make(rank) for rank in range(size)]
    return RankWorld(plans_of(lambda r: programs[r].graph, size, **options), seed), programs


def on_kernels(
    make: Make,
    size: int,
    work: Callable[[Session, Program], object],
    *,
    transport: str = "auto",
    depth: int = 1,
) -> list[object]:
    """Run every rank's kernel in threads of this process, and do the same with each session."""

    def run(communicator: Communicator) -> object:
        program = make(communicator.rank)
        session = open_session(
            program.graph,
            device="cpu",
            settings=read_settings(),
            worker_count=2,
            options=PlanOptions(transport=transport, depth=depth),
            communicator=communicator,
        ).session
        try:
            session.compile(lambda path: None)
            session.launch()
            result = work(session, program)
            session.stop()
            return result
        finally:
            session.close()

    return on_ranks(size, run)


# Several methods.


def two_methods(rank: int, size: int) -> Program:
    """`gather` and `total` work on the same state and share memory."""
    builder = GraphBuilder("two", rank=rank, world_size=size)
    x = builder.state(SHAPE, "fp32", name="x", init=first_of(rank))
    builder.select_method("total")
    x = builder.apply("add", [x, 1], output=x)
    total = builder.apply("all_reduce", [builder.apply("mul", [x, 2])], name="total")
    builder.keep(total)
    builder.select_method("gather")
    builder.apply("mul", [x, 1], output=x)
    rows = builder.apply("all_gather", [x], name="rows")
    builder.keep(rows)
    token = builder.apply("send", [x], {"dst": (rank + 1) % size})
    attrs = {"src": (rank - 1) % size, "shape": SHAPE, "dtype": "fp32"}
    got = builder.apply("recv", [], attrs, name="got", deps=[token])
    builder.keep(got)
    return Program(builder.freeze(), {"total": total, "rows": rows, "got": got})


METHOD_ORDER = ("total", "gather", "gather", "total", "total", "gather")


@BOTH_WAYS
@pytest.mark.parametrize("size", [2, 3])
def test_methods_that_communicate_take_turns(
    size: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)
    for seed in range(SEEDS):
        world, programs = world_of(lambda rank: two_methods(rank, size), size, seed)
        steps = 0
        for number, method in enumerate(METHOD_ORDER):
            assert world.run(1 + number % 2, method) == [1 + number % 2] * size
            steps += (1 + number % 2) * (method == "total")
            xs = [first_of(r) + steps for r in range(size)]
            for rank in range(size):
                seen = {n: world.read(rank, v.view) for n, v in programs[rank].seen.items()}
                if method == "total":
                    np.testing.assert_array_equal(seen["total"], 2 * sum(xs))
                else:
                    np.testing.assert_array_equal(seen["rows"], np.concatenate(xs))
                    np.testing.assert_array_equal(seen["got"], xs[(rank - 1) % size])


@BOTH_TRANSPORTS
def test_methods_take_turns_on_kernels(transport: str) -> None:
    def work(session: Session, program: Program) -> list[object]:
        results: list[object] = []
        for method in METHOD_ORDER:
            session.run(1, method, {})
            session.wait()
            name = "total" if method == "total" else "rows"
            results.append(session.read(program.seen[name].view))
        return results

    found = on_kernels(lambda rank: two_methods(rank, 2), 2, work, transport=transport)
    for results in found:
        assert isinstance(results, list)
        steps = 0
        for method, value in zip(METHOD_ORDER, results, strict=True):
            steps += method == "total"
            xs = [first_of(r) + steps for r in range(2)]
            wanted = 2 * sum(xs) if method == "total" else np.concatenate(xs)
            np.testing.assert_array_equal(value, wanted)


# Early ends.

STOP_AT = 60.0


def ending(rank: int, size: int) -> Program:
    """Ends once the sum of all ranks' counts is over a limit; its results are states."""
    builder = GraphBuilder("ending", rank=rank, world_size=size)
    limit = builder.state((1,), "fp32", name="limit", init=STOP_AT)
    count = builder.state((40,), "fp32", name="count", init=rank)
    total = builder.state((40,), "fp32", name="total")
    rows = builder.state((40 * size,), "fp32", name="rows")
    got = builder.state((40,), "fp32", name="got")
    grown = builder.apply("add", [count, 1], output=count)
    builder.apply("all_reduce", [grown], output=total)
    builder.apply("all_gather", [grown], output=rows)
    token = builder.apply("send", [grown], {"dst": (rank + 1) % size})
    attrs = {"src": (rank - 1) % size, "shape": (40,), "dtype": "fp32"}
    builder.apply("recv", [], attrs, output=got, deps=[token])
    first = builder.apply("narrow", [total], {"axis": 0, "start": 0, "length": 1})
    builder.apply("stop_when", [builder.apply("greater", [first, limit])])
    seen = {"limit": limit, "count": count, "total": total, "rows": rows, "got": got}
    return Program(builder.freeze(), seen)


def check_end(seen: dict[str, np.ndarray], rank: int, size: int, turn: int) -> None:
    """All states are those of the turn that ended the run, and of no later one."""
    counts = [np.full(40, r + turn, np.float32) for r in range(size)]
    np.testing.assert_array_equal(seen["count"], counts[rank])
    np.testing.assert_array_equal(seen["total"], sum(counts))
    np.testing.assert_array_equal(seen["rows"], np.concatenate(counts))
    np.testing.assert_array_equal(seen["got"], counts[(rank - 1) % size])


def turns_until(limit: float, size: int) -> int:
    """The first turn in which the sum of all counts is over the limit."""
    turn = 1
    while sum(r + turn for r in range(size)) <= limit:
        turn += 1
    return turn


@BOTH_WAYS
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_end_in_the_same_turn_and_go_on_afterwards(
    size: int, depth: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)
    first, second = turns_until(STOP_AT, size), turns_until(2 * STOP_AT, size)
    for seed in range(SEEDS):
        world, programs = world_of(lambda rank: ending(rank, size), size, seed, depth=depth)
        for epoch, (before, turn) in enumerate(pairwise((0, first, second))):
            assert world.run(turn + 9, epoch=2 * epoch) == [turn - before] * size
            for rank, program in enumerate(programs):
                seen = {n: world.read(rank, v.view) for n, v in program.seen.items()}
                check_end(seen, rank, size, turn)
                view = program.seen["limit"].view
                world.write(rank, view, np.array([2 * STOP_AT], np.float32))
        # Over the limit at once: every run does one turn.
        assert world.run(5, epoch=9) == [1] * size


@BOTH_WAYS
@BOTH_TRANSPORTS
@pytest.mark.parametrize("depth", [1, 2])
def test_all_kernels_end_in_the_same_turn(
    depth: int, transport: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)
    size, last = 2, turns_until(STOP_AT, 2)

    def work(session: Session, program: Program) -> object:
        session.run(last + 9, "forward", {})
        done = session.wait()
        return done, {n: session.read(v.view) for n, v in program.seen.items()}

    for rank, found in enumerate(
        on_kernels(lambda r: ending(r, size), size, work, transport=transport, depth=depth)
    ):
        assert isinstance(found, tuple)
        assert found[0] == last
        check_end(found[1], rank, size, last)


# Tensors of odd shapes.


@BOTH_WAYS
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (0, 4)])
def test_tensors_without_elements_are_exchanged_too(
    shape: tuple[int, ...], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)

    def build(builder: GraphBuilder, x: Value) -> Value:
        x = builder.apply("all_reduce", [x])
        x = builder.apply("all_to_all", [x], {"axis": shape.index(0)})
        x = builder.apply("broadcast", [x], {"root": 1})
        token = builder.apply("send", [x], {"dst": 1 - builder.rank})
        attrs = {"src": 1 - builder.rank, "shape": shape, "dtype": "fp32"}
        x = builder.apply("recv", [], attrs, deps=[token])
        x = builder.apply("all_gather", [x], {"axis": shape.index(0)})
        x = builder.apply("copy", [x], deps=[builder.apply("barrier", [x])])
        return builder.apply("reduce_scatter", [x], {"axis": shape.index(0)})

    for transport in ("peer",):
        del transport
        for found in totals(build, 2, shape=shape):
            assert found.shape == shape


@BOTH_TRANSPORTS
def test_empty_pieces_cross_kernels(transport: str) -> None:
    def make(rank: int) -> Program:
        builder = GraphBuilder("empty", rank=rank, world_size=2)
        x = builder.state((3 * rank, 2), "fp32", name="x", init=7)
        moved = builder.apply("mul", [x, 1])
        rows = builder.apply("all_gather", [moved], {"axis": 0, "cuts": (0, 0, 3)})
        nothing = builder.apply("mul", [builder.state((0, 3), "fp32", name="none"), 2])
        still = builder.apply("all_reduce", [nothing])
        mine = builder.apply("reduce_scatter", [rows], {"axis": 0, "cuts": (0, 3, 3)})
        for value in (rows, still, mine):
            builder.keep(value)
        return Program(builder.freeze(), {"rows": rows, "still": still, "mine": mine})

    def work(session: Session, program: Program) -> dict[str, np.ndarray]:
        session.run(3, "forward", {})
        session.wait()
        return {name: session.read(value.view) for name, value in program.seen.items()}

    for rank, found in enumerate(on_kernels(make, 2, work, transport=transport)):
        assert isinstance(found, dict)
        np.testing.assert_array_equal(found["rows"], np.full((3, 2), 7))
        assert found["still"].shape == (0, 3)
        np.testing.assert_array_equal(found["mine"], np.full((3 - 3 * rank, 2), 14))


@BOTH_WAYS
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_scalar_is_summed(size: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)

    def build(builder: GraphBuilder, x: Value) -> Value:
        total = builder.apply("all_reduce", [x])
        most = builder.apply("all_reduce", [x], {"reduce": "max"})
        first = builder.apply("broadcast", [x], {"root": 0})
        return builder.apply("add", [builder.apply("add", [total, most]), first])

    wanted = sum(values(r, ()) for r in range(size)) + values(size - 1, ()) + values(0, ())
    for found in totals(build, size, shape=()):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("count", [1, 3, 17, 33])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_ranks_without_a_line_of_their_own_are_idle(
    count: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ONE_SHOT, 0)
    size = 4

    def make(rank: int) -> Program:
        builder = GraphBuilder("lines", rank=rank, world_size=size)
        x = builder.state((count,), dtype, name="x", init=np.arange(count) % 5)
        total = builder.apply("all_reduce", [builder.apply("mul", [x, rank + 1])])
        return Program(builder.freeze(), {"total": total})

    world, programs = world_of(make, size)
    assert world.run(2) == [2] * size
    for rank, program in enumerate(programs):
        found = world.read(rank, program.seen["total"].view).astype(np.int64)
        np.testing.assert_array_equal(found, np.arange(count) % 5 * 10)


# Groups.


@BOTH_WAYS
def test_groups_may_overlap(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)
    groups = ((0, 1), (1, 2), (0, 2, 3), (3,), (1, 3))

    def build(builder: GraphBuilder, x: Value) -> Value:
        for ranks in groups:
            if builder.rank in ranks:
                x = builder.apply("all_reduce", [x], {"ranks": ranks})
                gathered = builder.apply("all_gather", [x], {"ranks": ranks})
                x = builder.apply("reduce_scatter", [gathered], {"ranks": ranks})
        return x

    wanted = {rank: values(rank) for rank in range(4)}
    for ranks in groups:
        total = sum(wanted[r] for r in ranks) * len(ranks)
        wanted.update(dict.fromkeys(ranks, np.asarray(total)))
    for seed in range(SEEDS):
        for rank, found in enumerate(totals(build, 4, seed=seed)):
            np.testing.assert_array_equal(found, wanted[rank])


def test_all_ranks_by_name_or_by_default_are_one_group() -> None:
    def build(builder: GraphBuilder, x: Value) -> Value:
        ranks = (0, 1) if builder.rank else ()
        return builder.apply("all_reduce", [x], {"ranks": ranks})

    for found in totals(build, 2):
        np.testing.assert_array_equal(found, values(0) + values(1))


# Where the data lies.


@BOTH_WAYS
def test_one_tensor_goes_into_several_collectives(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)

    def build(builder: GraphBuilder, x: Value) -> Value:
        total = builder.apply("all_reduce", [x])
        most = builder.apply("all_reduce", [x], {"reduce": "max"})
        token = builder.apply("send", [x], {"dst": 1 - builder.rank})
        again = builder.apply("send", [x], {"dst": 1 - builder.rank, "tag": 1})
        attrs = {"src": 1 - builder.rank, "shape": SHAPE, "dtype": "fp32"}
        got = builder.apply("recv", [], attrs)
        same = builder.apply("recv", [], {**attrs, "tag": 1}, deps=[token, again])
        parts = [total, most, builder.apply("add", [got, same])]
        return builder.apply("concat", parts, {"axis": 0})

    for rank, found in enumerate(totals(build, 2)):
        both = (values(0), values(1))
        wanted = np.concatenate([sum(both), both[1], 2 * both[1 - rank]])
        np.testing.assert_array_equal(found, wanted)


@BOTH_WAYS
def test_views_are_exchanged(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)

    def build(builder: GraphBuilder, x: Value) -> Value:
        turned = builder.apply("transpose", [x], {"perm": (1, 0)})
        part = builder.apply("narrow", [turned], {"axis": 1, "start": 2, "length": 8})
        wide = builder.apply("broadcast_to", [part], {"shape": (2, 5, 8)})
        total = builder.apply("all_reduce", [wide])
        rows = builder.apply("all_gather", [part], {"axis": 1})
        token = builder.apply("send", [part], {"dst": 1 - builder.rank})
        attrs = {"src": 1 - builder.rank, "shape": (5, 8), "dtype": "fp32"}
        got = builder.apply("recv", [], attrs, deps=[token])
        flat = [builder.apply("reshape", [v], {"shape": (-1,)}) for v in (total, rows, got)]
        return builder.apply("concat", flat, {"axis": 0})

    parts = [values(r).T[:, 2:10] for r in range(2)]
    for rank, found in enumerate(totals(build, 2)):
        total = np.broadcast_to(sum(parts), (2, 5, 8))
        wanted = (total, np.concatenate(parts, axis=1), parts[1 - rank])
        np.testing.assert_array_equal(found, np.concatenate([w.ravel() for w in wanted]))


@BOTH_WAYS
def test_results_may_be_parts_of_states(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ONE_SHOT, limit)

    def build(builder: GraphBuilder, x: Value) -> Value:
        kept = builder.state((2, *SHAPE), "fp32", name="kept", init=3)
        attrs = {"axis": 0, "start": 1, "length": 1}
        place = builder.apply("narrow", [kept], attrs)
        place = builder.apply("reshape", [place], {"shape": SHAPE})
        builder.apply("all_reduce", [x], output=place)
        whole = builder.state(SHAPE, "fp32", name="whole", init=5)
        builder.apply("all_reduce", [whole], output=whole)
        builder.apply("mul", [whole, 0.5], output=whole)
        return builder.apply("add", [kept, whole])

    for found in totals(build, 2):
        total = values(0) + values(1)
        np.testing.assert_array_equal(found, np.stack([np.full(SHAPE, 24), total + 15]))


def test_what_was_sent_may_be_written_again() -> None:
    """The receiver may come later than the writer: both ranks send first, and write then."""

    def build(builder: GraphBuilder, x: Value) -> Value:
        other = 1 - builder.rank
        attrs = {"src": other, "shape": SHAPE, "dtype": "fp32"}
        first = builder.apply("send", [x], {"dst": other})
        builder.apply("neg", [builder.apply("mul", [x, 2])], output=x)
        second = builder.apply("send", [x], {"dst": other, "tag": 1})
        builder.apply("recv", [], {**attrs, "tag": 1}, output=x)
        got = builder.apply("recv", [], attrs, deps=[builder.apply("send_done", [second])])
        got = builder.apply("copy", [got], deps=[builder.apply("send_done", [first])])
        return builder.apply("concat", [x, got], {"axis": 0})

    for seed in range(SEEDS):
        for rank, found in enumerate(totals(build, 2, seed=seed)):
            theirs = values(1 - rank)
            np.testing.assert_array_equal(found, np.concatenate([-2 * theirs, theirs]))


@BOTH_TRANSPORTS
def test_what_was_sent_may_be_written_again_on_kernels(transport: str) -> None:
    def make(rank: int) -> Program:
        builder = GraphBuilder("again", rank=rank, world_size=2)
        x = builder.state((5000,), "fp32", name="x", init=rank + 1)
        builder.apply("send", [x], {"dst": 1 - rank})
        builder.apply("add", [x, 2], output=x)
        attrs = {"src": 1 - rank, "shape": (5000,), "dtype": "fp32"}
        got = builder.apply("recv", [], attrs)
        return Program(builder.freeze(), {"got": got})

    def work(session: Session, program: Program) -> object:
        session.run(6, "forward", {})
        session.wait()
        return session.read(program.seen["got"].view)

    for rank, found in enumerate(on_kernels(make, 2, work, transport=transport)):
        np.testing.assert_array_equal(found, np.full(5000, 2 - rank + 10))


def test_communication_comes_after_what_it_depends_on() -> None:
    """Rank 1 says that it is there only after rank 0's state was read by the next rank."""

    def make(rank: int) -> Program:
        builder = GraphBuilder("deps", rank=rank, world_size=2)
        x = builder.state((64,), "fp32", name="x", init=rank)
        slow = builder.apply("add", [x, 1], output=x)
        one = builder.constant(1.0, (64,), "fp32")
        token = builder.apply("barrier", [builder.apply("mul", [one, 2])], deps=[slow])
        total = builder.apply("all_reduce", [builder.apply("mul", [one, 3])], deps=[token, slow])
        return Program(builder.freeze(), {"total": total})

    plans = plans_of(lambda rank: make(rank).graph, 2)
    (method,) = plans[0].methods
    x = next(b.id for b in plans[0].buffers if b.name == "x")
    made = [n for n in method.nodes if "all_reduce" in n.name or "barrier" in n.name]
    assert len([n for n in made if any(view.buffer == x for view in n.after)]) >= 5


# Mistakes.


@pytest.mark.parametrize(("rank", "size"), [(0, 2), (1, 3), (0, 1)])
def test_a_model_for_other_ranks_is_refused(rank: int, size: int) -> None:
    builder = GraphBuilder("other", rank=1, world_size=2)
    builder.apply("all_reduce", [builder.tensor((3,), "fp32")], name="total")
    wanted = (
        r"all_reduce 'total' of method 'forward' was built for rank 1 of 2 and is planned for "
        rf"rank {rank} of {size}; build the model on every rank"
    )
    with pytest.raises(ValueError, match=wanted):
        make_plan(builder.freeze(), cpu_target(1), rank=rank, topology=topology_of((0,) * size))


def test_groups_that_are_too_large_for_one_function_go_through_the_host() -> None:
    size = 13

    def graph(rank: int) -> Graph:
        builder = GraphBuilder("many", rank=rank, world_size=size)
        x = builder.tensor((3,), "fp32")
        builder.apply("all_reduce", [builder.apply("all_reduce", [x], {"ranks": tuple(range(12))})])
        return builder.freeze()

    def small(rank: int) -> Sequence[str]:
        builder = GraphBuilder("many", rank=rank, world_size=size)
        x = builder.tensor((3,), "fp32")
        ranks = tuple(range(12))
        if rank in ranks:
            x = builder.apply("all_reduce", [x], {"ranks": ranks})
        builder.apply("all_reduce", [x])
        plan = make_plan(
            builder.freeze(), cpu_target(1), rank=rank, topology=topology_of((0,) * size)
        )
        plans.append(plan)
        return [node.op for node in plan.methods[0].nodes]

    del graph
    plans: list[object] = []
    ops = [small(rank) for rank in range(size)]
    assert all(some.count("request") == 1 for some in ops)
    assert [some.count("reduce_parts") for some in ops] == [1] * 12 + [0]
    verify_ranks(plans)  # type: ignore[arg-type]  # plans
