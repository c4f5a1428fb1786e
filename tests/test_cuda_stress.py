"""Races, lost memory and results that change are looked for on a GPU that is faked."""

import random
from dataclasses import replace
from functools import partial

import pytest

from ark_dist.core.graph import Graph
from ark_dist.core.plan import Plan
from tests.cuda_programs import random_graph
from tests.cuda_stress import (
    iterations_are_exact,
    programs_after_each_other_leave_no_memory_behind,
    sums_are_the_same_again,
)
from tests.emulated import gpu_plan
from tests.fake_cupy import Fake
from tests.fake_open import Opener


@pytest.mark.parametrize("workers", [2, 4])
def test_iterations_with_fresh_inputs_are_exact(fake: Fake, workers: int) -> None:
    plan = partial(gpu_plan, workers=workers)
    iterations_are_exact(Opener(fake), plan, iterations=24, size=20)


@pytest.mark.parametrize("seed", range(2))
def test_a_missing_wait_is_noticed(fake: Fake, seed: int) -> None:
    rng = random.Random(seed)

    def plan(graph: Graph, depth: int) -> Plan:
        made = gpu_plan(graph, workers=4, depth=depth)
        (method,) = made.methods
        waits = list(method.waits)
        task = rng.choice([task for task, row in enumerate(waits) if row])
        left = rng.randrange(len(waits[task]))
        waits[task] = tuple(wait for i, wait in enumerate(waits[task]) if i != left)
        return replace(made, methods=(replace(method, waits=tuple(waits)),))

    with pytest.raises(AssertionError, match="is wrong in"):
        iterations_are_exact(Opener(fake), plan, iterations=24, size=20)


def test_sums_are_the_same_again(fake: Fake) -> None:
    for workers in (1, 3):
        plan = partial(gpu_plan, workers=workers)
        sums_are_the_same_again(Opener(fake), plan, rows=20, width=192, repeats=2)


def test_programs_after_each_other_leave_no_memory_behind(fake: Fake) -> None:
    opener = Opener(fake)
    programs_after_each_other_leave_no_memory_behind(opener, gpu_plan, rounds=2)


@pytest.mark.parametrize("seed", [5, 12, pytest.param(13, marks=pytest.mark.long)])
def test_a_random_model_is_right_and_gives_the_same_again(seed: int, fake: Fake) -> None:
    first, again = (random_graph(Opener(fake), gpu_plan, seed) for _ in range(2))
    assert first == again
