"""Traces of several ranks become one file: a process per rank, arrows for messages."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import ArkError
from ark_dist.launch.trace import metadata
from ark_dist.launch.trace_clock import SharedClock
from ark_dist.launch.trace_merge import (
    RankPart,
    merge,
    rank_path,
    read_part,
    remove_parts,
    write_part,
)
from tests.mpi import run_mpi
from tests.rank_threads import on_ranks
from tests.test_cli import run

Row = dict[str, Any]
# Each rank reads its clocks together to some 0.1 us, when nobody takes its core away.
CLOCK_US = 1.0
PROGRAM = """
import sys
import numpy as np
import ark_dist as ark

rank = ark.rank()
model = ark.Model("shared")
x = model.tensor((37, 11))
total = model.all_reduce(model.mul(x, 2))
with ark.Executor(model=model, device="cpu", workers=1) as exe:
    exe.compile()
    exe.launch()
    x.from_numpy(np.ones((37, 11), np.float32))
    exe.run(3)
    exe.wait()
    if "--fail" in sys.argv and rank == 1:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    exe.stop()
"""


def traced(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


def tasks(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["ph"] == "X" and row["name"] != "wait"]


def check_arrows(rows: list[Row], turns: int) -> None:
    """Every arrow has two ends, each in a slice, and does not go back in time."""
    ends = {phase: {row["id"]: row for row in rows if row["ph"] == phase} for phase in ("s", "f")}
    assert ends["s"] and ends["s"].keys() == ends["f"].keys()
    assert len(ends["s"]) == sum(row["ph"] == "s" for row in rows), "an id is used twice"
    for number, start in ends["s"].items():
        end = ends["f"][number]
        assert (start["name"], start["args"]) == (end["name"], end["args"])
        assert (start["pid"], end["pid"]) == (start["args"]["from"], start["args"]["to"])
        assert start["pid"] != end["pid"]
        assert start["ts"] <= end["ts"] + CLOCK_US
        for row in (start, end):
            assert any(
                t["pid"] == row["pid"]
                and t["tid"] == row["tid"]
                and t["args"]["turn"] == row["args"]["turn"]
                and t["ts"] - 1e-3 <= row["ts"] <= t["ts"] + t["dur"] + 1e-3
                for t in tasks(rows)
            )
    assert {row["args"]["turn"] for row in ends["s"].values()} == set(range(turns))


def mlp(path: Path, monkeypatch: pytest.MonkeyPatch, launches: int, transport: str = "") -> None:
    """Run an all_reduce and a round of sends on two ranks, three turns a launch."""
    monkeypatch.setenv("ARK_DIST_TRACE", str(path))
    options = ark_options(transport)

    def work(communicator: Communicator) -> None:
        with world.use(communicator):
            model = ark.Model("shared")
            x = model.tensor((8, 5))
            total = model.all_reduce(model.mul(x, 2))
            token = model.send(total, dst=1 - communicator.rank)
            got = model.recv((8, 5), ark.FP32, src=1 - communicator.rank)
            model.identity(got, deps=[model.send_done(token)])
            with ark.Executor(model=model, device="cpu", workers=2, **options) as exe:
                exe.compile()
                for _ in range(launches):
                    exe.launch()
                    x.from_numpy(np.ones((8, 5), np.float32))
                    exe.run(3)
                    assert exe.wait() == 3
                    exe.stop()

    on_ranks(2, work)


def ark_options(transport: str) -> dict[str, Any]:
    from ark_dist.scheduler.plan import PlanOptions

    return {"options": PlanOptions(transport=transport)} if transport else {}


@pytest.mark.parametrize("transport", ["peer", "proxy"])
def test_two_ranks_make_one_trace_with_arrows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    path = tmp_path / "trace.json"
    mlp(path, monkeypatch, 1, transport)
    document = traced(path)
    assert document["distributedInfo"] == {"rank": 0, "world_size": 2}
    assert document["ark_dist"]["ranks"] == [0, 1]
    rows = document["traceEvents"]
    names = {row["pid"]: row["args"]["name"] for row in rows if row["name"] == "process_name"}
    assert names == {0: "rank 0", 1: "rank 1"}
    threads = [row["args"]["name"] for row in rows if row["name"] == "thread_name"]
    assert threads == 2 * ["worker 0", "worker 1"]
    per_turn = Counter((row["pid"], row["args"]["turn"]) for row in tasks(rows))
    assert len(per_turn) == 6 and len({*per_turn.values()}) == 1
    check_arrows(rows, 3)
    messages = {row["name"] for row in rows if row["ph"] == "s"}
    assert messages == {
        "all_reduce forward/0-1#0",
        "send forward/0>1.0#0",
        "send forward/1>0.0#0",
    }


def test_a_second_launch_adds_to_the_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.json"
    mlp(path, monkeypatch, 2)
    rows = traced(path)["traceEvents"]
    assert sum(row["name"] == "process_name" for row in rows) == 2
    assert {row["tid"] for row in tasks(rows)} == {0, 1}
    counts = Counter(
        (r["pid"], r["tid"], r["args"]["task"], r["args"]["turn"]) for r in tasks(rows)
    )
    assert set(counts.values()) == {2}
    starts = [row for row in rows if row["ph"] == "s"]
    assert len({row["id"] for row in starts}) == len(starts), "launches share an id"


def test_two_programs_of_a_rank_have_threads_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    mlp(path, monkeypatch, 1)
    mlp(path, monkeypatch, 1)
    rows = traced(path)["traceEvents"]
    names = {(r["pid"], r["tid"]): r["args"]["name"] for r in rows if r["name"] == "thread_name"}
    own = ["worker 0", "worker 1", "worker 0 of shared", "worker 1 of shared"]
    assert names == {(rank, tid): name for rank in (0, 1) for tid, name in enumerate(own)}
    starts = [row for row in rows if row["ph"] == "s"]
    assert len({row["id"] for row in starts}) == len(starts), "programs share an id"


def test_each_ranks_own_file_is_a_trace_for_tools_that_want_one_per_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    mlp(path, monkeypatch, 1)
    for rank in (0, 1):
        document = traced(rank_path(path, rank))
        assert document["distributedInfo"] == {"rank": rank, "world_size": 2}
        assert {row["pid"] for row in document["traceEvents"]} == {rank}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "trace.json",
        "trace.json.rank-0.json",
        "trace.json.rank-1.json",
    ]


def test_a_failing_rank_leaves_the_trace_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    monkeypatch.setenv("ARK_DIST_TRACE", str(path))

    def work(communicator: Communicator) -> None:
        with world.use(communicator):
            model = ark.Model()
            index = model.tensor((4,), ark.INT32)
            table = model.parameter((8, 4), ark.FP32)
            model.all_reduce(model.embedding(index, table), name="sum")
            with ark.Executor(model=model, device="cpu", workers=1) as exe:
                exe.compile()
                exe.launch()
                table.from_numpy(np.ones((8, 4), np.float32))
                # The other rank may learn of it wherever it is.
                with pytest.raises(ArkError):
                    for bad in (3, 99 if communicator.rank else 3):
                        exe.wait()
                        index.from_numpy(np.full(4, bad, np.int32))
                        exe.run(2)
                    exe.wait()

    on_ranks(2, work)
    document = traced(path)
    assert document["ark_dist"]["ranks"] == [0, 1]
    turns = {(row["pid"], row["args"]["turn"]) for row in tasks(document["traceEvents"])}
    assert turns >= {(0, 0), (0, 1), (1, 0), (1, 1)}


def part(rank: int, run: str = "one", size: int = 3) -> RankPart:
    rows: list[dict[str, object]] = [metadata("process_name", rank, name=f"rank {rank}")]
    return RankPart(run, rank, size, "").with_rows(rows)


def pids(path: Path) -> list[int]:
    return [row["pid"] for row in traced(path)["traceEvents"]]


def test_a_trace_has_the_ranks_that_came_so_far(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for rank, want in ((2, [2]), (0, [0, 2]), (1, [0, 1, 2])):
        write_part(path, part(rank))
        merge(path, part(rank))
        assert pids(path) == want
        assert traced(path)["ark_dist"]["ranks"] == want
    remove_parts(path)
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]


def test_parts_of_another_run_or_torn_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_part(path, part(0, "an earlier one"))
    write_part(path, part(1))
    torn = rank_path(path, 2)
    write_part(path, part(2))
    torn.write_text(torn.read_text()[:-2])
    assert read_part(path, 2) is None
    merge(path, part(1))
    assert pids(path) == [1]
    torn.write_text("no json")
    assert read_part(path, 2) is None


def test_a_rank_without_events_is_a_trace_too(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    empty = RankPart("one", 0, 2, "")
    write_part(path, empty)
    assert read_part(path, 0) == empty
    write_part(path, part(1, size=2))
    merge(path, empty)
    assert pids(path) == [1]
    assert traced(rank_path(path, 0))["traceEvents"] == []


def test_clocks_of_hosts_are_compared_by_round_trips() -> None:
    ahead_ns = {0: 0, 1: 0, 2: 5_000_000_000, 3: 5_000_000_000, 4: -7_000_000_000}
    nodes = {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3), 4: (4,)}

    def work(communicator: Communicator) -> int:
        rank = communicator.rank
        communicator.endpoint.node_ranks = nodes[rank]  # type: ignore[attr-defined]  # as if
        clock = SharedClock(communicator, lambda: time.monotonic_ns() + ahead_ns[rank])
        clock.measure()
        first = clock.offset_ns
        clock.measure()
        assert abs(clock.offset_ns - first) < 50_000_000
        return clock.offset_ns

    offsets = on_ranks(5, work)
    # A round trip between threads is some hundred microseconds at worst.
    for rank, offset in enumerate(offsets):
        assert abs(offset + ahead_ns[rank]) < 50_000_000
    assert offsets[2] == offsets[3], "ranks of one host have one clock"
    assert offsets[0] == offsets[1] == 0


def test_a_clock_that_can_not_be_compared_any_more_stays_as_it_was() -> None:
    def work(communicator: Communicator) -> tuple[int, int]:
        rank = communicator.rank
        communicator.endpoint.node_ranks = (rank,)  # type: ignore[attr-defined]  # as if
        clock = SharedClock(communicator, lambda: time.monotonic_ns() + rank * 10**9)
        clock.measure()
        before = clock.offset_ns
        if rank == 1:
            clock.measure(0.2)
            clock.measure(0.2)
        return before, clock.offset_ns

    _, (before, after) = on_ranks(2, work)
    assert before == after != 0


def test_a_trace_of_ranks_under_mpirun_is_one_file(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "trace.json"
    script.write_text(PROGRAM)
    done = run("trace", "--ranks", "2", "--out", str(out), "--json", str(script))
    assert done.returncode == 0, done.stderr
    document = traced(out)
    rows = document["traceEvents"]
    assert json.loads(done.stdout) == {"path": str(out), "events": len(rows), "ranks": [0, 1]}
    assert document["distributedInfo"] == {"rank": 0, "world_size": 2}
    check_arrows(rows, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["script.py", "trace.json"]


def test_a_killed_rank_loses_no_other_ranks_events(tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    environment: Mapping[str, str] = {"ARK_DIST_TRACE": str(out)}
    done = run_mpi(
        2, PROGRAM, "--fail", env=environment, options=("-disable-auto-cleanup",), timeout_s=60
    )
    assert done.returncode != 0, done
    document = traced(out)
    assert document["ark_dist"]["ranks"] == [0]
    assert {row["args"]["turn"] for row in tasks(document["traceEvents"])} == {0, 1, 2}
