"""Communication operators become handshakes and copies that are right in any order of steps."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.message import Call, calls, disagreement
from ark_dist.core.target import topology_of
from ark_dist.scheduler.communicate import communicate
from tests.rank_cases import SHAPE, Numbers, chain, in_place, moved_part, ring, totals, values

REDUCTIONS: dict[str, Callable[..., Numbers]] = {"max": np.max, "min": np.min, "mean": np.mean}


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
    wanted = REDUCTIONS[reduce]([values(r) for r in range(size)], axis=0)
    for value in found:
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
    for rank, value in enumerate(found):
        wanted = [values(sender)[rank * step : (rank + 1) * step] for sender in range(size)]
        np.testing.assert_array_equal(value, np.concatenate(wanted))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_ring_of_sends_passes_values_on(size: int) -> None:
    for rank, value in enumerate(totals(ring, size)):
        np.testing.assert_array_equal(value, values((rank - 1) % size))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rows_are_dealt_out_anew(size: int) -> None:
    for rank, value in enumerate(totals(moved_part, size)):
        np.testing.assert_array_equal(value, values(rank))


def test_a_result_in_place_of_its_source_is_right() -> None:
    for value in totals(in_place, 2):
        np.testing.assert_array_equal(value, values(0) + values(1))


def test_several_collectives_share_memory_without_harm() -> None:
    # Each round halves x, adds both ranks', adds both again, and takes a quarter.
    wanted = (values(0) + values(1)) * 0.5 * 2 * 0.25
    for _ in range(3):
        wanted = (wanted + wanted) * 0.5 * 2 * 0.25
    for seed in range(5):
        for value in totals(chain, 2, workers=3, seed=seed):
            np.testing.assert_allclose(value, wanted, rtol=1e-6)


def test_ranks_that_disagree_are_told_so() -> None:
    def graph(rank: int, reduce: str, dtype: str) -> Sequence[Call]:
        builder = GraphBuilder("g", rank=rank, world_size=2)
        x = builder.tensor((4,), dtype, name="x")
        builder.apply("all_reduce", [x], {"reduce": reduce}, name="sum")
        return calls(builder.freeze(), rank, 2)

    assert disagreement({0: graph(0, "sum", "fp32"), 1: graph(1, "sum", "fp32")}) is None
    text = disagreement({0: graph(0, "sum", "fp32"), 1: graph(1, "max", "fp32")})
    assert text is not None and "reduce='sum'" in text and "reduce='max'" in text
    text = disagreement({0: graph(0, "sum", "fp32"), 1: graph(1, "sum", "int32")})
    assert text is not None and "fp32[4]" in text and "int32[4]" in text


@pytest.mark.parametrize(
    ("transport", "nodes", "message"),
    [
        ("fast", (0, 0), "transport is 'fast'; it must be one of auto, peer, proxy"),
        ("peer", (0, 1), "2 ranks of 2 nodes; use 'auto'"),
        ("peer", (0,) * 13, "13 ranks of 1 nodes; use 'auto'"),
    ],
)
def test_a_transport_that_can_not_do_it_is_refused(
    transport: str, nodes: tuple[int, ...], message: str
) -> None:
    builder = GraphBuilder("far", rank=0, world_size=len(nodes))
    builder.apply("all_reduce", [builder.tensor((4,), "fp32")])
    with pytest.raises(ValueError, match=message):
        communicate(builder.freeze(), 0, topology_of(nodes), transport)
