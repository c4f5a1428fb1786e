"""The CUDA device on a real GPU: lifecycle, failures, operators, the transformer, traces."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ark_dist.core.dtype import DTYPES
from ark_dist.core.errors import DeviceNotFoundError
from ark_dist.core.settings import read_settings
from ark_dist.launch.devices.cupy_gpu import Gpu, GpuProperties, gpu_properties
from tests import test_int8
from tests.cuda_cases import CASES, Planner, opened
from tests.cuda_programs import (
    check_copies,
    early_end_of_generation,
    greedy_tokens,
    operators,
    sampled_tokens,
)
from tests.emulated import gpu_plan
from tests.lifecycle_models import NEVER, looping, set_stop
from tests.test_emulated_transformer import CONFIGS
from tests.test_gpu_trace import check_trace


@pytest.fixture(scope="module")
def gpu() -> GpuProperties:
    """The first GPU; without one these tests are skipped."""
    try:
        return gpu_properties(0)
    except DeviceNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["3 workers", "all workers"])
def planner(request: pytest.FixtureRequest, gpu: GpuProperties) -> Planner:
    """Makes plans for a few multiprocessors, or for all."""
    workers = 3 if request.param == "3 workers" else gpu.worker_count
    return partial(gpu_plan, workers=workers, arch=gpu.arch)


def test_copies_of_all_sizes_arrive(gpu: GpuProperties) -> None:
    check_copies(Gpu(0))


@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name: str, planner: Planner) -> None:
    CASES[name](opened, planner)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_on_a_gpu(dtype: str, seed: int, planner: Planner) -> None:
    operators(opened, planner, dtype, seed=seed)


@pytest.mark.parametrize("case", test_int8.CASES, ids=str)
def test_int8_matrices_on_a_gpu(case: test_int8.Case, gpu: GpuProperties) -> None:
    test_int8.check(case, "cuda")


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_numpy(name: str, planner: Planner) -> None:
    greedy_tokens(opened, planner, CONFIGS[name])


def test_sampled_tokens_are_the_same_again(planner: Planner) -> None:
    sampled_tokens(opened, planner)


def test_an_early_end_leaves_the_weight_stream_in_step(planner: Planner) -> None:
    early_end_of_generation(opened, planner)


def test_a_trace_has_every_task_at_its_time(planner: Planner, tmp_path: Path) -> None:
    path, loop = tmp_path / "trace.json", looping()
    with opened(planner(loop.graph), settings=replace(read_settings(), trace_path=path)) as session:
        began_ns = time.monotonic_ns()
        session.launch()
        set_stop(session, loop, NEVER)
        session.run(9, "forward", {})
        session.wait()
        session.stop()
        check_trace(path, session.plan, 9, began_ns)
