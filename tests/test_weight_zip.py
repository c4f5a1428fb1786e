"""Checks that a zip is read only where its list of entries is honest."""

from __future__ import annotations

import io
import stat
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ark_dist.core.errors import CheckpointError
from ark_dist.safetensors_file import Array
from ark_dist.serialize import load

FLOATS = np.arange(6, dtype=np.float32)


def write(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "x.npz").write_bytes(data)
    return tmp_path / "x.npz"


def refuse(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load(write(tmp_path, data))
    assert "x.npz: refused, " in str(caught.value)


def make_zip(entries: list[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names given twice are the point
        for name, data in entries:
            archive.writestr(name, data)
    return stream.getvalue()


def npy(array: Array, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def linked(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


GOOD = npy(FLOATS)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (make_zip([("../a.npy", GOOD)]), "leaves its folder"),
        (make_zip([("/a.npy", GOOD)]), "leaves its folder"),
        (make_zip([("a\\..\\b.npy", GOOD)]), "leaves its folder"),
        (make_zip([("c:/b.npy", GOOD)]), "leaves its folder"),
        (make_zip([("a.npy", GOOD), ("a.npy", GOOD)]), "'a.npy' 2 times"),
        (make_zip([(linked("a.npy"), GOOD)]), "no regular file"),
        (make_zip([("a/", b"")]), "no regular file"),
        (make_zip([("a.npy", bytes(20_000_000))]), "a zip bomb"),
        (make_zip([("a.npy", npy(np.array([{}]), allow_pickle=True))]), "dtype 'object'"),
        (make_zip([("a.npy", npy(np.array(["a"])))]), "dtype '<U1'"),
        (make_zip([("a.npy", GOOD[:-1])]), "23 bytes, wanted 24"),
        (make_zip([("a.npy", GOOD + b"x")]), "25 bytes, wanted 24"),
        (make_zip([("a.npy", GOOD.replace(b"(6,)", b"(9" + b"9" * 9 + b",)"))]), "wanted 39"),
        (make_zip([("a.npy", b"\x93NUMPY\x03\x00" + GOOD[8:])]), "version"),
        (make_zip([("a.npy", b"")]), "magic"),
        (
            make_zip([("a.npy", npy(np.ones(1, np.bool_)).replace(b"\n\x01", b"\n\x02"))]),
            "neither 0",
        ),
        (make_zip([("a.txt", b"a")]), "neither an .npz nor a torch"),
        (make_zip([]), "neither an .npz"),
        (make_zip([("a.npy", GOOD)]) + b"x", "cut short"),
        (make_zip([("a.npy", GOOD)])[:-1], "cut short"),
        (b"PK\x03\x04", "cut short"),
        (make_zip([("m/data.pkl", b"")]), "refused, ValueError: pickle exhausted"),
        (make_zip([("m/data.pkl", b""), ("n/data.pkl", b"")]), "neither an .npz nor"),
    ],
)
def test_a_trick_with_a_zip_is_refused(tmp_path: Path, data: bytes, match: str) -> None:
    refuse(tmp_path, data, match)


def patch(data: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite bytes of the first entry in the central directory."""
    begin = data.index(b"PK\x01\x02") + offset
    return data[:begin] + value + data[begin + len(value) :]


def test_flags_of_a_zip_that_lie_are_refused(tmp_path: Path) -> None:
    good = make_zip([("a.npy", GOOD)])
    assert load(write(tmp_path, good))["a"].tolist() == FLOATS.tolist()
    refuse(tmp_path, patch(good, 8, b"\x01\x00"), "encrypted")
    refuse(tmp_path, patch(good, 10, b"\x0c\x00"), "unknown method")
    refuse(tmp_path, patch(good, 20, b"\xff\xff\xff\x00"), "overlap")
    refuse(tmp_path, patch(good, 16, b"\x00\x00\x00\x00"), "CRC")
    begin = good.index(b"PK\x05\x06") + 12
    refuse(tmp_path, good[:begin] + b"\xff\xff\xff\x7f" + good[begin + 4 :], "bytes of names")
