"""Faults are read from the environment, hit where and when they should, and are off by default."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ark_dist.core.errors import ConfigError
from ark_dist.core.settings import FAULT_KINDS, Fault, child_environment, read_faults, read_settings
from ark_dist.launch.fault import Faults, InjectedError, fault_point

PASSES = """
import sys
from pathlib import Path
from ark_dist.launch.fault import fault_point
for turn in range(1, 4):
    print("pass", turn, flush=True)
    fault_point("op=all_reduce", 1, Path(sys.argv[1]) if sys.argv[1:] else None)
    fault_point("op=all_reduce", 0)
print("end")
"""


def run(fault: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Pass a point three times as rank 1, and as rank 0, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", PASSES, *arguments],
        env=child_environment(ARK_DIST_FAULT=fault),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_fault_is_read() -> None:
    text = "op=all_reduce:3,rank=1,kind=sigkill"
    assert read_faults({"ARK_DIST_FAULT": text}) == (Fault("op=all_reduce", 3, 1, "sigkill", 0.0),)
    assert read_settings({"ARK_DIST_FAULT": text}).faults == read_faults({"ARK_DIST_FAULT": text})


def test_several_faults_on_any_rank_are_read() -> None:
    text = "init,kind=sleep=2.5; save:rename,kind=delay=10,rank=0; op=recv,kind=raise"
    assert read_faults({"ARK_DIST_FAULT": text}) == (
        Fault("init", 1, None, "sleep", 2.5),
        Fault("save:rename", 1, 0, "delay", 10.0),
        Fault("op=recv", 1, None, "raise", 0.0),
    )


def test_nothing_asked_for_is_nothing() -> None:
    assert read_faults({}) == ()
    assert read_faults({"ARK_DIST_FAULT": ""}) == ()


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_every_kind_is_taken(kind: str) -> None:
    amount = "=1" if kind in ("sleep", "delay") else ""
    (fault,) = read_faults({"ARK_DIST_FAULT": f"run,kind={kind}{amount}"})
    assert fault.kind == kind


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kind=raise", "'kind=raise' is no point; choose init"),
        ("here,kind=raise", "'here' is no point"),
        ("op,kind=raise", "'op' is no point"),
        ("save,kind=raise", "'save' is no point"),
        ("run:2,kind=raise", "'run:2' is no point"),
        ("op=:1,kind=raise", "'op=:1' is no point"),
        ("op=add:0,kind=raise", "'0' is not a count from 1"),
        ("op=add:x,kind=raise", "'x' is not a count from 1"),
        ("run", "it has no kind="),
        ("run,kind=explode", "'kind=explode' is not rank=<number> or kind=<kind>"),
        ("run,rank=one,kind=raise", "'rank=one' is not rank=<number>"),
        ("run,kind=sleep", "sleep=<seconds> and delay=<milliseconds> take a number"),
        ("run,kind=raise=1", "sleep=<seconds> and delay=<milliseconds> take a number, no other"),
        ("run,kind=sleep=soon", "'soon' is not a number, 0 or more"),
        ("run,kind=sleep=-1", "'-1' is not a number, 0 or more"),
        ("run,kind=sleep=inf", "'inf' is not a number, 0 or more"),
    ],
)
def test_bad_syntax_is_named_with_an_example(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"^ARK_DIST_FAULT has ") as caught:
        read_faults({"ARK_DIST_FAULT": text})
    assert reason in str(caught.value)
    assert "write it like op=all_reduce:3,rank=1,kind=sigkill" in str(caught.value)


def test_points_are_inert_without_a_fault() -> None:
    for _ in range(3):
        fault_point("op=all_reduce", 0)
    done = run("")
    assert (done.returncode, done.stdout) == (0, "pass 1\npass 2\npass 3\nend\n")


def test_an_inert_point_costs_less_than_a_microsecond() -> None:
    count = 10_000
    start = time.perf_counter()
    for _ in range(count):
        fault_point("op=all_reduce", 0)
    assert (time.perf_counter() - start) / count < 1e-5  # ten times the claim: others run here too


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("sigkill", -signal.SIGKILL),
        ("sigsegv", -signal.SIGSEGV),
        ("abort", -signal.SIGABRT),
        ("exit0", 0),
        ("sysexit0", 0),
        ("raise", 1),
    ],
)
def test_a_fault_hits_its_pass_on_its_rank(kind: str, code: int) -> None:
    done = run(f"op=all_reduce:2,rank=1,kind={kind}")
    assert (done.returncode, done.stdout) == (code, "pass 1\npass 2\n"), done.stderr


def test_a_fault_of_another_rank_or_point_does_not_hit() -> None:
    assert run("op=all_reduce:2,rank=2,kind=exit0").stdout.endswith("end\n")
    assert run("op=all_gather,kind=exit0").stdout.endswith("end\n")


def test_a_raised_fault_names_point_and_rank() -> None:
    faults = Faults((Fault("load", 1, None, "raise", 0.0),))
    with pytest.raises(InjectedError, match=r"^fault at load, pass 1, rank 3$"):
        faults.pass_point("load", 3, None)


def test_a_delay_is_made_at_every_pass_and_a_sleep_once() -> None:
    delay, sleep = Fault("run", 1, None, "delay", 20.0), Fault("load", 1, None, "sleep", 0.02)
    faults = Faults((delay, sleep))
    for point, least, most in (("run", 0.06, 60.0), ("load", 0.02, 60.0)):
        start = time.perf_counter()
        for _ in range(3):
            faults.pass_point(point, 0, None)
        assert least <= time.perf_counter() - start < most


def test_a_file_is_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(10))
    assert run("op=all_reduce:2,rank=1,kind=truncate", str(path)).returncode == 0
    assert path.stat().st_size == 5


def test_a_stopped_process_goes_on_when_it_is_told_to() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PASSES],
        env=child_environment(ARK_DIST_FAULT="op=all_reduce:2,rank=1,kind=sigstop"),
        stdout=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 30
        stat = Path(f"/proc/{process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "it did not stop"
            time.sleep(0.01)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out.endswith(b"end\n")


def test_a_spin_lets_no_other_thread_run() -> None:
    code = (
        "import threading, time\n"
        "from ark_dist.launch.fault import fault_point\n"
        "def tick():\n"
        "    while True:\n"
        "        print('tick', flush=True)\n"
        "        time.sleep(0.05)\n"
        "threading.Thread(target=tick, daemon=True).start()\n"
        "time.sleep(0.2)\n"
        "print('spin', flush=True)\n"
        "fault_point('run', 0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=child_environment(ARK_DIST_FAULT="run,kind=spin"),
        stdout=subprocess.PIPE,
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=3)
    process.kill()
    out, _ = process.communicate(timeout=30)
    assert out.partition(b"spin\n")[2].count(b"tick") <= 1
