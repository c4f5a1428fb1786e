"""A plan's key changes with all that the plan is made from, its code included."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape, P
from ark_dist.core.settings import child_environment
from ark_dist.core.target import cpu_target, topology_of
from ark_dist.launch import plan_key
from ark_dist.launch.plan_key import PlanRequest
from ark_dist.scheduler.plan import PlanOptions
from tests.test_plan_cache import cut_graph

REPOSITORY = Path(__file__).resolve().parents[1]
# Clocks of files are coarse, and so is that of a process's start.
CLOCK_S = 0.05
Patch = pytest.MonkeyPatch


def request() -> PlanRequest:
    return PlanRequest(
        cut_graph(),
        MeshShape((("tp", 2),)),
        0,
        topology_of((0, 0)),
        cpu_target(2, "avx2"),
        PlanOptions(),
        "c++",
    )


def renamed(graph: Graph, buffer: int, **changes: object) -> Graph:
    buffers = list(graph.buffers)
    buffers[buffer] = replace(buffers[buffer], **changes)  # type: ignore[arg-type]  # a test's
    return replace(graph, buffers=tuple(buffers))


def with_attr(graph: Graph, value: object) -> Graph:
    method = graph.methods[0]
    node = replace(method.nodes[0], attrs=(("is_relu", value),))  # type: ignore[arg-type]
    return replace(graph, methods=(replace(method, nodes=(node, *method.nodes[1:])),))


GRAPHS: list[Callable[[Graph], Graph]] = [
    lambda graph: replace(graph, name="other"),
    lambda graph: renamed(graph, 0, name="z"),
    lambda graph: renamed(graph, 1, shard=P("tp", None)),
    lambda graph: renamed(graph, 1, shape=(8, 7)),
    lambda graph: renamed(graph, 1, initial=bytes(192)),
    lambda graph: renamed(graph, 1, kind="state"),
    lambda graph: with_attr(graph, False),
    lambda graph: with_attr(graph, 0),
    lambda graph: with_attr(graph, 0.0),
    lambda graph: with_attr(graph, -0.0),
    lambda graph: with_attr(graph, "0"),
    lambda _: cut_graph(np.nextafter(2.0, 3.0, dtype=np.float32).item()),
]


def test_everything_that_a_plan_is_made_from_changes_the_key() -> None:
    first = request()
    target, options = first.target, first.options
    others = [
        *(replace(first, graph=change(first.graph)) for change in GRAPHS),
        replace(first, mesh=None),
        replace(first, mesh=MeshShape((("dp", 2),))),
        replace(first, mesh=MeshShape((("dp", 1), ("tp", 2)))),
        replace(first, rank=1),
        replace(first, topology=topology_of((0, 1))),
        replace(first, topology=replace(first.topology, local_latency_s=1.0)),
        replace(first, language="cuda"),
        *(replace(first, target=replace(target, worker_count=n)) for n in (1, 3)),
        replace(first, target=replace(target, arch="avx512")),
        replace(first, target=replace(target, hop_s=1.0)),
        replace(first, options=replace(options, is_fused=False)),
        replace(first, options=replace(options, depth=2)),
        replace(first, options=replace(options, transport="proxy")),
        replace(first, options=replace(options, check_numerics=True)),
        replace(first, options=replace(options, check_replicas=True)),
        replace(first, options=replace(options, is_packed=False)),
    ]
    keys = [plan_key.plan_key(each) for each in (first, *others)]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert plan_key.plan_key(request()) == keys[0]


def test_a_policy_of_the_callers_own_has_no_key() -> None:
    policy = PlanOptions().policy
    own = replace(PlanOptions(), policy=lambda *arguments: policy(*arguments))
    assert plan_key.plan_key(replace(request(), options=own)) is None


def digest_of(copy: Path) -> str:
    """The digest of a copy of the code, in a process that starts now."""
    code = "from ark_dist.launch.plan_key import code_digest; print(code_digest())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment(PYTHONPATH=str(copy)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=copy,
    )
    return done.stdout.strip()


def copied(tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    for name in ("ark_dist", "scheduler", "comm", "kernels", "launch"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=skipped)
    time.sleep(CLOCK_S)
    return copy


def test_a_change_of_the_code_changes_the_key(tmp_path: Path) -> None:
    copy = copied(tmp_path)
    found = [digest_of(copy), digest_of(copy)]
    assert found[0] == found[1]
    names = "scheduler/order.py", "kernels/ops/relu.h", "ark_dist/core/abi.py", "launch/open.py"
    for path in (copy / name for name in names):
        info = path.stat()
        # As large, and by its own clock as old, as before.
        path.write_text(path.read_text()[:-1] + " ")
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
        time.sleep(CLOCK_S)
        found.append(digest_of(copy))
    (copy / "kernels" / "ops" / "new.h").write_text("")
    time.sleep(CLOCK_S)
    found.append(digest_of(copy))
    assert len(set(found)) == len(found) - 1
    assert "None" not in found


def test_code_that_changed_after_the_start_has_no_key(monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("")
    monkeypatch.setattr(plan_key, "_folder", lambda package: tmp_path)
    plan_key.code_digest.cache_clear()
    try:
        assert plan_key.code_digest() is None
        assert plan_key.plan_key(request()) is None
    finally:
        plan_key.code_digest.cache_clear()
