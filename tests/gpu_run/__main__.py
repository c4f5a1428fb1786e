"""Run all that needs a GPU, and write down what came of it: `python -m tests.gpu_run`."""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from ark_dist.launch.exit_codes import BAD_CONFIG
from tests.gpu_run.machine import (
    VERSIONS,
    describe_checkout,
    describe_gpu,
    describe_machine,
    probe_software,
)
from tests.gpu_run.report import print_report
from tests.gpu_run.results import SCHEMA, SECTIONS, new_file, write_file
from tests.gpu_run.sanitizer import find_sanitizer
from tests.gpu_run.sections import RUNS, Tools

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
LOGS = ROOT / "build" / "gpu_run"
# Seconds a section may take.
LIMITS_S = {"tests": 1500.0, "figures": 600.0, "sanitizer": 1200.0}
TEST_LIMIT_S = 180.0
# What the runner itself takes: the probe at the start, and ending a process that hangs.
OWN_S = 30.0
BAD_STATES = ("failed", "timeout", "crashed", "interrupted")


@dataclass(frozen=True, slots=True)
class Request:
    """What to run.

    Attributes:
        sections: some of SECTIONS, in their order.
        budget_s: what all of them may take together; None leaves each its limit.
        out: the folder of the results.
        command: as the user gave it.
        commit: of a tree without .git; None asks git.
    """

    sections: tuple[str, ...]
    budget_s: float | None
    out: Path
    command: str
    commit: str | None


def run(request: Request, tools: Tools) -> int:
    """Run the sections, rewrite the results after each, and return the exit code."""
    began = time.monotonic()
    gpu = describe_gpu()
    if gpu is None:
        print("no GPU: nvidia-smi is missing or finds none", file=sys.stderr)
        return BAD_CONFIG
    now = datetime.now(timezone.utc)
    document = describe(request, gpu, probe_software(tools.logs), now)
    path = new_file(request.out, str(gpu["name"]), f"{now:%Y-%m-%d}")
    sections = document["sections"]
    try:
        for position, name in enumerate(request.sections):
            sections[name] = {"status": "running"}
            write_file(path, document)
            left = request.sections[position:]
            limit_s = section_limit_s(left, request.budget_s, time.monotonic() - began)
            print(f"{name}: at most {limit_s:.0f} s, log in {tools.logs}", file=sys.stderr)
            sections[name] = guarded(name, tools, limit_s)
            write_file(path, document)
    except BaseException:  # Ctrl-C, or a signal
        for name in request.sections:
            if sections[name]["status"] == "running":
                sections[name] = {"status": "interrupted"}
        write_file(path, document)
        raise
    print_report(document)
    print(f"written: {path}")
    return int(any(section["status"] in BAD_STATES for section in sections.values()))


def guarded(name: str, tools: Tools, limit_s: float) -> dict[str, Any]:
    """Run a section; an error of ours is its result, and the sections after it still run."""
    try:
        return RUNS[name](tools, limit_s)
    except Exception as error:
        return {"status": "interrupted", "message": f"{type(error).__name__}: {error}"}


def section_limit_s(left: Sequence[str], budget_s: float | None, gone_s: float) -> float:
    """What the first of the sections that are left may take: its share of the budget's rest."""
    limit_s = LIMITS_S[left[0]]
    if budget_s is None:
        return limit_s
    share = limit_s / sum(LIMITS_S[name] for name in left)
    return min(limit_s, max(budget_s - OWN_S - gone_s, 0.0) * share)


def describe(
    request: Request, gpu: Mapping[str, object], software: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """A document of results in which nothing has run yet."""
    checkout = describe_checkout(ROOT)
    if request.commit is not None:
        checkout = {"commit": request.commit, "is_dirty": None}
    return {
        "schema": SCHEMA,
        "date": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "command": request.command,
        **checkout,
        "machine": describe_machine(),
        "gpu": {**gpu, "sm_count": software.get("sm_count")},
        "versions": {name: software.get(name) for name in VERSIONS},
        "sections": {name: {"status": "not run"} for name in request.sections},
    }


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn signals that end a process into SystemExit, so that what runs is ended too."""

    def leave(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    before = {each: signal.signal(each, leave) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; a mistake ends the process with 2."""
    parser = argparse.ArgumentParser(prog="./dev gpu", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="LIST", default=",".join(SECTIONS), help="some of %(default)s")
    add("--budget-s", type=float, metavar="N", help="seconds for everything together")
    add("--all", action="store_true", help="the long tests too")
    add("-k", metavar="EXPRESSION", default="", help="only tests that match, as in pytest")
    add("--test-limit-s", type=float, default=TEST_LIMIT_S, help="for one test (%(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder of the results (docs/results)")
    add("--commit", help="which one this tree is, where git is not there to tell")
    options = parser.parse_args(arguments)
    options.sections = tuple(name for name in SECTIONS if name in options.only.split(","))
    unknown = set(options.only.split(",")) - set(SECTIONS)
    if unknown or not options.sections:
        parser.error(f"--only is {options.only!r}; it takes some of {','.join(SECTIONS)}")
    if options.budget_s is not None and options.budget_s <= OWN_S:
        parser.error(f"--budget-s is {options.budget_s:g}; it must be above {OWN_S:g}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for."""
    options = parse(arguments)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    chosen = [*(("-m", "") if options.all else ()), *(("-k", options.k) if options.k else ())]
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu")
    tools = Tools(
        pytest=(*pytest, *chosen),
        bench=(sys.executable, "-m", "ark_dist.cli", "bench", "gpu", "--json"),
        sanitizer=find_sanitizer(),
        logs=LOGS,
        test_limit_s=options.test_limit_s,
    )
    command = " ".join(["./dev gpu", *arguments])
    request = Request(options.sections, options.budget_s, options.out, command, options.commit)
    with ended_by_signals():
        return run(request, tools)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
