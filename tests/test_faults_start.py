"""Fault rows 22 to 26: processes that do not know who they are, and devices that are not there."""

import subprocess
import sys
import time

import pytest

from ark_dist.core.settings import child_environment
from tests.fault_runs import LAUNCHERS, LIMIT_S, QUICK_S, cause, check_failed
from tests.mpi import ROOT, run_mpi
from tests.plan_faults import HEAD

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]
SAYS = "import ark_dist as ark; print(ark.rank(), ark.world_size())"


def alone(**variables: str) -> subprocess.Popen[str]:
    """Start a process that asks who it is, without any launcher."""
    return subprocess.Popen(
        [sys.executable, "-c", SAYS],
        env=child_environment(PYTHONPATH=str(ROOT), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "ConfigError: "),
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK is 5, but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2"}, "RANK is missing"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'; it must be a whole number"),
    ],
)
def test_row_22_ranks_that_can_not_be_end_with_78(variables: dict[str, str], text: str) -> None:
    # Two of them, as if both were told the same.
    start = time.monotonic()
    processes = [alone(**variables) for _ in range(2)]
    try:
        said = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert time.monotonic() - start < QUICK_S
    assert [process.returncode for process in processes] == [78, 78], said
    assert all(text in each for each in said), said


def test_row_23_one_process_needs_no_mpi() -> None:
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import numpy as np, ark_dist as ark\n"
        "with ark.Runtime(device='numpy') as runtime:\n"
        "    x = ark.tensor([2], ark.FP32)\n    y = ark.all_reduce(x)\n    runtime.launch()\n"
        "    x.from_numpy(np.ones(2, np.float32))\n    runtime.run()\n    print(y.to_numpy())\n"
    )
    command = [sys.executable, "-c", code]
    env = child_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (0, "[1. 1.]\n"), done.stderr


@pytest.mark.parametrize("by", LAUNCHERS)
def test_row_24_launchers_that_disagree_give_one_warning(by: str) -> None:
    env = {"SLURM_PROCID": "7", "SLURM_NTASKS": "9", "SLURM_STEP_ID": "0", "WORLD_SIZE": "5"}
    done = run_mpi(2, SAYS, env={**env, "RANK": "4"}, timeout_s=LIMIT_S, is_guarded=False, by=by)
    assert done.returncode == 0, done
    assert {line[-3:] for line in done.stdout.splitlines()} == {"0 2", "1 2"}, done
    assert done.stderr.count("not used, as the first launcher") == 1, done


@pytest.mark.parametrize("by", LAUNCHERS)
def test_rows_25_and_26_ranks_on_a_device_for_one_are_refused(by: str) -> None:
    program = f"{HEAD}ark.Executor(model=model, device='cuda')\n"
    done = run_mpi(2, program, timeout_s=LIMIT_S, is_guarded=False, by=by)
    check_failed(done, 78, by, QUICK_S)
    text = "ConfigError: device 'cuda' runs one rank, and this is rank "
    assert text in done.stderr, done
    if by == "ark-dist":
        assert "use device='cpu' or 'numpy'" in cause(done), done


def test_row_25_a_missing_gpu_is_told_with_the_way_out() -> None:
    code = "import ark_dist as ark; m = ark.Model(); ark.Executor(model=m, device='cuda')"
    command = [sys.executable, "-c", f"import sys; sys.modules['cupy'] = None; {code}"]
    env = child_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode != 0
    assert "DeviceNotFoundError: device 'cuda' needs cupy" in done.stderr, done.stderr
    assert 'use device="cpu"' in done.stderr, done.stderr
