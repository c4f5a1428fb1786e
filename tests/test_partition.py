"""Partitioned graphs compute what the whole graph does, with the communication one expects."""

from collections.abc import Sequence

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape, P
from ark_dist.core.op import AttrValue
from ark_dist.core.target import Topology, topology_of
from ark_dist.scheduler.partition import RankGraph, partition
from tests.partition_oracle import compare, random_data, ranks, sharded


class Model(GraphBuilder):
    """A builder with shorter words."""

    def op(
        self, name: str, *inputs: Value | float, output: Value | None = None, **attrs: AttrValue
    ) -> Value:
        return self.apply(name, inputs, attrs, output=output)

    def x(self, *shape: int, name: str = "x", shard: P | None = None) -> Value:
        return self.tensor(shape, "fp32", name=name, shard=shard)

    def w(self, *shape: int, name: str = "w", shard: P | None = None) -> Value:
        return self.parameter(shape, "fp32", name=name, shard=shard)


def mlp() -> Graph:
    m = Model()
    x, up = m.x(4, 8), m.w(8, 12, name="up", shard=P(None, "tp"))
    down = m.w(12, 8, name="down", shard=P("tp", None))
    m.op("matmul", m.op("relu", m.op("matmul", x, up)), down)
    return m.freeze()


def cut(graph: Graph, axes: Sequence[tuple[str, int]], rank: int = 0) -> RankGraph:
    mesh = MeshShape(tuple(axes))
    return partition(graph, mesh, rank, topology_of((0,) * mesh.world_size))


