"""Programs that fail or are ended in the middle, on a real GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from ark_dist.core.settings import child_environment
from ark_dist.launch.devices.cupy_gpu import GpuProperties
from tests.cuda_cases import Planner, opened
from tests.cuda_failures import CASES
from tests.patience import marked

ROOT = Path(__file__).resolve().parents[2]
SANITIZED = (
    "a failed task ends the workers that wait for it",
    "a program that is aborted anywhere starts anew",
)
# A process that leaves its kernel behind: only its end ends that.
SCRIPT = """
import os, traceback
from functools import partial
from tests.cuda_cases import opened
from tests.cuda_failures import a_missing_fill_at_the_end_of_a_command_is_a_named_stall as case
from tests.emulated import gpu_plan

code = 1
try:
    case(opened, partial(gpu_plan, arch="{arch}"))
    code = 0
except BaseException:
    traceback.print_exc()
os._exit(code)
"""


@pytest.mark.parametrize("name", marked(CASES, SANITIZED))
def test_on_a_gpu(name: str, planner: Planner) -> None:
    CASES[name](opened, planner)


@pytest.mark.xfail(
    reason="nobody closes the ring of a CTA whose producer is through while consumers wait",
)
def test_a_missing_fill_at_the_end_of_a_command_is_a_named_stall(gpu: GpuProperties) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(arch=gpu.arch)],
        env=child_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
