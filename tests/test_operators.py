"""Every operator, dtype and way to look at memory gives the float64 result on every device."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.dtype import DTYPES
from ark_dist.core.errors import TaskError
from ark_dist.core.graph import Graph
from ark_dist.core.op import OPS, Array
from ark_dist.core.settings import read_settings
from ark_dist.core.shape import full_box
from ark_dist.core.target import cpu_target
from ark_dist.launch.cpuinfo import LADDER, best_isa, can_run
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import make_plan
from tests.operator_cases import (
    CASE_COUNTS,
    SHAPES,
    TESTED,
    Case,
    add_case,
    fill_leaf,
    input_dtypes,
)
from tests.operator_formulas import FORMULAS, Inputs, allowed_error
from tests.plan_models import eager

PAIRS = [(op, dtype) for dtype in DTYPES for op in TESTED if dtype in OPS[op].dtypes]
DEVICES = [("numpy", 1), ("numpy", 2), ("cpu", 1), ("cpu", 2)]
# The instruction sets run the first cases of all operators of these dtypes.
ISA_DTYPES = ("fp32", "fp16", "bf16", "int32", "int8")
ISA_CASES = 9
Results = dict[tuple[str, str], list[tuple[Case, tuple[Array, ...], Array]]]


@cache
def build(
    dtypes: tuple[str, ...], most: int, seed: int, names: tuple[str, ...] = TESTED
) -> tuple[Graph, tuple[Case, ...]]:
    """One graph with the cases of all these operators that take these dtypes."""
    builder = GraphBuilder(f"operators_{'_'.join(dtypes)}")
    cases = []
    for dtype in dtypes:
        for name in names:
            rng = np.random.default_rng([seed, *f"{name} {dtype}".encode()])
            count = min(CASE_COUNTS.get(name, SHAPES), most)
            if dtype in OPS[name].dtypes:
                cases += [add_case(builder, OPS[name], dtype, i, rng) for i in range(count)]
    for case in cases:
        builder.keep(case.output)
    return builder.freeze(), tuple(cases)


@cache
def results(
    dtypes: tuple[str, ...], device: str, workers: int, arch: str, most: int = 99, seed: int = 0
) -> Results:
    """Inputs as the operators see them and outputs as the device gives them."""
    graph, cases = build(dtypes, most, seed)
    plan = make_plan(graph, eager(cpu_target(workers, arch)))
    runner = NumpyDevice(plan) if device == "numpy" else CpuDevice(plan, read_settings())
    session = Session(plan, runner, SessionOptions())
    session.compile(lambda path: None)
    rng = np.random.default_rng(seed)
    inputs = []
    for case in cases:
        arrays = tuple(fill_leaf(case, i, rng) for i in range(len(case.leaves)))
        for leaf, array in zip(case.leaves, arrays, strict=True):
            session.write(leaf.view, array)
        inputs.append(tuple(look(a) for look, a in zip(case.looks, arrays, strict=True)))
    found: Results = {}
    session.launch()
    try:
        session.run(1, "forward", {})
        session.wait()
        for case, seen in zip(cases, inputs, strict=True):
            output = session.read(case.output.view)
            found.setdefault((case.op, case.dtype), []).append((case, seen, output))
    finally:
        session.close()
    return found


def widened(inputs: Sequence[Array]) -> Inputs:
    """Floats as float64, integers as int64, so that formulas neither round nor wrap."""
    wide: dict[str, type] = {"f": np.float64, "V": np.float64, "i": np.int64, "u": np.int64}
    return tuple(a.astype(wide.get(a.dtype.kind, np.bool_)) for a in inputs)


def wanted(case: Case, inputs: Sequence[Array]) -> Array:
    """The formula's result: float64, or exact integers cut to the output's dtype."""
    if case.op not in FORMULAS:
        pytest.skip(f"tests/operator_formulas.py has no formula for {case.op}")
    with np.errstate(all="ignore"):
        value = FORMULAS[case.op](widened(inputs), case.attrs)
    dtype = case.output.view.dtype
    return value if dtype.is_float else value.astype(dtype.numpy)


def check(case: Case, inputs: Sequence[Array], found: Array, label: str) -> None:
    """Compare one result with the formula; integers exactly, floats within their bound."""
    want, dtype = wanted(case, inputs), case.output.view.dtype
    assert found.shape == want.shape, f"{label}, {case.text}: shape {found.shape}"
    if not dtype.is_float:
        assert np.array_equal(found, want), f"{label}, {case.text}: {found} instead of {want}"
        return
    with np.errstate(all="ignore"):
        exact, rounded = want.astype(np.float64), want.astype(dtype.numpy).astype(np.float64)
        got = found.astype(np.float64)
        limit = allowed_error(case.op, dtype.name, widened(inputs), exact, case.attrs)
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        close = np.isfinite(rounded) & (np.abs(got - exact) <= limit)
    wrong = np.argwhere(~(same | close))
    assert not len(wrong), (
        f"{label}, {case.text}: element {tuple(wrong[0])} is {got[tuple(wrong[0])]!r} instead of "
        f"{want[tuple(wrong[0])]!r}, {len(wrong)} of {got.size} wrong"
    )


@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_the_reference_agrees_with_a_formula_written_separately(op: str, dtype: str) -> None:
    record = OPS[op]
    found = results((dtype,), "numpy", 1, "portable")[op, dtype]
    assert len(found) >= 20
    for case, inputs, output in found:
        want = wanted(case, inputs)
        if record.kernel is not None and output.size:
            box = full_box(output.shape)
            tiles = tuple(a.astype(np.float64) if a.dtype.kind in "fV" else a for a in inputs)
            value = record.reference(tiles, case.attrs, box)
            assert value.shape == want.shape, case.text
            if op == "cast" and case.output.view.dtype.is_float:
                check(case, inputs, value, "reference")
            elif value.dtype.kind not in "fV":
                assert np.array_equal(value, want), case.text
            else:
                # Both sides are float64: only the order of at most 257 additions differs.
                wide = value.astype(np.float64), want.astype(np.float64)
                np.testing.assert_allclose(*wide, rtol=1e-11, atol=1e-12, err_msg=case.text)


@pytest.mark.parametrize(("device", "workers"), DEVICES)
@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_a_device_agrees_with_the_formula(op: str, dtype: str, device: str, workers: int) -> None:
    arch = best_isa() if device == "cpu" else "portable"
    for case, inputs, output in results((dtype,), device, workers, arch)[op, dtype]:
        check(case, inputs, output, f"{device}, {workers} workers")


@pytest.mark.parametrize("op", TESTED)
@pytest.mark.parametrize("isa", LADDER)
def test_every_instruction_set_of_this_machine_gives_the_result(op: str, isa: str) -> None:
    if not can_run(isa):
        pytest.skip(f"this machine has no {isa}")
    found = results(ISA_DTYPES, "cpu", 2, isa, ISA_CASES)
    for dtype in ISA_DTYPES:
        for case, inputs, output in found.get((op, dtype), ()):
            check(case, inputs, output, isa)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", LADDER)
def test_every_instruction_set_gives_the_result_of_all_cases(isa: str, dtype: str) -> None:
    if not can_run(isa):
        pytest.skip(f"this machine has no {isa}")
    found = results((dtype,), "cpu", 2, isa)
    for case, inputs, output in (item for items in found.values() for item in items):
        check(case, inputs, output, isa)


@pytest.mark.parametrize("dtype", DTYPES)
def test_casts_give_the_same_bits_on_cpu_as_the_reference(dtype: str) -> None:
    """Rounding is defined, so nothing may differ, NaN's payload aside."""
    numpy = results((dtype,), "numpy", 1, "portable")["cast", dtype]
    cpu = results((dtype,), "cpu", 1, best_isa())["cast", dtype]
    for (case, _, a), (_, _, b) in zip(numpy, cpu, strict=True):
        equal_nan = case.output.view.dtype.is_float
        wide = (a.astype(np.float64), b.astype(np.float64))
        assert np.array_equal(*wide, equal_nan=equal_nan), case.text


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 13))
@pytest.mark.parametrize("dtype", DTYPES)
def test_more_random_cases_agree_with_the_formula(dtype: str, seed: int) -> None:
    for device, workers in DEVICES[1:]:
        arch = best_isa() if device == "cpu" else "portable"
        found = results((dtype,), device, workers, arch, 99, seed)
        for case, inputs, output in (item for items in found.values() for item in items):
            check(case, inputs, output, f"seed {seed}, {device}, {workers} workers")
    results.cache_clear()


