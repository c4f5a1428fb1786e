"""Run tests, figures and sanitizer as child processes, and tell of each what came of it."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu_run.child import Ended, run_child
from tests.gpu_run.machine import CHANGING, describe_gpu
from tests.gpu_run.pytest_log import LOST_RC, read_records
from tests.gpu_run.sanitizer import SANITIZERS, Checked, checked_tool
from tests.gpu_run.targets import CASES, check_targets

Section = dict[str, Any]

# Exit codes of pytest that come after its last test: all passed, some failed, there were none.
COMPLETE = (0, 1, 5)
# A GPU that is lost in every other test is not worth more processes.
MOST_PROCESSES = 20
# What the figures may take as a whole; the rest is for one case after the other, if that fails.
WHOLE_SHARE = 0.6
SIGNALS = 128  # the exit codes above it are those of signals
LEAST_S = 1.0  # nothing is started that would be killed before
SLOWEST = 5
# The benchmark tells each row on stderr as soon as it is known.
TOLD_ROW = re.compile(r"^gpu: (\{.*\})$", re.M)
# 100 times the default: so much longer kernels take under a tool, whose own limit still holds.
SANITIZER_TIMEOUT_S = 6000
LAUNCH_S = 600


@dataclass(frozen=True, slots=True)
class Tools:
    """What the sections start, and where that leaves its output.

    Attributes:
        pytest: the command that runs the tests.
        bench: the command that prints the figures as JSON.
        sanitizer: compute-sanitizer's file, or None where there is none.
        logs: an empty folder.
        test_limit_s: how long one test may take; whichever takes longer hangs.
    """

    pytest: tuple[str, ...]
    bench: tuple[str, ...]
    sanitizer: str | None
    logs: Path
    test_limit_s: float


@dataclass(frozen=True, slots=True)
class TestLog:
    """The file to which a process of pytest writes its results."""

    path: Path

    def options(self) -> tuple[str, ...]:
        """What pytest must be told to write it."""
        plugin = ("-p", "tests.gpu_run.pytest_log", "--gpu-log", str(self.path))
        return (*plugin, "--continue-on-collection-errors")

    def names(self, event: str) -> dict[str, dict[str, Any]]:
        """The records of an event by the test's name, the latest of each."""
        return {r["name"]: r for r in read_records(self.path) if r["event"] == event}

    def total(self) -> int:
        """How many tests there are: those of the first process, and those that never begin."""
        counts = [r["count"] for r in read_records(self.path) if r["event"] == "collected"]
        return (counts[0] if counts else 0) + len({*self.names("ended")} - {*self.names("began")})

    def is_empty(self) -> bool:
        """Whether pytest found no test."""
        return bool(read_records(self.path)) and not self.total()

    def open_test(self) -> dict[str, Any] | None:
        """The record of the test that began and has not ended."""
        ended = self.names("ended")
        return next((r for name, r in self.names("began").items() if name not in ended), None)

    def hanging(self, limit_s: float) -> str | None:
        """Say which test has run for too long."""
        if not self.path.exists() or time.time() - self.path.stat().st_mtime < limit_s:
            return None  # the latest record is of its begin
        test = self.open_test()
        return f"{test['name']} took more than {limit_s:.0f} s" if test else None

    def close_test(self, ended: Ended) -> None:
        """Record how the test ended during which its process did."""
        test = self.open_test()
        if test is None:
            return
        outcome, message = "crashed", f"its process ended with {ended.rc}"
        if ended.killed:
            outcome = "hung" if test["name"] in ended.killed else "cut off"
            message = ended.killed
        record = {"event": "ended", "name": test["name"], "outcome": outcome, "message": message}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "s": time.time() - test["at"]}) + "\n")

    def summary(self) -> Section:
        """Counts of all outcomes, what failed, why tests were skipped, and the slowest tests."""
        ended = self.names("ended")
        count = Counter(record["outcome"] for record in ended.values())
        good = ("passed", "skipped", "xfailed")
        skips = Counter(r["message"] for r in ended.values() if r["outcome"] == "skipped")
        slowest = sorted(ended, key=lambda name: -ended[name].get("s", 0.0))[:SLOWEST]
        return {
            "total": self.total(),
            **{outcome: count[outcome] for outcome in good},
            "failed": sum(n for outcome, n in count.items() if outcome not in good),
            "failures": [
                {"name": name, "outcome": record["outcome"], "message": record["message"]}
                for name, record in ended.items()
                if record["outcome"] not in good
            ],
            "skips": [{"reason": reason, "count": n} for reason, n in skips.most_common()],
            "slowest": [{"name": n, "s": round(ended[n].get("s", 0.0), 2)} for n in slowest],
        }


def run_tests(tools: Tools, limit_s: float) -> Section:
    """Run pytest; where a test takes the process or its GPU along, a new one does what is left."""
    deadline = time.monotonic() + limit_s
    log = TestLog(tools.logs / "tests.jsonl")
    command = [*tools.pytest, *log.options()]
    processes: list[Ended] = []
    while len(processes) < MOST_PROCESSES:
        begun = len(log.names("began"))
        left_s = max(deadline - time.monotonic(), 0.0)
        ended = run_child(
            command,
            tools.logs / "tests.log",
            left_s,
            watch=lambda: log.hanging(tools.test_limit_s),
        )
        log.close_test(ended)
        processes.append(ended)
        now = len(log.names("began"))
        is_over = ended.rc in COMPLETE or time.monotonic() > deadline
        if is_over or now == begun or len(log.names("ended")) >= log.total():
            break
    summary = log.summary()
    return {
        "status": _tests_status(processes[-1], summary, is_late=time.monotonic() > deadline),
        **_told(processes[-1], limit_s, sum(ended.wall_s for ended in processes)),
        "processes": len(processes),
        **summary,
    }


