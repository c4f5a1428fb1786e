"""How a tensor gets from one layout to another, and what is thought to be cheap."""

from ark_dist.core.layout import MeshShape
from ark_dist.core.target import Topology
from ark_dist.scheduler.layouts import Cut, Cuts, Layout, even
from ark_dist.scheduler.routes import Network, Tensor, route

MESH = MeshShape((("far", 2), ("near", 4)))
TOPOLOGY = Topology((0, 0, 0, 0, 1, 1, 1, 1), 10e9, 1e-6, 1e9, 20e-6)
NETWORK = Network(MESH, TOPOLOGY)
BY_FOUR = Cut("near", even(8, 4))
ROWS: Cuts = (BY_FOUR, None)
COLUMNS: Cuts = (None, BY_FOUR)
WHOLE: Cuts = (None, None)


def ops(source: Layout, target: Cuts) -> list[str]:
    return [move.op for move in route(source, target)]


def test_what_is_there_already_costs_nothing() -> None:
    assert ops(Layout(ROWS), ROWS) == []
    assert ops(Layout(WHOLE), ROWS) == []


def test_a_part_of_what_a_rank_has_costs_nothing() -> None:
    wide = Cut("near", tuple((max(a - 1, 0), b) for a, b in BY_FOUR.bounds))
    assert ops(Layout((wide, None)), ROWS) == []
    assert ops(Layout(ROWS), (wide, None)) == ["redistribute"]


def test_each_axis_is_gathered_by_itself() -> None:
    both: Cuts = (Cut("far", even(8, 2)), BY_FOUR)
    moves = route(Layout(both), WHOLE)
    assert [(move.op, move.axes, move.dim) for move in moves] == [
        ("all_gather", ("far",), 0),
        ("all_gather", ("near",), 1),
    ]


def test_a_cut_changes_its_dimension_in_one_step() -> None:
    assert ops(Layout(ROWS), COLUMNS) == ["redistribute"]


def test_partial_values_are_scattered_where_they_are_wanted_in_parts() -> None:
    partial = Layout(WHOLE, (("near", "sum"),))
    assert ops(partial, ROWS) == ["reduce_scatter"]
    assert ops(partial, WHOLE) == ["all_reduce"]
    assert route(partial, WHOLE, frozenset({"near"})) == ()


def test_partial_values_can_not_be_scattered_to_parts_that_overlap() -> None:
    wide = Cut("near", tuple((max(a - 1, 0), b) for a, b in BY_FOUR.bounds))
    assert ops(Layout(WHOLE, (("near", "sum"),)), (wide, None)) == ["all_reduce"]


def test_links_between_nodes_cost_more() -> None:
    tensor = Tensor((64, 64), 4)
    near, far = (
        NETWORK.seconds(tensor, route(Layout(WHOLE, ((axis, "sum"),)), WHOLE))
        for axis in ("near", "far")
    )
    assert far > near


def test_small_sums_are_direct_and_large_ones_go_in_two_steps() -> None:
    moves = route(Layout(WHOLE, (("near", "sum"),)), WHOLE)
    # Formulas: latency + 3 parts over the rate; twice latency + 3/4 of it.
    assert NETWORK.seconds(Tensor((8, 8), 4), moves) == 1e-6 + 3 * 256 / 10e9
    large = 4 * 1024 * 1024
    assert NETWORK.seconds(Tensor((1024, 1024), 4), moves) == 2 * (1e-6 + large * 3 / 4 / 10e9)


def test_a_part_costs_less_than_the_whole() -> None:
    tensor = Tensor((512, 512), 4)
    gathered, moved = (
        NETWORK.seconds(tensor, route(Layout((Cut("near", even(512, 4)), None)), target))
        for target in (WHOLE, (None, Cut("near", even(512, 4))))
    )
    assert moved < gathered
