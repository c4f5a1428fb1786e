"""Compile the programs of tests on a GPU ahead of them, on all cores: NVRTC takes one for each."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import pytest

from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.kernels.emit import emit_cuda
from ark_dist.launch.devices.cupy_gpu import GpuProperties
from ark_dist.launch.nvrtc import compile_cuda
from ark_dist.launch.open import available_cores
from tests.cuda_programs import some_operators
from tests.device_kernels import kernel_text
from tests.emulated import gpu_plan
from tests.matmul_cases import Case
from tests.random_graphs import random_model
from tests.test_operators import build

# Workers, where the others are all that a GPU has.
FEW = 3
# What makes a source, and its arguments; both go to another process.
Job = tuple[Callable[..., Source], tuple[object, ...]]


def random_source(seed: int, workers: int, arch: str) -> Source:
    """The program of `random_graph`."""
    graph = random_model(seed).graph
    return emit_cuda(gpu_plan(graph, workers=workers, arch=arch, depth=1 + seed % 3))[0]


def operators_source(dtype: str, part: int, seed: int, workers: int, arch: str) -> Source:
    """The program of `operators`, in parts."""
    graph, _ = build((dtype,), 99, seed, some_operators(dtype, part))
    return emit_cuda(gpu_plan(graph, workers=workers, arch=arch))[0]


def product_source(case: Case) -> Source:
    """The program of one matrix product."""
    return Source(case.kind, "cuda", kernel_text(case.kind, **dict(case.parameters)))


def compile_job(job: Job, arch: str) -> None:
    """Leave a program in the cache."""
    make, arguments = job
    compile_cuda(make(*arguments), arch=arch, settings=read_settings())


@contextmanager
def compiling_ahead(jobs: Iterable[Job], arch: str) -> Iterator[list[Future[None]]]:
    """Compile in processes beside this one; what fails here fails again in its test."""
    with ProcessPoolExecutor(available_cores(), mp_context=get_context("spawn")) as pool:
        under_way = [pool.submit(compile_job, job, arch) for job in jobs]
        try:
            yield under_way
        finally:
            pool.shutdown(cancel_futures=True)


def worker_count(chosen: Mapping[str, Any], gpu: GpuProperties) -> int:
    """How many workers a test's parameters ask for."""
    return FEW if chosen["workers"] == "few workers" else gpu.worker_count


def parameters(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The parameters of all tests of this module that are going to run."""
    items = [item for item in request.session.items if item.path == request.path]
    specs = (getattr(item, "callspec", None) for item in items)
    return [spec.params for spec in specs if spec is not None]
