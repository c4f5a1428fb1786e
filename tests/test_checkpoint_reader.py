"""A box of a tensor is read from just its bytes, into any array, or the damage is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ark_dist.checkpoint import reader
from ark_dist.checkpoint.boxes import cut_box, find_runs
from ark_dist.checkpoint.reader import open_checkpoint, read_all
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.core.shape import Box, box_shape, box_size, full_box
from tests.checkpoint_cases import two_shards, weights, write_shard


def indexed(box: Box) -> tuple[slice, ...]:
    return tuple(slice(*part) for part in box)


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    box = []
    for size in shape:
        start = draw(st.integers(0, size))
        box.append((start, draw(st.integers(start, size))))
    return shape, tuple(box)


DTYPES = [np.dtype(np.uint8), np.dtype(ml_dtypes.bfloat16), np.dtype(np.bool_), np.dtype("f8")]


@settings(max_examples=250, deadline=None, derandomize=True)
@given(boxes(), st.sampled_from(DTYPES), st.sampled_from("CFBRS"), st.sampled_from([16, 40, 1000]))
def test_any_box_is_read_into_any_array(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[tuple[int, ...], Box],
    dtype: np.dtype[np.generic],
    order: str,
    staging_bytes: int,
) -> None:
    shape, box = case
    array = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    if dtype != np.bool_:
        array = np.arange(array.size).astype(dtype).reshape(shape)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    write_shard(path, {"before": np.ones(3, np.uint8), "w": array, "after": np.ones(3, np.uint8)})
    wide = np.zeros(tuple(2 * n for n in box_shape(box)), dtype)
    out = {
        "C": np.zeros(box_shape(box), dtype),
        "F": np.zeros(box_shape(box), dtype, order="F"),
        "B": np.zeros(box_shape(box), dtype.newbyteorder(">")),
        "R": np.zeros(box_shape(box), dtype)[tuple(slice(None, None, -1) for _ in box)],
        "S": wide[tuple(slice(None, None, 2) for _ in box)],
    }[order].view()
    out = np.asarray(out)
    with pytest.MonkeyPatch.context() as patch, open_checkpoint(path) as checkpoint:
        patch.setattr(reader, "STAGING_BYTES", staging_bytes)
        checkpoint.read("w", box, out)
    np.testing.assert_array_equal(out, array[indexed(box)])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(boxes(), st.integers(1, 50))
def test_runs_and_parts_cover_a_box_once(case: tuple[tuple[int, ...], Box], limit: int) -> None:
    shape, box = case
    count = np.zeros(shape, int)
    for part in cut_box(box, limit):
        assert 0 < box_size(part) <= limit
        runs = find_runs(5, shape, part, 1)
        flat = count.reshape(-1)
        for begin in runs.offsets():
            flat[begin - 5 : begin - 5 + runs.size_bytes] += 1
        if runs.loops:
            rows = sum(n for _, n in runs.rows(limit))
            assert rows * runs.size_bytes == box_size(part)
    wanted = np.zeros(shape, int)
    wanted[indexed(box)] = 1
    np.testing.assert_array_equal(count, wanted)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_four_ranks_together_read_each_byte_once(tmp_path: Path, axis: int) -> None:
    array = np.arange(200 * 64 * 32, dtype=np.float32).reshape(200, 64, 32)
    write_shard(tmp_path / "x", {"w": array})
    total = (tmp_path / "x").stat().st_size
    parts = [open_checkpoint(tmp_path / "x") for _ in range(4)]
    bytes_read()
    before = bytes_read()
    own = bytes_read() - before  # the file of the counter counts too
    before = bytes_read()
    for rank, checkpoint in enumerate(parts):
        step = array.shape[axis] // 4
        box = (
            *full_box(array.shape[:axis]),
            (rank * step, rank * step + step),
            *full_box(array.shape[axis + 1 :]),
        )
        out = np.empty(box_shape(box), np.float32)
        checkpoint.read("w", box, out)
        np.testing.assert_array_equal(out, array[indexed(box)])
        checkpoint.close()
    read = bytes_read() - before - own
    assert 0.9 * total < read <= 1.1 * total


def test_gaps_are_read_over_only_where_that_costs_little() -> None:
    def is_dense(columns: int, wanted: int) -> bool:
        return find_runs(0, (100, columns), ((0, 100), (0, wanted)), 1).is_dense

    assert is_dense(1100, 1000)
    assert not is_dense(1101, 1000)
    assert not is_dense(4096, 16)
    assert is_dense(4096, 15)
    assert not is_dense(4097, 15)


CHILD = """
import resource, sys
import numpy as np
from ark_dist.checkpoint.reader import open_checkpoint

