"""Attention on an emulated GPU agrees with float64, and its code is what it was written for."""


import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
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
    return (rng.normal(size=leaf.view.shape) * rng.choice([0.1, 1, 3])).astype(
        leaf.view.dtype.numpy
    )


@pytest.mark.parametrize(("seed", "race", "arch"), MODES, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_cases_agree_with_the_formula(
    dtype: str, seed: int, race: bool, arch: str
) -> None:
    graph, added = build(random_cases(0, dtype), dtype)
    with emulated(gpu_plan(graph, workers=3, arch=arch), seed=seed, race=race) as session:
        rng = np.random.default_rng([seed, 1])
        for case, leaves, _, _ in added:
            for leaf in leaves:
                session.write(leaf.view, fill(case, leaf, rng))
        session.run(1, "forward", {})
        session.wait()
        for case, _, values, output in added:
            inputs = [session.read(value.view).astype(np.float64) for value in values]
            check(case, inputs, session.read(output.view).astype(np.float64), dtype)
