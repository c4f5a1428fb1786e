"""The command line: what it prints, and how it ends."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ark_dist.bench.rows import Row
from ark_dist.benchmarks import BENCHES
from ark_dist.core.settings import child_environment
from ark_dist.launch.exit_codes import BAD_CONFIG, BAD_FILE

ROW_KEYS = [field.name for field in fields(Row)]
SCRIPT = """
import sys
import numpy as np
import ark_dist as ark

model = ark.Model("traced")
x = model.tensor((4, 8))
y = model.add(x, x)
z = model.softmax(y)
with ark.Executor(model=model, device=sys.argv[1], workers=2) as exe:
    exe.compile()
    exe.tensor_memcpy_host_to_device(x, np.ones((4, 8), np.float32))
    exe.launch()
    exe.run(3)
    exe.stop()
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ark-dist` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ark_dist.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=child_environment(**environment),
    )


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.strip()[0].isdigit()


def test_an_unknown_benchmark_is_named_with_what_there_is() -> None:
    done = run("bench", "nothing")
    assert done.returncode == BAD_CONFIG
    assert "there is no benchmark 'nothing'" in done.stderr
    assert all(name in done.stderr for name in BENCHES)


def test_bench_dispatch_prints_rows_with_the_agreed_keys() -> None:
    done = run("bench", "dispatch", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["case"] for row in rows] == ["10 adds", "hop", "run(1)+wait"]
    assert all(list(row) == ROW_KEYS and row["ours"] > 0 for row in rows)


def test_a_trace_shows_every_task_on_its_worker(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "trace.json"
    script.write_text(SCRIPT)
    done = run("trace", str(script), "--out", str(out), "cpu")
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["traceEvents"]
    names = [row["args"]["name"] for row in rows if row["ph"] == "M"]
    assert names == ["rank 0 traced", "worker 0", "worker 1"]
    tasks = [row for row in rows if row["ph"] == "X" and row["name"] != "wait"]
    assert {row["args"]["turn"] for row in tasks} == {0, 1, 2}
    assert all(row["dur"] >= 0 and row["args"]["method"] == "forward" for row in tasks)
    starts = [row["ts"] for row in tasks if row["tid"] == 0]
    assert starts == sorted(starts)


def test_a_trace_without_a_kernel_says_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run("trace", str(script), "--out", str(tmp_path / "trace.json"), "numpy")
    assert done.returncode == BAD_CONFIG
    assert "nothing to trace" in done.stderr


def test_a_failing_script_passes_its_exit_code_on(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(7)")
    done = run("trace", str(script), "--out", str(tmp_path / "trace.json"))
    assert done.returncode == 7


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("trace", "missing.py"), "missing.py is not a file"),
        (("trace", __file__, "--out", "/no/such/folder/trace.json"), "does not exist"),
    ],
)
def test_bad_arguments_of_trace_are_named(arguments: tuple[str, ...], text: str) -> None:
    done = run(*arguments)
    assert done.returncode == BAD_CONFIG
    assert text in done.stderr


def test_the_cache_can_be_listed_verified_and_cleared(tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    made = subprocess.run(
        [sys.executable, str(script), "cpu"],
        env=child_environment(ARK_DIST_CACHE_DIR=folder),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    entries = json.loads(run("cache", "ls", "--json", ARK_DIST_CACHE_DIR=folder).stdout)
    assert [entry["name"] for entry in entries] == ["traced"]
    assert run("cache", "verify", ARK_DIST_CACHE_DIR=folder).returncode == 0
    library = next(Path(folder).rglob("kernel.so"))
    library.write_bytes(library.read_bytes()[:-1])
    broken = run("cache", "verify", "--json", ARK_DIST_CACHE_DIR=folder)
    assert broken.returncode == BAD_FILE
    assert json.loads(broken.stdout)["problems"]
    assert "removed 1 entries" in run("cache", "clear", ARK_DIST_CACHE_DIR=folder).stdout
    assert json.loads(run("cache", "ls", "--json", ARK_DIST_CACHE_DIR=folder).stdout) == []


def test_a_bad_environment_variable_ends_with_the_configs_exit_code() -> None:
    done = run("cache", "ls", ARK_DIST_TIMEOUT_S="soon")
    assert done.returncode == BAD_CONFIG
    assert "ARK_DIST_TIMEOUT_S is 'soon'" in done.stderr
