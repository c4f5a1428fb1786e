"""Stand-ins for what `./dev gpu` starts: an nvidia-smi, tests, a benchmark, a compute-sanitizer."""

import os
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu_run.sections import Section, Tools

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60.0
GPU = "NVIDIA H200, 143771, 580.1, 9.0, 345, 3201, 1980, 3201, 75.2, [N/A], P0, Enabled"
# The first case is a query of all fields.
NVIDIA_SMI = """
case "$*" in
  *compute_cap*) {more} ;;
  *) echo "NVIDIA H200, 143771, 580.1" ;;
esac
"""
ROWS = [
    {"case": "stream-only", "of_floor": 0.93, "ours": 4200.0, "ratio": None},
    {"case": "hop", "of_floor": 0.8, "ours": 1.2, "ratio": None},
    {"case": "run(1)+wait", "of_floor": None, "ours": 12.5, "ratio": None},
    {"case": "llama-1b layer", "of_floor": 0.71, "ours": 40.0, "ratio": None},
]
GOOD_TEST = "def test_good(): pass\n"


def script(path: Path, text: str) -> Path:
    """Write a program of the shell."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    return path


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    """Put an nvidia-smi on PATH that finds a GPU; `more` is what a query of all fields does."""
    script(folder / "nvidia-smi", NVIDIA_SMI.format(more=more or f'echo "{GPU}"'))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def no_tools(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Tools without a test, a figure or a sanitizer, whose programs find this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    logs = folder / "logs"
    logs.mkdir()
    return Tools((), (sys.executable, "-c", "print('[]')"), None, logs, LIMIT_S)


def with_tests(tools: Tools, text: str, *, test_limit_s: float = LIMIT_S) -> Tools:
    """The tools with pytest on a file of these tests."""
    path = tools.logs.parent / "test_stand_in.py"
    path.write_text("import os, subprocess, sys, time\nimport pytest\n" + textwrap.dedent(text))
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull)
    options = (f"--rootdir={path.parent}", "-o", "markers=sanitizer", str(path))
    return replace(tools, pytest=(*command, *options), test_limit_s=test_limit_s)


def with_bench(tools: Tools, code: str) -> Tools:
    """The tools with Python code for the benchmark; its options are in sys.argv."""
    return replace(tools, bench=(sys.executable, "-c", f"import json, sys, time\n{code}"))


def outcomes(section: Section) -> dict[str, str]:
    """Test -> outcome of what failed."""
    return {f["name"].rpartition("::")[2]: f["outcome"] for f in section["failures"]}