def shapes(part: RankGraph) -> dict[str, tuple[int, ...]]:
    return {buffer.name: buffer.shape for buffer in part.graph.buffers}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_columns_then_rows_need_one_all_reduce(count: int) -> None:
    assert compare(mlp(), {"tp": count}).ops() == ["all_reduce"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sizes_need_not_divide(count: int) -> None:
    m = Model()
    x, up, down = m.x(7, 5), m.w(5, 13, name="up"), m.w(13, 11, name="down")
    m.op("softmax", m.op("matmul", m.op("silu", m.op("matmul", x, up)), down), axis=-1)
    for shards in ({"up": P(None, "tp")}, {"x": P("tp", None)}, {"down": P(None, "tp")}):
        compare(sharded(m.freeze(), shards), {"tp": count})


def test_tensors_may_be_smaller_than_the_mesh_or_empty_or_numbers() -> None:
    m = Model()
    small, one = m.x(2, 5, shard=P("tp", None)), m.x(1, 5, name="one", shard=P("tp", None))
    empty, number = m.x(0, 5, name="empty", shard=P("tp", None)), m.x(name="number", shard=P())
    m.op("add", m.op("mul", small, one), number)
    m.op("exp", one)
    m.op("matmul", empty, m.w(5, 3, shard=P(None, "tp")))
    many = compare(m.freeze(), {"tp": 4})
    assert [shapes(part)["x"] for part in many.parts] == [(1, 5), (1, 5), (0, 5), (0, 5)]


def test_numbers_without_dimensions_stay_on_their_stage() -> None:
    m = Model()
    number = m.x(name="number")
    y = m.op("exp", number)
    m.select_stage(1)
    m.op("mul", y, m.x(3))
    many = compare(m.freeze(), {"pp": 2})
    assert many.parts[0].shares[number.view.buffer].parts == ((), ((0, 0),))


def test_a_weight_that_is_not_annotated_is_cut_with_what_it_multiplies() -> None:
    graph = sharded(mlp(), {"down": None})
    many = compare(graph, {"tp": 2})
    assert many.ops() == ["all_reduce"]
    assert shapes(many.parts[0])["down"] == (6, 8)


def test_a_weight_that_is_needed_whole_is_not_cut_unless_someone_asks_for_it() -> None:
    m = Model()
    x, w = m.x(4, 6, shard=P(None, "tp")), m.w(6, name="scale")
    m.op("rmsnorm", x, w, axis=-1, eps=1e-5)
    many = compare(m.freeze(), {"tp": 2})
    assert many.ops() == ["all_gather"]
    assert shapes(many.parts[0])["scale"] == (6,)


def test_one_rank_gets_the_graph_as_it_is() -> None:
    graph = mlp()
    part = cut(graph, [("tp", 1), ("pp", 1)])
    assert part.graph.methods == graph.methods
    assert part.notes == ()
    assert part.shares[0].parts == (((0, 4), (0, 8)),)


def test_an_axis_of_size_one_vanishes() -> None:
    assert compare(mlp(), {"dp": 1, "tp": 2, "pp": 1}).ops() == ["all_reduce"]


def test_notes_say_what_was_added_and_why() -> None:
    [note] = cut(mlp(), [("tp", 2)]).notes
    assert (note.op, note.ranks, note.bytes) == ("all_reduce", (0, 1), 4 * 8 * 4)
    assert note.node == "matmul 'matmul_1'"
    assert note.reason == "matmul_1 is partial over 'tp' after matmul 'matmul_1'"


def test_shares_say_which_rank_has_what() -> None:
    part = cut(mlp(), [("tp", 3)], rank=1)
    names = {buffer.name: buffer.id for buffer in mlp().buffers}
    up = part.shares[names["up"]]
    assert up.parts == (((0, 8), (0, 4)), ((0, 8), (4, 8)), ((0, 8), (8, 12)))
    assert part.graph.buffers[up.buffer].name == "up"


def test_a_bias_is_added_once() -> None:
    m = Model()
    x, w, bias = m.x(4, 6, shard=P(None, "tp")), m.w(6, 5), m.w(5, name="bias")
    m.op("add", m.op("matmul", x, w), bias)
    assert compare(m.freeze(), {"tp": 2}).ops() == ["all_reduce"]


def test_partial_sums_are_added_before_they_are_combined() -> None:
    m = Model()
    x = m.x(4, 6, shard=P(None, "tp"))
    products = [m.op("matmul", x, m.w(6, 5, name=name)) for name in ("a", "b", "c")]
    total = m.op("sub", m.op("add", products[0], m.op("neg", products[1])), products[2])
    factor = m.x(4, 1, name="factor")
    m.op("exp", m.op("div", m.op("mul", m.op("scale", total, val=0.5), factor), factor))
    assert compare(m.freeze(), {"tp": 3}).ops() == ["all_reduce"]


def test_partial_sums_are_combined_before_they_lose_digits() -> None:
    m = Model()
    x = m.x(4, 6, shard=P(None, "tp"))
    m.op("cast", m.op("matmul", x, m.w(6, 5)), dtype="bf16")
    part = cut(m.freeze(), [("tp", 2)])
    assert [node.op for node in part.graph.methods[0].nodes] == ["matmul", "all_reduce", "cast"]


def test_partial_sums_that_are_widened_are_combined_with_all_digits() -> None:
    m = Model()
    x = m.tensor((4, 6), "bf16", shard=P(None, "tp"))
    y = m.op("matmul", x, m.parameter((6, 5), "bf16"))
    m.op("add", m.op("cast", y, dtype="fp32"), m.x(4, 5, name="residual"))
    part = cut(m.freeze(), [("tp", 2)])
    nodes = part.graph.methods[0].nodes
    assert [node.op for node in nodes] == ["matmul", "cast", "all_reduce", "add"]
    assert nodes[2].output.dtype.name == "fp32"


def test_a_product_of_partial_sums_is_not_the_sum_of_products() -> None:
    m = Model()
    x = m.x(4, 6, shard=P(None, "tp"))
    a, b = (m.op("matmul", x, m.w(6, 5, name=name)) for name in ("a", "b"))
    m.op("mul", a, b)
    assert compare(m.freeze(), {"tp": 2}).ops() == ["all_reduce", "all_reduce"]


def test_what_is_combined_and_cut_along_time_is_scattered() -> None:
    m = Model()
    x = m.x(1, 8, 64, shard=P(None, "tp", None))
    up, down = m.w(64, 96, name="up"), m.w(96, 64, name="down")
    y = m.op("rmsnorm", x, m.w(64, name="norm"), axis=-1, eps=1e-5)
    m.op("add", x, m.op("matmul", m.op("relu", m.op("matmul", y, up)), down))
    graph = sharded(m.freeze(), {"up": P(None, "tp"), "down": P("tp", None)})
    assert compare(graph, {"tp": 4}).ops() == ["all_gather", "reduce_scatter"]


@pytest.mark.parametrize("op", ["reduce_sum", "reduce_max", "reduce_min"])
def test_parts_of_a_reduction_are_combined_even_empty_ones(op: str) -> None:
    m = Model()
    m.op(op, m.x(3, 5, shard=P("tp", None)), axis=0, keepdims=False)
    many = compare(m.freeze(), {"tp": 4})
    assert many.ops(3) == ["all_reduce"]
    assert shapes(many.parts[3])["x"] == (0, 5)


def test_integers_and_flags_have_empty_parts_too() -> None:
    m = Model()
    for dtype in ("int32", "uint8"):
        x = m.tensor((2, 3), dtype, name=dtype, shard=P("tp", None))
        for op in ("reduce_max", "reduce_min", "reduce_sum"):
            m.op(op, x, axis=0, keepdims=True)
    compare(m.freeze(), {"tp": 3})


def test_a_mean_needs_all_elements() -> None:
    m = Model()
    m.op("reduce_mean", m.x(3, 5, shard=P("tp", None)), axis=0, keepdims=False)
    assert compare(m.freeze(), {"tp": 2}).ops() == ["all_gather"]


def test_a_batch_that_is_cut_needs_no_communication() -> None:
    graph = sharded(mlp(), {"x": P("dp", None), "up": None, "down": None})
    many = compare(graph, {"dp": 4})
    assert many.ops() == []
    assert shapes(many.parts[0])["up"] == (8, 12)


def test_cuts_along_two_axes_work_together() -> None:
    graph = sharded(mlp(), {"x": P("dp", None)})
    many = compare(graph, {"dp": 2, "tp": 2})
    assert many.ops() == ["all_reduce"]
    assert [note.ranks for note in many.parts[3].notes] == [(2, 3)]


def test_a_table_cut_by_rows_gives_partial_rows() -> None:
    m = Model()
    tokens = m.tensor((2, 3), "int32", name="tokens")
    m.op("exp", m.op("embedding", tokens, m.w(70, 40, shard=P("tp", None))))
    data = random_data(m.freeze(), 0, {tokens.view.buffer: 70})
    many = compare(m.freeze(), {"tp": 3}, data=data)
    assert many.ops() == ["all_reduce"]
    assert shapes(many.parts[2])["w"] == (23, 40)


def test_a_view_across_the_cut_is_read_from_all_of_it() -> None:
    m = Model()
    x = m.x(5, 6, shard=P(None, "tp"))
    m.op("exp", m.op("reshape", x, shape=(30,)))
    m.op("exp", m.op("narrow", x, axis=1, start=1, length=4))
    assert compare(m.freeze(), {"tp": 2}).ops() == ["all_gather"]


def test_a_cut_that_moves_to_another_dimension_is_redistributed() -> None:
    m = Model()
    w = m.w(50, 70, name="second", shard=P("tp", None))
    m.op("mul", m.op("exp", m.x(50, 70, shard=P(None, "tp"))), w)
    graph = sharded(m.freeze(), {"exp": P(None, "tp"), "mul": P("tp", None)})
    assert compare(graph, {"tp": 3}).ops() == ["redistribute"]


def test_units_that_would_leave_ranks_without_work_are_not_joined() -> None:
    m = Model()
    x = m.x(12, shard=P("tp"))
    m.op("exp", m.op("reshape", x, shape=(4, 3)))
    m.op("sin", m.op("reshape", x, shape=(3, 4)))
    many = compare(m.freeze(), {"tp": 4})
    assert [shapes(part)["x"] for part in many.parts] == [(3,)] * 4
    assert many.ops() == ["all_gather"]


def test_classes_that_two_axes_ask_for_are_cut_by_the_larger_tensor() -> None:
    m = Model()
    m.op("mul", m.x(8, 6, shard=P("a", None)), m.x(8, 1, name="small", shard=P("b", None)))
    many = compare(m.freeze(), {"a": 2, "b": 2})
    assert many.ops() == ["all_gather"]
    assert many.parts[0].notes[0].reason.startswith("small is cut over 'b'")


def test_pieces_of_one_result_are_written_to_their_place() -> None:
    m = Model()
    a, b = m.x(3, 4, name="a", shard=P(None, "tp")), m.x(2, 4, name="b")
    m.op("concat", m.op("exp", a), m.op("neg", b), axis=0)
    many = compare(m.freeze(), {"tp": 2})
    assert many.ops() == []
    assert shapes(many.parts[0])["concat"] == (5, 2)


def test_pieces_along_the_cut_are_put_together_on_all_ranks() -> None:
    m = Model()
    a, b = m.x(3, 4, name="a", shard=P("tp", None)), m.x(2, 4, name="b", shard=P("tp", None))
    m.op("exp", m.op("concat", a, b, axis=0))
    compare(m.freeze(), {"tp": 2})


def test_pieces_go_into_the_parts_of_an_annotated_result() -> None:
    m = Model()
    m.op("concat", m.x(3, 4, name="a"), m.x(2, 4, name="b"), axis=0)
    graph = sharded(m.freeze(), {"concat": P("tp", None)})
    many = compare(graph, {"tp": 2})
    assert shapes(many.parts[1])["concat"] == (2, 4)


def test_a_state_is_read_and_written_where_it_lies() -> None:
    m = Model()
    state = m.state((4, 6), "fp32", name="state", init=np.arange(24.0).reshape(4, 6) / 24)
    m.op("add", m.op("mul", state, 0.5), m.x(4, 6), output=state)
    graph = sharded(m.freeze(), {"state": P(None, "tp")})
    many = compare(graph, {"tp": 4}, runs=[("forward", 3)])
    assert many.ops() == []
    assert shapes(many.parts[3])["state"] == (4, 1)


def test_a_row_of_a_cut_state_is_written_by_the_rank_that_has_it() -> None:
    m = Model()
    state = m.state((4, 6), "fp32", name="state")
    row = m.op("narrow", state, axis=0, start=2, length=1)
    m.op("exp", m.x(1, 6), output=row)
    m.op("exp", state)
    graph = sharded(m.freeze(), {"state": P("tp", None)})
    many = compare(graph, {"tp": 2}, runs=[("forward", 2)])
    assert shapes(many.parts[0])["state"] == (2, 6)


def test_one_element_of_a_cut_state_is_written_by_the_rank_that_has_it() -> None:
    m = Model()
    state = m.state((4,), "fp32", name="state")
    one = m.op("narrow", state, axis=0, start=2, length=1)
    m.op("exp", m.x(1), output=one)
    graph = sharded(m.freeze(), {"state": P("tp")})
    compare(graph, {"tp": 4}, runs=[("forward", 2)])


def test_a_state_that_is_written_across_its_cut_is_kept_whole() -> None:
    m = Model()
    state = m.state((4, 6), "fp32", name="state")
    m.op("exp", m.x(24), output=m.op("reshape", state, shape=(24,)))
    graph = sharded(m.freeze(), {"state": P(None, "tp")})
    many = compare(graph, {"tp": 2})
    assert shapes(many.parts[0])["state"] == (4, 6)


def test_a_copy_of_a_whole_state_into_itself_does_not_read_what_it_writes() -> None:
    m = Model()
    state = m.state((4, 4), "fp32", name="state", init=np.arange(16.0).reshape(4, 4) / 16)
    turned = m.op("transpose", state, perm=(1, 0))
    m.op("add", turned, m.x(4, 4), output=state)
    compare(sharded(m.freeze(), {"state": P("tp", None)}), {"tp": 2}, runs=[("forward", 3)])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_key_heads_that_two_ranks_need_are_on_both(count: int) -> None:
    m = Model()
    q = m.op("reshape", m.op("matmul", m.x(5, 8), m.w(8, 36)), shape=(1, 5, 9, 4))
    k, v = (m.op("reshape", m.x(5, 12, name=n), shape=(1, 5, 3, 4)) for n in "kv")
    m.op("attention", q, k, v, causal=True, scale=None)
    graph = sharded(m.freeze(), {"w": P(None, "tp")})
    many = compare(graph, {"tp": count})
    assert many.ops() == []
    names = {buffer.name: buffer.id for buffer in graph.buffers}
    found = [parts[1] for parts in many.parts[0].shares[names["k"]].parts]
    heads = {
        2: [(0, 2), (1, 3)],
        3: [(0, 1), (1, 2), (2, 3)],
        4: [(0, 1), (1, 2), (1, 3), (2, 3)],
    }
    assert found == [(a * 4, b * 4) for a, b in heads[count]]


def test_parts_that_overlap_are_gathered_once() -> None:
    m = Model()
    q = m.op("reshape", m.op("matmul", m.x(5, 8), m.w(8, 36)), shape=(1, 5, 9, 4))
    keys = m.op("exp", m.x(5, 12, name="k"))
    k = m.op("reshape", keys, shape=(1, 5, 3, 4))
    m.op("attention", q, k, k, causal=True, scale=None)
    m.op("softmax", keys, axis=1)
    m.op("matmul", keys, m.w(12, 3, name="other"))
    compare(sharded(m.freeze(), {"w": P(None, "tp")}), {"tp": 2})


def test_flags_that_end_a_run_are_the_same_on_all_ranks() -> None:
    m = Model()
    x = m.tensor((6,), "int32", name="x", shard=P("dp"))
    m.op("stop_when", m.op("reduce_min", x, axis=0, keepdims=True))
    many = compare(m.freeze(), {"dp": 2})
    assert [many.ops(rank) for rank in range(2)] == [["all_reduce"]] * 2


def test_slow_links_are_avoided() -> None:
    m = Model()
    w = m.w(64, 64, shard=P("far", "near"))
    m.op("matmul", m.x(1, 64), w)
    mesh = MeshShape((("far", 2), ("near", 2)))
    topology = Topology((0, 0, 1, 1), 10e9, 1e-6, 1e8, 50e-6)
    part = partition(m.freeze(), mesh, 0, topology)
    assert [(note.op, note.ranks) for note in part.notes] == [("all_reduce", (0, 2))]
    many = ranks(m.freeze(), mesh, random_data(m.freeze(), 0), (0, 0, 1, 1))
    many.run("forward")
    assert (shapes(many.parts[0])["x"], shapes(many.parts[0])["w"]) == ((1, 32), (32, 32))
