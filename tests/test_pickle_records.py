"""Checks that pickled NumPy arrays are rebuilt from data alone."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ark_dist.core.errors import CheckpointError
from ark_dist.safetensors_file import Array
from ark_dist.serialize import load

FLOATS = np.arange(6, dtype=np.float32)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def table(**values: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in values.items()) + b"u."


def load_bytes(tmp_path: Path, data: bytes) -> dict[str, Array]:
    (tmp_path / "x.pt").write_bytes(data)
    return load(tmp_path / "x.pt")


def refuse(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_bytes(tmp_path, data)
    assert "x.pt: " in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        FLOATS,
        np.zeros((0, 3), np.float64),
        np.array([0x7FC1, 0xFFC2, 0x7F81], np.uint16).view(ml_dtypes.bfloat16),
        np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(1, 0, 2),
        np.arange(6, dtype=np.int8)[::-2],
        np.array(True),
        np.float16(3),
        np.array([0x7F800001, 0xFF812345], np.uint32).view(np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_a_plain_pickle_of_arrays_is_read(tmp_path: Path, array: Array, protocol: int) -> None:
    got = load_bytes(tmp_path, pickle.dumps(OrderedDict(a=array, b=array), protocol))
    assert list(got) == ["a", "b"]
    native = np.asarray(array).astype(array.dtype.newbyteorder("="))
    assert (got["a"].dtype, got["a"].shape) == (native.dtype, native.shape)
    assert got["a"].tobytes() == native.tobytes()
    assert got["a"].flags.writeable
    if array.shape:
        assert got["a"] is got["b"]


def test_names_of_numpy_before_version_2_are_read(tmp_path: Path) -> None:
    data = pickle.dumps({"a": FLOATS}, 2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    assert load_bytes(tmp_path, data)["a"].tolist() == FLOATS.tolist()


def array_state(shape: bytes, data: bytes) -> bytes:
    head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85N\x87R"
    dtype = b"cnumpy\ndtype\n" + text("f4") + b"\x85R"
    return head + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (array_state(b"K\x02\x85", b"C\x04abcd"), "does not fit 4 bytes"),
        (array_state(b"K\x01\x85", b"](NNe"), "without shape or bytes"),
        (array_state(b"]", b"C\x04abcd"), "without shape or bytes"),
        (array_state(b"N\x85", b"C\x04abcd"), "sizes >= 0"),
        (array_state(b"(" + number(2**62) + number(4) + b"t", b"C\x00"), r"2\*\*63"),
        (array_state(b"K\x01\x85", b"C\x04abcd") + b"Nb", "not five values"),
        (array_state(b"K\x01\x85", b"C\x04abcd").replace(b"K\x01K", b"K"), "not five values"),
        (b"cnumpy.core.numeric\n_frombuffer\n(C\x00NNNtR", "without shape"),
        (b"cnumpy.core.numeric\n_frombuffer\n(C\x00N)NtR", "without a dtype"),
    ],
)
def test_an_array_whose_state_is_wrong_is_refused(tmp_path: Path, value: bytes, match: str) -> None:
    refuse(tmp_path, table(a=value), match)


@pytest.mark.parametrize(
    "first",
    [
        b"B" + struct.pack("<I", 4_000_000) + bytes(4_000_000) + b"q\x00",
        b"c_codecs\nencode\n" + text("a" * 4_000_000) + text("latin1") + b"\x86Rq\x00",
    ],
    ids=["bytes", "encode"],
)
def test_one_piece_of_data_can_not_fill_the_memory_as_many_arrays(
    tmp_path: Path, first: bytes
) -> None:
    shape = number(1_000_000) + b"\x85"
    values = {f"a{i}": array_state(shape, first if i == 0 else b"h\x00") for i in range(100)}
    tracemalloc.start()
    refuse(tmp_path, table(**values), "arrays of over 8 times the file's size")
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
