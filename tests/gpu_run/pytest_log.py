"""A plugin of pytest that writes each test's result to a file as soon as there is one.

    python -m pytest -p tests.gpu_run.pytest_log --gpu-log FILE

Tests that the file has already are left out, so that a run that broke off can go on in a new
process. A process that has lost its GPU ends after the test that lost it, since nothing that
follows there could pass.
"""

import json
import os
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# After a fault a GPU serves its process no more; after a stall a kernel may still hold it.
LOSSES = {"GpuFaultError", "StallError", "CUDARuntimeError", "CUDADriverError"}
LOST_RC = 86
LONGEST = 300  # characters of a message


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-log", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config.getoption("--gpu-log")))


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole records of a file, which need not be there."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8", "replace").splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # cut off by the end of its process
    return found


class Recorder:
    """Adds records to a file: how many tests there are, and each one's begin and end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result: dict[str, Any] = {}
        self.is_lost = False

    def _write(self, **record: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        begun = {r["name"] for r in read_records(self.path) if r["event"] == "began"}
        gone = [item for item in items if item.nodeid in begun]
        items[:] = [item for item in items if item.nodeid not in begun]
        if gone:
            config.hook.pytest_deselected(items=gone)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write(event="collected", count=len(session.items))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome == "passed":
            return
        outcome = "error" if report.failed else "skipped"
        self._write(event="ended", name=report.nodeid, **_described(outcome, report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.result = {"outcome": "passed", "message": "", "s": 0.0}
        self._write(event="began", name=nodeid, at=time.time())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed and call.excinfo is not None:
            self.is_lost |= bool(LOSSES & set(_error_names(call.excinfo.value)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.result["s"] += report.duration
        outcome: str = report.outcome
        if hasattr(report, "wasxfail") and report.skipped:
            outcome = "xfailed"
        elif report.failed and report.when != "call":
            outcome = "error"
        if outcome != "passed" and self.result["outcome"] in ("passed", "skipped", "xfailed"):
            self.result.update(_described(outcome, report))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(event="ended", name=nodeid, **self.result)
        if self.is_lost:
            text = f"\n{self.result.get('text', '')}\nthe GPU is lost: a new process goes on\n"
            sys.stdout.flush()
            os.write(2, text.encode("utf-8", "replace"))
            os._exit(LOST_RC)


def _described(outcome: str, report: pytest.TestReport | pytest.CollectReport) -> dict[str, object]:
    """An outcome with the first line of its message, and all of it."""
    long: Any = report.longrepr
    if isinstance(long, tuple):  # of a skip: file, line, reason
        text = message = str(long[2]).removeprefix("Skipped: ")
    else:
        text = report.longreprtext
        crash = getattr(long, "reprcrash", None)
        message = str(crash.message) if crash else text.strip().rpartition("\n")[2]
    line = message.strip().partition("\n")[0]
    return {"outcome": outcome, "message": line[:LONGEST], "text": text}


def _error_names(error: BaseException | None) -> Iterator[str]:
    """The class names of an error and of those behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield from (kind.__name__ for kind in type(error).__mro__)
        error = error.__cause__ or error.__context__
