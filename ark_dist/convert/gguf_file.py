"""Turn a GGUF file that nobody vouches for into checked metadata and arrays.

The package gguf maps the file and believes its counts, so the header is read here, bounded; the
package knows the formats of weights and dequantizes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ark_dist.bounded_json import shown
from ark_dist.convert.rounding import rounded
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.optional import require
from ark_dist.safetensors_file import Array, Dtype, check_name, open_regular, read_into

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType

Value: TypeAlias = "int | float | bool | str | list[str] | Array"

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 had counts of 32 bits and is gone
# A vocabulary of 256,000 tokens with its merges takes 12 MB.
MAX_HEADER_BYTES = 64 << 20
MAX_DIMS = 4  # of ggml
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
# Values by their type's number in the file; BOOL is a byte, STRING and ARRAY have a length.
SCALARS: Mapping[int, Dtype] = {
    **{0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2")},
    **{4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("<u1")},
    **{10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")},
}
BOOL, STRING, ARRAY = 7, 8, 9
UINT32, UINT64 = 4, 10
# fp32 elements that are dequantized at a time
_PIECE_ELEMS = 4 << 20


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file: its shape with rows first, and its bytes from the file's start."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """An open file with a checked header."""

    path: str
    fd: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def read(self, name: str, dtype: Dtype) -> Array:
        """Return a tensor, dequantized and rounded to nearest in `dtype`.

        Raises CheckpointError for a format that can't be dequantized, and for values that are not
        finite, in the file or in `dtype`.
        """
        tensor = self.tensors[name]
        columns, rows = tensor.shape[-1], prod(tensor.shape[:-1])
        row_bytes = tensor.size_bytes // rows
        out: Array = np.empty((rows, columns), dtype)
        step = max(1, _PIECE_ELEMS // columns)
        for first in range(0, rows, step):
            part = out[first : first + step]
            raw = np.empty((len(part), row_bytes), np.uint8)
            read_into(self.fd, tensor.begin + first * row_bytes, raw.reshape(-1).data, self.path)
            part[...] = self._rounded(name, raw, dtype)
        return out.reshape(tensor.shape)

    def _rounded(self, name: str, raw: Array, dtype: Dtype) -> Array:
        from gguf.quants import dequantize

        kind = self.tensors[name].kind
        with np.errstate(all="ignore"):  # `rounded` looks for what is not finite
            try:
                exact = dequantize(raw, kind)
            except NotImplementedError:
                raise CheckpointError(
                    f"{self.path}: tensor {shown(name)} is of the format {kind.name}, which the "
                    "package gguf can't dequantize; convert a file of another format"
                ) from None
        return rounded(exact, dtype, f"{self.path}: tensor {shown(name)}")


@contextmanager
def open_gguf(path: str | os.PathLike[str]) -> Iterator[Gguf]:
    """Give a GGUF file whose header was checked.

    Raises FileNotFoundError where there is no file, ConfigError where the package gguf is not
    installed, and CheckpointError for a file that is damaged or of another format.
    """
    require("gguf", "reading GGUF files")
    name = os.fspath(path)
    fd = open_regular(name)
    try:
        size_bytes = os.fstat(fd).st_size
        data = bytearray(min(size_bytes, MAX_HEADER_BYTES))
        read_into(fd, 0, memoryview(data), name)
        if not data.startswith(MAGIC):
            raise CheckpointError(
                f"{name}: found {size_bytes} bytes that start with {bytes(data[:8])!r}, "
                "wanted a GGUF file"
            )
        try:
            metadata, tensors = parse_gguf(bytes(data), size_bytes)
        except ValueError as error:
            raise ShardCorruptError(
                f"{name}: damaged GGUF file of {size_bytes} bytes: found {error}; fetch it again"
            ) from error
        yield Gguf(name, fd, metadata, tensors)
    finally:
        os.close(fd)


def parse_gguf(
    data: bytes, file_bytes: int
) -> tuple[Mapping[str, Value], Mapping[str, GgufTensor]]:
    """Return metadata and tensors of a file of `file_bytes` that begins with `data`.

    Raises ValueError on any flaw.
    """
    cursor = _Cursor(data)
    cursor.take(len(MAGIC))
    version = cursor.integer(UINT32)
    if version not in VERSIONS:
        raise ValueError(f"version {version} (little-endian), wanted {VERSIONS}")
    tensor_count, value_count = cursor.integer(UINT64), cursor.integer(UINT64)
    metadata: dict[str, Value] = {}
    for _ in range(value_count):  # each takes bytes, so the data ends before a wrong count
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"the key {shown(key)} twice")
        metadata[key] = cursor.value(cursor.integer(UINT32))
    entries = [_read_entry(cursor) for _ in range(tensor_count)]
    alignment = _alignment(metadata)
    data_begin = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in entries:
        if name in tensors:
            raise ValueError(f"tensor {shown(name)} twice")
        if offset % alignment:
            raise ValueError(f"tensor {shown(name)} at {offset}, no multiple of {alignment}")
        tensors[name] = _describe(name, shape, kind, data_begin + offset)
    _check_places(tensors, file_bytes)
    return metadata, tensors


class _Cursor:
    """Reads values one after another."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, size_bytes: int) -> bytes:
        end = self.position + size_bytes
        if end > len(self._data):
            raise ValueError(
                f"a header that goes on to byte {end}, wanted all of it in the file and at most "
                f"{MAX_HEADER_BYTES} bytes"
            )
        part = self._data[self.position : end]
        self.position = end
        return part

    def numbers(self, kind: int, count: int) -> Array:
        dtype = SCALARS.get(kind)
        if dtype is None:
            raise ValueError(f"a value of type {kind}, wanted one of 0 to 12")
        values: Array = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        return values

    def integer(self, kind: int) -> int:
        return int(self.numbers(kind, 1)[0])

    def text(self) -> str:
        data = self.take(self.integer(UINT64))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"text that is not UTF-8, {data[:20]!r}") from None

    def value(self, kind: int) -> Value:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            inner, count = self.integer(UINT32), self.integer(UINT64)
            if inner == STRING:
                return [self.text() for _ in range(count)]
            return self.numbers(inner, count)
        number: int | float = self.numbers(kind, 1)[0].item()
        return bool(number) if kind == BOOL else number


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Return the name, shape, format and offset of the next tensor."""
    name = cursor.text()
    check_name(name)
    rank = cursor.integer(UINT32)
    if not 1 <= rank <= MAX_DIMS:
        raise ValueError(f"tensor {shown(name)} of {rank} dimensions, wanted 1 to {MAX_DIMS}")
    # The fastest dimension comes first in the file.
    shape = tuple(reversed([cursor.integer(UINT64) for _ in range(rank)]))
    return name, shape, cursor.integer(UINT32), cursor.integer(UINT64)


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
        raise ValueError(f"an alignment of {shown(alignment)}, wanted 1 to {MAX_ALIGNMENT}")
    return alignment


def _describe(name: str, shape: tuple[int, ...], number: int, begin: int) -> GgufTensor:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
        block_elems, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ValueError(
            f"tensor {shown(name)} of the unknown format {number}; a newer gguf may know it"
        ) from None
    if min(shape) < 1 or shape[-1] % block_elems:
        raise ValueError(
            f"tensor {shown(name)} of shape {shape}, wanted sizes above 0 and rows of whole "
            f"blocks of {block_elems}"
        )
    return GgufTensor(shape, kind, begin, prod(shape) // block_elems * block_bytes)


def _check_places(tensors: Mapping[str, GgufTensor], file_bytes: int) -> None:
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        end = tensor.begin + tensor.size_bytes
        if tensor.begin < position or end > file_bytes:
            raise ValueError(
                f"tensor {shown(name)} from byte {tensor.begin} to {end}, where another one is or "
                "the file has ended"
            )
        position = end