def _tests_status(last: Ended, summary: Section, *, is_late: bool) -> str:
    if is_late and last.killed:
        return "timeout"
    if not last.killed and last.rc not in (*COMPLETE, LOST_RC):
        return _state(last)
    done = summary["passed"] + summary["failed"] + summary["skipped"] + summary["xfailed"]
    is_good = summary["passed"] and not summary["failed"] and done >= summary["total"]
    return "passed" if is_good else "failed"


def run_figures(tools: Tools, limit_s: float) -> Section:
    """Run the benchmarks of a GPU, all at once; cases that this leaves out follow one by one."""
    began = time.monotonic()
    rows, ended = _bench(tools, (), limit_s * WHOLE_SHARE)
    gpu = describe_gpu() or {}
    missing = [] if ended.rc == 0 else [c for c in CASES if all(r["case"] != c for r in rows)]
    cases = []
    for position, case in enumerate(missing):
        left_s = limit_s - (time.monotonic() - began)
        if left_s < LEAST_S:
            break
        found, one = _bench(tools, ("--case", case), left_s / (len(missing) - position))
        rows += [row for row in found if row not in rows]
        cases.append({"case": case, **_told(one, limit_s, one.wall_s)})
    return {
        "status": _state(ended) if rows or ended.rc else "failed",
        **_told(ended, limit_s, time.monotonic() - began),
        "gpu_after": {name: gpu.get(name) for name in CHANGING},
        "cases": cases,
        "rows": rows,
        "targets": check_targets(rows),
    }


def _bench(
    tools: Tools, options: Sequence[str], limit_s: float
) -> tuple[list[dict[str, Any]], Ended]:
    """Run the benchmark: the rows that it prints at its end, else those that it told before."""
    number = len(list(tools.logs.glob("figures*.json")))
    path = tools.logs / f"figures{number}.json"
    log = tools.logs / f"figures{number}.log"
    ended = run_child([*tools.bench, *options], log, max(limit_s, 0.0), stdout=path)
    if ended.rc == 0:
        return json.loads(path.read_text("utf-8")), ended
    rows = []
    for line in TOLD_ROW.findall(log.read_text("utf-8", "replace")):
        with suppress(ValueError):  # cut off by the end of the process
            rows.append(json.loads(line))
    return rows, ended


def run_sanitizer(tools: Tools, limit_s: float) -> Section:
    """Run the tests that are marked for it under each of compute-sanitizer's tools."""
    began = time.monotonic()
    found: list[Section] = []
    for position, tool in enumerate(SANITIZERS):
        left_s = limit_s - (time.monotonic() - began)
        found.append(_run_tool(tools, tool, left_s / (len(SANITIZERS) - position)))
    states = [section["status"] for section in found]
    worst = ("failed", "crashed", "timeout", "unavailable", "passed")
    return {
        "status": next(state for state in worst if state in states),
        "limit_s": round(limit_s, 1),
        "wall_s": round(time.monotonic() - began, 1),
        "tools": found,
    }


def _run_tool(tools: Tools, tool: str, limit_s: float) -> Section:
    log = TestLog(tools.logs / f"{tool}.jsonl")
    report = tools.logs / f"{tool}.report"
    if tools.sanitizer is None:
        lack = Checked("unavailable", None, None, "compute-sanitizer is not there")
        return {"tool": tool, **lack.as_dict()}
    command = [tools.sanitizer, "--tool", tool, "--target-processes", "all"]
    # It gives up by itself where CUDA is not opened soon; pytest has to collect the tests first.
    command += [
        "--launch-timeout",
        str(LAUNCH_S),
        "--error-exitcode",
        str(LOST_RC + 1),
        "--log-file",
        str(report),
        *tools.pytest,
    ]
    ended = run_child(
        [*command, "-m", "sanitizer", *log.options()],
        tools.logs / f"{tool}.log",
        max(limit_s, 0.0),
        env={"ARK_DIST_TIMEOUT_S": str(SANITIZER_TIMEOUT_S)},
    )
    log.close_test(ended)
    summary = log.summary()
    text = report.read_text("utf-8", "replace") if report.exists() else ""
    text_of_all = text + ended.log.read_text("utf-8", "replace")
    is_good = bool(summary["passed"]) and not summary["failed"]
    checked = checked_tool(text_of_all, ended, is_empty=log.is_empty(), is_good=is_good)
    kept = ("total", "passed", "skipped", "failed", "failures")
    told = _told(ended, limit_s, ended.wall_s)
    if text and checked.status != "passed":
        told["output_tail"] = "\n".join(text.splitlines()[:80])
    return {"tool": tool, **checked.as_dict(), **told, **{key: summary[key] for key in kept}}


def _state(ended: Ended) -> str:
    """A section's status by how its command ended."""
    if ended.killed:
        return "timeout"
    if ended.rc is None or not 0 <= ended.rc < SIGNALS:
        return "crashed"
    return "failed" if ended.rc else "passed"


def _told(ended: Ended, limit_s: float, wall_s: float) -> Section:
    """How a command ended, with the end of its output unless all went well."""
    told: Section = {"rc": ended.rc, "killed": ended.killed, "limit_s": round(limit_s, 1)}
    told["wall_s"] = round(wall_s, 1)
    if ended.rc != 0:
        told["output_tail"] = ended.tail()
    return told


RUNS: Mapping[str, Callable[[Tools, float], Section]] = {
    "tests": run_tests,
    "figures": run_figures,
    "sanitizer": run_sanitizer,
}
