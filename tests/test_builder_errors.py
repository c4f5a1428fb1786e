"""What can't be built is refused in words that help, and leaves no trace."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import PlanError
from ark_dist.core.layout import P
from ark_dist.core.op import AttrValue, find_op
from ark_dist.core.verify_graph import verify_graph
from tests.small_model import Small

MATMUL: dict[str, AttrValue] = {
    "transpose_input": False,
    "transpose_other": False,
    "is_relu": False,
}
AXIS: dict[str, AttrValue] = {"axis": -1, "keepdims": True}
Call = Callable[[Small], object]
ERRORS: list[tuple[type[Exception], str, Call]] = [
    # The builder's own.
    (
        ValueError,
        "operator 'gelu_x' is not registered; did you mean gelu",
        lambda s: s.apply("gelu_x", [s.x]),
    ),
    (
        TypeError,
        "add: input 1 is str; wanted a tensor of this model or a number",
        lambda s: s.apply("add", [s.x, "a"]),  # type: ignore[list-item]
    ),
    (
        TypeError,
        "add: input 0 is float; wanted a tensor of this model",
        lambda s: s.apply("add", [1.0, 2.0]),
    ),
    (
        TypeError,
        "add: 1.5 does not fit a tensor of int32; cast the tensor first",
        lambda s: s.apply("add", [s.ints, 1.5]),
    ),
    (
        TypeError,
        "add: inf does not fit a tensor of int32; cast the tensor first",
        lambda s: s.apply("add", [s.ints, np.inf]),
    ),
    (
        TypeError,
        "add: nan does not fit a tensor of int32; cast the tensor first",
        lambda s: s.apply("add", [s.ints, np.nan]),
    ),
    (
        ValueError,
        "add: 2147483648 is out of the range of int32",
        lambda s: s.apply("add", [s.ints, 2**31]),
    ),
    (
        TypeError,
        "can't be stored as fp32",
        lambda s: s.apply("add", [s.x, 10**400]),
    ),
    (
        ValueError,
        "add: tensor 'far' belongs to model 'other', not to 'small'; build both with one model",
        lambda s: s.apply("add", [s.x, s.other]),
    ),
    (
        ValueError,
        "identity: tensor 'far' belongs to model 'other'",
        lambda s: s.apply("identity", [s.x], deps=(s.other,)),
    ),
    (
        ValueError,
        "relu: tensor 'far' belongs to model 'other'",
        lambda s: s.apply("relu", [s.x], output=s.other),
    ),
    (
        TypeError,
        "identity: int is not a tensor",
        lambda s: s.apply("identity", [s.x], deps=(3,)),  # type: ignore[arg-type]
    ),
    (
        ValueError,
        "relu: the result is fp32[2, 3], the output 'ints' is int32[4]; reshape or cast it first",
        lambda s: s.apply("relu", [s.x], output=s.ints),
    ),
    (
        ValueError,
        "relu: output 'weight' is of kind weight or in use; write into a state, "
        "or into a tensor nobody used yet",
        lambda s: s.apply("relu", [s.x], output=s.weight),
    ),
    (
        ValueError,
        "relu: output 'x' is of kind input or in use",
        lambda s: s.apply("relu", [s.x], output=s.x),
    ),
    (
        ValueError,
        "output 'constant' is of kind constant",
        lambda s: s.apply("relu", [s.x], output=s.ones),
    ),
    (
        TypeError,
        "name is ''; it must be a non-empty string",
        lambda s: s.apply("add", [s.x, 1.0], name=""),
    ),
    (
        ValueError,
        f"name '{'n' * 40}'... has 513 characters; 512 work",
        lambda s: s.apply("add", [s.x, 1.0], name="n" * 513),
    ),
    (
        ValueError,
        "add: the result's shape (16777216, 33554432) has more than 2**48 elements; cut the tensor",
        lambda s: s.apply("add", [s.wide, s.tall]),
    ),
    (
        ValueError,
        "reshape: the result's shape (1, 1, 1, 1, 1, 1, 1, 1, 6) has 9 dimensions; at most 8 work",
        lambda s: s.apply("reshape", [s.x], {"shape": (1,) * 8 + (6,)}),
    ),
    (
        ValueError,
        "tensor: shard P('tp') names 1 dimensions, the shape (2, 3) has 2",
        lambda s: s.builder.tensor((2, 3), "fp32", shard=P("tp")),
    ),
    (
        TypeError,
        "dtype 'fp64' is not supported; use one of fp32",
        lambda s: s.builder.tensor((2,), "fp64"),
    ),
    (
        ValueError,
        "shape is (2, -3); sizes must be 0 or more",
        lambda s: s.builder.parameter((2, -3), "fp32"),
    ),
    (
        TypeError,
        "name is 3; it must be a non-empty string",
        lambda s: s.builder.tensor((2,), "fp32", name=3),  # type: ignore[arg-type]
    ),
    (
        ValueError,
        "constant: the array has shape (2, 2), wanted (4,)",
        lambda s: s.builder.constant(np.zeros((2, 2)), (4,), "fp32"),
    ),
    (
        ValueError,
        "constant: 1099511627776 does not fit int32; take a wider dtype",
        lambda s: s.builder.constant(2**40),
    ),
    (
        ValueError,
        "constant: -1 does not fit uint8",
        lambda s: s.builder.constant(-1, (), "uint8"),
    ),
    (
        TypeError,
        "constant: 'abc' can't be stored as fp32",
        lambda s: s.builder.constant("abc"),
    ),
    (
        ValueError,
        "state: 300 does not fit uint8",
        lambda s: s.builder.state((2,), "uint8", init=300),
    ),
    (
        ValueError,
        "state: shapes (3,) and (2,) do not broadcast",
        lambda s: s.builder.state((2,), "fp32", init=np.zeros(3)),
    ),
    (
        ValueError,
        "state: init has shape (2, 2), wanted (2,)",
        lambda s: s.builder.state((2,), "fp32", init=np.zeros((2, 2))),
    ),
    (
        ValueError,
        "scalar: 'x' is input of shape (2, 3); only a state of one element can be set by a command",
        lambda s: s.builder.command_scalar(s.x),
    ),
    (
        ValueError,
        "scalar: tensor 'far' belongs to model 'other'",
        lambda s: s.builder.command_scalar(s.other),
    ),
    (
        ValueError,
        "keep: tensor 'far' belongs to model 'other'",
        lambda s: s.builder.keep(s.other),
    ),
    (
        TypeError,
        "keep: str is not a tensor",
        lambda s: s.builder.keep("x"),  # type: ignore[arg-type]
    ),
    (
        TypeError,
        "parameter: 'state' is of kind state, not an input; make a parameter "
        "from model.tensor(...)",
        lambda s: s.builder.make_parameter(s.state),
    ),
    # The operators'.
    (
        TypeError,
        "add: dtypes differ, fp32 and fp16; cast one of them",
        lambda s: s.apply("add", [s.x, s.half]),
    ),
    (
        ValueError,
        "add: shapes (2, 3) and (4,) do not broadcast; sizes must be equal or 1",
        lambda s: s.apply("add", [s.x, s.four]),
    ),
    (
        TypeError,
        "div: dtype int32 is not supported; use fp32, fp16, bf16, or cast the tensor",
        lambda s: s.apply("div", [s.ints, s.ints]),
    ),
    (
        ValueError,
        "matmul: shapes are (2, 3) and (); both need two dimensions, reshape first",
        lambda s: s.apply("matmul", [s.x, 2.0], MATMUL),
    ),
    (
        ValueError,
        "matmul: inner sizes differ, a is (2, 3) and b is (2, 3); transpose one?",
        lambda s: s.apply("matmul", [s.x, s.x], MATMUL),
    ),
    (
        ValueError,
        "softmax: axis 2 is out of range for 2 dimensions; use -2 to 1",
        lambda s: s.apply("softmax", [s.x], {"axis": 2}),
    ),
    (
        ValueError,
        "layernorm: the tensor has no dimensions; reshape it to (1,)",
        lambda s: s.apply("layernorm", [s.dot], {"axis": -1, "eps": 0.1}),
    ),
    (
        ValueError,
        "reduce_max: dimension 1 of (2, 0) is empty; nothing to reduce",
        lambda s: s.apply("reduce_max", [s.empty], AXIS),
    ),
    (
        ValueError,
        "argmax: dimension 1 of (2, 0) is empty; nothing to reduce",
        lambda s: s.apply("argmax", [s.empty], AXIS),
    ),
    (
        TypeError,
        "embedding: indices are fp32; cast them to int32",
        lambda s: s.apply("embedding", [s.x, s.x]),
    ),
    (
        ValueError,
        "embedding: the table is (4,); it must be (rows, width)",
        lambda s: s.apply("embedding", [s.ints, s.ints]),
    ),
    (
        TypeError,
        "cast: dtype 'fp64' is not supported; use one of fp32",
        lambda s: s.apply("cast", [s.x], {"dtype": "fp64"}),
    ),
    (
        ValueError,
        "transpose: perm (0, 0) must name each of the 2 dimensions exactly once",
        lambda s: s.apply("transpose", [s.x], {"perm": (0, 0)}),
    ),
    (
        ValueError,
        "transpose: axis 2 is out of range",
        lambda s: s.apply("transpose", [s.x], {"perm": (0, 2)}),
    ),
    (
        ValueError,
        "transpose: perm (0,) must name each of the 2 dimensions exactly once",
        lambda s: s.apply("transpose", [s.x], {"perm": (0,)}),
    ),
    (
        ValueError,
        "reshape: (2, 3) has 6 elements, (4,) has 4; the numbers of elements must be equal",
        lambda s: s.apply("reshape", [s.x], {"shape": (4,)}),
    ),
    (
        ValueError,
        "reshape: (2, 3) has 6 elements, (4, -1) has 4; the numbers",
        lambda s: s.apply("reshape", [s.x], {"shape": (4, -1)}),
    ),
    (
        ValueError,
        "reshape: shape (-1, -1) may have one -1 and no other negative size",
        lambda s: s.apply("reshape", [s.x], {"shape": (-1, -1)}),
    ),
    (
        ValueError,
        "reshape: shape (-2, 3) may have one -1 and no other negative size",
        lambda s: s.apply("reshape", [s.x], {"shape": (-2, 3)}),
    ),
    (
        ValueError,
        "reshape: (2, 0) has 0 elements, (0, -1) has 0",
        lambda s: s.apply("reshape", [s.empty], {"shape": (0, -1)}),
    ),
    (
        ValueError,
        "narrow: 3 elements from 0 do not fit dimension 0 of (2, 3); choose a part inside it",
        lambda s: s.apply("narrow", [s.x], {"axis": 0, "start": 0, "length": 3}),
    ),
    (
        ValueError,
        "narrow: -1 elements from 0 do not fit",
        lambda s: s.apply("narrow", [s.x], {"axis": 0, "start": 0, "length": -1}),
    ),
    (
        ValueError,
        "narrow: 1 elements from -1 do not fit",
        lambda s: s.apply("narrow", [s.x], {"axis": 0, "start": -3, "length": 1}),
    ),
    (
        ValueError,
        "broadcast_to: (2, 3) can't be spread over (1, 3)",
        lambda s: s.apply("broadcast_to", [s.x], {"shape": (1, 3)}),
    ),
    (
        ValueError,
        "broadcast_to: shapes (2, 3) and (4, 3) do not broadcast",
        lambda s: s.apply("broadcast_to", [s.x], {"shape": (4, 3)}),
    ),
    (
        TypeError,
        "stop_when: the flag is fp32; cast it to bool or int32",
        lambda s: s.apply("stop_when", [s.dot]),
    ),
    (
        ValueError,
        "stop_when: the flag is (4,); it must be one element",
        lambda s: s.apply("stop_when", [s.ints]),
    ),
]


@pytest.mark.parametrize(
    ("error", "text", "call"), ERRORS, ids=[text[:48] for _, text, _ in ERRORS]
)
def test_a_refusal_says_what_is_wrong_and_leaves_no_trace(
    error: type[Exception], text: str, call: Call
) -> None:
    small = Small()
    before = small.builder.freeze()
    with pytest.raises(error, match=re.escape(text)) as caught:
        call(small)
    assert len(str(caught.value)) < 400
    assert small.builder.freeze() == before
    # Names were not used up either.
    assert small.builder.buffer(small.apply("add", [small.x, 7.0])).name == "add"


def test_an_output_that_is_a_broadcast_view_is_refused() -> None:
    builder = GraphBuilder()
    x, y = builder.tensor((2, 3), "fp32", name="x"), builder.tensor((1, 3), "fp32", name="y")
    wide = builder.apply("broadcast_to", [y], {"shape": (2, 3)})
    with pytest.raises(ValueError, match=r"^relu: output 'y' is a broadcast view; copy it$"):
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
    with pytest.raises(ValueError, match=r"there are none: import ark_dist.kernels.ops first"):
        find_op("add")
