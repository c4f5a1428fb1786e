"""`ark-dist bench gpu` on a GPU that is faked: its rows, floors, and what is left out and why."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ark_dist.bench import gpu as bench
from ark_dist.bench.gpu import Scale, gpu
from ark_dist.bench.gpu_hops import Counts, chain, join, launched, plan_of
from ark_dist.bench.gpu_layer import Stack, llama_config
from ark_dist.bench.gpu_layer_peer import read_stack
from ark_dist.bench.gpu_memory import Sizes, Way
from ark_dist.bench.policies import alternating
from ark_dist.bench.rows import ALL, Row, Wanted
from ark_dist.bench.text_peer import CONTEXT
from ark_dist.benchmarks import BENCHES
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.core.errors import DeviceNotFoundError
from ark_dist.demo_model import LAYOUT, SMOLLM2, find_model
from tests.fake_cupy import Fake, install
from tests.fake_gpu import FakeGpu
from tests.gguf_models import changed, weights, write_gguf

STACK = Stack(
    llama_config(hidden=64, heads=4, groups=2, depth=16, inner=96, layers=1, context=16),
    capacity=16,
    position=5,
)
SIZES = Sizes(
    read_bytes=4 * 512 * 4 * 16 * 2,
    block_bytes=1 << 16,
    stream_bytes=4 * 12 * 4096,
    stream_turns=2,
    ways=(Way(4, 1, True, False),),
    rounds=1,
)
TINY = Scale(SIZES, Counts(turns=3, rounds=1, calls=3), STACK, turns=1, rounds=1)
RINGS = ("4 KiB x 16", "4 KiB x 32", "8 KiB x 8", "8 KiB x 16", "12 KiB x 16", "16 KiB x 8")
LAYER, GRAPH = "llama-1b layer", "llama-1b layer vs CUDA graph"
WRITTEN = 3


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """A machine with one GPU, and no model in its cache."""
    machine = install(monkeypatch, FakeGpu(0))
    monkeypatch.setattr(bench, "find_model", lambda model: None)
    yield machine
    machine.check()


def kinds(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(row.case, row.dtype, row.unit) for row in rows]


def test_each_case_has_a_row_with_its_floor(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    rows = gpu(scale=TINY)
    assert kinds(rows) == [
        ("read", "byte", "GB/s"),
        ("copy", "byte", "GB/s"),
        *((f"stream-only{name}", "byte", "GB/s") for name in ("", *(f" {r}" for r in RINGS))),
        ("hop", "fp32", "us/task"),
        ("hop, 4 waiters", "fp32", "us/phase"),
        ("run(1)+wait", "fp32", "us/call"),
        ("run(1)+wait p99", "fp32", "us/call"),
        (LAYER, "bf16", "us"),
        (GRAPH, "bf16", "us"),
    ]
    for row in rows:
        assert row.bench == "gpu" and row.ours > 0
        if row.case in ("read", "copy"):
            assert row.floor is None
            continue
        assert row.floor is not None and row.of_floor is not None
        best = row.ours / row.floor if row.unit == "GB/s" else row.floor / row.ours
        assert row.of_floor == pytest.approx(best)
    graph = rows[-1]
    assert graph.peer is None and str(graph.peer_name).startswith("no torch (")
    told = capsys.readouterr().err
    assert [json.loads(line[5:]) for line in told.splitlines() if line[5] == "{"] == [
        row.as_dict() for row in rows
    ]
    assert "gpu: no smollm2-135m decode: `ark-dist demo` fetches the model" in told


def test_only_what_is_wanted_is_measured(fake: Fake) -> None:
    assert kinds(gpu(Wanted("p99"), TINY)) == [("run(1)+wait p99", "fp32", "us/call")]
    assert [row.case for row in gpu(Wanted("8 KiB x 16"), TINY)] == ["stream-only 8 KiB x 16"]
    assert gpu(Wanted(dtype="fp16"), TINY) == []


def test_a_model_in_the_cache_writes_on_the_gpu(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = changed(context=CONTEXT)
    convert_gguf(write_gguf(tmp_path / "a.gguf", llama, weights(llama)), tmp_path / "model")
    monkeypatch.setattr(bench, "find_model", lambda model: tmp_path / "model")
    monkeypatch.setattr(bench, "TOKENS", WRITTEN)
    (row,) = gpu(Wanted("smollm2-135m decode"), TINY)
    assert row.unit == "tokens/s" and row.ours > 0 and row.floor and row.of_floor


def test_a_peer_is_asked_once_ours_has_ended_and_one_that_fails_is_named(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Peer:
        name = "torch 9 CUDA graph"

        def __init__(self, module: str, arguments: list[str], threads: int) -> None:
            assert module == bench.PEER and read_stack(arguments[0]) == STACK
            assert not fake.gpus[0].residents

        def __enter__(self) -> "Peer":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def seconds(self, question: dict[str, object]) -> float:
            assert question == {"rounds": TINY.rounds, "count": TINY.turns}
            return 3.0

    def broken(*arguments: object) -> None:
        raise RuntimeError("it ended with -9")

    monkeypatch.setattr(bench, "Child", Peer)
    (row,) = gpu(Wanted(GRAPH), TINY)
    assert (row.peer_name, row.peer) == (Peer.name, 3e6)
    assert row.ratio == pytest.approx(3e6 / row.ours)
    monkeypatch.setattr(bench, "Child", broken)
    (row,) = gpu(Wanted(GRAPH), TINY)
    assert (row.peer_name, row.peer) == ("no torch (it ended with -9)", None)


def test_a_wrong_result_has_no_row_and_others_are_told_before_it_ends(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ark_dist.bench.gpu_layer.TOLERANCE", 1e-9)
    with pytest.raises(ArithmeticError, match=r"llama-1b layer: ours: \S+ off"):
        gpu(Wanted("l"), replace(TINY, counts=Counts(turns=1, rounds=1, calls=1)))
    told = capsys.readouterr().err
    assert '"case": "stream-only"' in told and f'"case": "{LAYER}"' not in told
    assert "gpu: bench gpu: llama-1b layer: ours" in told


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_a_chain_changes_workers_at_every_task_and_counts_them(device: str) -> None:
    loop = chain()
    plan = plan_of(loop, device, 2, alternating)
    assert plan.methods[0].queues == (tuple(range(0, 10, 2)), tuple(range(1, 10, 2)))
    with launched(plan, device) as session:
        session.run(3, "forward", {})
        session.wait()
        assert (session.read(loop.count.value.view) == 30).all()


def test_a_join_has_one_task_on_every_worker_and_one_that_waits_for_all() -> None:
    workers = 132
    (method,) = plan_of(join(workers), "emulated", workers).methods
    assert [len(queue) for queue in method.queues] == [2, *[1] * (workers - 1)]
    *tiles, last = method.tasks
    assert len(tiles) == workers and last.box == ((0, 1), (0, 1))
    assert [method.counters[w.counter].signals for w in method.waits[last.id]] == [workers]
    assert all(len(method.waits[tile.id]) == 1 for tile in tiles[1:])


def test_without_a_gpu_the_error_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(DeviceNotFoundError, match="cudaErrorNoDevice"):
        BENCHES["gpu"](ALL)


def test_a_model_is_found_where_it_was_fetched_and_never_fetched(tmp_path: Path) -> None:
    assert find_model(SMOLLM2, cache_dir=tmp_path) is None
    folder = tmp_path / "models" / f"{SMOLLM2.name}-bf16-{LAYOUT}"
    folder.mkdir(parents=True)
    assert find_model(SMOLLM2, cache_dir=tmp_path) == folder
    assert find_model(SMOLLM2, dtype="int8", cache_dir=tmp_path) is None
