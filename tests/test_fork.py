"""Fault row 65: forks, a second init, use after close."""

import subprocess
import sys
from pathlib import Path

import pytest

import ark_dist as ark

ROOT = Path(__file__).resolve().parents[1]

FORK = """
import os, sys
import numpy as np
import ark_dist as ark

x = ark.tensor(2, name="x")
y = x + 1
exe = ark.Executor(device=sys.argv[1], workers=1)
exe.compile()
exe.launch()
exe.run(1)
exe.wait()
pid = os.fork()
if pid == 0:
    calls = [exe.compile, exe.launch, exe.run, exe.wait, exe.stop, exe.reset_state, x.to_numpy,
             lambda: x.from_numpy(np.zeros(2))]
    for call in calls:
        try:
            call()
        except ark.LifecycleError as error:
            assert "a fork of" in str(error) and "make a new Executor" in str(error), error
        else:
            os._exit(3)
    exe.close()
    with ark.Executor(device=sys.argv[1], workers=1) as own:
        own.compile()
        own.launch()
        own.run(1)
        own.wait()
        print("child", y.to_numpy().tolist(), flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
exe.run(1)
exe.stop()
print("parent", y.to_numpy().tolist())
exe.close()
"""


def test_a_forked_child_is_told_to_make_its_own_executor(device: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, device],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "child [1.0, 1.0]\nparent [1.0, 1.0]\n"


def test_a_second_init_changes_nothing(device: str) -> None:
    ark.init()
    x = ark.tensor(2)
    with ark.Runtime(device=device) as runtime:
        y = x + 1
        runtime.launch()
        ark.init()
        runtime.run()
        assert y.to_numpy().tolist() == [1, 1]


def test_after_close_every_call_says_so(device: str) -> None:
    y = ark.tensor(2) + 1
    exe = ark.Executor(device=device)
    exe.compile()
    exe.launch()
    exe.close()
    for call in (exe.compile, exe.launch, exe.run, exe.wait, exe.stop, exe.reset_state, y.to_numpy):
        with pytest.raises(ark.LifecycleError, match="the program was closed; make a new one"):
            call()
