"""Building a graph infers shapes, refuses what can't work, and leaves no trace of a refusal."""

import re
from collections.abc import Callable

import numpy as np
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Operand, Value
from ark_dist.core.errors import PlanError
from ark_dist.core.graph import Graph
from ark_dist.core.layout import P
from ark_dist.core.op import AttrValue, find_op
from ark_dist.core.verify_graph import verify_graph
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import make_plan
from tests.plan_models import eager, matmul

from ark_dist.core.target import cpu_target  # isort: skip

MATMUL: dict[str, AttrValue] = {
    "transpose_input": False, "transpose_other": False, "is_relu": False
}  # fmt: skip
AXIS: dict[str, AttrValue] = {"axis": -1, "keepdims": True}


class Small:
    """A builder with a tensor of each kind that the tests use."""

    def __init__(self) -> None:
        self.builder = GraphBuilder("small")
        self.x = self.builder.tensor((2, 3), "fp32", name="x")
        self.half = self.builder.tensor((2, 3), "fp16", name="half")
        self.ints = self.builder.tensor((4,), "int32", name="ints")
        self.empty = self.builder.tensor((2, 0), "fp32", name="empty")
        self.dot = self.builder.tensor((), "fp32", name="dot")
        self.flag = self.builder.tensor((1,), "bool", name="flag")
        self.weight = self.builder.parameter((2, 3), "fp32", name="weight")
        self.state = self.builder.state((2, 3), "fp32", name="state")
        self.ones = self.builder.constant(1.0, (2, 3), "fp32")
        self.wide = self.builder.tensor((2**24, 1), "fp32", name="wide")
        self.tall = self.builder.tensor((2**25,), "fp32", name="tall")
        self.other = GraphBuilder("other").tensor((2, 3), "fp32", name="far")

    def apply(
        self, op: str, inputs: list[Operand], attrs: dict[str, AttrValue] | None = None,
        output: Value | None = None, deps: tuple[Value, ...] = (), name: str | None = None,
    ) -> Value:  # fmt: skip
        return self.builder.apply(op, inputs, attrs, output=output, deps=deps, name=name)


