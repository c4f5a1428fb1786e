"""All operators on a real GPU agree with float64, and give equal bits again."""

from collections.abc import Iterator

import pytest

from ark_dist.core.dtype import DTYPES
from ark_dist.launch.devices.cupy_gpu import GpuProperties
from tests.cuda_cases import Planner, opened
from tests.cuda_programs import PARTS, operators, some_operators
from tests.gpu_compile import compiling_ahead, operators_source, parameters, worker_count

TRIED = [(dtype, part) for dtype in DTYPES for part in range(PARTS) if some_operators(dtype, part)]
# Other cases for each number of workers: compiling them takes longest.
SEEDS = {"few workers": 0, "all workers": 1}


@pytest.fixture(scope="module", autouse=True)
def ahead(request: pytest.FixtureRequest, gpu: GpuProperties) -> Iterator[None]:
    """Compile what the tests are going to run."""
    jobs = []
    for chosen in parameters(request):
        name = chosen["dtype"], chosen["part"], SEEDS[chosen["workers"]]
        jobs.append((operators_source, (*name, worker_count(chosen, gpu), gpu.arch)))
    with compiling_ahead(jobs, gpu.arch):
        yield


@pytest.mark.parametrize(("dtype", "part"), TRIED)
def test_operators_agree_with_float64(
    dtype: str, part: int, planner: Planner, request: pytest.FixtureRequest
) -> None:
    seed = SEEDS[request.node.callspec.params["workers"]]
    names = some_operators(dtype, part)
    first = operators(opened, planner, dtype, seed=seed, names=names)
    again = operators(opened, planner, dtype, seed=seed, names=names)
    assert [case for case in first if first[case] != again[case]] == []
