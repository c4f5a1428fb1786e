"""Communication in odd places: empty tensors, scalars, views, states, groups, wrong worlds."""

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
from ark_dist.core.target import cpu_target, topology_of
from ark_dist.core.verify_ranks import verify_ranks
from ark_dist.launch.session import Session
from ark_dist.scheduler.plan import make_plan
from tests.rank_cases import SHAPE, Numbers, plans_of, totals, values
from tests.rank_programs import (
    BOTH_TRANSPORTS,
    BOTH_WAYS,
    ONE_SHOT,
    SEEDS,
    Program,
    on_kernels,
    world_of,
)

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
        attrs: dict[str, AttrValue] = {"src": 1 - builder.rank, "shape": shape, "dtype": "fp32"}
        x = builder.apply("recv", [], attrs, deps=[token])
        x = builder.apply("all_gather", [x], {"axis": shape.index(0)})
        x = builder.apply("copy", [x], deps=[builder.apply("barrier", [x])])
        return builder.apply("reduce_scatter", [x], {"axis": shape.index(0)})

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

    def work(session: Session, program: Program) -> dict[str, Numbers]:
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
        attrs: dict[str, AttrValue] = {"src": 1 - builder.rank, "shape": SHAPE, "dtype": "fp32"}
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
        attrs: dict[str, AttrValue] = {"src": 1 - builder.rank, "shape": (5, 8), "dtype": "fp32"}
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
        attrs: dict[str, AttrValue] = {"axis": 0, "start": 1, "length": 1}
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
        attrs: dict[str, AttrValue] = {"src": other, "shape": SHAPE, "dtype": "fp32"}
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
        attrs: dict[str, AttrValue] = {"src": 1 - rank, "shape": (5000,), "dtype": "fp32"}
        got = builder.apply("recv", [], attrs)
        return Program(builder.freeze(), {"got": got})

    def work(session: Session, program: Program) -> object:
        session.run(6, "forward", {})
        session.wait()
        return session.read(program.seen["got"].view)

    for rank, found in enumerate(on_kernels(make, 2, work, transport=transport)):
        np.testing.assert_array_equal(found, np.full(5000, 2 - rank + 10))


def test_communication_comes_after_what_it_depends_on() -> None:
    """Flags are raised, and data is read, after all that the operator was given as `deps`."""

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
    size, small = 13, tuple(range(12))

    def graph(rank: int) -> Graph:
        builder = GraphBuilder("many", rank=rank, world_size=size)
        x = builder.tensor((3,), "fp32")
        if rank in small:
            x = builder.apply("all_reduce", [x], {"ranks": small})
        builder.apply("all_reduce", [x])
        return builder.freeze()

    plans = plans_of(graph, size, workers=1)
    ops = [[node.op for node in plan.methods[0].nodes] for plan in plans]
    assert all(some.count("request") == 1 for some in ops)
    assert [some.count("reduce_parts") for some in ops] == [1] * 12 + [0]
    verify_ranks(plans)
