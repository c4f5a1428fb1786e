"""The CPU kernel over long runs, many queued commands, bad data, and without a compiler."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ark_dist.core.abi import COMMAND_RING
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import (
    CacheError,
    CompileError,
    CompilerNotFoundError,
    LifecycleError,
)
from ark_dist.core.graph import Graph
from ark_dist.core.op import OPS, AttrValue
from ark_dist.core.settings import read_settings
from ark_dist.core.target import Target
from ark_dist.core.task import Task
from ark_dist.launch.open import open_session
from ark_dist.scheduler.deps import Edges
from ark_dist.scheduler.order import Queues
from tests.lifecycle_models import MATMUL, NEVER, counting, plan_for, scattered, set_stop, start

PAGE_BYTES = 4096
STATM_RESIDENT = 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[STATM_RESIDENT]) * PAGE_BYTES


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_hundred_thousand_iterations_neither_drift_nor_grow() -> None:
    loop = counting(is_stoppable=False)
    session = start(plan_for(loop.graph, workers=2), "cpu")
    try:
        session.run(1000, "forward", {})
        assert session.wait() == 1000
        memory, threads = resident_bytes(), thread_count()
        session.run(100_000, "forward", {})
        assert session.wait() == 100_000
        for _ in range(2000):
            session.run(1, "forward", {})
        assert session.wait() == 2000
        assert resident_bytes() - memory <= 1 << 20
        assert thread_count() == threads
        done = 103_000
        assert session.read(loop.readable["count"].view)[0] == done
        assert session.read(loop.readable["echo"].view)[0] == done
        # Even numbers below 2**24 are exact in fp32.
        assert session.read(loop.readable["total"].view)[0] == 2.0 * done
    finally:
        session.close()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_long_run_that_stops_itself_goes_on_from_there(depth: int) -> None:
    loop = counting()
    session = start(plan_for(loop.graph, workers=2, depth=depth), "cpu")
    try:
        set_stop(session, loop, 99_999)
        session.run(200_000, "forward", {})
        assert session.wait() == 99_999
        set_stop(session, loop, NEVER)
        session.run(5, "forward", {})
        assert session.wait() == 5
        found = {name: session.read(value.view)[0] for name, value in loop.readable.items()}
        assert found == {"count": 100_004, "echo": 100_004, "total": 200_008.0}
    finally:
        session.close()


# Two methods that share state and memory.


@dataclass
class Pair:
    """What the two methods below must do, in plain Python."""

    vector: np.ndarray[tuple[int, ...], np.dtype[np.int32]] = field(
        default_factory=lambda: np.arange(8, dtype=np.int32)
    )
    turns: int = 0
    factor: int = 1
    limit: int = NEVER

    def run(self, method: str, iterations: int, scalars: dict[str, int]) -> tuple[int, bool]:
        """Do a command; returns the iterations done and whether it ended the epoch."""
        for iteration in range(iterations):
            if iteration == 0:
                self.factor = scalars.get("factor", self.factor)
                self.limit = scalars.get("limit", self.limit)
            factor = np.int32(self.factor)
            if method == "back":
                self.vector = (self.vector - factor) * np.int32(5)
                continue
            self.turns += 1
            self.vector = self.vector * np.int32(3) + factor * np.int32(self.turns)
            if self.turns >= self.limit:
                return iteration + 1, True
        return iterations, False


def pair_of_methods() -> tuple[GraphBuilder, dict[str, Value]]:
    builder = GraphBuilder("pair")
    vector = builder.state((8,), "int32", name="vector", init=np.arange(8))
    turns = builder.state((1,), "int32", name="turns")
    factor = builder.state((1,), "int32", name="factor", init=1)
    limit = builder.state((1,), "int32", name="limit", init=NEVER)
    builder.command_scalar(factor)
    builder.command_scalar(limit)
    apply = builder.apply
    apply("add", [turns, 1], output=turns)
    step = apply("mul", [factor, turns])
    apply("add", [apply("copy", [apply("mul", [vector, 3])]), step], output=vector)
    apply("stop_when", [apply("greater_equal", [turns, limit])])
    builder.select_method("back")
    # The largest of one row, through memory that `forward` uses too.
    less = apply("reshape", [apply("sub", [vector, factor])], {"shape": (1, 8)})
    largest = apply("reduce_max", [less], {"axis": 0, "keepdims": False})
    apply("mul", [largest, 5], output=vector)
    return builder, {"vector": vector, "turns": turns}


def back_on_the_last(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
    """All of the short method on the last worker, the other one on all."""
    if len(tasks) > SHORT_METHOD_TASKS:
        return scattered(tasks, edges, target)
    return (*((),) * (target.worker_count - 1), tuple(t.id for t in tasks))


SHORT_METHOD_TASKS = 3


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_hundreds_of_queued_runs_of_two_methods_do_what_plain_python_does(
    device: str, workers: int, depth: int
) -> None:
    builder, readable = pair_of_methods()
    plan = plan_for(builder.freeze(), workers=workers, depth=depth, policy=back_on_the_last)
    assert plan.method("back").queues.count(()) == workers - 1
    session, oracle = start(plan, device), Pair()
    rng = random.Random(workers * 10 + depth)
    try:
        for _ in range(8):
            wanted, is_over = 0, False
            for _ in range(rng.randint(COMMAND_RING + 1, 4 * COMMAND_RING)):
                method, iterations = rng.choice(["forward", "back"]), rng.randint(0, 4)
                scalars = {"factor": rng.randint(-9, 9)} if rng.random() < 0.3 else {}
                if method == "forward" and rng.random() < 0.3:
                    scalars["limit"] = oracle.turns + rng.choice([1, 2, 5, 40, NEVER - 10_000])
                session.run(iterations, method, scalars)
                if not is_over:
                    with np.errstate(over="ignore"):
                        done, is_over = oracle.run(method, iterations, scalars)
                    wanted += done
            assert session.wait() == wanted
            assert session.read(readable["turns"].view)[0] == oracle.turns
            assert np.array_equal(session.read(readable["vector"].view), oracle.vector)
    finally:
        session.close()


def test_a_method_without_tasks_obeys_an_early_end(device: str) -> None:
    loop = counting()
    loop.builder.select_method("nothing")
    session = start(plan_for(loop.graph, workers=2), device)
    try:
        session.run(4, "nothing", {})
        assert session.wait() == 4
        set_stop(session, loop, 3)
        session.run(10, "forward", {})
        session.run(6, "nothing", {})
        assert session.wait() == 3
        session.run(6, "nothing", {})
        assert session.wait() == 6
    finally:
        session.close()


# Compilers and caches that fail.


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("compiler", "error", "text"),
    [
        ("/no/such/compiler", CompilerNotFoundError, "/no/such/compiler"),
        ("exit 1", CompileError, "loop|counting"),
        ("echo 'kernel.cpp:1: error: no' >&2; exit 1", CompileError, "error: no"),
    ],
)
def test_a_failed_compilation_leaves_the_session_new(
    tmp_path: Path, compiler: str, error: type[CompileError], text: str
) -> None:
    if not compiler.startswith("/"):
        compiler = script(tmp_path / "cxx", compiler)
    loop = counting()
    settings = replace(read_settings(), cache_dir=tmp_path / "cache", compiler=compiler)
    session = open_session(loop.graph, device="cpu", settings=settings, worker_count=1).session
    for _ in range(2):
        with pytest.raises(error, match=text):
            session.compile(lambda path: None)
        assert session.state == "new"
        with pytest.raises(LifecycleError, match="call compile"):
            session.launch()
    session.close()
    entries = (
        [p for p in (tmp_path / "cache").rglob("*.so")] if (tmp_path / "cache").exists() else []
    )
    assert entries == []
    works(loop.graph)


def test_a_cache_folder_that_cannot_be_made_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    settings = replace(read_settings(), cache_dir=tmp_path / "file" / "cache")
    session = open_session(
        counting().graph, device="cpu", settings=settings, worker_count=1
    ).session
    session.compile(lambda path: None)
    assert "set ARK_DIST_CACHE_DIR" in caplog.text
    session.launch()
    session.run(2, "forward", {})
    assert session.wait() == 2
    session.close()


def test_without_any_folder_for_the_cache_the_session_stays_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    settings = replace(read_settings(), cache_dir=tmp_path / "file" / "cache")
    session = open_session(
        counting().graph, device="cpu", settings=settings, worker_count=1
    ).session
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "file" / "temporary"))
        with pytest.raises(CacheError, match="ARK_DIST_CACHE_DIR"):
            session.compile(lambda path: None)
    assert session.state == "new"
    session.compile(lambda path: None)
    assert session.state == "compiled"
    session.close()


def works(graph: Graph) -> None:
    session = start(plan_for(graph, workers=1), "cpu")
    session.run(2, "forward", {})
    assert session.wait() == 2
    session.close()


@pytest.mark.long
@pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")
def test_all_operators_compile_and_run_with_zig(tmp_path: Path) -> None:
    builder = GraphBuilder("everything")
    x = builder.tensor((3, 16), "fp32", name="x")
    outputs = every_operator(builder, x)
    used = {node.op for node in builder.freeze().methods[0].nodes}
    assert used == {name for name, op in OPS.items() if op.view is None}
    settings = replace(
        read_settings(), cache_dir=tmp_path, compiler=f"{sys.executable} -m ziglang c++"
    )
    data = np.random.default_rng(0).uniform(-1, 1, (3, 16)).astype(np.float32)
    found = []
    for device in ("cpu", "numpy"):
        session = open_session(
            builder.freeze(), device=device, settings=settings, worker_count=2
        ).session
        session.compile(lambda path: None)
        session.write(x.view, data)
        session.launch()
        session.run(3, "forward", {})
        assert session.wait() == 3
        found.append([session.read(v.view) for v in outputs])
        session.close()
    for mine, reference in zip(*found, strict=True):
        # A few roundings of fp32 on values of about 1.
        np.testing.assert_allclose(mine, reference, rtol=2e-6, atol=2e-6)


def every_operator(builder: GraphBuilder, x: Value) -> list[Value]:
    """One application of everything that computes; returns what can be read."""
    apply = builder.apply
    scale = builder.state((1,), "fp32", name="scale", init=0.5)
    builder.command_scalar(scale)
    flag = builder.state((1,), "int32", name="flag")
    y = apply("div", [apply("sub", [apply("mul", [x, scale]), 0.25]), 2.0])
    row: dict[str, AttrValue] = {"axis": -1, "keepdims": True}
    results = [apply(op, [y], row) for op in ("reduce_sum", "reduce_max", "reduce_mean")]
    results.append(apply("softmax", [y], {"axis": -1}))
    results.append(apply("layernorm", [y], {"axis": -1, "eps": 1e-2}))
    wide = apply("matmul", [y, apply("copy", [apply("transpose", [y], {"perm": (1, 0)})])], MATMUL)
    results.append(apply("relu", [apply("add", [wide, 0.125])]))
    index = apply("argmax", [y], {"axis": -1, "keepdims": False})
    table = builder.constant(np.arange(32, dtype=np.float32).reshape(16, 2))
    results.append(apply("embedding", [index, table]))
    results += [apply("equal", [index, 3]), apply("greater_equal", [y, x])]
    results.append(apply("cast", [y], {"dtype": "bf16"}))
    apply("stop_when", [flag])
    return results
