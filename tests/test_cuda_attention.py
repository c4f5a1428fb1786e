"""Attention on an emulated GPU agrees with float64, and its code is what it was written for."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import CompilerNotFoundError, TaskError
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
from ark_dist.core.settings import read_settings
from ark_dist.core.target import wide_target
from ark_dist.kernels.emit import emit_cuda
from ark_dist.launch import nvrtc, sass
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.emulated import emulated, gpu_plan
from tests.operator_formulas import EPSILON
from tests.test_attention import Added, Case, add, formula

ARCHS = ("sm_80", "sm_90a", "sm_100a")
DTYPES = ("fp32", "fp16", "bf16")
MODES = [(0, False, "sm_90a"), (1, False, "sm_80"), (2, True, "sm_80"), (3, True, "sm_90a")]
IDS = ["seed 0", "seed 1", "race sm_80", "race sm_90a"]
Floats = npt.NDArray[np.float64]


# (B, T, H, G, S, D, Dv): few rows, many rows of 32, 64 and 128, and what takes the general path.
def random_cases(seed: int, dtype: str) -> list[Case]:
    """Cases of every kind, in random odd sizes."""
    rng = np.random.default_rng([seed, *dtype.encode()])

    def depth() -> int:
        return int(rng.choice([16, 32, 48, 64, 80, 128]))

    def keys(most: int = 300) -> int:
        return int(rng.choice([1, 17, 63, 64, 65, most]))

    sizes = [
        (2, 1, 4, 1, 300, depth(), depth()),
        (1, int(rng.integers(2, 5)), 4, 2, keys(), depth(), depth()),
        (1, 5, 8, 2, keys(130), depth(), depth()),
        (1, 25, 2, 1, 100, depth(), depth()),
        (1, 200, 1, 1, 210, 16, depth()),
        (1, 3, 3, 1, keys(), int(rng.integers(1, 40)), int(rng.integers(1, 70))),
        (2, 1, 2, 2, keys(), 64, 24),
        (1, 7, 2, 1, keys(130), 8, 132),
    ]
    cases = []
    for number, size in enumerate(sizes):
        length = [None, 0, 1, size[0]][(number + seed) % 4]
        scale = None if rng.random() < 0.7 else float(rng.choice([0.3, -1.0]))
        cases.append(Case(size, length, bool(rng.random() < 0.6), scale))
    return cases


def build(cases: list[Case], dtype: str) -> tuple[Graph, Added]:
    rng = np.random.default_rng(len(cases))
    builder = GraphBuilder(f"attention_{dtype}")
    added: Added = []
    for number, case in enumerate(cases):
        make = add if number % 3 == 2 else plain
        added.append((case, *make(builder, case, dtype, rng)))
        builder.keep(added[-1][-1])
    return builder.freeze(), added


def plain(
    builder: GraphBuilder, case: Case, dtype: str, rng: np.random.Generator
) -> tuple[list[Value], list[Value], Value]:
    """The same as `add`, of tensors that are contiguous and aligned."""
    b, t, h, g, s, d, w = case.sizes
    leaves = [builder.tensor(shape, dtype) for shape in ((b, t, h, d), (b, s, g, d), (b, s, g, w))]
    if case.length is not None:
        leaves.append(builder.tensor((case.length,) if case.length else (), "int32"))
    attrs: dict[str, AttrValue] = {"causal": case.causal, "scale": case.scale}
    return leaves, leaves, builder.apply("attention", leaves, attrs)


def check(case: Case, inputs: list[Floats], found: Floats, dtype: str) -> None:
    """Compare with the formula; tensor cores may round weights to their inputs' type."""
    wanted, error = formula(case, inputs)
    values = [*inputs[:2], np.abs(inputs[2]), *inputs[3:]]
    share, _ = formula(case, values)
    rounded = 1.0 if dtype != "fp32" else 0.0
    bound = error + EPSILON[dtype] / 2 * (np.abs(wanted) + rounded * share)
    wrong = ~(np.abs(found - wanted) <= bound + 1e-7 * (dtype == "fp16") + 1e-30)
    assert found.shape == wanted.shape
    assert not wrong.any(), (case, np.argwhere(wrong)[0], found[wrong][0], wanted[wrong][0])


def fill(case: Case, leaf: Value, rng: np.random.Generator) -> npt.NDArray[np.generic]:
    if leaf.view.dtype.name == "int32":
        return rng.integers(0, case.sizes[4], leaf.view.shape, np.int32, endpoint=True)
    data = rng.normal(size=leaf.view.shape) * rng.choice([0.1, 1, 3])
    return np.asarray(data.astype(leaf.view.dtype.numpy))


def run(
    graph: Graph,
    added: Added,
    dtype: str,
    *,
    seed: int,
    race: bool = False,
    arch: str = "sm_90a",
    workers: int = 3,
) -> None:
    """Run all cases on fresh data, and compare."""
    with emulated(gpu_plan(graph, workers=workers, arch=arch), seed=seed, race=race) as session:
        rng = np.random.default_rng([seed, 1])
        for case, leaves, _, _ in added:
            for leaf in leaves:
                session.write(leaf.view, fill(case, leaf, rng))
        session.run(1, "forward", {})
        session.wait()
        for case, _, values, output in added:
            inputs = [session.read(value.view).astype(np.float64) for value in values]
            check(case, inputs, session.read(output.view).astype(np.float64), dtype)


