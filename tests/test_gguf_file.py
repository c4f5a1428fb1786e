"""The header of a GGUF file is believed in nothing: every flaw is a sentence, soon."""

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from ark_dist.convert.gguf_file import MAX_HEADER_BYTES, open_gguf, parse_gguf
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from tests.gguf_models import TinyLlama, weights, write_gguf

F32, Q8_0 = 0, 8
UINT8, UINT32, STRING, ARRAY, FLOAT64 = 0, 4, 8, 9, 12
HUGE = 2**64 - 1


def text(value: bytes, size: int | None = None) -> bytes:
    """Write a string, perhaps with a size that lies."""
    return struct.pack("<Q", len(value) if size is None else size) + value


def number(key: bytes, value: int) -> bytes:
    """Write a key with an unsigned integer."""
    return text(key) + struct.pack("<II", UINT32, value)


def tensor(name: bytes, shape: Sequence[int], kind: int = F32, offset: int = 0) -> bytes:
    """Write the description of a tensor."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def header(
    values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    version: int = 3,
    value_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """Write a header, perhaps with counts that lie."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(values) if value_count is None else value_count,
    )
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*values, *tensors])


FLAWS = {
    "version 1 ": header(version=1),
    "version 50331648": header(version=3 << 24),  # big-endian
    "goes on to byte": header(value_count=HUGE),
    "goes on to": header(tensor_count=HUGE),
    "goes on": header([text(b"key", HUGE)]),
    "that is not UTF-8": header([text(b"\xff\xfe") + struct.pack("<II", UINT32, 1)]),
    "the key 'a' twice": header([number(b"a", 1), number(b"a", 2)]),
    "a value of type 13": header([text(b"a") + struct.pack("<I", 13)]),
    "a value of type 9": header([text(b"a") + struct.pack("<IIQ", ARRAY, ARRAY, 1)]),
    "header that goes on to byte": header([text(b"a") + struct.pack("<IIQ", ARRAY, UINT8, 2**63)]),
    "a header that goes": header([text(b"a") + struct.pack("<IIQ", ARRAY, STRING, HUGE)]),
    "a header that": header([text(b"a") + struct.pack("<IIQ", ARRAY, FLOAT64, 2**61)]),
    "an alignment of '0'": header([number(b"general.alignment", 0)]),
    "an alignment of '4294967295'": header([number(b"general.alignment", 2**32 - 1)]),
    "tensor 'x' twice": header(tensors=[tensor(b"x", (1,)), tensor(b"x", (1,), F32, 32)]),
    "at 4, no multiple of 32": header(tensors=[tensor(b"x", (1,), F32, 4)]),
    "of 0 dimensions": header(tensors=[tensor(b"x", ())]),
    "of 5 dimensions": header(tensors=[tensor(b"x", (1,) * 5)]),
    "of shape (0,)": header(tensors=[tensor(b"x", (0,))]),
    "rows of whole blocks of 32": header(tensors=[tensor(b"x", (33,), Q8_0)]),
    "the unknown format 999": header(tensors=[tensor(b"x", (1,), 999)]),
    "tensor 'y' from byte": header(tensors=[tensor(b"x", (8,)), tensor(b"y", (8,))]),
    "the file has ended": header(tensors=[tensor(b"x", (2**40, 2**20))]),
    "or the file": header(tensors=[tensor(b"x", (HUGE, HUGE, HUGE, HUGE))]),
    "has ended": header(tensors=[tensor(b"x", (1,), F32, HUGE - 31)]),
    "a name of 513 bytes": header(tensors=[tensor(b"x" * 513, (1,))]),
}


@pytest.mark.parametrize("message", FLAWS)
def test_a_flaw_in_the_header_is_named(message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_gguf(FLAWS[message], len(FLAWS[message]) + 64)
    assert message in str(caught.value)


def test_a_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    _, tensors = parse_gguf(data, len(data))
    begin = min(each.begin for each in tensors.values())
    for size in (*range(4, begin, 7), len(data) - 65):  # the last tensor is padded to 32 bytes
        with pytest.raises(ValueError):
            parse_gguf(data[:size], size)


def test_random_damage_is_a_value_error_or_another_valid_header(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    _, tensors = parse_gguf(data, len(data))
    begin = min(each.begin for each in tensors.values())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data[:begin])
        for position in rng.integers(4, begin, 3):
            damaged[position] = rng.integers(256)
        try:
            parse_gguf(bytes(damaged), len(data))
        except ValueError:
            refused += 1
    assert refused


def test_metadata_and_tensors_are_those_of_the_package(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(path)
    with open_gguf(path) as found:
        for key, field in reader.fields.items():
            if not key.startswith("GGUF."):
                value = found.metadata[key]
                plain = value.tolist() if isinstance(value, np.ndarray) else value
                assert plain == field.contents(), key
        assert found.tensors.keys() == {each.name for each in reader.tensors}
        for each in reader.tensors:
            np.testing.assert_array_equal(found.read(each.name, np.dtype(np.float32)), each.data)


def test_a_file_of_another_format_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with (
        pytest.raises(CheckpointError, match=r"104 bytes that start with .*, wanted a GGUF file"),
        open_gguf(path),
    ):
        pass
    with pytest.raises(FileNotFoundError), open_gguf(tmp_path / "none.gguf"):
        pass
    with pytest.raises(CheckpointError, match="wanted a regular file"), open_gguf(tmp_path):
        pass


def test_a_header_larger_than_the_cap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header([text(b"a", MAX_HEADER_BYTES)]))
    with path.open("r+b") as file:
        file.truncate(MAX_HEADER_BYTES + 1000)
    with (
        pytest.raises(ShardCorruptError, match="wanted all of it in the file and at most"),
        open_gguf(path),
    ):
        pass


def test_a_file_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    with open_gguf(path) as found, path.open("r+b") as file:
        file.truncate(found.tensors["output_norm.weight"].begin + 4)
        with pytest.raises(ShardCorruptError, match="cut short while it was read"):
            found.read("output_norm.weight", np.dtype(np.float32))


def test_a_format_that_cannot_be_dequantized_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    double = gguf.GGMLQuantizationType.F64.value
    data = header(tensors=[tensor(b"x", (4,), double)])
    path.write_bytes(data + bytes(-len(data) % 32 + 32))
    wanted = "of the format F64, which the package gguf"
    with open_gguf(path) as found, pytest.raises(CheckpointError, match=wanted):
        found.read("x", np.dtype(np.float32))


def test_weights_keep_their_bits_in_fp32(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "tiny.gguf")) as found:
        for name, array in weights(TinyLlama()).items():
            np.testing.assert_array_equal(found.read(name, np.dtype(np.float32)), array)
