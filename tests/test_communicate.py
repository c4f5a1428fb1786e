"""Communication operators become handshakes and copies that are right in any order of steps."""

from collections.abc import Callable

import numpy as np
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.message import calls, disagreement
from ark_dist.core.op import Array
from ark_dist.core.plan import Plan
from ark_dist.core.target import cpu_target, topology_of, wide_target
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.rank_world import RankWorld

Build = Callable[[GraphBuilder, Value], Value]
SHAPE = (6, 5)
TURNS = 3


def planned(
    build: Build, rank: int, size: int, workers: int, *, is_wide: bool = False, dtype: str = "fp32"
) -> tuple[Plan, Value]:
    """x counts up each turn; the result is kept in a state that has all turns' sum."""
    builder = GraphBuilder("ranks", rank=rank, world_size=size)
    start = builder.state(SHAPE, dtype, name="x", init=rank + 1)
    grown = builder.apply("add", [start, 1], output=start)
    made = build(builder, builder.apply("mul", [grown, 2]))
    total = builder.state(made.view.shape, dtype, name="total")
    builder.apply("add", [total, made], output=total)
    graph = builder.freeze()
    target = wide_target(workers, kind="cuda") if is_wide else cpu_target(workers)
    plan = make_plan(graph, target, PlanOptions(), rank=rank, topology=topology_of((0,) * size))
    return plan, total


def totals(
    build: Build, size: int, workers: int = 2, seed: int = 0, **options: bool
) -> list[Array]:
    """Run all ranks a few turns in a random order, return everybody's sum of results."""
    made = [planned(build, rank, size, workers, **options) for rank in range(size)]
    world = RankWorld([plan for plan, _ in made], seed)
    assert world.run(TURNS - 1) == [TURNS - 1] * size
    assert world.run(1) == [1] * size
    return [world.read(rank, total.view) for rank, (_, total) in enumerate(made)]


def values(rank: int) -> Array:
    """What rank `rank` gives over all turns together."""
    each = [2 * (rank + 1 + turn) for turn in range(1, TURNS + 1)]
    return np.full(SHAPE, sum(each), np.float64)


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_all_reduce_gives_everybody_the_sum(
    size: int, is_wide: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ark_dist.scheduler.communicate.ONE_SHOT_BYTES", limit)
    for seed in range(3):
        found = totals(lambda b, x: b.apply("all_reduce", [x]), size, seed=seed, is_wide=is_wide)
        for value in found:
            np.testing.assert_array_equal(value, sum(values(r) for r in range(size)))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("reduce", ["max", "min", "mean"])
def test_all_reduce_knows_other_reductions(size: int, reduce: str) -> None:
    found = totals(lambda b, x: b.apply("all_reduce", [x], {"reduce": reduce}), size)
    combine = {"max": np.max, "min": np.min, "mean": np.mean}[reduce]
    for value in found:
        wanted = combine([values(r) for r in range(size)], axis=0)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gather_and_scatter_move_rows(size: int) -> None:
    gathered = totals(lambda b, x: b.apply("all_gather", [x], {"axis": 1}), size)
    for value in gathered:
        np.testing.assert_array_equal(value, np.concatenate([values(r) for r in range(size)], 1))
    scattered = totals(lambda b, x: b.apply("reduce_scatter", [x], {"axis": 0}), size)
    whole = sum(values(r) for r in range(size))
    np.testing.assert_array_equal(np.concatenate(scattered), whole)


@pytest.mark.parametrize("size", [2, 3])
def test_broadcast_gives_what_the_root_has(size: int) -> None:
    for value in totals(lambda b, x: b.apply("broadcast", [x], {"root": 1}), size):
        np.testing.assert_array_equal(value, values(1))


@pytest.mark.parametrize("size", [2, 3])
def test_all_to_all_transposes_pieces(size: int) -> None:
    found = totals(lambda b, x: b.apply("all_to_all", [x], {"axis": 0}), size)
    step = SHAPE[0] // size
    for value in found:
        for sender in range(size):
            assert (value[sender * step : (sender + 1) * step] == values(sender)[0, 0]).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_ring_of_sends_passes_values_on(size: int) -> None:
    def build(builder: GraphBuilder, x: Value) -> Value:
        rank = builder.rank
        token = builder.apply("send", [x], {"dst": (rank + 1) % size})
        got = builder.apply("recv", [], {"src": (rank - 1) % size, "shape": SHAPE, "dtype": "fp32"})
        done = builder.apply("send_done", [token])
        return builder.apply("copy", [got], deps=[done])

    for rank, value in enumerate(totals(build, size)):
        np.testing.assert_array_equal(value, values((rank - 1) % size))


def test_a_result_in_place_of_its_source_is_right() -> None:
    def build(builder: GraphBuilder, x: Value) -> Value:
        spare = builder.state(SHAPE, "fp32", name="spare")
        builder.apply("copy", [x], output=spare)
        return builder.apply("all_reduce", [spare], output=spare)

    for value in totals(build, 2):
        np.testing.assert_array_equal(value, values(0) + values(1))


def test_several_collectives_share_memory_without_harm() -> None:
    def build(builder: GraphBuilder, x: Value) -> Value:
        for _ in range(5):
            x = builder.apply("all_reduce", [builder.apply("mul", [x, 0.5])])
            x = builder.apply("all_gather", [x], {"axis": 0})
            x = builder.apply("reduce_scatter", [x], {"axis": 0})
            x = builder.apply("mul", [x, 0.25])
        return x

    for seed in range(5):
        for value in totals(build, 2, workers=3, seed=seed):
            wanted = (values(0) + values(1)) * 0.5
            for _ in range(4):
                wanted = wanted * 2 * 0.25 * 2 * 0.5
            np.testing.assert_allclose(value, wanted * 2 * 0.25, rtol=1e-6)


def test_ranks_that_disagree_are_told_so() -> None:
    def graph(rank: int, reduce: str, dtype: str) -> tuple[object, ...]:
        builder = GraphBuilder("g", rank=rank, world_size=2)
        x = builder.tensor((4,), dtype, name="x")
        builder.apply("all_reduce", [x], {"reduce": reduce}, name="sum")
        return calls(builder.freeze(), rank, 2)

    assert disagreement({0: graph(0, "sum", "fp32"), 1: graph(1, "sum", "fp32")}) is None
    text = disagreement({0: graph(0, "sum", "fp32"), 1: graph(1, "max", "fp32")})
    assert text is not None and "reduce='sum'" in text and "reduce='max'" in text
    text = disagreement({0: graph(0, "sum", "fp32"), 1: graph(1, "sum", "int32")})
    assert text is not None and "fp32[4]" in text and "int32[4]" in text
