"""Plans that are kept: found again, never taken for another's, and never in the way."""

import errno
import logging
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import CacheError
from ark_dist.core.graph import Graph
from ark_dist.core.layout import P
from ark_dist.core.op import Array
from ark_dist.core.settings import child_environment, read_settings
from ark_dist.core.target import cpu_target
from ark_dist.kernels.emit import EMITTERS
from ark_dist.launch import plan_cache, plan_entry, planning
from ark_dist.launch.open import open_session
from ark_dist.launch.plan_cache import PlanCache
from ark_dist.launch.plan_entry import PlanEntry
from ark_dist.scheduler.plan import make_plan
from tests.mesh_runs import on_kernels, whole_view
from tests.plan_models import addition, loop

REPOSITORY = Path(__file__).resolve().parents[1]
KEY_A, KEY_B = "a" * 64, "b" * 64
Log = pytest.LogCaptureFixture
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: Patch, caplog: Log) -> Path:
    """A cache of the test's own, which keeps plans of any size."""
    root = tmp_path / "cache"
    monkeypatch.setenv("ARK_DIST_CACHE_DIR", str(root))
    monkeypatch.setattr(planning, "LEAST_NODES", 0)
    caplog.set_level(logging.WARNING, "ark_dist.cache")
    return root


def kept(root: Path) -> list[Path]:
    return sorted((root / "plans").iterdir()) if (root / "plans").is_dir() else []


def cut_graph(scale: float = 2.0) -> Graph:
    """One product, whose columns a mesh may cut."""
    builder = GraphBuilder("cut")
    x = builder.tensor((4, 8), "fp32", name="x")
    w = builder.parameter((8, 6), "fp32", name="w", shard=P(None, "tp"))
    attrs = {"transpose_input": False, "transpose_other": False, "is_relu": False}
    y = builder.apply("matmul", [x, w], attrs)
    builder.apply("mul", [y, scale], name="y")
    return builder.freeze()


def run_cut(size: int, scale: float = 2.0) -> Array:
    graph = cut_graph(scale)
    ids = {b.name: b.id for b in graph.buffers}
    x = np.arange(32, dtype=np.float32).reshape(4, 8)
    w = np.arange(48, dtype=np.float32).reshape(8, 6)
    found = on_kernels(graph, {"tp": size}, 1, {ids["x"]: x, ids["w"]: w}, [("forward", 1)])
    np.testing.assert_array_equal(found[ids["y"]], x @ w * np.float32(scale))
    return found[ids["y"]]


def no_planning(*_: object, **__: object) -> None:
    raise AssertionError("a plan that is kept must not be made again")


def forbid_planning(monkeypatch: Patch) -> None:
    monkeypatch.setattr(planning, "make_plan", no_planning)
    monkeypatch.setattr(planning, "partition", no_planning)
    monkeypatch.setattr(planning, "EMITTERS", {})


@pytest.mark.parametrize("size", [1, 2])
def test_a_second_start_does_not_plan(
    size: int, folder: Path, monkeypatch: Patch, caplog: Log
) -> None:
    first = run_cut(size)
    assert len(kept(folder)) == size
    forbid_planning(monkeypatch)
    assert run_cut(size).tobytes() == first.tobytes()
    assert not caplog.records


def test_programs_for_gpus_are_kept_too(folder: Path, monkeypatch: Patch) -> None:
    def run() -> Array:
        graph = addition()
        ids = {b.name: b.id for b in graph.buffers}
        opened = open_session(graph, device="emulated", settings=read_settings(), worker_count=2)
        session = opened.session
        session.compile(lambda path: None)
        for name in ("input", "other"):
            session.write(whole_view(graph, ids[name]), np.arange(32, dtype=np.float16))
        session.launch()
        session.run(1, "forward", {})
        session.wait()
        found = session.read(whole_view(graph, ids["output"]))
        session.close()
        return found

    np.testing.assert_array_equal(run(), 2 * np.arange(32))
    assert len(kept(folder)) == 1
    forbid_planning(monkeypatch)
    np.testing.assert_array_equal(run(), 2 * np.arange(32))


def test_a_rank_whose_plan_is_gone_fits_the_others(folder: Path, monkeypatch: Patch) -> None:
    run_cut(2)
    kept(folder)[0].unlink()
    calls: list[int] = []

    def counted(*arguments: object, rank: int, **options: object) -> object:
        calls.append(rank)
        return make_plan(*arguments, rank=rank, **options)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(planning, "make_plan", counted)
    run_cut(2)
    assert len(calls) == 1
    assert len(kept(folder)) == 2


def test_a_change_of_the_graph_is_planned_anew(folder: Path) -> None:
    run_cut(1)
    run_cut(1, scale=3.0)
    assert len(kept(folder)) == 2


