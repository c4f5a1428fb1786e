"""Python ends, or forks, while a kernel is resident on a fake GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import os, sys
import pytest
from tests.cuda_cases import running_endlessly
from tests.emulated import gpu_plan
from tests.fake_cupy import install
from tests.fake_gpu import FakeGpu
from tests.test_emulated_transformer import CONFIGS
from tests.lifecycle_models import looping
from tests.fake_open import Opener

fake = install(pytest.MonkeyPatch(), FakeGpu(0))
loop = looping()
opened = Opener(fake)(gpu_plan(loop.graph))
session = opened.__enter__()
running_endlessly(session, loop)
if sys.argv[1] == "fork":
    pid = os.fork()
    if pid == 0:
        session.close()
        del session, opened
        assert fake.problems == [], fake.problems
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(TimeoutError):
        session.wait(0.1)
print("end", flush=True)
"""


@pytest.mark.parametrize("way", ["exit", "fork"])
def test_a_process_that_ends_or_forks_leaves_no_kernel_and_no_noise(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT, way],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")
