"""What the tests on a real GPU share: the GPU, which one test process has at a time, and plans."""

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from ark_dist.core.errors import DeviceNotFoundError
from ark_dist.launch.devices.cupy_gpu import GpuProperties, gpu_properties
from tests.cuda_cases import Planner
from tests.emulated import gpu_plan
from tests.gpu_compile import worker_count
from tests.patience import TEST_S, patient

HERE = Path(__file__).parent
# Longer than all tests on a GPU take.
LOCK_S = 7200.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit what a test does, and not how long it waits for the GPU."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(patient(TEST_S), func_only=True))


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[GpuProperties]:
    """The first GPU, for this process alone; without one these tests are skipped.

    A resident kernel holds its multiprocessors: those of two processes would wait for each other.
    """
    try:
        found = gpu_properties(0)
    except DeviceNotFoundError as error:
        pytest.skip(f"needs a GPU: {error}")
    lock = Path(tempfile.gettempdir()) / f"ark_dist-gpu-tests-{os.getuid()}.lock"
    with FileLock(lock, timeout=LOCK_S):
        yield found


@pytest.fixture(params=["few workers", "all workers"])
def workers(
    request: pytest.FixtureRequest, gpu: GpuProperties, monkeypatch: pytest.MonkeyPatch
) -> int:
    """How many workers programs get, whether they are asked for or not."""
    count = worker_count({"workers": request.param}, gpu)
    monkeypatch.setenv("ARK_DIST_WORKERS", str(count))
    return count


@pytest.fixture
def planner(workers: int, gpu: GpuProperties) -> Planner:
    """Makes plans for a few multiprocessors, or for all."""
    return partial(gpu_plan, workers=workers, arch=gpu.arch)
