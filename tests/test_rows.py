"""Norms, softmax, running sums and reductions: every axis, with and without parameters."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import OPS, Array, AttrValue
from ark_dist.core.plan import Plan
from ark_dist.core.planfile import plan_from_bytes, plan_to_bytes
from ark_dist.core.settings import read_settings
from ark_dist.core.shape import Shape
from ark_dist.core.target import cpu_target
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.fuse import MIN_PROLOGUE_COLUMNS
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.operator_formulas import (
    EPSILON,
    FORMULAS,
    SMALLEST,
    Floats,
    Inputs,
    allowed_error,
)
from tests.plan_models import eager

Attrs = dict[str, AttrValue]
DEVICES = ("numpy", "cpu")
FLOATS = ("fp32", "fp16", "bf16")
REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
PLAIN: Attrs = {"transpose_input": False, "transpose_other": False, "is_relu": False}


def execute(
    plan: Plan, data: Mapping[Value, Array], results: Sequence[Value], device: str
) -> list[Array]:
    """Write the tensors, run once, and read the results."""
    runner = NumpyDevice(plan) if device == "numpy" else CpuDevice(plan, read_settings())
    session = Session(plan, runner, SessionOptions())
    session.compile(lambda path: None)
    for value, array in data.items():
        session.write(value.view, array)
    session.launch()
    try:
        session.run(1, "forward", {})
        session.wait()
        return [session.read(value.view) for value in results]
    finally:
        session.close()


def wide(array: Array) -> Floats:
    """The same numbers in float64, which holds all of them."""
    return array.astype(np.float64)


def exact(op: str, inputs: Inputs, attrs: Attrs) -> Floats:
    """What an operator must give but for roundings."""
    with np.errstate(all="ignore"):
        return wide(FORMULAS[op](inputs, attrs))


class Cases:
    """A graph of many applications of row operators, and what each must give."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = GraphBuilder("rows")
        self.data: dict[Value, Array] = {}
        self.cases: list[tuple[str, Attrs, tuple[Value, ...], Value]] = []

    def tensor(self, shape: Shape, dtype: str, scale: float = 1.0) -> Value:
        """A leaf with random data."""
        value = self.builder.tensor(shape, dtype)
        kind = DTYPES[dtype]
        low, high = (-2.0 * scale, 2.0 * scale) if kind.is_float else kind.limits
        self.data[value] = self.rng.uniform(low, high, shape).astype(kind.numpy)
        return value

    def add(self, op: str, inputs: Sequence[Value], attrs: Attrs) -> None:
        """Apply an operator to leaves."""
        result = self.builder.apply(op, inputs, attrs)
        self.builder.keep(result)
        self.cases.append((op, attrs, tuple(inputs), result))

    def check(self, device: str, workers: int = 2) -> None:
        """Run all and compare each result with its formula."""
        plan = make_plan(self.builder.freeze(), eager(cpu_target(workers, best_isa())))
        found = execute(plan, self.data, [case[-1] for case in self.cases], device)
        for (op, attrs, inputs, result), got in zip(self.cases, found, strict=True):
            # Sums of so few integers are exact in float64.
            x = tuple(wide(self.data[value]) for value in inputs)
            text = f"{op} of {[value.view.shape for value in inputs]} {attrs}"
            dtype, want = result.view.dtype, exact(op, x, attrs)
            assert got.shape == want.shape, text
            if not dtype.is_float:
                assert np.array_equal(got, want.astype(np.int64).astype(dtype.numpy)), text
                continue
            limit = allowed_error(op, dtype.name, x, want, attrs)
            error = np.abs(wide(got) - want)
            assert (error <= limit).all(), f"{text}: off by {error.max()}, {limit.max()} allowed"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_row_operators_work_along_every_dimension_of_up_to_eight(dtype: str, device: str) -> None:
    cases = Cases(1)
    for shape in ((257,), (5, 33), (2, 3, 1, 5), (2, 1, 3, 2, 2, 3, 2, 4)):
        x = cases.tensor(shape, dtype)
        for axis in range(-len(shape), len(shape)):
            vectors = [cases.tensor((shape[axis],), dtype) for _ in range(2)]
            cases.add("softmax", [x], {"axis": axis})
            cases.add("cumsum", [x], {"axis": axis})
            for count in range(3):
                cases.add("layernorm", [x, *vectors[:count]], {"axis": axis, "eps": 1e-5})
            for count in range(2):
                cases.add("rmsnorm", [x, *vectors[:count]], {"axis": axis, "eps": 1e-6})
    cases.check(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int32", "uint8"])
def test_reductions_work_along_every_choice_of_dimensions(dtype: str, device: str) -> None:
    cases = Cases(2)
    shape = (3, 2, 17, 5)
    leaf = cases.tensor(shape, dtype)
    axes = [c for n in range(5) for c in combinations(range(4), n)]
    for op in REDUCTIONS:
        if dtype not in OPS[op].dtypes:
            continue
        for chosen in axes:
            for keepdims in (False, True):
                cases.add(op, [leaf], {"axis": chosen[::-1], "keepdims": keepdims})
        cases.add(op, [leaf], {"axis": None, "keepdims": False})
    cases.add("argmax", [leaf], {"axis": None, "keepdims": True})
    cases.check(device)


def test_reductions_follow_the_strides_of_a_view() -> None:
    """Loops merge only where the memory is even; the flat index is the view's, not the memory's."""
    rng = np.random.default_rng(3)
    builder = GraphBuilder("views")
    data = rng.integers(-9, 9, (4, 6, 7, 8)).astype(np.int32)
    leaf = builder.tensor(data.shape, "int32")
    part = builder.apply("narrow", [leaf], {"axis": 1, "start": 1, "length": 4})
    results, wanted = [], []
    for perm in ((3, 2, 1, 0), (2, 0, 3, 1), (0, 2, 1, 3)):
        turned = builder.apply("transpose", [part], {"perm": perm})
        seen = data[:, 1:5].transpose(perm)
        for axes in (c for n in range(5) for c in combinations(range(4), n)):
            results.append(builder.apply("reduce_sum", [turned], {"axis": axes, "keepdims": False}))
            wanted.append(seen.sum(axis=axes))
        results.append(builder.apply("argmax", [turned], {"axis": None, "keepdims": False}))
        wanted.append(np.argmax(seen))
    plan = make_plan(builder.freeze(), eager(cpu_target(2, best_isa())))
    for got, want in zip(execute(plan, {leaf: data}, results, "cpu"), wanted, strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("device", DEVICES)
def test_what_reductions_of_nothing_give(device: str) -> None:
    builder = GraphBuilder("nothing")
    empty = builder.tensor((2, 0, 3), "fp32")
    whole = builder.tensor((0,), "int32")
    dot = builder.tensor((), "fp32")
    results = [
        builder.apply("reduce_sum", [empty], {"axis": (1, 2), "keepdims": False}),
        builder.apply("reduce_mean", [empty], {"axis": 1, "keepdims": False}),
        builder.apply("reduce_sum", [whole], {"axis": None, "keepdims": True}),
        builder.apply("reduce_max", [empty], {"axis": 0, "keepdims": True}),
        builder.apply("reduce_min", [dot], {"axis": None, "keepdims": True}),
        builder.apply("argmax", [dot], {"axis": None, "keepdims": False}),
        builder.apply("cumsum", [empty], {"axis": 1}),
        builder.apply("softmax", [empty], {"axis": 1}),
    ]
    plan = make_plan(builder.freeze(), cpu_target(2, best_isa()))
    data = {dot: np.array(3.5, np.float32)}
    found = execute(plan, data, results, device)
    wanted = (
        np.zeros(2), np.full((2, 3), np.nan), np.zeros((1,)), np.zeros((1, 0, 3)),
        np.array(3.5), np.array(0), np.zeros((2, 0, 3)), np.zeros((2, 0, 3)),
    )  # fmt: skip
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(wide(got), want)
        assert got.shape == want.shape


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_sums_of_integers_wrap_in_their_own_type(dtype: str) -> None:
    cases = Cases(4)
    x = cases.tensor((3, 5000), dtype)
    cases.add("reduce_sum", [x], {"axis": 1, "keepdims": True})
    cases.add("reduce_sum", [x], {"axis": None, "keepdims": False})
    cases.add("cumsum", [x], {"axis": 1})
    cases.add("cumsum", [x], {"axis": 0})
    cases.check("cpu")
    total = cases.data[x].astype(np.int64).sum()
    assert not DTYPES[dtype].limits[0] <= total <= DTYPES[dtype].limits[1], "nothing wrapped"


def test_the_error_of_a_long_sum_does_not_grow_with_its_length() -> None:
    """All of one sign, so that the bound of the additions is relative to the sum itself."""
    count = 1 << 21
    builder = GraphBuilder("long")
    x = builder.tensor((count,), "fp32")
    data = np.random.default_rng(5).uniform(0.5, 1.5, count).astype(np.float32)
    results = [
        builder.apply("reduce_sum", [x], {"axis": 0, "keepdims": True}),
        builder.apply("cumsum", [x], {"axis": 0}),
    ]
    plan = make_plan(builder.freeze(), cpu_target(1, best_isa()))
    total, running = execute(plan, {x: data}, results, "cpu")
    want = data.astype(np.float64).cumsum()
    # In blocks of 16 lanes of 128 values.
    bound = (128 + 4 + count / 2048) * EPSILON["fp32"] / 2
    assert abs(total[0] - want[-1]) <= bound * want[-1]
    bound = (128 + count / 128) * EPSILON["fp32"] / 2
    assert (np.abs(running - want) <= bound * want).all()


NORMS = (
    *(("layernorm", n, "plain") for n in range(3)),
    *(("rmsnorm", n, "plain") for n in range(2)),
    ("layernorm", 2, "strided"),
    ("rmsnorm", 1, "broadcast"),
)


def vector(cases: Cases, size: int, dtype: str, form: str) -> tuple[Value, Floats]:
    """A vector, perhaps a view, and what it holds in float64."""
    shapes: dict[str, Shape] = {"plain": (size,), "strided": (size, 3), "broadcast": (1,)}
    leaf = cases.tensor(shapes[form], dtype)
    held = wide(cases.data[leaf])
    if form == "strided":
        column = cases.builder.apply("narrow", [leaf], {"axis": 1, "start": 1, "length": 1})
        return cases.builder.apply("reshape", [column], {"shape": (size,)}), held[:, 1]
    if form == "broadcast":
        view = cases.builder.apply("broadcast_to", [leaf], {"shape": (size,)})
        return view, np.broadcast_to(held, (size,))
    return leaf, held


def norm_and_product(
    op: str, inputs: Inputs, attrs: Attrs, b: Floats, dtype: str
) -> tuple[Floats, Floats]:
    """The product of a norm and a matrix, and the error it may have."""
    a = exact(op, inputs, attrs)
    # The reference rounds the norm to its dtype, generated code does not.
    limit = allowed_error(op, dtype, inputs, a, attrs) @ np.abs(b)
    limit += EPSILON["fp32"] * (len(b) + 1) * (np.abs(a) @ np.abs(b))
    return a @ b, limit + EPSILON[dtype] / 2 * np.abs(a @ b) + SMALLEST[dtype]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_norm_with_parameters_runs_inside_its_matmuls(dtype: str) -> None:
    """Rows few and many, a depth of more than one block, and vectors that are views."""
    depth, columns = 300, MIN_PROLOGUE_COLUMNS + 3
    cases, wanted, products = Cases(6), [], []
    attrs: Attrs = {"axis": -1, "eps": 0.01}
    builder, other = cases.builder, cases.tensor((depth, columns), dtype)
    b = wide(cases.data[other])
    for rows in (1, 3, 75):
        for op, count, form in NORMS:
            x = cases.tensor((2, rows, depth), dtype)
            vectors = [vector(cases, depth, dtype, form) for _ in range(count)]
            normed = builder.apply(op, [x, *(view for view, _ in vectors)], attrs)
            products.append(builder.apply("matmul", [normed, other], PLAIN))
            inputs = (wide(cases.data[x]), *(held for _, held in vectors))
            want, limit = norm_and_product(op, inputs, attrs, b, dtype)
            wanted.append((want, limit, (op, count, form, rows)))
    plan = make_plan(builder.freeze(), eager(cpu_target(2, best_isa())))
    (method,) = plan.methods
    names = [[method.nodes[n].op for n in group.nodes] for group in method.groups]
    assert names == [[op, "matmul"] for op, *_ in NORMS] * 3
    for device in DEVICES:
        found = execute(plan, cases.data, products, device)
        for got, (want, limit, text) in zip(found, wanted, strict=True):
            assert (np.abs(wide(got) - want) <= limit).all(), (device, text)


def test_a_chain_may_read_the_vector_that_a_norm_scales_by() -> None:
    """The same view is then two operands: one along the rows, one along the columns."""
    size = MIN_PROLOGUE_COLUMNS
    for op in ("layernorm", "rmsnorm"):
        cases = Cases(7)
        builder = cases.builder
        x, w = cases.tensor((5, size), "fp32"), cases.tensor((size,), "fp32")
        other = cases.tensor((size, size), "fp32")
        attrs: Attrs = {"axis": -1, "eps": 0.1}
        alone = builder.apply("add", [builder.apply(op, [x, w], attrs), w])
        product = builder.apply("matmul", [builder.apply(op, [x, w], attrs), other], PLAIN)
        inside = builder.apply("mul", [product, w])
        plan = make_plan(builder.freeze(), eager(cpu_target(2, best_isa())))
        assert [len(group.nodes) for group in plan.methods[0].groups] == [2, 3]
        found = execute(plan, cases.data, [alone, inside], "cpu")
        factor, b = wide(cases.data[w]), wide(cases.data[other])
        inputs = (wide(cases.data[x]), factor)
        normed = exact(op, inputs, attrs)
        error = allowed_error(op, "fp32", inputs, normed, attrs)
        want, limit = norm_and_product(op, inputs, attrs, b, "fp32")
        wanted = (
            (normed + factor, error + EPSILON["fp32"] * np.abs(normed + factor)),
            (want * factor, limit * np.abs(factor) + EPSILON["fp32"] * np.abs(want * factor)),
        )
        for got, (exactly, most) in zip(found, wanted, strict=True):
            assert (np.abs(wide(got) - exactly) <= most).all(), op


def test_fusing_a_norm_in_fp32_changes_nothing() -> None:
    cases = Cases(8)
    builder = cases.builder
    x, w = cases.tensor((7, 96), "fp32"), cases.tensor((96,), "fp32")
    normed = builder.apply("rmsnorm", [x, w], {"axis": 1, "eps": 1e-6})
    product = builder.apply("matmul", [normed, cases.tensor((96, 80), "fp32")], PLAIN)
    graph, target = builder.freeze(), eager(cpu_target(2, best_isa()))
    one, two = (
        execute(make_plan(graph, target, PlanOptions(is_fused=f)), cases.data, [product], "cpu")[0]
        for f in (True, False)
    )
    np.testing.assert_array_equal(one, two)


ERRORS: tuple[tuple[str, tuple[Shape, ...], Attrs, str], ...] = (
    ("layernorm", ((4, 6), (4,)), {"axis": -1, "eps": 0.1},
     "layernorm: weight is (4,); along dimension 1 of (4, 6) it must be (6,)"),
    ("layernorm", ((4, 6), (4,), (1, 4)), {"axis": 0, "eps": 0.1},
     "layernorm: bias is (1, 4); along dimension 0 of (4, 6) it must be (4,)"),
    ("rmsnorm", ((4, 6), (1,)), {"axis": 1, "eps": 0.1},
     "rmsnorm: weight is (1,); along dimension 1 of (4, 6) it must be (6,)"),
    ("rmsnorm", ((4,),), {"axis": 0, "eps": -1.0}, "rmsnorm: eps is -1.0; it must be a number, 0"),
    ("rmsnorm", ((),), {"axis": 0, "eps": 0.1}, "rmsnorm: the tensor has no dimensions; reshape"),
    ("cumsum", ((4,),), {"axis": 1}, "cumsum: axis 1 is out of range for 1 dimensions; use -1"),
    ("reduce_sum", ((4, 6),), {"axis": (0, -2), "keepdims": True},
     "reduce_sum: axis (0, -2) names a dimension twice; name each once"),
    ("reduce_min", ((4, 6),), {"axis": (0, 2), "keepdims": True},
     "reduce_min: axis 2 is out of range for 2 dimensions; use -2 to 1"),
    ("reduce_mean", ((),), {"axis": (0,), "keepdims": True},
     "reduce_mean: the tensor has no dimensions; reshape it to (1,)"),
    ("reduce_max", ((2, 0, 3, 0),), {"axis": (3, 1, 0, 2), "keepdims": True},
     "reduce_max: dimension 1 of (2, 0, 3, 0) is empty; nothing to reduce"),
    ("argmax", ((0,),), {"axis": None, "keepdims": True},
     "argmax: dimension 0 of (0,) is empty; nothing to reduce"),
    ("argmax", ((2**16, 2**15),), {"axis": None, "keepdims": False},
     "argmax: (65536, 32768) has more than 2147483647 elements to choose from; reduce parts"),
)  # fmt: skip


@pytest.mark.parametrize(("op", "shapes", "attrs", "text"), ERRORS)
def test_what_does_not_fit_is_named(
    op: str, shapes: tuple[Shape, ...], attrs: Attrs, text: str
) -> None:
    builder = GraphBuilder()
    with pytest.raises(ValueError) as caught:
        builder.apply(op, [builder.tensor(shape, "fp32") for shape in shapes], attrs)
    assert text in str(caught.value)


def test_parameters_have_the_dtype_of_the_rows() -> None:
    builder = GraphBuilder()
    x, w = builder.tensor((4, 6), "fp16"), builder.tensor((6,), "fp32")
    with pytest.raises(TypeError, match="rmsnorm: dtypes differ, fp16 and fp32; cast one of them"):
        builder.apply("rmsnorm", [x, w], {"axis": 1, "eps": 0.1})


def test_most_indices_that_argmax_can_give_are_allowed() -> None:
    builder = GraphBuilder()
    x = builder.tensor((2**31 - 1,), "int8")
    assert builder.apply("argmax", [x], {"axis": None, "keepdims": False}).view.shape == ()


def test_the_public_functions_take_dimensions_and_parameters() -> None:
    model = ark.Model()
    x, w = model.tensor((2, 3, 4), ark.FP32), model.tensor((4,), ark.FP32)
    assert x.reduce_sum([0, -1]).shape == (1, 3, 1)
    assert ark.reduce_mean(x, None, keepdims=False).shape == ()
    assert model.reduce_max(x, np.int64(1)).shape == (2, 1, 4)
    assert x.argmax(None).shape == ()
    assert x.layernorm(w, w).shape == ark.rmsnorm(x, w).shape == x.cumsum(0).shape == x.shape
    with pytest.raises(TypeError, match="axis is '01'; it must be an integer or a sequence of int"):
        x.reduce_min("01")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="layernorm: bias is given without weight; give both"):
        x.layernorm(None, w)


def test_a_plan_file_keeps_the_dimensions_that_are_reduced() -> None:
    builder = GraphBuilder("file")
    x = builder.tensor((2, 3, 4), "fp32")
    for axis in ((2, 0), None, -1, ()):
        builder.apply("reduce_sum", [x], {"axis": axis, "keepdims": True})
    builder.apply("rmsnorm", [x], {"axis": 1, "eps": 0.5})
    plan = make_plan(builder.freeze(), cpu_target(2))
    assert plan_from_bytes(plan_to_bytes(plan)) == plan
