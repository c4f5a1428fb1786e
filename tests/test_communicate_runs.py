"""Methods that communicate take turns, and all ranks end a run in the same turn."""

from itertools import pairwise

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.op import AttrValue
from ark_dist.launch.session import Session
from tests.rank_cases import SHAPE, Numbers, first_of
from tests.rank_programs import (
    BOTH_TRANSPORTS,
    BOTH_WAYS,
    ONE_SHOT,
    SEEDS,
    Program,
    on_kernels,
    world_of,
)

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
    attrs: dict[str, AttrValue] = {"src": (rank - 1) % size, "shape": SHAPE, "dtype": "fp32"}
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
    attrs: dict[str, AttrValue] = {"src": (rank - 1) % size, "shape": (40,), "dtype": "fp32"}
    builder.apply("recv", [], attrs, output=got, deps=[token])
    first = builder.apply("narrow", [total], {"axis": 0, "start": 0, "length": 1})
    builder.apply("stop_when", [builder.apply("greater", [first, limit])])
    seen = {"limit": limit, "count": count, "total": total, "rows": rows, "got": got}
    return Program(builder.freeze(), seen)


def check_end(seen: dict[str, Numbers], rank: int, size: int, turn: int) -> None:
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
