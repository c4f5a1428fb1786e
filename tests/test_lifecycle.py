"""Which call is allowed when, from which thread, and how a program ends."""

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ark_dist.core.errors import ArkError, LifecycleError, StallError
from ark_dist.core.settings import child_environment
from ark_dist.launch.devices import cpu
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.session import TRANSITIONS, WAYS_OUT, Session
from tests.lifecycle_models import NEVER, counting, plan_for, set_stop, start

ROOT = Path(__file__).resolve().parents[1]
CALLS = ("compile", "write", "read", "launch", "run", "wait", "stop")
STATES = ("new", "compiled", "launched", "running", "failed", "closed")
LOOP = counting()
COUNT = LOOP.readable["count"].view
PLAN = plan_for(LOOP.graph, workers=2)
LONG = 2**40
# Ctrl-C works within 1 s; the rest is for a busy machine to end Python.
EXIT_LIMIT_S = 3.0
HARD_LIMIT_S = 60


def session_in(state: str, device: str) -> Session:
    """A session in this state."""
    session = start(PLAN, device)
    if state == "running":
        session.run(3, "forward", {})
    elif state == "failed":
        session._state = state
    elif state == "closed":
        session.close()
    elif state != "launched":
        session.stop()
        session._state = state
    assert session.state == state
    return session


def call(session: Session, name: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "compile": lambda: session.compile(lambda path: None),
        "write": lambda: session.write(LOOP.stop_at.view, np.array([NEVER], np.int32)),
        "read": lambda: session.read(COUNT),
        "launch": session.launch,
        "run": lambda: session.run(1, "forward", {}),
        "wait": session.wait,
        "stop": session.stop,
    }
    calls[name]()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("state", STATES)
def test_each_call_is_allowed_where_the_table_says(state: str, name: str, device: str) -> None:
    session = session_in(state, device)
    after = TRANSITIONS.get((state, name))
    if after is None:
        with pytest.raises(LifecycleError) as caught:
            call(session, name)
        assert str(caught.value) == f"{name}() is not allowed while {state}; {WAYS_OUT[state]}"
        assert session.state == state
    else:
        call(session, name)
        assert session.state == after
    session.close()
    session.close()
    assert session.state == "closed"


def test_the_page_shows_the_table() -> None:
    lines = (ROOT / "docs" / "lifecycle.md").read_text("utf-8").splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    header, _, *body = rows
    assert header == ["state", *CALLS]
    assert [row[0] for row in body] == list(STATES)
    shown = {
        (row[0], name): after
        for row in body
        for name, after in zip(CALLS, row[1:], strict=True)
        if after
    }
    assert shown == TRANSITIONS


def test_a_timeout_leaves_the_runs_going(device: str) -> None:
    session = start(PLAN, "cpu")
    session.run(LONG, "forward", {})
    for timeout_s in (0, 0.05):
        with pytest.raises(TimeoutError, match="wait again, or stop it"):
            session.wait(timeout_s)
        assert session.state == "running"
    session.close()
    session = start(PLAN, device)
    session.run(100_000 if device == "cpu" else 10, "forward", {})
    try:
        done = session.wait(0)
    except TimeoutError:
        done = session.wait(30)
    assert done == session.read(COUNT)[0]
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="0 or more"):
            session.wait(bad)
    session.close()


def test_stop_finishes_the_runs_and_close_does_not(device: str) -> None:
    session = start(PLAN, device)
    for _ in range(100):
        session.run(5, "forward", {})
    assert session.stop() >= 0
    assert session.read(COUNT)[0] == 500
    session.launch()
    session.run(LONG, "forward", {})
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < EXIT_LIMIT_S


def test_threads_that_share_a_session_take_turns() -> None:
    session = start(PLAN, "cpu")
    waited, errors = [], []

    def work(number: int) -> None:
        try:
            for turn in range(100):
                session.run(1 + (turn + number) % 3, "forward", {})
                if turn % 4 == 3:
                    waited.append(session.wait(30))
        except BaseException as error:  # shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HARD_LIMIT_S)
    assert errors == []
    waited.append(session.wait())
    wanted = sum(1 + (turn + number) % 3 for number in range(4) for turn in range(100))
    assert sum(waited) == wanted == session.read(COUNT)[0]
    session.close()


def test_one_thread_runs_and_another_waits() -> None:
    session = start(PLAN, "cpu")
    set_stop(session, LOOP, 50_000)
    session.run(LONG, "forward", {})
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(session.wait(30)))
    thread.start()
    session.wait(30)
    thread.join(HARD_LIMIT_S)
    assert session.read(COUNT)[0] == 50_000
    session.close()


def test_an_idle_kernel_uses_hardly_any_processor_time() -> None:
    session = start(PLAN, "cpu")
    session.run(10, "forward", {})
    session.wait()
    time.sleep(0.05)
    began, used = time.monotonic(), time.process_time()
    time.sleep(1.0)
    share = (time.process_time() - used) / (time.monotonic() - began)
    session.close()
    # Under 1 % per worker, and as much for the rest of the process.
    assert share < 0.03, f"{share:.1%} of a core"


