"""Checks that a state_dict comes back from a file as it was, or not at all."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from ark_dist.core.errors import CheckpointError
from ark_dist.safetensors_file import CODES, Array
from ark_dist.serialize import load, save

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def is_same(got: Array, wanted: Array) -> bool:
    native = wanted.astype(wanted.dtype.newbyteorder("="))
    is_equal = (got.dtype, got.shape) == (native.dtype, native.shape)
    return is_equal and got.tobytes() == native.tobytes()


LAYOUTS: dict[str, Array] = {
    "C order": BASE,
    "F order": np.asfortranarray(BASE),
    "transposed": BASE.T,
    "reversed": BASE[::-1, ::-2],
    "strided": BASE[1:, ::3],
    "broadcast": np.broadcast_to(np.float32(3), (2, 3)),
    "big-endian": BASE.astype(">f4"),
    "big-endian F": np.asfortranarray(BASE.astype(">i8")),
    "read-only": read_only(BASE),
    "from a memoryview": np.frombuffer(memoryview(BASE.tobytes()), np.float32),
    "0-d": np.array(3, np.float64),
    "0-d big-endian": np.array(3, ">u2"),
    "no items": np.zeros((0, 3), np.float32),
    "no rows": np.zeros((3, 0), np.int8),
    "unaligned": np.frombuffer(bytes(9), np.uint8)[1:].view(np.float32),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_keeps_its_values(tmp_path: Path, name: str) -> None:
    save({"x": LAYOUTS[name]}, tmp_path / "test_model.pt")
    got = load(tmp_path / "test_model.pt")["x"]
    assert is_same(got, LAYOUTS[name])
    assert got.flags.writeable
    assert got.flags.c_contiguous


def test_all_layouts_in_one_file_and_read_by_the_safetensors_library(tmp_path: Path) -> None:
    save(LAYOUTS, tmp_path / "x")
    ours, theirs = load(tmp_path / "x"), load_file(tmp_path / "x")
    assert ours.keys() == LAYOUTS.keys() == theirs.keys()
    assert all(is_same(ours[name], array) for name, array in LAYOUTS.items())
    assert all(is_same(theirs[name], array) for name, array in LAYOUTS.items())


@pytest.mark.parametrize("dtype", list(CODES), ids=str)
def test_every_dtype_keeps_its_bits(tmp_path: Path, dtype: np.dtype[np.generic]) -> None:
    raw = np.random.default_rng(0).integers(0, 256, 64, np.uint8)
    array = (raw & 1 if dtype == np.bool_ else raw).view(dtype)
    save({"x": array}, tmp_path / "x")
    assert is_same(load(tmp_path / "x")["x"], array)


def test_the_payload_of_nan_is_kept(tmp_path: Path) -> None:
    bits = np.array([0x7F800001, 0xFFC12345, 0x7FC00000], np.uint32)
    half = np.array([0x7F81, 0xFFC2], np.uint16).view(ml_dtypes.bfloat16)
    floats = bits.view(np.float32)
    save({"x": floats, "big": floats.astype(">f4"), "half": half}, tmp_path / "x")
    got = load(tmp_path / "x")
    assert got["x"].view(np.uint32).tolist() == bits.tolist()
    assert got["big"].view(np.uint32).tolist() == bits.tolist()
    assert got["half"].view(np.uint16).tolist() == [0x7F81, 0xFFC2]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.sampled_from([*CODES, *(dtype.newbyteorder(">") for dtype in CODES)]).flatmap(
            lambda dtype: hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4).flatmap(
                lambda shape: hnp.arrays(np.uint8, (*shape, dtype.itemsize)).map(
                    lambda raw: (raw & 1 if dtype == np.bool_ else raw).view(dtype).reshape(shape).T
                )
            )
        ),
        max_size=6,
    )
)
def test_any_state_dict_comes_back(
    tmp_path_factory: pytest.TempPathFactory, state_dict: dict[str, Array]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    save(state_dict, path)
    got = load(path)
    assert got.keys() == state_dict.keys()
    assert all(is_same(got[name], array) for name, array in state_dict.items())


def test_tied_arrays_are_written_once_and_come_back_tied(tmp_path: Path) -> None:
    embed = np.ones((100, 100), np.float32)
    save({"embed": embed, "head": embed, "view": embed[:], "part": embed[:2]}, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 1.5 * embed.nbytes
    got = load(tmp_path / "x")
    assert got["embed"] is got["head"] is got["view"]
    assert got["part"] is not got["embed"]
    assert got["part"].tolist() == embed[:2].tolist()
    save(got, tmp_path / "x")
    again = load(tmp_path / "x")
    assert again["embed"] is again["head"]


def test_equal_arrays_and_transposed_views_are_not_tied(tmp_path: Path) -> None:
    square = np.arange(4, dtype=np.float32).reshape(2, 2)
    save({"a": square, "t": square.T, "copy": square.copy()}, tmp_path / "x")
    got = load(tmp_path / "x")
    assert got["t"].tolist() == square.T.tolist()
    assert len({id(array) for array in got.values()}) == 3


@pytest.mark.parametrize(
    ("state_dict", "error", "match"),
    [
        ([("a", BASE)], TypeError, "found a list, wanted a dict"),
        ({"a": [1.0]}, TypeError, "'a' is a list, wanted a numpy.ndarray"),
        ({"a": BASE, "b": 1.0}, TypeError, "'b' is a float"),
        ({"a": np.float32(1)}, TypeError, "'a' is a float32"),
        ({"a": np.ma.MaskedArray(BASE)}, TypeError, "'a' is a MaskedArray"),
        ({1: BASE}, TypeError, "the key 1, wanted a str"),
        ({"a": np.array(["x"])}, TypeError, "'a' has the dtype <U1, wanted bool"),
        ({"a": np.array([{}])}, TypeError, "'a' has the dtype object"),
        ({"a": np.array([1j])}, TypeError, "complex128"),
        ({"a" * 513: BASE}, ValueError, "a name of 513 bytes"),
        ({"\ud800": BASE}, ValueError, "not valid Unicode"),
        ({"__metadata__": BASE}, ValueError, "__metadata__"),
        ({"a": np.zeros((1,) * 9)}, ValueError, "rank 9, wanted at most 8"),
        ({"a": np.full(1, 2, np.uint8).view(np.bool_)}, ValueError, "neither 0 nor 1"),
    ],
)
def test_what_can_not_be_saved_is_named(
    tmp_path: Path, state_dict: dict[str, Array], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        save(state_dict, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_too_many_names_for_one_file_are_refused_before_writing(tmp_path: Path) -> None:
    one = np.zeros(1, np.int8)
    with pytest.raises(ValueError, match=r"200001 names .* save fewer tensors to a file"):
        save({str(i): one for i in range(200_001)}, tmp_path / "x")


def test_a_new_file_has_the_usual_mode_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = os.umask(0o027)
    try:
        save({"a": BASE}, path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    save({"a": BASE}, path)
    assert path.stat().st_mode & 0o777 == 0o604


def test_loading_and_saving_to_the_same_path_keeps_the_values(tmp_path: Path) -> None:
    save({"a": BASE}, tmp_path / "x")
    got = load(tmp_path / "x")
    save(got, tmp_path / "x")
    assert is_same(got["a"], BASE)
    assert is_same(load(tmp_path / "x")["a"], BASE)


def test_a_target_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    save({"a": BASE}, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in ("link", "dangling", "folder", "fifo"):
        with pytest.raises(CheckpointError, match=f"{name}: found a .*, wanted a regular file"):
            save({"a": np.zeros(1)}, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "link").is_symlink()
    assert is_same(load(tmp_path / "link")["a"], BASE)


def test_a_missing_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x: can't be saved: No such file or directory"):
        save({"a": BASE}, tmp_path / "no" / "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="can't be saved: Permission denied"):
        save({"a": BASE}, tmp_path / "x")


@pytest.mark.parametrize("step", ["open", "fsync", "fchmod"])
def test_an_error_at_any_step_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    save({"a": BASE}, tmp_path / "x")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(CheckpointError, match=r"Input/output error; the old file.*unchanged"):
        save({"a": np.zeros(3)}, tmp_path / "x")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert is_same(load(tmp_path / "x")["a"], BASE)


def test_an_interrupt_while_saving_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"a": BASE}, tmp_path / "x")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save({"a": np.zeros(3)}, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_can_not_be_synced_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def fail_for_folders(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112  # a descriptor is no path of ours
            raise OSError(5, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(CheckpointError, match="saved, but a power cut may undo it"):
        save({"a": BASE}, tmp_path / "x")


CHILD = """
import os, pathlib, sys, numpy
from ark_dist.core.errors import CheckpointError
from ark_dist.serialize import save
if len(sys.argv) > 2:
    owner = pathlib.Path if sys.argv[2] == "replace" else os
    setattr(owner, sys.argv[2], lambda *_, **__: os.kill(os.getpid(), 9))
