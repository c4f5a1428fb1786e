"""Every operator and dtype on the emulated GPU: values under several schedules, and races."""

from functools import cache

import numpy as np
import pytest

from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import OPS
from tests.emulated import emulated, gpu_plan
from tests.operator_cases import TESTED, fill_leaf
from tests.test_operators import PAIRS, Results, build, check

# Race mode, where every access is looked at, takes the first cases of each operator.
RACE_CASES = 6
SEEDS = (0, 1)


@cache
def results(dtype: str, seed: int, race: bool, arch: str) -> Results:
    """Inputs as the operators see them and outputs as the emulated GPU gives them."""
    graph, cases = build((dtype,), RACE_CASES if race else 99, 0)
    found: Results = {}
    with emulated(gpu_plan(graph, workers=2, arch=arch), seed=seed, race=race) as session:
        rng = np.random.default_rng(seed)
        inputs = []
        for case in cases:
            arrays = tuple(fill_leaf(case, i, rng) for i in range(len(case.leaves)))
            for leaf, array in zip(case.leaves, arrays, strict=True):
                session.write(leaf.view, array)
            inputs.append(tuple(look(a) for look, a in zip(case.looks, arrays, strict=True)))
        session.run(1, "forward", {})
        session.wait()
        for case, seen in zip(cases, inputs, strict=True):
            output = session.read(case.output.view)
            found.setdefault((case.op, case.dtype), []).append((case, seen, output))
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_the_emulated_gpu_agrees_with_the_formula(op: str, dtype: str, seed: int) -> None:
    for case, inputs, output in results(dtype, seed, False, "sm_90a")[op, dtype]:
        check(case, inputs, output, f"emulated, seed {seed}")


@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_no_task_races_or_touches_what_it_did_not_declare(op: str, dtype: str) -> None:
    for case, inputs, output in results(dtype, 0, True, "sm_80")[op, dtype]:
        check(case, inputs, output, "emulated, race mode")


def test_all_operators_were_tried() -> None:
    assert {op for op, _ in PAIRS} == set(TESTED)
    assert (
        {dtype for _, dtype in PAIRS} == {d for op in TESTED for d in OPS[op].dtypes} <= set(DTYPES)
    )