def test_two_hundred_sessions_leave_nothing_behind() -> None:
    def cycle(count: int) -> None:
        for _ in range(count):
            session = start(PLAN, "cpu")
            session.run(3, "forward", {})
            assert session.wait() == 3
            session.close()

    cycle(20)
    gc.collect()
    before = footprint()
    cycle(200)
    gc.collect()
    after = footprint()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 4 << 20


def footprint() -> tuple[int, int, int]:
    """Threads, open files, resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        len(list(Path("/proc/self/task").iterdir())),
        len(list(Path("/proc/self/fd").iterdir())),
        pages * os.sysconf("SC_PAGESIZE"),
    )


def test_a_dropped_session_ends_its_kernel() -> None:
    threads = footprint()[0]
    session = start(PLAN, "cpu")
    session.run(LONG, "forward", {})
    assert footprint()[0] == threads + 2
    del session
    gc.collect()
    assert footprint()[0] == threads


class Fake:
    """A kernel's library of which one function gives a fixed answer."""

    def __init__(self, session: Session, name: str, answer: int) -> None:
        device = session._device
        assert isinstance(device, CpuDevice)
        self._device, self._real = device, device._library
        setattr(self, name, lambda *arguments: answer)

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def __enter__(self) -> None:
        vars(self._device)["_library"] = self

    def __exit__(self, *error: object) -> None:
        vars(self._device)["_library"] = self._real


def test_a_kernel_that_cannot_start_leaves_the_session_compiled() -> None:
    session = session_in("compiled", "cpu")
    with (
        Fake(session, "ark_kernel_start", errno.EAGAIN),
        pytest.raises(ArkError, match=r"could not start 2 threads: .*use fewer"),
    ):
        session.launch()
    assert session.state == "compiled"
    session.launch()
    session.run(2, "forward", {})
    assert session.wait() == 2
    session.close()


def test_a_stuck_worker_is_named_and_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "EXIT_S", 0.0)
    session = start(PLAN, "cpu")
    threads = footprint()[0]
    with Fake(session, "ark_kernel_stop", 0):
        for _ in range(2):
            with pytest.raises(StallError, match="a worker did not leave its task within 0 s"):
                session.stop()
            assert session.state == "launched"
        with pytest.raises(StallError, match="a worker did not leave"):
            session.close()
        assert session.state == "closed"
        assert footprint()[0] == threads
    monkeypatch.undo()
    del session
    gc.collect()
    assert footprint()[0] == threads - 2


# Child processes: each has a hard limit, and only its own pid is ever killed.

HEAD = """
import os, sys
from tests.lifecycle_models import counting, plan_for, start
session = start(plan_for(counting().graph, workers=2), "cpu")
"""


def child(text: str) -> "subprocess.Popen[str]":
    """Start Python on a program that has a launched session."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", HEAD + text],
        env=child_environment(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", limit_s: float = HARD_LIMIT_S) -> tuple[int, str]:
    """Its exit code and stderr; it is killed at the limit."""
    try:
        _, stderr = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, stderr


@pytest.mark.parametrize(
    "blocked",
    [
        "session.run(2**40, 'forward', {}); say(); session.wait()",
        "session.run(2**40, 'forward', {}); say(); session.stop()",
        "say()\nwhile True: session.run(2**40, 'forward', {})",
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits(blocked: str, number: signal.Signals) -> None:
    process = child(f"say = lambda: print('ready', flush=True)\n{blocked}\n")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(number)
    code, stderr = ended(process)
    assert time.monotonic() - began < EXIT_LIMIT_S
    assert code == -number
    assert ("KeyboardInterrupt" in stderr) == (number == signal.SIGINT)


def test_after_ctrl_c_the_runs_go_on_and_can_be_stopped() -> None:
    process = child(
        "import signal, threading\n"
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "session.run(2**40, 'forward', {})\n"
        "try:\n    session.wait()\n"
        "except KeyboardInterrupt:\n    assert session.state == 'running'\n"
        "    session.close()\n    sys.exit(5)\n"
    )
    assert ended(process) == (5, "")


@pytest.mark.parametrize(
    ("text", "code", "stderr"),
    [
        ("", 0, ""),
        ("session.run(2**40, 'forward', {})", 0, ""),
        ("session.run(2**40, 'forward', {}); sys.exit(3)", 3, ""),
        ("session.run(2**40, 'forward', {}); os._exit(4)", 4, ""),
        ("session.run(2**40, 'forward', {}); del session", 0, ""),
        ("session.run(2**40, 'forward', {}); raise ValueError('mine')", 1, "ValueError: mine"),
        ("session.run(9, 'forward', {}); session.circle = session; del session", 0, ""),
        (
            "session.run(2**40, 'forward', {})\n"
            "if os.fork() == 0:\n    sys.exit(0)\n"
            "assert os.wait()[1] == 0",
            0,
            "",
        ),
    ],
)
def test_python_ends_cleanly_whatever_the_kernel_does(text: str, code: int, stderr: str) -> None:
    process = child(text)
    found, shown = ended(process, HARD_LIMIT_S)
    assert found == code
    assert shown.strip().splitlines()[-1:] == ([stderr] if stderr else [])
