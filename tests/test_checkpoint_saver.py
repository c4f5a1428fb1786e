"""A checkpoint is saved whole by all ranks, or the old one stays; all ranks raise one error."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ark_dist.checkpoint.agree import Agree, alone
from ark_dist.checkpoint.index import INDEX_NAME
from ark_dist.checkpoint.reader import open_checkpoint, read_all
from ark_dist.checkpoint.saver import save_checkpoint
from ark_dist.checkpoint.shards import Layout, plan_shards
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.safetensors_file import Array
from tests.checkpoint_cases import is_same, on_ranks, two_shards, weights, write_shard

SMALL = 1000  # bytes of a file, so that there are several


def layouts(arrays: dict[str, Array], ranks: int = 1) -> dict[str, Layout]:
    return {
        name: Layout(a.shape, a.dtype.newbyteorder("="), number % ranks)
        for number, (name, a) in enumerate(arrays.items())
    }


def save(folder: Path, seed: int = 0, ranks: int = 1) -> list[Exception | None]:
    """Save `weights(seed)`; every rank holds them all and gives what it owns."""
    arrays = weights(seed)

    def run(rank: int, agree: Agree) -> None:
        tensors = layouts(arrays, ranks)

        def gather(name: str) -> Array | None:
            return arrays[name] if tensors[name].owner == rank else None

        save_checkpoint(
            folder,
            tensors,
            gather,
            max_shard_bytes=SMALL,
            rank=rank,
            world_size=ranks,
            agree=agree,
        )

    return on_ranks(ranks, run)


def holds(folder: Path, seed: int) -> bool:
    """Whether a folder has just one whole checkpoint, that of `weights(seed)`."""
    with open_checkpoint(folder, verify=True) as checkpoint:
        got = read_all(checkpoint)
        files = {Path(info.file).name for info in checkpoint.tensors.values()}
    assert {path.name for path in folder.iterdir()} == {*files, INDEX_NAME}
    return all(is_same(got[name], array) for name, array in weights(seed).items())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_ranks_save_is_read_by_one_and_by_the_safetensors_library(
    tmp_path: Path, ranks: int
) -> None:
    folder = tmp_path / "model"
    for seed in (0, 1):
        assert save(folder, seed, ranks) == [None] * ranks
        assert holds(folder, seed)
    theirs = {n: a for path in folder.glob("*.safetensors") for n, a in load_file(path).items()}
    assert theirs.keys() == weights().keys()
    assert all(is_same(theirs[name], array) for name, array in weights(1).items())
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.metadata["format"] == "pt"  # other tools want it
        assert len({info.file for info in checkpoint.tensors.values()}) >= max(2, ranks)


def test_tied_tensors_are_written_once_and_come_back_tied(tmp_path: Path) -> None:
    arrays = weights()
    save_checkpoint(
        tmp_path / "model",
        layouts(arrays),
        arrays.__getitem__,
        tied={"head": "embed"},
        metadata={"made by": "a test"},
        max_shard_bytes=SMALL,
    )
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.metadata["made by"] == "a test"
        assert checkpoint.tensors["head"] == checkpoint.tensors["embed"]
        got = read_all(checkpoint)
    assert got["head"] is got["embed"]


def test_arrays_of_any_order_are_saved_by_value(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    arrays: dict[str, Array] = {
        "F": np.asfortranarray(base),
        "reversed": base[::-1, ::-2],
        "big": base.astype(">f4"),
        "frozen": frozen,
        "spread": np.broadcast_to(np.float32(3), (2, 3)),
        "scalar": np.array(7, ">u2"),
    }
    save_checkpoint(tmp_path / "model", layouts(arrays), arrays.__getitem__)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        got = read_all(checkpoint)
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array)


def test_a_file_ends_before_it_gets_too_long() -> None:
    arrays: dict[str, Array] = {
        str(i): np.zeros(n, np.uint8) for i, n in enumerate((4, 4, 4, 30, 1, 0))
    }
    plans = plan_shards(layouts(arrays), {}, {}, 10)
    assert [plan.names for plan in plans] == [("0", "1"), ("2",), ("3",), ("4", "5")]
    assert plans[0].tail == "00001-of-00004.safetensors"
    assert [plan.names for plan in plan_shards({}, {}, {}, 10)] == [()]


@pytest.mark.parametrize(
    ("tensors", "tied", "size", "match"),
    [
        ({"w": Layout((2,), np.dtype("c8"))}, {}, 9, "has the dtype complex64, wanted bool"),
        ({"n" * 513: Layout((2,), np.dtype("f4"))}, {}, 9, "a name of 513 bytes"),
        ({"w": Layout((1,) * 9, np.dtype("f4"))}, {}, 9, "rank 9, wanted at most 8"),
        ({"w": Layout((2,), np.dtype("f4"))}, {"v": "x"}, 9, "'v' is tied to 'x'; it must be"),
        ({}, {}, 0, "max_shard_bytes is 0; it must be 1 or more"),
        ({"w": Layout((2,), np.dtype("f4"), 3)}, {}, 9, "rank 3 owns tensors, there are 1 ranks"),
        ({str(i): Layout((), np.dtype("u1")) for i in range(200_001)}, {}, 9, "200001 names"),
    ],
)
def test_what_can_not_be_saved_is_refused_first(
    tmp_path: Path, tensors: dict[str, Layout], tied: dict[str, str], size: int, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        save_checkpoint(
            tmp_path / "model", tensors, lambda name: None, tied=tied, max_shard_bytes=size
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (None, "found nothing for 'w', wanted float32 of shape"),
        (np.zeros(3, np.float32), r"found float32 of shape \(3,\) for 'w'"),
        (np.zeros(2), "found float64 of shape"),
    ],
)
def test_gather_must_return_what_was_announced(
    tmp_path: Path, array: Array | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        save_checkpoint(tmp_path / "model", {"w": Layout((2,), np.dtype("f4"))}, lambda name: array)
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_were_given_other_tensors_are_told(tmp_path: Path) -> None:
    def run(rank: int, agree: Agree) -> None:
        tensors = {"w": Layout((2 + rank // 2,), np.dtype("f4"))}
        save_checkpoint(
            tmp_path / "x", tensors, lambda name: None, rank=rank, world_size=3, agree=agree
        )

    for error in on_ranks(3, run):
        assert isinstance(error, ValueError)
        assert "ranks [2] were given other tensors" in str(error)


def test_an_old_checkpoint_of_another_tool_is_replaced(tmp_path: Path) -> None:
    folder = two_shards(tmp_path / "model")
    (folder / INDEX_NAME).chmod(0o640)
    (folder / "config.json").write_text("{}")
    assert save(folder, 1) == [None]
    (folder / "config.json").unlink()
    assert holds(folder, 1)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    single = tmp_path / "single"
    single.mkdir()
    write_shard(single / "model.safetensors", weights())
    assert save(single, 1) == [None]
    assert holds(single, 1)


def test_loading_and_saving_to_the_same_folder_keeps_the_values(tmp_path: Path) -> None:
    save(tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        got = read_all(checkpoint)
        save_checkpoint(tmp_path / "model", layouts(got), got.__getitem__)
    assert holds(tmp_path / "model", 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((n, k) for n in (INDEX_NAME, "model.safetensors") for k in ("symlink", "fifo", "folder")),
        *(("", kind) for kind in ("symlink", "fifo", "file")),
    ],
)
def test_a_target_of_another_kind_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "model"
    if name:
        folder.mkdir()
    target = folder / name if name else folder
    make: dict[str, Callable[[], object]] = {
        "symlink": lambda: target.symlink_to(tmp_path),
        "fifo": lambda: os.mkfifo(target),
        "folder": lambda: target.mkdir(),
        "file": lambda: target.write_bytes(b""),
    }
    make[kind]()
    before = sorted(tmp_path.rglob("*"))
    (error,) = save(folder)
    assert isinstance(error, CheckpointError)
    assert "wanted a" in str(error)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_saves_to_one_folder_do_not_mix(tmp_path: Path) -> None:
    save(tmp_path / "model")
    fd = os.open(tmp_path / "model", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        (error,) = save(tmp_path / "model", 1)
    finally:
        os.close(fd)
    assert isinstance(error, CheckpointError)
    assert "another process saves to it now" in str(error)
    assert holds(tmp_path / "model", 0)


def fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


STEPS = ["open", "fchmod", "write", "fsync", "mkdir", "replace"]


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_of_rank_0_alone_is_raised_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step != "mkdir":
        save(tmp_path / "model", 0, 2)
    owner = Path if step in ("mkdir", "replace") else os
    first = getattr(owner, step)

    def fail_on_rank_0(*args: object, **options: object) -> object:
        if threading.current_thread().name == "rank 0":
            fail()
        return first(*args, **options)

    monkeypatch.setattr(owner, step, fail_on_rank_0)
    errors = save(tmp_path / "model", 1, 2)
    monkeypatch.undo()
    assert len({(type(error), str(error)) for error in errors}) == 1
    assert isinstance(errors[0], CheckpointError)
    assert "rank 0: " in str(errors[0])
    assert "can't be saved: No space left on device; the old checkpoint" in str(errors[0])
    assert list(tmp_path.iterdir()) == [] if step == "mkdir" else holds(tmp_path / "model", 0)


def test_ranks_that_fail_each_in_its_way_are_all_named(tmp_path: Path) -> None:
    arrays = weights()

    def run(rank: int, agree: Agree) -> None:
        def gather(name: str) -> Array | None:
            return None if rank == 1 else arrays[name].reshape(-1)[:0]

        save_checkpoint(
            tmp_path / "x", layouts(arrays, 2), gather, rank=rank, world_size=2, agree=agree
        )

    for error in on_ranks(2, run):
        assert isinstance(error, ValueError)
        assert "rank 0: save: found float32" in str(error)
        assert "; rank 1: save: found nothing for 'norm'" in str(error)
    assert list(tmp_path.iterdir()) == []


CHILD = """
import resource, signal, sys
from pathlib import Path
from tests.test_checkpoint_saver import save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
print(*save(Path(sys.argv[1]), 1))
"""


def test_a_full_disk_leaves_the_old_checkpoint_and_no_other_file(tmp_path: Path) -> None:
    save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-B", "-c", CHILD, str(tmp_path / "model")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert "model: can't be saved: File too large; the old checkpoint" in done.stdout, done.stderr
    assert holds(tmp_path / "model", 0)


def killed_at(point: int, folder: Path) -> bool:
    """Save in a child that ends by SIGKILL at its n-th call; False if it has fewer calls."""
    pid = os.fork()
    if not pid:
        calls = 0

        def counted(first: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return first(*args, **options)

            return call

        for owner, step in [
            *((os, step) for step in ("open", "fchmod", "write", "fsync")),
            *((Path, step) for step in ("mkdir", "replace", "unlink")),
        ]:
            setattr(owner, step, counted(getattr(owner, step)))
        arrays = weights(1)
        try:
            save_checkpoint(folder, layouts(arrays), arrays.__getitem__, max_shard_bytes=SMALL)
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_a_save_that_is_killed_at_any_step_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path,
) -> None:
    folder, point, seen = tmp_path / "model", 1, []
    save(folder)
    while killed_at(point, folder):
        with open_checkpoint(folder, verify=True) as checkpoint:
            got = read_all(checkpoint)
        found = [seed for seed in (0, 1) if is_same(got["embed"], weights(seed)["embed"])]
        assert all(is_same(got[name], array) for name, array in weights(found[0]).items())
        seen += found
        assert save(folder) == [None]  # it removes what was left, too
        assert holds(folder, 0)
        point += 1
    assert point > 25
    assert seen == sorted(seen)
    assert set(seen) == {0, 1}


def test_an_interrupt_leaves_the_old_checkpoint_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model")
    arrays = weights(1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for owner, step in ((os, "write"), (os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, step, interrupt)
            save_checkpoint(tmp_path / "model", layouts(arrays), arrays.__getitem__)
        assert holds(tmp_path / "model", 0)


def test_ranks_without_a_shared_folder_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = weights()

    def run(rank: int, agree: Agree) -> None:
        folder = tmp_path / f"host{rank}"
        folder.mkdir(exist_ok=True)
        save_checkpoint(
            folder, layouts(arrays, 2), arrays.__getitem__, rank=rank, world_size=2, agree=agree
        )

    for error in on_ranks(2, run):
        assert isinstance(error, CheckpointError)
        assert "rank 0 finds no file; save to a folder that all ranks share" in str(error)
    assert [*tmp_path.rglob("*.safetensors")] == []


def test_a_lost_rank_while_committing_leaves_all_files(tmp_path: Path) -> None:
    arrays, calls = weights(), 0

    def lost(text: str | None) -> list[str | None]:
        nonlocal calls
        calls += 1
        if calls == 5:  # after the files have their names
            raise TimeoutError("rank 1 is gone")
        return [*alone(text), *alone(text)]

    with pytest.raises(TimeoutError, match="rank 1 is gone"):
        save_checkpoint(
            tmp_path / "x", layouts(arrays), arrays.__getitem__, world_size=2, agree=lost
        )
    assert len([*(tmp_path / "x").glob("model-ark*.safetensors")]) == 1
    save_checkpoint(tmp_path / "x", layouts(arrays), arrays.__getitem__)
    assert holds(tmp_path / "x", 0)


def test_a_bit_flip_is_found_by_its_checksum(tmp_path: Path) -> None:
    save(tmp_path / "model")
    path = sorted((tmp_path / "model").glob("*.safetensors"))[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    open_checkpoint(tmp_path / "model").close()
    text = rf"{path.name}: {len(data)} bytes with sha256 [0-9a-f]*, wanted [0-9a-f]*; fetch"
    with pytest.raises(ShardCorruptError, match=text):
        open_checkpoint(tmp_path / "model", verify=True)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        checkpoint.verify(rank=0, world_size=2)
        with pytest.raises(ShardCorruptError, match="with sha256"):
            checkpoint.verify(rank=1, world_size=2)


def test_one_tensor_at_a_time_is_gathered(tmp_path: Path) -> None:
    size_bytes, count = 8 << 20, 12
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tensors = {str(i): Layout((size_bytes // 4,), np.dtype("f4")) for i in range(count)}
    save_checkpoint(
        tmp_path / "x", tensors, lambda name: np.full(size_bytes // 4, int(name), np.float32)
    )
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    assert growth < 5 * size_bytes
