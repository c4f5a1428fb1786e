"""`./dev gpu` as a whole with stand-ins: what it writes, and how it ends."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from ark_dist.core.settings import child_environment
from tests.gpu_run import __main__ as gpu_run
from tests.gpu_run import child, machine
from tests.gpu_run.child import run_child
from tests.gpu_run.results import new_file, problems, scrubbed, write_file
from tests.gpu_run.sections import Tools
from tests.gpu_stand_ins import (
    GOOD_TEST,
    LIMIT_S,
    ROOT,
    ROWS,
    fake_nvidia_smi,
    no_tools,
    script,
    with_bench,
    with_tests,
)
from tests.mpi import is_running


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with an nvidia-smi that finds a GPU."""
    fake_nvidia_smi(tmp_path / "bin", monkeypatch)
    return tmp_path / "bin"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return no_tools(tmp_path, monkeypatch)


def request(out: Path, names: Sequence[str]) -> gpu_run.Request:
    return gpu_run.Request(tuple(names), None, out, "./dev gpu", None)


def written(out: Path) -> dict[str, Any]:
    """The one file of results in a folder, which has to match the schema."""
    (path,) = out.glob("*.json")
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    assert problems(document) == []
    return document


# --- the whole run ----------------------------------------------------------------------------


def test_a_run_writes_what_the_schema_says(
    tools: Tools, bin_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = with_bench(with_tests(tools, GOOD_TEST), f"print(json.dumps({ROWS!r}))")
    asked = request(tmp_path / "out", ("tests", "figures", "sanitizer"))
    assert gpu_run.run(asked, tools) == 0, "a figure that is missed alone is no failure"
    document = written(tmp_path / "out")
    assert document["gpu"]["name"] == "NVIDIA H200"
    assert document["gpu"]["power_limit_w"] is None
    assert [s["status"] for s in document["sections"].values()] == [
        *("passed", "passed", "unavailable")
    ]
    shown = capsys.readouterr().out
    assert re.search(r"run\(1\)\+wait .* ours 12\.5 .* wanted <= 10 MISSED", shown)
    assert re.search(r"tests .* passed .* 1 passed, 0 failed, 0 skipped, of 1", shown)


def test_a_failure_makes_the_exit_code_1_and_the_other_sections_run(
    tools: Tools, bin_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "@pytest.mark.parametrize('n', [1, 2, 3])\ndef test_bad(n): assert n > 3, 'small'\n"
    tools = with_bench(with_tests(tools, text), "sys.exit('no')")
    assert gpu_run.run(request(tmp_path / "out", ("tests", "figures")), tools) == 1
    document = written(tmp_path / "out")
    assert document["sections"]["tests"]["failures"][0]["message"] == "AssertionError: small"
    shown = capsys.readouterr().out
    assert re.search(r"test_bad\[1\] and 2 more .* failed .* AssertionError: small", shown)
    assert "test_bad[2]" not in shown
    assert document["sections"]["figures"]["status"] == "failed"


def test_an_interrupted_run_leaves_what_it_has_and_no_process(
    tools: Tools, bin_folder: Path, tmp_path: Path
) -> None:
    out, pid = tmp_path / "out", tmp_path / "pid"
    bench = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    tools = with_tests(tools, GOOD_TEST)
    tools = replace(tools, bench=(sys.executable, "-c", bench))
    code = (
        "import sys\nfrom pathlib import Path, PosixPath\n"
        "from tests.gpu_run import __main__ as gpu_run\n"
        "from tests.gpu_run.sections import Tools\nRequest = gpu_run.Request\n"
        "with gpu_run.ended_by_signals():\n"
        f"    gpu_run.run({request(out, ('tests', 'figures', 'sanitizer'))!r}, {tools!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=child_environment())
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert written(out)["sections"]["figures"]["status"] == "running"
        process.terminate()
        assert process.wait(LIMIT_S) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert not is_running(int(pid.read_text()))
    states = {name: s["status"] for name, s in written(out)["sections"].items()}
    assert states == {"tests": "passed", "figures": "interrupted", "sanitizer": "not run"}


def test_an_error_of_the_runner_is_the_sections_result(
    tools: Tools, bin_folder: Path, tmp_path: Path
) -> None:
    tools = replace(tools, bench=(), pytest=())
    assert gpu_run.run(request(tmp_path / "out", ("tests", "figures")), tools) == 1
    found = written(tmp_path / "out")["sections"]
    assert found["figures"]["status"] == "interrupted"
    assert found["figures"]["message"].startswith("IndexError")


def test_without_a_gpu_nothing_runs_and_the_exit_code_says_so(
    tools: Tools, bin_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(bin_folder / "nvidia-smi", "echo No devices were found; exit 6")
    assert gpu_run.run(request(tmp_path / "out", ("tests",)), tools) == 78
    assert capsys.readouterr().err == "no GPU: nvidia-smi is missing or finds none\n"
    assert not (tmp_path / "out").exists()
    done = subprocess.run(
        [ROOT / "dev", "gpu"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 78
    assert "no GPU" in done.stderr


def test_an_nvidia_smi_without_some_fields_still_names_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path / "bin", monkeypatch, "echo not a valid field; exit 2")
    found = machine.describe_gpu()
    assert found is not None
    assert (found["name"], found["memory_mib"], found["clock_sm_mhz"]) == (
        *("NVIDIA H200", 143771.0, None),
    )


def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "TERM_GRACE_S", 0.3)
    code = "trap '' TERM; echo begun; while :; do sleep 1; done"
    ended = run_child(["/bin/sh", "-c", code], tmp_path / "log", 0.5)
    assert (ended.rc, ended.killed) == (-signal.SIGKILL, "it took more than 0 s")
    assert ended.tail() == "begun"
    missing = run_child(["/nowhere/program"], tmp_path / "other", 1.0)
    assert (missing.rc, missing.tail()) == (
        127,
        "[Errno 2] No such file or directory: '/nowhere/program'",
    )


def test_a_budget_is_shared_out_and_what_is_left_goes_to_the_rest() -> None:
    every = ("tests", "figures", "sanitizer")
    limits = gpu_run.LIMITS_S
    assert gpu_run.section_limit_s(every, None, 1000.0) == limits["tests"]
    first = gpu_run.section_limit_s(every, 570.0, 0.0)
    assert first == pytest.approx((570 - gpu_run.OWN_S) * limits["tests"] / sum(limits.values()))
    assert gpu_run.section_limit_s(every[2:], 570.0, 100.0) == 570 - gpu_run.OWN_S - 100
    assert gpu_run.section_limit_s(every[1:], 570.0, 600.0) == 0.0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--only tests,none", "it takes some of tests,figures,sanitizer"),
        ("--budget-s 3", "it must be above 30"),
    ],
)
def test_a_wrong_option_is_refused(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_run.parse(shlex.split(line))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# --- the file ---------------------------------------------------------------------------------


def test_a_second_file_of_a_day_gets_a_number(tmp_path: Path) -> None:
    names = [new_file(tmp_path, "NVIDIA H200 (NVL)", "2026-11-21").name for _ in range(3)]
    first = "nvidia-h200-nvl-2026-11-21"
    assert names == [f"{first}.json", f"{first}-2.json", f"{first}-3.json"]


def test_what_belongs_to_one_machine_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.node", lambda: "box-17")
    texts = {
        f"{ROOT}/tests/gpu/test_device.py:3: bad": "tests/gpu/test_device.py:3: bad",
        "File /home/someone/lib/x.py, line 2": "File <path>/x.py, line 2",
        "on box-17: GPU-01234567-89ab-cdef-0123-456789abcdef": "on <host>: <uuid>",
        "4.3 GB/s of tests/gpu at https://a.b/c": "4.3 GB/s of tests/gpu at https://a.b/c",
    }
    numbers = {"n": 1.5, "nan": float("nan")}
    want = {"a": [*texts.values()], "n": 1.5, "nan": None}
    assert scrubbed({"a": [*texts], **numbers}) == want
    path = tmp_path / "r.json"
    write_file(path, {"a": [*texts]})
    assert json.loads(path.read_text()) == {"a": [*texts.values()]}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_document_that_does_not_fit_is_noticed(bin_folder: Path, tmp_path: Path) -> None:
    gpu = machine.describe_gpu()
    assert gpu is not None
    asked = request(tmp_path, ("tests",))
    document = gpu_run.describe(asked, gpu, {}, datetime.now(timezone.utc))
    assert problems(document) == []
    assert problems([]) == ["it is no object"]
    assert problems({**document, "schema": 2}) == ["schema is 2, not 1"]
    assert problems({**document, "commit": 3}) == ["commit is 3"]
    assert problems({**document, "date": "today"}) == [
        "date is 'today', not like 2026-11-21T22:05:00Z"
    ]
    assert problems({**document, "command": "/home/someone/x"}) == [
        "'/home/someone/x' is a path of one machine"
    ]
    assert problems({**document, "sections": {"tests": {"status": "fine"}}}) == [
        "section 'tests' has status 'fine'"
    ]
    assert "tests.passed is missing" in problems(
        {**document, "sections": {"tests": {"status": "passed"}}}
    )
    del document["gpu"]
    assert problems(document) == ["gpu is missing"]


def test_the_committed_files_of_results_match_the_schema() -> None:
    for path in (ROOT / "docs" / "results").glob("*.json"):
        document = json.loads(path.read_text("utf-8"))
        assert (path.name, problems(document)) == (path.name, [])
        assert scrubbed(document) == document
        name = rf"[a-z0-9-]+-{document['date'][:10]}(-\d+)?\.json"
        assert re.fullmatch(name, path.name), f"{path.name} is not <gpu>-<date>.json"
