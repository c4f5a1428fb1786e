"""Stages of a pipeline run on different ranks, and send each other what they need."""

from collections import Counter

import pytest

from ark_dist.core.graph import Graph
from ark_dist.core.layout import P
from tests.partition_oracle import compare, sharded
from tests.test_partition import Model


def two_stages() -> Graph:
    m = Model()
    x, up, down = m.x(4, 6), m.w(6, 8, name="up"), m.w(8, 6, name="down")
    y = m.op("relu", m.op("matmul", x, up))
    m.select_stage(1)
    m.op("matmul", y, down)
    return m.freeze()


def test_a_later_stage_receives_what_it_reads() -> None:
    many = compare(two_stages(), {"pp": 2}, runs=[("forward", 2)])
    assert [many.ops(rank) for rank in range(2)] == [["send"], ["recv"]]
    assert many.parts[1].notes[0].reason == "relu of stage 0 is needed in stage 1"


def test_each_rank_has_the_tensors_of_its_stage_only() -> None:
    many = compare(two_stages(), {"pp": 2})
    held = [{b.name for b in part.graph.buffers if b.kind != "activation"} for part in many.parts]
    assert held == [{"x", "up"}, {"down", "matmul_1"}]
    names = {buffer.name: buffer.id for buffer in two_stages().buffers}
    assert many.parts[0].shares[names["down"]].buffer == -1
    assert many.parts[0].shares[names["matmul_1"]].parts == (((0, 0), (0, 0)), ((0, 4), (0, 6)))


@pytest.mark.parametrize("axes", [{"pp": 2, "tp": 2}, {"tp": 2, "pp": 2}])
def test_ranks_of_a_stage_share_its_work(axes: dict[str, int]) -> None:
    graph = sharded(two_stages(), {"up": P(None, "tp"), "down": P("tp", None)})
    many = compare(graph, axes)
    found = Counter(op for rank in range(4) for op in many.ops(rank))
    assert found == {"all_reduce": 2, "recv": 2, "send": 2}


def test_without_the_axis_stages_do_not_matter() -> None:
    graph = sharded(two_stages(), {"up": P(None, "tp"), "down": P("tp", None)})
    assert compare(graph, {"tp": 2}).ops() == ["all_reduce"]


def test_a_weight_of_two_stages_is_on_both() -> None:
    m = Model()
    w = m.w(6, 6)
    y = m.op("matmul", m.x(4, 6), w)
    m.select_stage(1)
    m.op("matmul", y, w, transpose_other=True)
    many = compare(m.freeze(), {"pp": 2})
    shares = [part.shares[w.view.buffer] for part in many.parts]
    assert [share.buffer >= 0 for share in shares] == [True, True]
    assert shares[0].parts == (((0, 6), (0, 6)), ((0, 6), (0, 6)))


def test_a_state_that_the_last_stage_writes_goes_to_the_first_one_at_the_start() -> None:
    m = Model()
    state = m.state((3,), "fp32", name="state", init=0.5)
    y = m.op("sin", state)
    m.select_stage(1)
    z = m.op("add", y, 1.0)
    m.select_stage(2)
    m.op("mul", z, 0.5, output=state)
    many = compare(m.freeze(), {"pp": 3}, runs=[("forward", 3), ("forward", 2)])
    assert [many.ops(rank) for rank in range(3)] == [
        ["recv", "send"],
        ["recv", "send"],
        ["send", "recv"],
    ]


def test_an_early_stage_reads_what_a_late_one_has_just_written() -> None:
    m = Model()
    state = m.state((3,), "fp32", name="state", init=0.5)
    m.select_stage(1)
    m.op("add", m.op("sin", state), m.x(3), output=state)
    m.select_stage(0)
    m.op("exp", state)
    compare(m.freeze(), {"pp": 2}, runs=[("forward", 3)])


def test_pieces_that_several_stages_write_come_together_on_one() -> None:
    m = Model()
    state = m.state((4, 6), "fp32", name="state")
    x = m.x(2, 6)
    for stage in range(2):
        m.select_stage(stage)
        half = m.op("narrow", state, axis=0, start=2 * stage, length=2)
        m.op("scale", x, val=float(stage + 1), output=half)
    m.op("exp", state)
    graph = sharded(m.freeze(), {"state": P(None, "tp")})
    many = compare(graph, {"pp": 2, "tp": 2}, runs=[("forward", 2)])
    names = {buffer.name: buffer.id for buffer in graph.buffers}
    held = [part.shares[names["state"]].buffer >= 0 for part in many.parts]
    assert held == [True, True, False, False]


def test_a_flag_that_ends_a_run_is_broadcast_to_all_stages() -> None:
    m = Model()
    count = m.state((1,), "int32", name="count")
    m.select_stage(1)
    now = m.op("add", count, 1)
    m.op("copy", now, output=count)
    m.op("stop_when", m.op("equal", now, 3))
    many = compare(m.freeze(), {"pp": 3}, runs=[("forward", 2)])
    assert [many.ops(rank) for rank in range(3)] == [["broadcast"]] * 3
    stops = [
        sum(node.op == "stop_when" for node in part.graph.methods[0].nodes) for part in many.parts
    ]
    assert stops == [1, 1, 1]


def test_a_flag_that_all_stages_have_is_not_sent() -> None:
    m = Model()
    flag = m.tensor((1,), "int32", name="flag")
    m.op("stop_when", flag)
    assert compare(m.freeze(), {"pp": 2}).ops() == []


def test_a_scalar_of_a_command_is_set_on_all_stages_that_read_it() -> None:
    m = Model()
    heat = m.state((1,), "fp32", name="heat")
    m.command_scalar(heat)
    y = m.op("mul", m.x(3), heat)
    m.select_stage(1)
    m.op("add", y, heat)
    many = compare(m.freeze(), {"pp": 2}, runs=[("forward", 2)], scalars={"heat": 0.75})
    assert [many.ops(rank) for rank in range(2)] == [["send"], ["recv"]]


def test_what_comes_after_another_tensor_does_so_on_its_own_rank() -> None:
    m = Model()
    x = m.x(4)
    first = m.op("exp", x)
    second = m.apply("identity", [m.op("sin", x)], deps=[first])
    m.op("cos", second)
    graph = sharded(m.freeze(), {"x": P("tp")})
    many = compare(graph, {"tp": 2})
    [last] = [node for node in many.parts[0].graph.methods[0].nodes if node.op == "cos"]
    assert [view.shape for view in last.after] == [(2,)]


def test_methods_share_states_between_stages() -> None:
    m = Model()
    state = m.state((3,), "fp32", name="state", init=0.5)
    for stage, name in enumerate(("first", "second")):
        m.select_method(name)
        m.select_stage(stage)
        m.op("add", m.op("sin", state), m.x(3, name=name + ".x"), output=state)
    runs = [("first", 2), ("second", 2), ("first", 1)]
    compare(m.freeze(), {"pp": 2}, runs=runs)
