"""Random models on a real GPU give the float64 result, and equal bits when they run again."""

import pytest

from tests.cuda_cases import Planner, opened
from tests.cuda_programs import random_graph

SEEDS = 100
# Every so many models are run twice.
AGAIN = 5


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_model_is_right(seed: int, planner: Planner) -> None:
    bits = random_graph(opened, planner, seed)
    if seed % AGAIN == 0:
        assert random_graph(opened, planner, seed) == bits, f"seed {seed}: other bits"
