"""Describe the machine, its GPU and the software, without names that only this machine has."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ark_dist.launch.doctor import MEMINFO
from tests.gpu_run.child import run_child

CPUINFO = Path("/proc/cpuinfo")
TOOL_LIMIT_S = 30.0
# Importing cupy and opening a GPU for the first time takes so long on a slow machine.
PROBE_LIMIT_S = 120.0
# Our names, and nvidia-smi's with what their values are. A new driver may drop one of the latter
# half, and then answers none.
BASIC = {
    "name": ("name", str),
    "memory_mib": ("memory.total", float),
    "driver": ("driver_version", str),
}
MORE = {
    "compute_capability": ("compute_cap", str),
    "clock_sm_mhz": ("clocks.sm", float),
    "clock_memory_mhz": ("clocks.mem", float),
    "clock_sm_max_mhz": ("clocks.max.sm", float),
    "clock_memory_max_mhz": ("clocks.max.mem", float),
    "power_draw_w": ("power.draw", float),
    "power_limit_w": ("power.limit", float),
    "power_state": ("pstate", str),
    "ecc": ("ecc.mode.current", str),
}
# Of a GPU at work and at rest.
CHANGING = ("clock_sm_mhz", "clock_memory_mhz", "power_draw_w", "power_state")
GPU_FIELDS = (*BASIC, *MORE, "count", "sm_count")
# What the probe finds out; None where it can't.
VERSIONS = (
    *("ark_dist", "python", "numpy", "cupy", "torch", "nvrtc", "nccl"),
    *("cuda_runtime", "cuda_driver"),
)


def describe_machine() -> dict[str, object]:
    """CPU, cores that this process may use, memory, system."""
    model = _after_colon(CPUINFO, "model name") or platform.machine()
    memory_kib = (_after_colon(MEMINFO, "MemTotal") or "0").split()[0]
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory_kib) / 2**20, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def describe_gpu() -> dict[str, object] | None:
    """What nvidia-smi says of the first GPU; None where it finds none.

    Fields that it does not have are None.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = {**BASIC, **MORE}
    lines = _query(program, [name for name, _ in fields.values()])
    if not lines:
        fields = BASIC
        lines = _query(program, [name for name, _ in fields.values()])
    if not lines:
        return None
    found: dict[str, object] = dict.fromkeys(GPU_FIELDS)
    for (key, (_, kind)), text in zip(fields.items(), lines[0].split(","), strict=False):
        found[key] = _value(text.strip(), kind)
    return {**found, "count": len(lines)}


def _query(program: str, names: list[str]) -> list[str]:
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [] if done.returncode else [line for line in done.stdout.splitlines() if line.strip()]


def _value(text: str, kind: type) -> object:
    """A field's value; "[N/A]" and the like are None."""
    if not text or text.startswith("["):
        return None
    try:
        return kind(text)
    except ValueError:
        return None


def probe_software(logs: Path) -> dict[str, Any]:
    """What a process of its own finds out with cupy, which may hang: versions and SM count."""
    answer = logs / "probe.json"
    command = [sys.executable, "-m", "tests.gpu_run.probe"]
    run_child(command, logs / "probe.log", PROBE_LIMIT_S, stdout=answer)
    try:
        found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    except ValueError:
        found = {"python": platform.python_version()}
    return found


def describe_checkout(root: Path) -> dict[str, object]:
    """Commit, and whether files differ from it; None where git can't tell."""
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--", ".", ":!docs/results")
    is_dirty = None if commit is None or status is None else bool(status.strip())
    return {"commit": commit.strip() if commit else None, "is_dirty": is_dirty}


def _git(root: Path, *words: str) -> str | None:
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOOL_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else done.stdout


def _after_colon(path: Path, key: str) -> str | None:
    """The value of the first line `key: value` of a file."""
    if not path.is_file():
        return None
    for line in path.read_text("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