REFUSED = [(op, d) for op in TESTED for d in DTYPES if d not in OPS[op].dtypes]


@pytest.mark.parametrize(("op", "dtype"), REFUSED)
def test_a_dtype_that_is_not_in_the_record_is_refused(op: str, dtype: str) -> None:
    builder = GraphBuilder()
    rng = np.random.default_rng(0)
    try:
        add_case(builder, OPS[op], dtype, 1, rng)
    except TypeError as error:
        assert str(error).startswith(f"{op}: dtype {dtype} is not supported; use ")
        assert builder.freeze().methods[0].nodes == ()
    else:
        pytest.fail(f"{op} took {dtype}")


SHARING = [op for op in TESTED if all(a.dtype is None for a in OPS[op].arguments)]


@pytest.mark.parametrize("op", [op for op in SHARING if len(input_dtypes(OPS[op], "fp32")) > 1])
def test_two_dtypes_at_once_are_refused(op: str) -> None:
    builder = GraphBuilder()
    a, b = builder.tensor((2, 2), "fp16"), builder.tensor((2, 2), "fp32")
    attrs = {"transpose_input": False, "transpose_other": False, "is_relu": False}
    with pytest.raises(TypeError, match=f"^{op}: .*(dtypes differ, fp16 and fp32|cast)"):
        builder.apply(op, [a, b], attrs if op == "matmul" else {})


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_stop_when_and_command_scalars_work_for_every_dtype(device: str) -> None:
    builder = GraphBuilder("control")
    states = {}
    for dtype in DTYPES:
        states[dtype] = builder.state((1,), dtype, name=dtype, init=1)
        builder.command_scalar(states[dtype])
        builder.keep(builder.apply("copy", [states[dtype]], name=f"seen_{dtype}"))
    for dtype in ("bool", "int32"):
        builder.select_method(f"stop_{dtype}")
        flag = builder.tensor((1,), dtype, name=f"flag_{dtype}")
        builder.apply("stop_when", [flag])
    graph = builder.freeze()
    plan = make_plan(graph, cpu_target(2, best_isa()))
    runner = NumpyDevice(plan) if device == "numpy" else CpuDevice(plan, read_settings())
    session = Session(plan, runner, SessionOptions())
    session.compile(lambda path: None)
    given = {"fp32": -0.1, "fp16": 0.5, "bf16": 2.0, "int32": -7, "uint32": 2**32 - 1,
             "int8": -128, "uint8": 255, "byte": 9, "bool": False}  # fmt: skip
    given["fp32"] = float(np.float32(given["fp32"]))
    session.launch()
    try:
        session.run(3, "forward", given)
        assert session.wait() == 3
        for dtype, state in states.items():
            assert session.read(state.view).item() == given[dtype], dtype
        for dtype in ("bool", "int32"):
            view = next(
                n.inputs[0] for m in graph.methods if m.name == f"stop_{dtype}" for n in m.nodes
            )
            for value, done in ((0, 4), (1, 1)):
                session.write(view, np.array([value], view.dtype.numpy))
                session.run(4, f"stop_{dtype}", {})
                assert session.wait() == done
    finally:
        session.close()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1, -(2**31)])
def test_an_index_outside_the_table_names_itself(device: str, bad: int) -> None:
    builder = GraphBuilder("lookup")
    index, table = builder.tensor((3,), "int32"), builder.tensor((9, 4), "fp32")
    builder.apply("embedding", [index, table], name="rows")
    plan = make_plan(builder.freeze(), replace(cpu_target(1), arch="portable"))
    runner = NumpyDevice(plan) if device == "numpy" else CpuDevice(plan, read_settings())
    session = Session(plan, runner, SessionOptions())
    session.compile(lambda path: None)
    session.write(index.view, np.array([0, bad, 1], np.int32))
    session.launch()
    session.run(1, "forward", {})
    text = (
        rf"task 0 \(embedding 'rows'\) of method 'forward', iteration 0: "
        rf"index {bad} is outside the table of 9 rows"
    )
    with pytest.raises(TaskError, match=text):
        session.wait()
    session.close()
