"""The GPU's matrix products, run by a GPU, agree with float64."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ark_dist.core.settings import read_settings
from ark_dist.launch.devices.cupy_gpu import GpuProperties
from ark_dist.launch.nvrtc import compile_cuda
from tests.device_kernels import SCRATCH_OFFSET
from tests.gpu_compile import compiling_ahead, parameters, product_source
from tests.matmul_cases import ALL_CASES, Array, Case, Problem, T, tensor

THREADS = 288

# What the emulation can't know: how warp groups read their operands.
GROUP_CASES = [
    tensor(m, n, k, tile=tile, dtype=dtype, b=T, **rest)
    for tile in ("128, 128, 8, 3", "128, 64, 8, 3")
    for dtype in ("ark_bf16", "ark_fp16")
    for m, n, k, rest in [
        (128, 128, 64, {}),
        (256, 192, 512, {"epilogue": "test_store_pair"}),
        (130, 70, 333, {}),
        (200, 136, 1024, {"prologue": "test_norm"}),
    ]
]


def run(case: Case, seed: int, arch: str) -> None:
    """Run a case on random operands and compare with float64."""
    cupy: Any = importlib.import_module("cupy")
    problem = Problem(case, seed)
    binary, _ = compile_cuda(product_source(case), arch=arch, settings=read_settings())
    module = cupy.RawModule(path=str(binary.path))
    memory: dict[str, Any] = {}

    def place(name: str, array: Array, is_writable: bool) -> int:
        memory[name] = cupy.asarray(np.frombuffer(array.tobytes(), np.uint8))
        return int(memory[name].data.ptr)

    config = problem.config(place)
    constant = module.get_global("config")
    constant.copy_from_host(config.ctypes.data, config.nbytes)
    kernel = module.get_function("kernel")
    kernel.max_dynamic_shared_size_bytes = smem_bytes = SCRATCH_OFFSET + case.scratch_bytes
    kernel((1,), (THREADS,), (), shared_mem=smem_bytes)
    cupy.cuda.Device().synchronize()
    problem.y[...] = cupy.asnumpy(memory["y"]).view(np.float32).reshape(problem.y.shape)
    problem.check()


@pytest.fixture(scope="module", autouse=True)
def ahead(request: pytest.FixtureRequest, gpu: GpuProperties) -> Iterator[None]:
    """Compile what the tests are going to run."""
    cases = dict.fromkeys(chosen["case"] for chosen in parameters(request))
    with compiling_ahead([(product_source, (case,)) for case in cases], gpu.arch):
        yield


@pytest.mark.parametrize("case", [*ALL_CASES, *GROUP_CASES], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_product_on_the_gpu_agrees_with_float64(
    case: Case, seed: int, gpu: GpuProperties
) -> None:
    run(case, seed, gpu.arch)


@pytest.mark.sanitizer
def test_one_product_of_each_kind_agrees_with_float64(gpu: GpuProperties) -> None:
    kinds = {case.kind: case for case in [*ALL_CASES, *GROUP_CASES]}
    for case in kinds.values():
        run(case, 2, gpu.arch)
