"""The doctor names what is there, forgives what is absent, and fails over what is broken."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ark_dist.core.settings import child_environment
from ark_dist.launch import doctor
from ark_dist.launch.doctor import Finding, examine, self_test, shm_finding, spans

COMMAND = [sys.executable, "-m", "ark_dist.cli", "doctor"]
NAMES = {
    *("ark_dist", "python", "system", "encoding", "environment", "numpy", "mpi4py", "cores"),
    *("instruction set", "memory", "huge pages", "/dev/shm", "g++", "clang++", "compiler"),
    *("cache", "nccl", "cupy", "nvrtc", "mpirun", "self-test"),
}


def run(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *options],
        env=child_environment(PYTHONPATH=str(Path(__file__).resolve().parents[1]), **env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_sound_machine_passes_with_its_self_test() -> None:
    done = run("--json")
    assert done.returncode == 0, done.stdout
    findings = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(findings) >= NAMES
    assert findings["self-test"]["state"] == "ok"
    assert findings["self-test"]["value"].startswith("2 ranks, ")
    assert all(list(row) == ["name", "state", "value", "hint"] for row in findings.values())


def test_the_findings_are_printed_for_people() -> None:
    done = run(ARK_DIST_TIMEOUT_S="soon")
    assert done.returncode == 1
    assert "broken   environment      ARK_DIST_TIMEOUT_S is 'soon'" in done.stdout
    assert "pip install 'ark_dist[cuda12]'" in done.stdout or "ok       cupy" in done.stdout


def test_what_is_absent_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "find_mpirun", lambda: None)
    monkeypatch.setattr(doctor, "package_version", lambda name: "")
    states = {finding.name: finding.state for finding in examine()}
    assert states["mpirun"] == states["self-test"] == states["nccl"] == states["gpus"] == "absent"
    assert states["g++"] == states["numpy"] == "absent"
    assert "broken" not in states.values()


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_lights() -> Iterator[Finding]:
        yield Finding("lamp", "ok", "on")
        raise OSError("the bulb is broken")

    monkeypatch.setattr(doctor, "CHECKS", (check_lights,))
    assert examine() == (
        Finding("lamp", "ok", "on"),
        Finding("lights", "broken", "OSError: the bulb is broken"),
    )


def test_a_self_test_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    program = [sys.executable, "-c", "raise ArithmeticError('1 + 1 = 3')"]
    monkeypatch.setattr(doctor, "python_command", lambda module, function: program)
    found = self_test()
    assert found.state == "broken"
    assert found.value.endswith("ArithmeticError: 1 + 1 = 3")


def test_a_self_test_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(doctor, "python_command", lambda module, function: program)
    monkeypatch.setattr(doctor, "SELF_TEST_LIMIT_S", 1.0)
    found = self_test()
    assert found.state == "broken"
    assert "took longer than --timeout, 1 s; ranks that still ran: 0, 1" in found.value


@pytest.mark.parametrize(("mib", "state"), [(64, "warning"), (1024, "ok")])
def test_a_small_shared_memory_is_a_warning(
    mib: int, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocks = mib * 256
    values = (4096, 4096, blocks, blocks, blocks, 0, 0, 0, 0, 255)
    monkeypatch.setattr("os.statvfs", lambda path: os.statvfs_result(values))
    found = shm_finding(tmp_path)
    assert (found.state, found.value) == (state, f"{mib} MiB, {mib} MiB free")
    assert ("--shm-size" in found.hint) == (state == "warning")


def test_no_shared_memory_at_all_is_a_warning(tmp_path: Path) -> None:
    assert shm_finding(tmp_path / "none").state == "warning"


def test_gpus_are_listed_as_nvidia_smi_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho index, name\necho 0, First\necho 1, Second\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = [finding for finding in doctor.check_gpus() if finding.name == "gpu"]
    assert found == [Finding("gpu", "ok", "0, First"), Finding("gpu", "ok", "1, Second")]
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    found = [finding for finding in doctor.check_gpus() if finding.name == "gpu"]
    assert found == [Finding("gpu", "warning", "no driver")]


def test_numbers_are_told_in_spans() -> None:
    assert spans([0, 1, 2, 3, 8, 10, 11]) == "0-3,8,10-11"
    assert spans([]) == ""