def vm(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

path, axis = sys.argv[1], int(sys.argv[2])
rows, columns = 12_800, 4096
step = (rows if axis == 0 else columns) // 4
shape = (step, columns) if axis == 0 else (rows, step)
own = rows * columns
margin = 32 << 20
limit = vm("VmSize") + own + margin
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
peak = vm("VmHWM")  # ru_maxrss begins with that of the parent
with open_checkpoint(path) as checkpoint:
    out = np.ones(shape, np.float32)
    for rank in range(4):
        part = (rank * step, rank * step + step)
        checkpoint.read("w", (part, (0, columns)) if axis == 0 else ((0, rows), part), out)
assert not out.any()
growth = vm("VmHWM") - peak
assert out.nbytes <= growth <= out.nbytes + margin, growth
print("ok")
"""


@pytest.mark.parametrize("axis", [0, 1])
def test_reading_a_quarter_needs_the_memory_of_a_quarter(tmp_path: Path, axis: int) -> None:
    path = tmp_path / "big.safetensors"
    rows, columns = 12_800, 4096
    write_shard(path, {})
    text = '{"w":{"dtype":"F32","shape":[%d,%d],"data_offsets":[0,%d]}}'
    header = (text % (rows, columns, 4 * rows * columns)).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 4 * rows * columns)  # 210 MB of zeros, none on disk
    done = subprocess.run(
        [sys.executable, "-B", "-c", CHILD, str(path), str(axis)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert done.stdout == "ok\n", done.stderr


def test_a_file_cut_short_after_it_was_opened_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    two_shards(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        os.truncate(tmp_path / "b.safetensors", 500)
        with pytest.raises(ShardCorruptError, match=r"b\.safetensors: the file ends at byte 500"):
            read_all(checkpoint)


def test_a_file_that_was_replaced_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "old")
    with pytest.raises(ShardCorruptError, match=r"a\.safetensors: found no file, wanted the one"):
        read_all(checkpoint)
    two_shards(tmp_path)
    with pytest.raises(ShardCorruptError, match=r"found another file of \d+ bytes, .*open the"):
        read_all(checkpoint)


def test_an_array_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    box = ((0, 16), (0, 6))
    frozen = np.zeros((16, 6), np.float32)
    frozen.flags.writeable = False
    with open_checkpoint(tmp_path) as checkpoint:
        with pytest.raises(ValueError, match=r"is \(6, 16\), the box is \(16, 6\)"):
            checkpoint.read("embed", box, np.zeros((6, 16), np.float32))
        with pytest.raises(ValueError, match="read-only"):
            checkpoint.read("embed", box, frozen)
        with pytest.raises(TypeError, match="is float64, the tensor is float32"):
            checkpoint.read("embed", box, np.zeros((16, 6)))
        for wrong in (((0, 16),), ((0, 16), (0, 13)), ((0, 16), (-1, 3)), ((9, 8), (0, 1))):
            with pytest.raises(ValueError, match="is no part of 'embed' of shape"):
                checkpoint.read("embed", wrong, np.zeros((16, 6), np.float32))
        out = np.zeros((16, 6))
        checkpoint.read("embed", box, out, is_cast=True)
    np.testing.assert_array_equal(out, weights()["embed"][:, :6])


def test_only_a_few_of_many_files_are_open_at_once(tmp_path: Path) -> None:
    from tests.checkpoint_cases import write_folder

    shards = {f"{i:02}.safetensors": {f"w{i}": np.full(3, i, np.int32)} for i in range(20)}
    with open_checkpoint(write_folder(tmp_path / "model", shards)) as checkpoint:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # just the count
        got = read_all(checkpoint)
        assert len(os.listdir("/proc/self/fd")) <= before + 8  # noqa: PTH208
    assert all(got[f"w{i}"].tolist() == [i] * 3 for i in range(20))


def test_a_checkpoint_without_checksums_can_not_be_verified(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no checksums, wanted the index that ark"):
        open_checkpoint(two_shards(tmp_path), verify=True)