Call = Callable[[Small], object]
ERRORS: list[tuple[type[Exception], str, Call]] = [
    # The builder's own.
    (ValueError, "operator 'gelu_x' is not registered; there are add, ", lambda s: s.apply("gelu_x", [s.x])),
    (TypeError, "add: input 1 is str; wanted a tensor of this model or a number", lambda s: s.apply("add", [s.x, "a"])),  # type: ignore[list-item]
    (TypeError, "add: input 0 is float; wanted a tensor of this model", lambda s: s.apply("add", [1.0, 2.0])),
    (TypeError, "add: 1.5 does not fit a tensor of int32; cast the tensor first", lambda s: s.apply("add", [s.ints, 1.5])),
    (TypeError, "add: inf does not fit a tensor of int32; cast the tensor first", lambda s: s.apply("add", [s.ints, np.inf])),
    (TypeError, "add: nan does not fit a tensor of int32; cast the tensor first", lambda s: s.apply("add", [s.ints, np.nan])),
    (ValueError, "add: 2147483648 is out of the range of int32", lambda s: s.apply("add", [s.ints, 2**31])),
    (TypeError, "can't be stored as fp32", lambda s: s.apply("add", [s.x, 10**400])),
    (ValueError, "add: tensor 'far' belongs to model 'other', not to 'small'; build both with one model", lambda s: s.apply("add", [s.x, s.other])),
    (ValueError, "identity: tensor 'far' belongs to model 'other'", lambda s: s.apply("identity", [s.x], deps=(s.other,))),
    (ValueError, "relu: tensor 'far' belongs to model 'other'", lambda s: s.apply("relu", [s.x], output=s.other)),
    (TypeError, "identity: int is not a tensor", lambda s: s.apply("identity", [s.x], deps=(3,))),  # type: ignore[arg-type]
    (ValueError, "relu: the result is fp32[2, 3], the output 'ints' is int32[4]; reshape or cast it first", lambda s: s.apply("relu", [s.x], output=s.ints)),
    (ValueError, "relu: output 'weight' is an weight that is read elsewhere; write into a state, or into a tensor nobody used yet", lambda s: s.apply("relu", [s.x], output=s.weight)),
    (ValueError, "relu: output 'x' is an input that is read elsewhere", lambda s: s.apply("relu", [s.x], output=s.x)),
    (ValueError, "output 'constant' is an constant", lambda s: s.apply("relu", [s.x], output=s.ones)),
    (TypeError, "name is ''; it must be a non-empty string", lambda s: s.apply("add", [s.x, 1.0], name="")),
    (ValueError, f"name '{'n' * 40}'... has 513 characters; 512 work", lambda s: s.apply("add", [s.x, 1.0], name="n" * 513)),
    (ValueError, "add: the result's shape (16777216, 33554432) has more than 2**48 elements; cut the tensor", lambda s: s.apply("add", [s.wide, s.tall])),
    (ValueError, "reshape: the result's shape (1, 1, 1, 1, 1, 1, 1, 1, 6) has 9 dimensions; at most 8 work", lambda s: s.apply("reshape", [s.x], {"shape": (1,) * 8 + (6,)})),
    (ValueError, "tensor: shard P('tp') names 1 dimensions, the shape (2, 3) has 2", lambda s: s.builder.tensor((2, 3), "fp32", shard=P("tp"))),
    (TypeError, "dtype 'fp64' is not supported; use one of fp32", lambda s: s.builder.tensor((2,), "fp64")),
    (ValueError, "shape is (2, -3); sizes must be 0 or more", lambda s: s.builder.parameter((2, -3), "fp32")),
    (TypeError, "name is 3; it must be a non-empty string", lambda s: s.builder.tensor((2,), "fp32", name=3)),  # type: ignore[arg-type]
    (ValueError, "constant: the array has shape (2, 2), wanted (4,)", lambda s: s.builder.constant(np.zeros((2, 2)), (4,), "fp32")),
    (ValueError, "constant: 1099511627776 does not fit int32; take a wider dtype", lambda s: s.builder.constant(2**40)),
    (ValueError, "constant: -1 does not fit uint8", lambda s: s.builder.constant(-1, (), "uint8")),
    (TypeError, "constant: 'abc' can't be stored as fp32", lambda s: s.builder.constant("abc")),
    (ValueError, "state: 300 does not fit uint8", lambda s: s.builder.state((2,), "uint8", init=300)),
    (ValueError, "state: shapes (3,) and (2,) do not broadcast", lambda s: s.builder.state((2,), "fp32", init=np.zeros(3))),
    (ValueError, "state: init has shape (2, 2), wanted (2,)", lambda s: s.builder.state((2,), "fp32", init=np.zeros((2, 2)))),
    (ValueError, "scalar: 'x' is input of shape (2, 3); only a state of one element can be set by a command", lambda s: s.builder.command_scalar(s.x)),
    (ValueError, "scalar: tensor 'far' belongs to model 'other'", lambda s: s.builder.command_scalar(s.other)),
    (ValueError, "keep: tensor 'far' belongs to model 'other'", lambda s: s.builder.keep(s.other)),
    (TypeError, "keep: str is not a tensor", lambda s: s.builder.keep("x")),  # type: ignore[arg-type]
    (TypeError, "parameter: 'state' is an state, the result of an operator; make a parameter from model.tensor(...)", lambda s: s.builder.make_parameter(s.state)),
    # The operators'.
    (TypeError, "add: dtypes differ, fp32 and fp16; cast one of them", lambda s: s.apply("add", [s.x, s.half])),
    (ValueError, "add: shapes (2, 3) and (4,) do not broadcast; sizes must be equal or 1", lambda s: s.apply("equal", [s.ints, s.ints]) and s.apply("add", [s.x, s.apply("cast", [s.ints], {"dtype": "fp32"})])),
    (TypeError, "div: dtype int32 is not supported; use fp32, fp16, bf16, or cast the tensor", lambda s: s.apply("div", [s.ints, s.ints])),
    (ValueError, "matmul: shapes are (2, 3) and (); both need two dimensions, reshape first", lambda s: s.apply("matmul", [s.x, 2.0], MATMUL)),
    (ValueError, "matmul: inner sizes differ, a is (2, 3) and b is (2, 3); transpose one?", lambda s: s.apply("matmul", [s.x, s.x], MATMUL)),
    (ValueError, "softmax: axis 2 is out of range for 2 dimensions; use -2 to 1", lambda s: s.apply("softmax", [s.x], {"axis": 2})),
    (ValueError, "layernorm: the tensor has no dimensions; reshape it to (1,)", lambda s: s.apply("layernorm", [s.dot], {"axis": -1, "eps": 0.1})),
    (ValueError, "reduce_max: dimension 1 of (2, 0) is empty; nothing to reduce", lambda s: s.apply("reduce_max", [s.empty], AXIS)),
    (ValueError, "argmax: dimension 1 of (2, 0) is empty; nothing to reduce", lambda s: s.apply("argmax", [s.empty], AXIS)),
    (TypeError, "embedding: indices are fp32; cast them to int32", lambda s: s.apply("embedding", [s.x, s.x])),
    (ValueError, "embedding: the table is (4,); it must be (rows, width)", lambda s: s.apply("embedding", [s.ints, s.ints])),
    (TypeError, "cast: dtype 'fp64' is not supported; use one of fp32", lambda s: s.apply("cast", [s.x], {"dtype": "fp64"})),
    (ValueError, "transpose: perm (0, 0) must name each of the 2 dimensions exactly once", lambda s: s.apply("transpose", [s.x], {"perm": (0, 0)})),
    (ValueError, "transpose: axis 2 is out of range", lambda s: s.apply("transpose", [s.x], {"perm": (0, 2)})),
    (ValueError, "transpose: perm (0,) must name each of the 2 dimensions exactly once", lambda s: s.apply("transpose", [s.x], {"perm": (0,)})),
    (ValueError, "reshape: (2, 3) has 6 elements, (4,) has 4; the numbers of elements must be equal", lambda s: s.apply("reshape", [s.x], {"shape": (4,)})),
    (ValueError, "reshape: (2, 3) has 6 elements, (4, -1) has 4; the numbers", lambda s: s.apply("reshape", [s.x], {"shape": (4, -1)})),
    (ValueError, "reshape: shape (-1, -1) may have one -1 and no other negative size", lambda s: s.apply("reshape", [s.x], {"shape": (-1, -1)})),
    (ValueError, "reshape: shape (-2, 3) may have one -1 and no other negative size", lambda s: s.apply("reshape", [s.x], {"shape": (-2, 3)})),
    (ValueError, "reshape: (2, 0) has 0 elements, (0, -1) has 0", lambda s: s.apply("reshape", [s.empty], {"shape": (0, -1)})),
    (ValueError, "narrow: 3 elements from 0 do not fit dimension 0 of (2, 3); choose a part inside it", lambda s: s.apply("narrow", [s.x], {"axis": 0, "start": 0, "length": 3})),
    (ValueError, "narrow: -1 elements from 0 do not fit", lambda s: s.apply("narrow", [s.x], {"axis": 0, "start": 0, "length": -1})),
    (ValueError, "narrow: 1 elements from -1 do not fit", lambda s: s.apply("narrow", [s.x], {"axis": 0, "start": -3, "length": 1})),
    (ValueError, "broadcast_to: (2, 3) can't be spread over (1, 3)", lambda s: s.apply("broadcast_to", [s.x], {"shape": (1, 3)})),
    (ValueError, "broadcast_to: shapes (2, 3) and (4, 3) do not broadcast", lambda s: s.apply("broadcast_to", [s.x], {"shape": (4, 3)})),
    (TypeError, "stop_when: the flag is fp32; cast it to bool or int32", lambda s: s.apply("stop_when", [s.dot])),
    (ValueError, "stop_when: the flag is (4,); it must be one element", lambda s: s.apply("stop_when", [s.ints])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "text", "call"), ERRORS, ids=[text[:48] for _, text, _ in ERRORS]
)
def test_a_refusal_says_what_is_wrong_and_leaves_no_trace(
    error: type[Exception], text: str, call: Call
) -> None:
    small = Small()
    is_chain = "do not broadcast; sizes" in text and "(4,)" in text
    before = small.builder.freeze()
    with pytest.raises(error, match=re.escape(text)) as caught:
        call(small)
    assert len(str(caught.value)) < 400
    if not is_chain:
        assert small.builder.freeze() == before
        # Names were not used up either.
        assert small.builder.buffer(small.apply("add", [small.x, 7.0])).name == "add"


