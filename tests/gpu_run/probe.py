"""Print versions and the number of multiprocessors as JSON: `python -m tests.gpu_run.probe`."""

import json
import platform
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from ark_dist.comm.nccl_library import NCCLLibrary
from ark_dist.core.version import VERSION
from ark_dist.launch.doctor import CUPY_PACKAGES, package_version
from ark_dist.launch.nvrtc import find_nvrtc


def cuda_facts() -> dict[str, object]:
    """What the CUDA runtime says."""
    from cupy.cuda import runtime

    return {
        "cuda_runtime": _dotted(runtime.runtimeGetVersion()),
        "cuda_driver": _dotted(runtime.driverGetVersion()),
        "sm_count": int(runtime.getDeviceProperties(0)["multiProcessorCount"]),
    }


def _dotted(version: int) -> str:
    """13000 is 13.0, and 12040 is 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def main() -> None:
    """Ask everything; what can't be found out is left out."""
    facts: dict[str, object] = {
        "ark_dist": VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cupy": next((v for name in CUPY_PACKAGES if (v := package_version(name))), None),
        "torch": package_version("torch") or None,
    }
    asked: dict[str, Callable[[], object]] = {
        "nvrtc": lambda: find_nvrtc().version,
        "nccl": lambda: NCCLLibrary().ncclGetVersion(),
    }
    for name, ask in asked.items():
        with suppress(Exception):
            facts[name] = ask()
    with suppress(Exception):
        facts.update(cuda_facts())
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