try:
    save({"a": numpy.zeros(1_000_000)}, sys.argv[1])
except CheckpointError as error:
    print(error)
"""


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def run_child(path: Path, *steps: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-c", CHILD, str(path), *steps],
        cwd=Path(__file__).parents[1],
        preexec_fn=None if steps else limit_files,
        capture_output=True,
        text=True,
        timeout=60,
        check=not steps,
    )


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    save({"a": BASE}, tmp_path / "x")
    assert "x: can't be saved: File too large; the old file" in run_child(tmp_path / "x").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert is_same(load(tmp_path / "x")["a"], BASE)


@pytest.mark.parametrize("step", ["open", "fchmod", "fsync", "replace"])
def test_a_process_killed_while_saving_leaves_the_old_file(tmp_path: Path, step: str) -> None:
    save({"a": BASE}, tmp_path / "x")
    child = run_child(tmp_path / "x", step)
    assert child.returncode == -signal.SIGKILL
    assert is_same(load(tmp_path / "x")["a"], BASE)


def test_a_missing_file_is_plainly_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "found 0 bytes that start with b'', wanted safetensors, .npz, a torch"),
        (b"abc", "found 3 bytes that start with b'abc'"),
        (b"\x93NUMPY\x01\x00v\x00{", r"start with b'\\x93NUMPY"),
        (b"#!/usr/bin/env python\n", "start with b'#!/usr/bin/env p'"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a git LFS pointer of 43 bytes.*lfs pull",
        ),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "a header of 18446744073709551615 bytes"),
    ],
)
def test_other_content_is_named(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        load(tmp_path / "x")


def test_a_folder_without_weights_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    text = (
        r"a folder of 'weights\.bin', wanted model\.safetensors\.index\.json or model\.safetensors"
    )
    with pytest.raises(CheckpointError, match=text):
        load(tmp_path)


def test_a_path_that_ends_with_a_slash_is_a_folder_of_shards(tmp_path: Path) -> None:
    embed = np.ones((3, 4), np.float16)
    given = {**LAYOUTS, "embed": embed, "head": embed}
    for _ in range(2):
        save(given, f"{tmp_path}/model/")
    got = load(tmp_path / "model")
    assert got.keys() == given.keys()
    assert all(is_same(got[name], array) for name, array in given.items())
    assert got["embed"] is got["head"]
    (shard,) = (tmp_path / "model").glob("*.safetensors")
    assert all(is_same(array, given[name]) for name, array in load_file(shard).items())


def test_a_file_cut_short_at_any_byte_is_refused(tmp_path: Path) -> None:
    save({"a": BASE, "b": BASE}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for size_bytes in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:size_bytes])
        with pytest.raises(CheckpointError, match=f"cut: .*{size_bytes}"):
            load(tmp_path / "cut")


def test_an_npz_is_read(tmp_path: Path) -> None:
    arrays = {name: array for name, array in LAYOUTS.items() if array.dtype != ml_dtypes.bfloat16}
    for store in (np.savez, np.savez_compressed):
        with (tmp_path / "x").open("wb") as file:
            store(file, **arrays)  # type: ignore[arg-type]  # reason: numpy names one keyword bool
        got = load(tmp_path / "x")
        assert got.keys() == arrays.keys()
        assert all(is_same(got[name], array) for name, array in arrays.items())
        assert all(array.flags.writeable for array in got.values())


def test_a_header_whose_length_looks_like_a_pickle_is_still_safetensors(tmp_path: Path) -> None:
    header = json.dumps({}).encode().ljust(0x0280)
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    assert load(tmp_path / "x") == {}