def test_small_programs_are_not_kept(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(planning, "LEAST_NODES", 3)
    run_cut(1)
    assert kept(folder) == []


def test_the_environment_turns_it_off(folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("ARK_DIST_PLAN_CACHE", "0")
    run_cut(1)
    assert kept(folder) == []
    monkeypatch.setenv("ARK_DIST_PLAN_CACHE", "yes")
    with pytest.raises(ValueError, match=r"ARK_DIST_PLAN_CACHE is 'yes'; it must be 0 .* or 1"):
        read_settings()


def entry() -> PlanEntry:
    plan = make_plan(loop(), cpu_target(2))
    return PlanEntry(plan, {}, b"", *EMITTERS["c++"](plan))


def test_a_folder_that_can_not_be_listed_is_no_error(folder: Path, monkeypatch: Patch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "no", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    PlanCache(folder).save(KEY_A, entry())


def test_what_would_be_too_large_to_read_is_not_kept(folder: Path, monkeypatch: Patch) -> None:
    PlanCache(folder).save(KEY_A, entry())
    assert len(kept(folder)) == 1
    assert PlanCache(folder).clear() == 1
    monkeypatch.setattr(plan_entry, "LIMITS", replace(plan_entry.LIMITS, size_bytes=1000))
    PlanCache(folder).save(KEY_A, entry())
    assert kept(folder) == []


def swap(path: Path) -> None:
    """Put a whole plan of another key in its place."""
    other = path.with_name(KEY_A)
    PlanCache(path.parents[1]).save(KEY_A, entry())
    other.replace(path)


def link(path: Path) -> None:
    other = path.with_name(KEY_A)
    path.rename(other)
    path.symlink_to(other)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def seal(path: Path) -> None:
    """Put something else in, with the sum that belongs to it."""
    head, _ = plan_cache._opened(path.read_bytes(), path.name)
    path.write_bytes(
        plan_cache._closed(path.name, head, zlib.compress(msgpack.packb({"plan": b"none"})))
    )


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "long": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "flipped": flip,
    "of another format": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "another key's": swap,
    "writable by others": lambda path: path.chmod(0o666),
    "a link": link,
    "well sealed nonsense": seal,
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_damaged_plan_is_made_anew(kind: str, folder: Path, caplog: Log) -> None:
    run_cut(1)
    (path,) = kept(folder)
    BREAKAGES[kind](path)
    run_cut(1)
    (record,) = caplog.records
    assert "is damaged" in record.getMessage()
    assert "planning again" in record.getMessage()
    assert not path.is_symlink()
    assert PlanCache(folder).load(path.name) is not None


@pytest.mark.parametrize("place", ["", "plans"])
@pytest.mark.parametrize("kind", ["file", "open", "link"])
def test_a_folder_that_cannot_be_used_is_done_without(
    place: str, kind: str, tmp_path: Path
) -> None:
    root, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    bad = root / place if place else root
    bad.parent.mkdir(mode=0o700, exist_ok=True)
    if kind == "file":
        bad.write_text("")
    elif kind == "open":
        bad.mkdir()
        bad.chmod(0o777)
    else:
        bad.symlink_to(elsewhere)
    store = PlanCache(root)
    store.save(KEY_A, entry())
    assert store.load(KEY_A) is None
    assert list(elsewhere.iterdir()) == []
    with pytest.raises(CacheError):
        store.ls()


def test_a_folder_that_may_only_be_read_serves_its_plans(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    def refuse(prefix: str, dir: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))

    root = tmp_path / "store"
    store = PlanCache(root)
    store.save(KEY_A, entry())
    for path in (root / "plans", root):
        path.chmod(0o500)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)  # root may write whatever the mode says
    store.save(KEY_B, entry())
    assert store.load(KEY_A) is not None
    assert store.load(KEY_B) is None


def test_a_full_disk_keeps_the_old_plan(tmp_path: Path, monkeypatch: Patch) -> None:
    store = PlanCache(tmp_path / "store")
    store.save(KEY_A, entry())
    (path,) = kept(tmp_path / "store")
    data = path.read_bytes()

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(plan_cache, "write_new", full)
    store.save(KEY_A, entry())
    assert path.read_bytes() == data
    assert [p.name for p in (tmp_path / "store").iterdir()] == ["plans"]


def test_the_longest_unused_plans_go_first(tmp_path: Path, monkeypatch: Patch) -> None:
    root = tmp_path / "store"
    store, one = PlanCache(root), entry()
    keys = [letter * 64 for letter in "abcd"]
    for age_s, key in zip((9000, 8000, 7000), keys, strict=False):
        store.save(key, one)
        os.utime(root / "plans" / key, (time.time() - age_s,) * 2)
    assert store.load(keys[0]) is not None  # and so it is the latest used
    size = (root / "plans" / keys[0]).stat().st_size
    monkeypatch.setattr(plan_cache, "LIMIT_BYTES", 3 * size + size // 2)
    store.save(keys[3], one)
    assert [path.name for path in kept(root)] == [keys[0], keys[2], keys[3]]


def test_plans_are_listed_verified_and_cleared(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = PlanCache(root)
    assert (store.ls(), store.verify(), store.clear()) == ((), (), 0)
    store.save(KEY_B, entry())
    store.save(KEY_A, entry())
    found = store.ls()
    assert {item.key for item in found} == {KEY_A, KEY_B}
    assert {(item.name, item.language, item.isa) for item in found} == {
        ("loop", "plan", "portable")
    }
    assert store.verify() == ()
    path = root / "plans" / KEY_A
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = store.verify()
    assert problem.startswith(f"{KEY_A}: the sha256 of its ")
    assert [item.key for item in store.ls()] == [KEY_B]
    assert store.clear() == 2
    assert not (root / "plans").exists()


WRITER = """
import sys
from pathlib import Path
from ark_dist.launch import planning
from tests.test_plan_cache import run_cut

planning.LEAST_NODES = 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    run_cut(1)
"""


def test_processes_that_start_at_once_keep_one_plan(folder: Path) -> None:
    environment = child_environment(PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, "-c", WRITER]
    writers = [
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    results = [writer.communicate("\n", timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, results
    assert not any("damaged" in errors for _, errors in results)
    (path,) = kept(folder)
    assert PlanCache(folder).load(path.name) is not None
    assert not list(folder.glob(".tmp-*"))
