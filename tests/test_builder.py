"""Building a graph infers shapes, names and outputs, and copies where memory would clash."""

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
from ark_dist.core.target import cpu_target
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import make_plan
from tests.plan_models import eager, matmul
from tests.small_model import Small

MATMUL: dict[str, AttrValue] = {
    "transpose_input": False,
    "transpose_other": False,
    "is_relu": False,
}


def names(graph: Graph) -> list[str]:
    return [b.name for b in graph.buffers]


def test_names_are_unique_whatever_the_caller_says() -> None:
    builder = GraphBuilder()
    for name in ("a_1", "a", "a", "a", "a_1", None, None, "tensor_1", "tensor"):
        builder.tensor((1,), "fp32", name=name)
    assert len(set(names(builder.freeze()))) == 9
    assert names(builder.freeze())[:2] == ["a_1", "a"]
    assert builder.is_taken("tensor_1") and not builder.is_taken("b")


def test_a_number_becomes_one_constant_per_dtype_and_value() -> None:
    small = Small()
    for value in (2, 2.0, np.float32(2), True):
        small.apply("mul", [small.x, value])
    small.apply("mul", [2.0, small.x])
    small.apply("mul", [small.half, 2.0])
    constants = [b for b in small.builder.freeze().buffers if b.kind == "constant"]
    assert [(b.dtype.name, b.initial) for b in constants] == [
        ("fp32", np.float32(1).tobytes()),
        ("fp32", np.float32(2).tobytes()),
        ("fp16", np.float16(2).tobytes()),
    ]


def test_what_nobody_reads_is_an_output_and_keep_adds_others() -> None:
    small = Small()
    first = small.apply("relu", [small.x], name="first")
    second = small.apply("relu", [first], name="second")
    small.apply("relu", [second], name="third")
    kinds = {b.name: b.kind for b in small.builder.freeze().buffers}
    assert (kinds["first"], kinds["second"], kinds["third"]) == (
        "activation",
        "activation",
        "output",
    )
    small.builder.keep(first)
    kinds = {b.name: b.kind for b in small.builder.freeze().buffers}
    assert (kinds["first"], kinds["second"], kinds["third"]) == ("output", "activation", "output")


def test_a_view_that_nobody_reads_makes_its_source_an_output() -> None:
    small = Small()
    made = small.apply("relu", [small.x], name="made")
    small.apply("transpose", [made], {"perm": None})
    assert small.builder.freeze().buffers[made.view.buffer].kind == "output"


def test_a_result_that_is_worked_on_in_place_stays_readable() -> None:
    small = Small()
    made = small.apply("relu", [small.x], name="made")
    again = small.apply("add", [made, 1.0], output=made)
    assert again is made
    assert small.builder.freeze().buffers[made.view.buffer].kind == "output"


def test_a_fresh_tensor_given_as_output_becomes_one() -> None:
    small = Small()
    y = small.builder.tensor((2, 3), "fp32", name="y")
    assert small.apply("relu", [small.x], output=y) is y
    assert small.builder.freeze().buffers[y.view.buffer].kind == "output"
    small.apply("relu", [y])
    with pytest.raises(ValueError, match="output 'x' is of kind input or in use"):
        small.apply("relu", [y], output=small.x)


def run_once(
    builder: GraphBuilder, data: dict[Value, object], wanted: Value, workers: int
) -> object:
    plan = make_plan(builder.freeze(), eager(cpu_target(workers)))
    session = Session(plan, NumpyDevice(plan), SessionOptions())
    session.compile(lambda path: None)
    for value, array in data.items():
        session.write(value.view, np.asarray(array, value.view.dtype.numpy))
    session.launch()
    session.run(1, "forward", {})
    session.wait()
    found = session.read(wanted.view).tolist()
    session.close()
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_state_assigned_from_its_own_transpose_goes_through_a_copy(workers: int) -> None:
    builder = GraphBuilder()
    start = np.arange(9.0).reshape(3, 3)
    state = builder.state((3, 3), "fp32", name="s", init=start)
    turned = builder.apply("transpose", [state], {"perm": (1, 0)})
    builder.apply("add", [turned, 1.0], output=state)
    nodes = builder.freeze().methods[0].nodes
    assert [n.op for n in nodes] == ["add", "copy"]
    assert nodes[0].output.buffer != state.view.buffer
    assert run_once(builder, {}, state, workers) == (start.T + 1).tolist()


def test_a_state_changed_element_by_element_needs_no_copy() -> None:
    builder = GraphBuilder()
    state = builder.state((3, 3), "fp32", name="s")
    builder.apply("add", [state, 1.0], output=state)
    assert [n.op for n in builder.freeze().methods[0].nodes] == ["add"]


