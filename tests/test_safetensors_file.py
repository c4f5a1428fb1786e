"""Checks that a safetensors header is believed only where every claim in it is true."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ark_dist.checkpoint.reader import open_checkpoint, read_all
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.safetensors_file import MAX_NAME_BYTES, MAX_TENSORS, build_header, open_regular


def entry(dtype: str, shape: list[object], begin: object, end: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_file(path: Path, header: bytes | dict[str, object], data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def refuse(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)


FOUR = entry("F32", [1], 0, 4)


def test_a_file_of_the_safetensors_library_is_read(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(True)}
    save_file(arrays, tmp_path / "x", metadata={"format": "pt"})
    with open_checkpoint(tmp_path / "x") as file:
        assert file.metadata == {"format": "pt"}
        assert file.tensors["a"].shape == (2, 3)
        for name, array in arrays.items():
            got = read_all(file)[name]
            np.testing.assert_array_equal(got, array)
            assert got.dtype == array.dtype
            assert got.flags.writeable


def test_the_safetensors_library_reads_our_header(tmp_path: Path) -> None:
    header = build_header(
        {"x": (np.dtype(np.float32), (2,)), "y": (np.dtype(ml_dtypes.bfloat16), (1,))}, {"z": "x"}
    )
    data = np.array([1, 2], np.float32).tobytes() + b"\x80\x3f"
    (tmp_path / "x").write_bytes(header + data)
    arrays = load_file(tmp_path / "x")
    assert arrays["x"].tolist() == [1, 2]
    assert arrays["y"].astype(np.float32).tolist() == [1]
    with open_checkpoint(tmp_path / "x") as file:
        assert file.tied == {"z": "x"}
        assert read_all(file)["z"].tolist() == [1, 2]


def test_an_empty_header_is_an_empty_file(tmp_path: Path) -> None:
    with open_checkpoint(write_file(tmp_path / "x", b"{}  ")) as file:
        assert file.tensors == {}


def test_a_missing_file_is_plainly_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "x")


def test_a_folder_and_a_fifo_are_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="wanted a regular file"):
        open_regular(str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    refuse(tmp_path / "fifo", "wanted a regular file")


def test_a_name_the_system_refuses_is_a_checkpoint_error(tmp_path: Path) -> None:
    refuse(tmp_path / ("x" * 300), "can't be opened")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 4, 8)}, "the file at"),
        ({"a": entry("F32", [1], 4, 8)}, "hole or an overlap"),
        ({"a": FOUR, "b": FOUR}, "hole or an overlap"),
        ({}, "the file at"),
        ({"a": entry("F32", [2], 0, 4)}, "its shape wants 8"),
        ({"a": entry("F32", [-1], 0, 4)}, "sizes >= 0"),
        ({"a": entry("F32", [True], 0, 4)}, "sizes >= 0"),
        ({"a": entry("F32", ["1"], 0, 4)}, "sizes >= 0"),
        ({"a": entry("F32", [2**62, 4], 0, 4)}, r"2\*\*63"),
        ({"a": entry("F32", [2**62, 2**62, 0], 0, 0)}, r"2\*\*63"),
        ({"a": entry("F32", [1] * 9, 0, 4)}, "rank 9"),
        ({"a": entry("F31", [1], 0, 4)}, "'F31', wanted BOOL"),
        ({"a": entry("F32", [1], -4, 0)}, "two sizes >= 0"),
        ({"a": entry("F32", [1], 4, 0)}, "its shape wants 4"),
        ({"a": entry("F32", [1], 0, 4.0)}, "wanted an integer"),
        ({"a": entry("F32", [1], 0, float("nan"))}, "wanted an integer"),
        ({"a": entry("F32", [1], 0, 10**30)}, "31 digits"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "just dtype"),
        ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, "no list"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "two sizes"),
        ({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, "of dtype"),
        ({"a": 1}, "just dtype"),
        ({"n" * (MAX_NAME_BYTES + 1): FOUR}, "name of 513 bytes"),
        ({"\ud800": FOUR}, "not valid Unicode"),
        ({"a": FOUR, "__metadata__": 1}, "not an object"),
        ({"a": FOUR, "__metadata__": {"x": 1}}, "not a string"),
        ({"a": FOUR, "__metadata__": {"ark_dist.tied": "["}}, "starts with"),
        ({"a": FOUR, "__metadata__": {"ark_dist.tied": '{"b": "c"}'}}, "tied to no other"),
        ({"a": FOUR, "__metadata__": {"ark_dist.tied": '{"a": "a"}'}}, "tied to no other"),
        ({"a": FOUR, "__metadata__": {"ark_dist.tied": '{"b":"a","b":"a"}'}}, "'b' twice"),
        (b'{"a":%s,"a":%s}' % ((json.dumps(FOUR).encode(),) * 2), "the name 'a' twice"),
        (b'{"a":{"dtype":"I32",' + json.dumps(FOUR).encode()[1:] + b"}", "'dtype' twice"),
        (b' {"a":1}', "starts with b' '"),
        (b'{"a":', "don't nest"),
        (b'{"a":[[[]]]}', "don't nest"),
        (b'{"a":' * 100_000, "don't nest"),
        (b'{"a":' + b"[" * 1_000_000, "don't nest"),
        (b'{"\xff":1}', "can't decode"),
        (b'{"a" 1}', "delimiter"),
        (b'{"a\\"":[[]]}', "don't nest"),
        (b'{"a":[' + b"1," * 3_000_000 + b"1]}", "long lists"),
        (b'{"a":' + b'""' * 2_000_000, "too many strings"),
        (b"{" + b'"a":{},' * (MAX_TENSORS + 2) + b'"a":1}', f"wanted at most {MAX_TENSORS}"),
    ],
)
def test_a_false_claim_in_the_header_is_refused(
    tmp_path: Path, header: bytes | dict[str, object], match: str
) -> None:
    path = write_file(tmp_path / "x", header, bytes(4))
    begin = time.monotonic()
    refuse(path, match)
    assert time.monotonic() - begin < 1  # row 42 of the fault matrix


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 25_000_001, 3])
def test_a_header_longer_than_the_file_or_the_cap_is_never_allocated(
    tmp_path: Path, length: int
) -> None:
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}")
    tracemalloc.start()
    refuse(tmp_path / "x", f"a header of {length} bytes in a file of 10")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_file_cut_short_at_any_byte_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for size_bytes in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:size_bytes])
        refuse(tmp_path / "cut", f"{size_bytes}")


def test_a_file_cut_short_while_open_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    save_file({"a": np.ones(3000, np.float32)}, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as file:
        os.truncate(tmp_path / "x", 500)
        with pytest.raises(ShardCorruptError, match=r"ends at byte 500.*fetch it again"):
            read_all(file)


def test_a_bool_of_two_is_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x", {"a": entry("BOOL", [1], 0, 1)}, b"\x02")
    with (
        open_checkpoint(path) as file,
        pytest.raises(ShardCorruptError, match="'a': found a bool that is neither 0 nor 1"),
    ):
        read_all(file)


def test_a_read_error_of_the_system_is_a_checkpoint_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with open_checkpoint(write_file(tmp_path / "x", {"a": FOUR}, bytes(4))) as file:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(CheckpointError, match=r"reading at byte .*Input/output error"):
            read_all(file)
