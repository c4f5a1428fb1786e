"""Whatever operators are called with, they refuse it by name or give the right number."""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest

import ark_dist as ark
import ark_dist.kernels.ops  # registers the operators
from ark_dist.context import drop_model
from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import OPS
from ark_dist.core.shape import MAX_DIMS

Arguments = Mapping[str, object]
PUBLIC = sorted(name for name, op in OPS.items() if op.is_public)
# Those that tell an operator from a refusal without a reason.
LEAST_WORDS = 3
HUGE = 10**30
BAD_VALUES: tuple[object, ...] = (
    *(None, "x", b"x", "", 1.5, -1, 0, HUGE, -HUGE, 2**63, True, 1 + 2j),
    *(math.nan, math.inf, 1e300, 1e-300, np.float32(1), np.int64(2), np.bool_(True)),
    *(np.zeros(3), np.array(1), np.array([[1]]), [[1]], range(3), iter([1]), {}, {1: 2}, set()),
    *([], (), [None], [1, "a"], (HUGE,), (-5,), (0,), (2,) * 9, (True,), (1.0,), slice(1, 2)),
    *(object(), object, ark.FP32, float, "int32", len),
)
BAD_SHAPES = ((), (1,), (0,), (6,), (4, 6), (0, 6), (4, 0), (2,) * 8, (3, 5, 7), (2**24, 2**23))
WAYS = ("function", "model", "tensor")


@pytest.fixture(autouse=True)
def _two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models are built for rank 0 of 2: alone it could send to nobody."""
    monkeypatch.setattr("ark_dist.model.world_size", lambda: 2)
    drop_model()
    yield
    drop_model()


def arguments(model: ark.Model, name: str) -> dict[str, object]:
    """Arguments that an operator takes."""

    def t(*shape: int, dtype: str = "fp32") -> ark.Tensor:
        return model.tensor(shape, dtype)

    sides = {f"{key}_{side}": 1 for key in ("stride", "dilation") for side in ("height", "width")}
    special: dict[str, Callable[[], dict[str, object]]] = {
        "attention": lambda: {
            **{"query": t(2, 3, 4, 8), "key": t(2, 5, 2, 8), "value": t(2, 5, 2, 6)},
            **{"length": t(2, dtype="int32"), "causal": True, "scale": 0.5},
        },
        "broadcast_to": lambda: {"input": t(4, 6), "shape": (2, 4, 6)},
        "cast": lambda: {"input": t(4, 6), "dtype": "fp16"},
        "concat": lambda: {"tensors": [t(4, 6), t(4, 6)], "axis": 0},
        "embedding": lambda: {"input": t(3, dtype="int32"), "weight": t(9, 4)},
        "gather": lambda: {"input": t(4, 6), "index": t(4, 2, dtype="int32"), "axis": 1},
        "im2col": lambda: {"input": t(2, 4, 6), "kernel_height": 2, "kernel_width": 2, **sides},
        "layernorm": lambda: {"input": t(4, 6), "weight": t(6), "bias": t(6)},
        "matmul": lambda: {"input": t(4, 6), "other": t(6, 5)},
        "narrow": lambda: {"input": t(4, 6), "axis": 0, "start": 0, "length": 2},
        "recv": lambda: {"shape": (4, 6), "dtype": "fp32", "src": 1},
        "reshape": lambda: {"input": t(4, 6), "shape": (24,)},
        "rmsnorm": lambda: {"input": t(4, 6), "weight": t(6)},
        "rope": lambda: {
            **{"input": t(2, 3, 4, 8), "other": t(16, 8), "position": t(2, dtype="int32")}
        },
        "sample": lambda: {"input": t(2, 8), "position": t(2, dtype="int32")},
        "scale": lambda: {"input": t(4, 6), "val": 0.5},
        "scatter": lambda: {
            **{"input": t(4, 6), "source": t(4, 2), "position": t(1, dtype="int32"), "axis": 1}
        },
        "send": lambda: {"input": t(4, 6), "dst": 1},
        "send_done": lambda: {"input": t(4, 6).send(1)},
        "sharding": lambda: {"input": t(4, 6), "axis": 1, "dim_per_shard": 2},
        "slice": lambda: {"input": t(4, 6), "starts": (0, 1), "stops": (2, 6), "steps": (1, 2)},
        "split": lambda: {"input": t(4, 6), "split_size": 2, "axis": 1},
        "stop_when": lambda: {"input": t(1, dtype="bool")},
        "view": lambda: {"input": t(4, 6), "shape": (24,)},
        "where": lambda: {
            **{"condition": t(4, 6, dtype="bool"), "input": t(4, 6), "other": t(4, 6)}
        },
        **{
            f"reduce_{kind}": lambda: {"input": t(4, 6), "axis": 1}
            for kind in ("sum", "mean", "max", "min")
        },
    }
    if name in special:
        return special[name]()
    return {a.name: t(4, 6) for a in OPS[name].arguments if a.is_tensor}


def function(model: ark.Model, name: str, way: str) -> Callable[..., object] | None:
    """One of the ways to call an operator by the names of its arguments; None if there is none."""
    if way == "function":
        found: Callable[..., object] = getattr(ark, name)
        return found
    if way == "model":
        found = getattr(model, name)
        return found
    if OPS[name].arguments[0].name != "input":
        return None
    # `shape` may also be given as numbers one by one, so it has no name there.
    shape = [argument for argument in ("shape",) if name in ("reshape", "view")]

    def call(*, input: object, **given: object) -> object:
        sizes = [given.pop(argument) for argument in shape]
        return getattr(input, name)(*sizes, **given)

    return call


def bad_values(model: ark.Model) -> list[object]:
    """Values, tensors of all dtypes and odd shapes, lists of them, and another model's tensor."""
    tensors = [model.tensor(shape, dtype) for shape in BAD_SHAPES for dtype in DTYPES]
    tensors += [ark.Model("other").tensor((4, 6)), model.state((4, 6)), model.constant(1.0, (4, 6))]
    lists: list[object] = [[tensors[0]], [tensors[0], None], (tensors[-1], tensors[0])]
    return [*BAD_VALUES, *tensors, *lists]