def test_parts_of_a_state_that_do_not_meet_need_no_copy() -> None:
    builder = GraphBuilder()
    state = builder.state((4, 3), "fp32", name="s")
    parts = [
        builder.apply("narrow", [state], {"axis": 0, "start": i, "length": 2}) for i in (0, 1, 2)
    ]
    builder.apply("relu", [parts[0]], output=parts[2])
    assert len(builder.freeze().methods[0].nodes) == 1
    builder.apply("relu", [parts[0]], output=parts[1])
    assert [n.op for n in builder.freeze().methods[0].nodes[1:]] == ["relu", "copy"]


def test_a_matmul_into_its_own_operand_goes_through_a_copy() -> None:
    builder = GraphBuilder()
    state = builder.state((3, 3), "fp32", init=np.eye(3) * 2)
    builder.apply("matmul", [state, state], MATMUL, output=state)
    assert [n.op for n in builder.freeze().methods[0].nodes] == ["matmul", "copy"]
    assert run_once(builder, {}, state, 2) == (np.eye(3) * 4).tolist()


def test_a_view_with_an_output_is_copied_there() -> None:
    small = Small()
    state = small.builder.state((3, 2), "fp32")
    small.apply("transpose", [small.x], {"perm": None}, output=state)
    node = small.builder.freeze().methods[0].nodes[-1]
    assert node.op == "copy" and node.output == state.view


def test_a_reshape_that_is_no_view_copies_first() -> None:
    small = Small()
    turned = small.apply("transpose", [small.x], {"perm": None})
    flat = small.apply("reshape", [turned], {"shape": (6,)})
    assert [n.op for n in small.builder.freeze().methods[0].nodes] == ["copy"]
    data = np.arange(6.0).reshape(2, 3)
    assert run_once(small.builder, {small.x: data}, flat, 1) == data.T.reshape(-1).tolist()


def test_identity_orders_what_uses_it_after_its_deps() -> None:
    small = Small()
    before = small.apply("copy", [small.state], name="before")
    written = small.apply("add", [small.state, 1.0], output=small.state)
    late = small.apply("identity", [small.x], deps=(written, before))
    small.apply("relu", [late], name="last")
    node = small.builder.freeze().methods[0].nodes[-1]
    assert set(node.after) == {written.view, before.view}
    assert " after %8, " in str(small.builder.freeze())


def test_methods_share_states_and_inputs_but_not_results() -> None:
    builder = GraphBuilder()
    x, total = builder.tensor((2,), "fp32"), builder.state((2,), "fp32", name="total")
    builder.select_method("grow")
    builder.apply("add", [total, x], output=total)
    builder.select_method("shrink")
    builder.apply("sub", [total, x], output=total)
    graph = builder.freeze()
    assert [m.name for m in graph.methods] == ["grow", "shrink"]  # no empty `forward`
    assert len(graph.buffers) == 2
    assert builder.method == "shrink"


def test_a_model_without_operators_has_one_empty_method() -> None:
    assert [m.name for m in GraphBuilder().freeze().methods] == ["forward"]


def test_a_command_scalar_is_read_once_per_method_before_its_first_use() -> None:
    small = Small()
    step = small.builder.state((1,), "fp32", name="step")
    small.builder.command_scalar(step)
    for method in ("forward", "other"):
        small.builder.select_method(method)
        for _ in range(2):
            small.apply("mul", [small.x, step])
    for part in small.builder.freeze().methods:
        assert [n.op for n in part.nodes] == ["command_scalar", "mul", "mul"]


def test_nodes_remember_the_stage_they_were_built_in() -> None:
    small = Small()
    small.apply("relu", [small.x])
    assert small.builder.select_stage(2) == 0
    small.apply("relu", [small.x])
    assert [n.stage for n in small.builder.freeze().methods[0].nodes] == [0, 2]


def test_shapes_are_inferred_through_a_chain() -> None:
    builder = GraphBuilder()
    x = builder.tensor((5, 1, 4, 3), "bf16")
    y = matmul(builder, x, builder.parameter((2, 3, 7), "bf16"))
    assert (y.view.shape, y.view.dtype.name) == ((5, 2, 4, 7), "bf16")
    z = builder.apply("argmax", [y], {"axis": 1, "keepdims": False})
    assert (z.view.shape, z.view.dtype.name) == ((5, 4, 7), "int32")
    w = builder.apply("embedding", [z, builder.parameter((9, 6), "fp16")])
    assert (w.view.shape, w.view.dtype.name) == ((5, 4, 7, 6), "fp16")
    v = builder.apply("greater_equal", [w, 0.5])
    assert (v.view.shape, v.view.dtype.name) == ((5, 4, 7, 6), "bool")
