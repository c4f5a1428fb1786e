"""Attention agrees with a formula in float64, whole and in parts, for any length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import DTYPES
from ark_dist.core.errors import TaskError
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
from ark_dist.core.target import Target, cpu_target, wide_target
from ark_dist.launch.cpuinfo import LADDER, best_isa, can_run
from ark_dist.scheduler.plan import make_plan
from tests.operator_formulas import EPSILON
from tests.plan_models import eager
from tests.running import launched, strided

Floats = npt.NDArray[np.float64]
CASES = 22
# exp in fp32, twice: for the weight, and for what it is brought up to date with.
EXP_ULPS = 8


@dataclass(frozen=True)
class Case:
    """Sizes as in attention's docstring; `length` has that many values, None is none at all."""

    sizes: tuple[int, int, int, int, int, int, int]
    length: int | None
    causal: bool
    scale: float | None


# Cases in a graph: leaves, what looks at them, the result.
Added = list[tuple[Case, list[Value], list[Value], Value]]


def random_case(rng: np.random.Generator) -> Case:
    batch, groups = int(rng.choice([1, 1, 2, 3])), int(rng.choice([1, 2, 3]))
    heads = groups * int(rng.choice([1, 1, 2, 3, 17]))
    times, keys = int(rng.choice([1, 1, 2, 5, 40])), int(rng.choice([0, 1, 2, 7, 63, 64, 65, 300]))
    depth, width = (int(rng.choice([1, 2, 5, 8, 16, 33, 64])) for _ in range(2))
    length = [None, 0, 1, batch][int(rng.integers(4))]
    scale = float(rng.choice([0.3, -1.0])) if rng.random() < 0.3 else None
    sizes = (batch, times, heads, groups, keys, depth, width)
    return Case(sizes, length, bool(rng.random() < 0.6), scale)


def add(
    builder: GraphBuilder, case: Case, dtype: str, rng: np.random.Generator
) -> tuple[list[Value], list[Value], Value]:
    """Leaves, what looks at them, and the result."""
    b, t, h, g, s, d, w = case.sizes
    pairs = [
        strided(builder, shape, dtype, rng) for shape in ((b, t, h, d), (b, s, g, d), (b, s, g, w))
    ]
    if case.length is not None:
        shape = (case.length,) if case.length else ()
        leaf = builder.tensor(shape, "int32")
        pairs.append((leaf, leaf))
    attrs: dict[str, AttrValue] = {"causal": case.causal, "scale": case.scale}
    result = builder.apply("attention", [value for _, value in pairs], attrs)
    return [leaf for leaf, _ in pairs], [value for _, value in pairs], result


