"""Random models on a real GPU give the float64 result, and equal bits when they run again."""

from collections.abc import Iterator

import pytest

from ark_dist.launch.devices.cupy_gpu import GpuProperties
from tests.cuda_cases import Planner, opened
from tests.cuda_programs import random_graph
from tests.gpu_compile import compiling_ahead, parameters, random_source, worker_count

SEEDS = 100
# Every so many models are run twice.
AGAIN = 5


@pytest.fixture(scope="module", autouse=True)
def ahead(request: pytest.FixtureRequest, gpu: GpuProperties) -> Iterator[None]:
    """Compile what the tests are going to run."""
    jobs = [
        (random_source, (chosen["seed"], worker_count(chosen, gpu), gpu.arch))
        for chosen in parameters(request)
    ]
    with compiling_ahead(jobs, gpu.arch):
        yield


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_model_is_right(seed: int, planner: Planner) -> None:
    bits = random_graph(opened, planner, seed)
    if seed % AGAIN == 0:
        assert random_graph(opened, planner, seed) == bits, f"seed {seed}: other bits"