def test_an_output_that_is_a_broadcast_view_is_refused() -> None:
    builder = GraphBuilder()
    x, y = builder.tensor((2, 3), "fp32", name="x"), builder.tensor((1, 3), "fp32", name="y")
    wide = builder.apply("broadcast_to", [y], {"shape": (2, 3)})
    with pytest.raises(ValueError, match="^relu: output 'y' is a broadcast view; copy it$"):
        builder.apply("relu", [x], output=wide)


def test_a_tensor_of_one_method_is_refused_in_another() -> None:
    builder = GraphBuilder()
    x = builder.tensor((2,), "fp32", name="x")
    y = builder.apply("relu", [x], name="y")
    assert builder.select_method("decode") == "forward"
    text = "add: tensor 'y' was computed in method 'forward' and is used in 'decode'; pass it on"
    with pytest.raises(ValueError, match=text):
        builder.apply("add", [x, y])
    builder.apply("add", [x, x])  # inputs are everybody's


def test_two_stops_in_one_method_are_found_before_planning() -> None:
    small = Small()
    small.apply("stop_when", [small.flag])
    small.apply("stop_when", [small.flag])
    with pytest.raises(PlanError, match="method 'forward' has 2 stop operators; one may decide"):
        verify_graph(small.builder.freeze())


def test_an_operator_without_records_says_what_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ark_dist.core.op.OPS", {})
    with pytest.raises(ValueError, match="there are none: import ark_dist.kernels.ops first"):
        find_op("add")


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
    with pytest.raises(ValueError, match="output 'x' is an input that is read elsewhere"):
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
    assert " after %7, " in str(small.builder.freeze())


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