def check_call(call: Callable[..., object], name: str, given: Arguments) -> None:
    """It works, or raises TypeError or ValueError that begins with the operator's name."""
    try:
        call(**given)
    except (TypeError, ValueError) as error:
        text = str(error)
        assert text.startswith(f"{name}: "), f"{name}({given}): {text}"
        assert len(text.split()) > LEAST_WORDS, f"{name}({given}): {text}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_taken_or_refused_by_name(name: str, way: str) -> None:
    model = ark.Model("m")
    given = arguments(model, name)
    call = function(model, name, way)
    if call is None:
        pytest.skip(f"{name} is no method of tensors")
    call(**given)
    names = inspect.signature(getattr(ark, name)).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for argument in names:
            if way == "tensor" and argument == "input":
                continue
            for value in bad_values(model):
                check_call(call, name, {**given, argument: value})


Given = Callable[[ark.Tensor], dict[str, object]]
REFUSALS: list[tuple[str, Given, type[Exception], str]] = [
    (
        "where",
        lambda x: {"condition": 1.5, "input": x, "other": x},
        TypeError,
        "condition is 1.5; it must be a tensor of bool",
    ),
    (
        "embedding",
        lambda x: {"input": -1, "weight": x},
        TypeError,
        "input is -1; it must be a tensor of int32",
    ),
    (
        "relu",
        lambda x: {"input": x, "name": ""},
        TypeError,
        "name is ''; it must be a non-empty string",
    ),
    (
        "identity",
        lambda x: {"input": x, "deps": 3},
        TypeError,
        "deps is 3; it must be a sequence of tensors, such as [x]",
    ),
    (
        "concat",
        lambda x: {"tensors": np.array(1)},
        TypeError,
        "tensors is a ndarray; it must be a sequence of tensors, such as [x, y]",
    ),
    (
        "broadcast_to",
        lambda x: {"input": x, "shape": (-1, 6)},
        ValueError,
        "shape is (-1, 6); sizes must be 0 or more",
    ),
    (
        "im2col",
        lambda x: {"input": x, "kernel_height": 1, "kernel_width": 1, "stride_width": HUGE},
        TypeError,
        f"stride_width is {HUGE}; it must be an integer of at most 64 bits",
    ),
    (
        "rmsnorm",
        lambda x: {"input": x, "eps": 1e300},
        ValueError,
        "eps is 1e+300; it must be a number, 0 or more, that fp32 can hold",
    ),
    (
        "layernorm",
        lambda x: {"input": x, "eps": 1e-300},
        ValueError,
        "eps is 1e-300; it must be a number, 0 or more, that fp32 can hold",
    ),
    (
        "attention",
        lambda x: {**dict.fromkeys(("query", "key", "value"), x.view(1, 4, 1, 6)), "scale": 1e300},
        ValueError,
        "scale is 1e+300; it must be a finite number of fp32, or None",
    ),
    (
        "split",
        lambda x: {"input": x.broadcast_to((5000, 4, 6)), "split_size": 1},
        ValueError,
        "this makes 5000 parts, at most 4096 work; make them larger, or take those you need with",
    ),
    (
        "sharding",
        lambda x: {"input": x.broadcast_to((2**40, 4, 6)), "axis": 0, "dim_per_shard": 2},
        ValueError,
        "this makes 549755813888 parts, at most 4096 work",
    ),
]


@pytest.mark.parametrize(("name", "given", "error", "text"), REFUSALS)
def test_a_refusal_says_what_would_work(
    name: str, given: Given, error: type[Exception], text: str
) -> None:
    model = ark.Model("m")
    arguments = given(model.tensor((4, 6)))
    with pytest.raises(error, match="^" + re.escape(f"{name}: {text}")):
        getattr(ark, name)(**arguments)
    assert not model.freeze().methods[0].nodes


def test_deps_that_can_be_walked_only_once_are_kept() -> None:
    model = ark.Model("m")
    x, y = model.tensor(4), model.tensor(4)
    late = y.relu()
    identity: Callable[..., ark.Tensor] = x.identity
    identity(deps=iter([late])).exp()
    assert model.freeze().methods[0].nodes[-1].after == (late.value.view,)


def test_more_dimensions_than_there_may_be_are_refused() -> None:
    x = ark.Model("m").tensor((1,) * MAX_DIMS)
    calls: list[Callable[[], object]] = [
        lambda: x[None],
        lambda: x.broadcast_to((2, *x.shape)),
        lambda: x.reshape([1] * 9),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="9 dimensions; at most 8 work"):
            call()