def formula(case: Case, inputs: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The result, and how far fp32 arithmetic may be off, query by query."""
    batch, times, heads, groups, keys, depth, width = case.sizes
    q, k, v = inputs[:3]
    lengths = np.full(batch, keys)
    if len(inputs) == 4:
        lengths = np.broadcast_to(inputs[3].reshape(-1), batch).astype(np.int64)
    scale = depth**-0.5 if case.scale is None else case.scale
    result, error = np.zeros((2, batch, times, heads, width))
    for b, t, h in np.ndindex(batch, times, heads):
        seen = lengths[b] - times + t + 1 if case.causal else lengths[b]
        if seen <= 0:
            continue
        group = h // (heads // groups)
        rows, values = k[b, :seen, group], v[b, :seen, group]
        score = rows @ q[b, t, h] * scale
        weight = np.exp(score - score.max())
        result[b, t, h] = weight @ values / weight.sum()
        # Of the scores, of the exponentials, and of sums over keys.
        size = (np.abs(rows) @ np.abs(q[b, t, h])).max() * abs(scale)
        roundings = 2 * (depth + 4) * size + EXP_ULPS + 2 * np.abs(score - score.max()).max()
        share = weight @ np.abs(values) / weight.sum()
        error[b, t, h] = EPSILON["fp32"] * (roundings + seen + 4) * share
    return result, error


def check(graph: Graph, target: Target, device: str, cases: Added, seed: int) -> None:
    """Run all cases in one graph, and again with other data."""
    with launched(graph, target, device) as session:
        for turn in range(2):
            rng = np.random.default_rng([seed, turn])
            for case, leaves, _, _ in cases:
                for leaf in leaves:
                    data = rng.normal(size=leaf.view.shape) * rng.choice([0.1, 1, 3])
                    if leaf.view.dtype.name == "int32":
                        data = rng.integers(0, case.sizes[4], leaf.view.shape, endpoint=True)
                    session.write(leaf.view, data.astype(leaf.view.dtype.numpy))
            session.run(1, "forward", {})
            session.wait()
            for case, _, values, output in cases:
                inputs = [session.read(value.view).astype(np.float64) for value in values]
                wanted, error = formula(case, inputs)
                found = session.read(output.view)
                error = (
                    error
                    + EPSILON[output.view.dtype.name] / 2 * np.abs(wanted)
                    + 1e-7 * (output.view.dtype.name == "fp16")
                )
                assert found.shape == wanted.shape
                wrong = ~(np.abs(found.astype(np.float64) - wanted) <= error + 1e-30)
                assert not wrong.any(), (case, np.argwhere(wrong)[0], found[wrong][0])


def many(dtype: str, seed: int, count: int = CASES) -> tuple[Graph, Added]:
    rng = np.random.default_rng([seed, *dtype.encode()])
    builder = GraphBuilder(f"attention_{dtype}")
    cases: Added = []
    for _ in range(count):
        case = random_case(rng)
        cases.append((case, *add(builder, case, dtype, rng)))
        builder.keep(cases[-1][-1])
    return builder.freeze(), cases


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_random_cases_agree_with_the_formula(device: str, workers: int, dtype: str) -> None:
    graph, cases = many(dtype, 0)
    check(graph, eager(cpu_target(workers, best_isa())), device, cases, 1)


@pytest.mark.parametrize("isa", LADDER)
def test_every_instruction_set_agrees_with_the_formula(isa: str) -> None:
    if not can_run(isa):
        pytest.skip(f"this machine has no {isa}")
    for dtype in ("fp32", "fp16", "bf16"):
        graph, cases = many(dtype, 2, 8)
        check(graph, eager(cpu_target(2, isa)), "cpu", cases, 3)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_many_queries_give_the_same_bits_however_they_are_cut(dtype: str) -> None:
    sizes = ((1, 203, 6, 2, 300, 40, 24), (2, 67, 1, 1, 67, 64, 64), (1, 5, 1, 1, 90, 16, 16))
    found: list[list[bytes]] = []
    for workers in (1, 2, 3, 7):
        builder = GraphBuilder("cuts")
        data, outputs = [], []
        for b, t, h, g, s, d, w in sizes:
            shapes = ((b, t, h, d), (b, s, g, d), (b, s, g, w))
            leaves = [builder.tensor(shape, dtype) for shape in shapes]
            outputs.append(builder.apply("attention", leaves, {"causal": True, "scale": None}))
            data += leaves
        with launched(builder.freeze(), eager(cpu_target(workers, best_isa())), "cpu") as session:
            rng = np.random.default_rng(8)
            for leaf in data:
                values = rng.normal(size=leaf.view.shape)
                if leaf.view.shape[1] == 300:
                    values[0, 250] = np.nan  # only what sees it may be NaN
                session.write(leaf.view, values.astype(leaf.view.dtype.numpy))
            session.run(1, "forward", {})
            session.wait()
            results = [session.read(output.view) for output in outputs]
            assert [bool(np.isnan(r.astype(np.float32)).any()) for r in results] == [
                True,
                False,
                False,
            ]
            assert not np.isnan(results[0][0, : 250 - 97].astype(np.float32)).any()
            found.append([result.tobytes() for result in results])
    assert all(bits == found[0] for bits in found)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 16])
@pytest.mark.parametrize(("heads", "groups", "keys"), [(9, 3, 128), (8, 8, 128), (4, 1, 1000)])
def test_workers_get_even_shares_of_a_causal_prefill(
    workers: int, heads: int, groups: int, keys: int
) -> None:
    builder = GraphBuilder("shares")
    query = builder.tensor((1, 128, heads, 64), "fp32")
    key = builder.tensor((1, keys, groups, 64), "fp32")
    builder.apply("attention", [query, key, key], {"causal": True, "scale": None})
    method = make_plan(builder.freeze(), cpu_target(workers, best_isa())).methods[0]
    shares = [sum(method.tasks[task].cost.ops for task in queue) for queue in method.queues]
    assert max(shares) <= 1.25 * sum(shares) / workers


def long_cases(dtype: str) -> tuple[Graph, Added]:
    rng = np.random.default_rng(4)
    builder = GraphBuilder("long")
    cases: Added = []
    for case in (
        Case((1, 1, 6, 2, 1000, 16, 24), 1, True, None),
        Case((2, 3, 2, 2, 520, 8, 8), 2, True, 0.5),
        Case((1, 2, 3, 1, 700, 8, 9), None, False, None),
        Case((3, 1, 2, 1, 640, 8, 8), 3, False, None),
    ):
        cases.append((case, *add(builder, case, dtype, rng)))
        builder.keep(cases[-1][-1])
    return builder.freeze(), cases


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_parts_of_the_keys_give_the_same(device: str, dtype: str) -> None:
    graph, cases = long_cases(dtype)
    target = eager(cpu_target(64, best_isa()))
    ops = [node.op for node in make_plan(graph, target).methods[0].nodes]
    assert ops.count("attention_part") == ops.count("attention_merge") == len(cases)
    check(graph, target, device, cases, 5)
    check(graph, replace(eager(wide_target(40)), arch=best_isa()), "numpy", cases, 6)


@pytest.mark.parametrize("workers", [2, 64])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_every_length_is_right_and_nothing_beyond_is_read(device: str, workers: int) -> None:
    case = Case((2, 2, 2, 1, 400, 8, 8), 2, True, None)
    rng = np.random.default_rng(7)
    builder = GraphBuilder("lengths")
    leaves, _, output = add(builder, case, "fp32", rng)
    leaves = [builder.tensor(shape, "fp32") for shape in ((2, 2, 2, 8), (2, 400, 1, 8))]
    leaves += [builder.tensor((2, 400, 1, 8), "fp32"), builder.tensor((2,), "int32")]
    output = builder.apply("attention", leaves, {"causal": True, "scale": None})
    builder.keep(output)
    q, k, v = (rng.normal(size=leaf.view.shape).astype(np.float32) for leaf in leaves[:3])
    target = eager(cpu_target(workers, best_isa()))
    with launched(builder.freeze(), target, device) as session:
        session.write(leaves[0].view, q)
        for lengths in ([0, 1], [2, 63], [64, 65], [128, 129], [192, 257], [399, 400], [5, 0]):
            data = [k.copy(), v.copy()]
            for array in data:
                for b, length in enumerate(lengths):
                    array[b, length:] = np.nan
            for leaf, array in zip(leaves[1:3], data, strict=True):
                session.write(leaf.view, array)
            session.write(leaves[3].view, np.array(lengths, np.int32))
            session.run(1, "forward", {})
            session.wait()
            inputs = [a.astype(np.float64) for a in (q, k, v, np.array(lengths))]
            wanted, error = formula(case, inputs)
            found = session.read(output.view).astype(np.float64)
            assert (np.abs(found - wanted) <= error + EPSILON["fp32"] * np.abs(wanted)).all()
            # Row 0 of two queries is one key behind; nothing to see gives zeros.
            for b, length in enumerate(lengths):
                assert length > 1 or not found[b, 0].any()


@pytest.mark.parametrize("workers", [1, 64])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("bad", [-1, 401, 2**31 - 1])
def test_a_length_outside_of_the_keys_names_itself(device: str, workers: int, bad: int) -> None:
    builder = GraphBuilder("outside")
    query, key = builder.tensor((1, 1, 2, 8), "fp32"), builder.tensor((1, 400, 1, 8), "fp32")
    length = builder.tensor((), "int32")
    attrs: dict[str, AttrValue] = {"causal": True, "scale": None}
    builder.apply("attention", [query, key, key, length], attrs, name="mixed")
    target = eager(cpu_target(workers, best_isa()))
    with launched(builder.freeze(), target, device) as session:
        session.write(length.view, np.array(bad, np.int32))
        session.run(1, "forward", {})
        with pytest.raises(
            TaskError, match=rf"attention.*'mixed.*length {bad} is outside 0 to 400"
        ):
            session.wait()


def test_empty_tensors_give_empty_results() -> None:
    builder = GraphBuilder("empty")
    attrs: dict[str, AttrValue] = {"causal": True, "scale": None}
    outputs = []
    for b, t, h, s, w in ((0, 1, 2, 5, 4), (1, 0, 2, 5, 4), (1, 1, 0, 5, 4), (1, 1, 2, 5, 0)):
        query, key = builder.tensor((b, t, h, 8), "fp32"), builder.tensor((b, s, 1, 8), "fp32")
        value = builder.tensor((b, s, 1, w), "fp32")
        outputs.append(builder.apply("attention", [query, key, value], attrs))
    for device in ("numpy", "cpu"):
        for target in (cpu_target(1, best_isa()), eager(cpu_target(40, best_isa()))):
            with launched(builder.freeze(), target, device) as session:
                session.run(1, "forward", {})
                session.wait()
                assert all(session.read(output.view).size == 0 for output in outputs)


def test_scores_that_are_large_do_not_overflow() -> None:
    builder = GraphBuilder("large")
    query, key = builder.tensor((1, 1, 1, 4), "fp32"), builder.tensor((1, 200, 1, 4), "fp32")
    output = builder.apply("attention", [query, key, key], {"causal": False, "scale": None})
    data = np.zeros((1, 200, 1, 4), np.float32)
    data[0, :, 0, 0] = np.linspace(-1e4, 1e4, 200)
    for device in ("numpy", "cpu"):
        with launched(builder.freeze(), cpu_target(1, best_isa()), device) as session:
            session.write(query.view, np.full((1, 1, 1, 4), 1e3, np.float32))
            session.write(key.view, data)
            session.run(1, "forward", {})
            session.wait()
            assert np.array_equal(session.read(output.view)[0, 0, 0], data[0, 199, 0])


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((1, 2, 3), (1, 2, 3), (1, 2, 3)), r"must have 4 dimensions: batch, time, head, depth"),
        (((1, 1, 2, 8), (1, 5, 2, 4), (1, 5, 2, 4)), r"must be \(B, T, H, D\), \(B, S, G, D\)"),
        (((1, 1, 2, 8), (1, 5, 2, 8), (1, 6, 2, 8)), r"must be \(B, T, H, D\), \(B, S, G, D\)"),
        (((1, 1, 3, 8), (1, 5, 2, 8), (1, 5, 2, 8)), r"3 query heads, 2 key heads and depth 8"),
        (((1, 1, 3, 8), (1, 5, 0, 8), (1, 5, 0, 8)), r"3 query heads, 0 key heads and depth 8"),
        (((1, 1, 2, 0), (1, 5, 2, 0), (1, 5, 2, 8)), r"depth 0; heads must be a multiple"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...], text: str) -> None:
    builder = GraphBuilder()
    values = [builder.tensor(shape, "fp32") for shape in shapes]
    with pytest.raises(ValueError, match=rf"^attention: query .*{text}"):
        builder.apply("attention", values, {"causal": True, "scale": None})


def test_other_bad_arguments_are_refused() -> None:
    builder = GraphBuilder()
    q, k = builder.tensor((2, 1, 2, 8), "fp32"), builder.tensor((2, 5, 2, 8), "fp32")
    half = builder.tensor((2, 5, 2, 8), "fp16")
    attrs: dict[str, AttrValue] = {"causal": True, "scale": None}
    with pytest.raises(TypeError, match=r"^attention: dtypes differ, fp32 and fp32 and fp16"):
        builder.apply("attention", [q, k, half], attrs)
    with pytest.raises(TypeError, match=r"^attention: length is fp32; it must be int32, cast it"):
        builder.apply("attention", [q, k, k, builder.tensor((2,), "fp32")], attrs)
    with pytest.raises(ValueError, match=r"^attention: length is \(3,\); it must be .* \(2,\)"):
        builder.apply("attention", [q, k, k, builder.tensor((3,), "int32")], attrs)
    with pytest.raises(ValueError, match=r"^attention: scale is nan; it must be a finite number"):
        builder.apply("attention", [q, k, k], {"causal": True, "scale": float("nan")})


def test_dtypes_of_other_kinds_are_refused() -> None:
    for dtype in DTYPES:
        if dtype in ("fp32", "fp16", "bf16"):
            continue
        builder = GraphBuilder()
        x = builder.tensor((1, 1, 1, 1), dtype)
        with pytest.raises(TypeError, match=f"^attention: dtype {dtype} is not supported; use"):
            builder.apply("attention", [x, x, x], {"causal": True, "scale": None})