@pytest.mark.parametrize(("seed", "race", "arch"), MODES, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_cases_agree_with_the_formula(dtype: str, seed: int, race: bool, arch: str) -> None:
    graph, added = build(random_cases(0, dtype), dtype)
    run(graph, added, dtype, seed=seed, race=race, arch=arch)


@pytest.mark.parametrize(("seed", "race"), [(0, False), (1, False), (2, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_the_keys_are_merged(dtype: str, seed: int, race: bool) -> None:
    """Of few and many rows; what weights lose by rounding is no less than without parts."""
    cases = [
        Case((1, 1, 6, 1, 700, 64, 80), 1, True, None),
        Case((1, 12, 2, 1, 520, 32, 16), None, False, 0.5),
        Case((1, 2, 3, 1, 390, 8, 9), 1, True, None),
    ]
    graph, added = build(cases, dtype)
    plan = gpu_plan(graph, workers=12)
    ops = [node.op for node in plan.methods[0].nodes]
    assert ops.count("attention_part") == ops.count("attention_merge") == len(cases)
    run(graph, added, dtype, seed=seed, race=race, workers=12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("times", [2, 20])
def test_what_a_row_does_not_see_is_not_read(times: int, dtype: str) -> None:
    """Lengths of 0 and a few, NaN behind them; rows that see nothing, or only -inf, are zeros."""
    case = Case((5, times, 2, 1, 150, 16, 32), 5, True, 1.0)
    graph, ((_, leaves, _, output),) = build([case], dtype)
    rng = np.random.default_rng(times)
    lengths = np.array([0, 1, 63, 65, 150], np.int32)
    with emulated(gpu_plan(graph, workers=2)) as session:
        data = [fill(case, leaf, rng) for leaf in leaves[:3]]
        for row, length in enumerate(lengths):
            for array in data[1:]:
                array[row, length:] = np.nan
        # Scores of -inf: all that row 2 sees, and the first of row 3's keys.
        data[0][2:4, ..., 0] = 1
        data[1][2, :63, :, 0] = data[1][3, :2, :, 0] = -np.inf
        for leaf, array in zip(leaves, [*data, lengths], strict=True):
            session.write(leaf.view, array)
        session.run(1, "forward", {})
        session.wait()
        found = session.read(output.view).astype(np.float64)
    assert not found[0].any() and not found[2].any()
    assert not found[1, : times - 1].any() and found[1, -1].any()
    inputs = [np.asarray(array, np.float64) for array in (*data, lengths)]
    inputs[1][3, :2, :, 0] = -1e4  # weights of zero, too
    keep = [1, 4] if times > 65 else [1, 3, 4]
    part = [array[keep] for array in inputs]
    few = replace(case, sizes=(len(keep), *case.sizes[1:]), length=len(keep))
    check(few, part, found[keep], dtype)


@pytest.mark.parametrize("bad", [-1, 401, 2**31 - 1])
def test_a_length_outside_of_the_keys_ends_the_run(bad: int) -> None:
    graph, ((_, leaves, _, _),) = build([Case((1, 1, 2, 1, 400, 16, 16), 0, True, None)], "fp16")
    with emulated(gpu_plan(graph, workers=2)) as session:
        session.write(leaves[3].view, np.array(bad, np.int32))
        session.run(1, "forward", {})
        with pytest.raises(TaskError, match=rf"length {bad} is outside 0 to 400"):
            session.wait()


# (B, T, H, G, S, D, Dv) and dtype; opcodes that its kernel has.
CODE = {
    "decode": ((1, 1, 32, 8, 2048, 128, 128), "bf16", ("LDG.E.128", "HMMA.16816.F32.BF16")),
    "decode 64": ((1, 2, 16, 8, 2048, 64, 64), "fp16", ("LDG.E.128", "HMMA.16816.F32")),
    "decode fp32": ((1, 1, 32, 8, 2048, 128, 128), "fp32", ("LDG.E.128", "FFMA")),
    "prefill": (
        (1, 512, 32, 8, 512, 128, 128),
        "bf16",
        ("HMMA.16816.F32.BF16", "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128"),
    ),
}
# The ring's producer, which every kernel has, loads its table by so many.
RING_LOADS = 2
FEWEST_LOADS = 8


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", CODE)
def test_the_machine_code_is_what_was_meant(name: str, arch: str) -> None:
    try:
        nvrtc.find_nvrtc()
        sass.find_nvdisasm()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    sizes, dtype, opcodes = CODE[name]
    graph, _ = build([Case(sizes, 1, True, None)], dtype)
    plan = make_plan(graph, wide_target(132, arch, "cuda"), PlanOptions())
    source, _ = emit_cuda(plan)
    binary, report = nvrtc.compile_cuda(source, arch=arch, settings=read_settings())
    (kernel,) = report.kernels
    assert kernel.stack_bytes == kernel.spill_store_bytes == kernel.spill_load_bytes == 0
    for function in sass.functions(binary.path).values():
        assert not function.generic and not function.local
        if function.name == kernel.name:
            assert all(function.count(opcode) for opcode in opcodes), function.opcodes
            if "LDG.E.128" in opcodes:
                assert function.count("LDG.E.128") >= RING_LOADS + FEWEST_LOADS
