"""Turn a safetensors file into checked tensor descriptions, and each of them into an array."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ark_dist.core.errors import CheckpointError

Array: TypeAlias = npt.NDArray[np.generic]
Dtype: TypeAlias = "np.dtype[np.generic]"

# Our caps, from row 42 of the fault matrix; the format itself allows 100 MB headers.
MAX_HEADER_BYTES = 25_000_000
MAX_TENSORS = 200_000
MAX_RANK = 8
MAX_NAME_BYTES = 512
LENGTH_BYTES = 8
TIED_KEY = "ark_dist.tied"
# A tensor's entry holds 5 strings and at most 11 commas; the rest is room for metadata.
_MAX_QUOTES = 12 * MAX_TENSORS
_MAX_COMMAS = 12 * MAX_TENSORS
_MAX_DIGITS = 19
_MAX_BYTES = 2**63 - 1
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SHOWN_CHARS = 80

DTYPES: Mapping[str, Dtype] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "U8": np.dtype(np.uint8),
        "I8": np.dtype(np.int8),
        "U16": np.dtype(np.uint16),
        "I16": np.dtype(np.int16),
        "U32": np.dtype(np.uint32),
        "I32": np.dtype(np.int32),
        "U64": np.dtype(np.uint64),
        "I64": np.dtype(np.int64),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F32": np.dtype(np.float32),
        "F64": np.dtype(np.float64),
    }
)
CODES: Mapping[Dtype, str] = MappingProxyType({dtype: code for code, dtype in DTYPES.items()})


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What one tensor is and where it lies: begin and end count bytes from the file's start."""

    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The checked header of one file; tied maps an alias to the tensor that holds its data."""

    tensors: Mapping[str, TensorInfo]
    tied: Mapping[str, str]
    metadata: Mapping[str, str]


def native(dtype: Dtype) -> Dtype | None:
    """Return this dtype in the machine's byte order; None where a file can't hold it."""
    return DTYPES.get(CODES.get(dtype.newbyteorder("="), ""))


def shown(text: object) -> str:
    """Return a short, printable form of text that came out of a file."""
    return ascii(str(text)[:_SHOWN_CHARS])


def count_bytes(shape: Sequence[object], itemsize: int) -> int:
    """Return the size of an array of this shape; raise ValueError where it can't be one."""
    if len(shape) > MAX_RANK:
        raise ValueError(f"rank {len(shape)}, wanted at most {MAX_RANK}")
    dims: list[int] = []
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise ValueError("a shape with something else than sizes >= 0")
        dims.append(dim)
    # NumPy bounds the product without its zeros as well.
    if math.prod(max(dim, 1) for dim in dims) * itemsize > _MAX_BYTES:
        raise ValueError("a shape of more than 2**63 bytes")
    return math.prod(dims) * itemsize


def check_bools(array: Array) -> None:
    """Raise ValueError where a bool array holds a byte other than 0 and 1."""
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise ValueError("a bool that is neither 0 nor 1")


def copy_native(source: Array) -> Array:
    """Return a C-ordered copy in the machine's byte order; raise ValueError for a bad dtype."""
    dtype = native(source.dtype)
    if dtype is None:
        raise ValueError(f"dtype {shown(source.dtype)}, wanted {', '.join(map(str, CODES))}")
    array: Array = np.empty(source.shape, dtype)
    array[...] = source
    check_bools(array)
    return array


def check_name(name: str) -> None:
    """Raise ValueError where a tensor can't have this name in a file."""
    if name == "__metadata__":
        raise ValueError("the name __metadata__, which the format keeps for itself")
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("a name that is not valid Unicode") from None
    if size_bytes > MAX_NAME_BYTES:
        raise ValueError(f"a name of {size_bytes} bytes, wanted at most {MAX_NAME_BYTES}")


def open_regular(path: str) -> int:
    """Open a regular file for reading and return its descriptor; never wait for a FIFO."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be opened for reading: {error}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: found a folder or special file, wanted a regular file")
    return fd


def read_into(fd: int, begin: int, target: memoryview, path: str) -> None:
    """Fill target with the file's bytes from begin on; raise CheckpointError where it ends."""
    done = 0
    while done < len(target):
        try:
            count = os.preadv(fd, [target[done:]], begin + done)
        except OSError as error:
            raise CheckpointError(f"{path}: reading at byte {begin + done}: {error}") from error
        if count == 0:
            raise CheckpointError(
                f"{path}: the file ends at byte {begin + done}, wanted {begin + len(target)}; "
                "it was cut short while it was read, fetch it again"
            )
        done += count


def parse_header(text: bytes, data_bytes: int) -> Header:
    """Return what a header says of data_bytes bytes of data; raise ValueError on any flaw."""
    table = _parse_json(text)
    metadata = _check_metadata(table.pop("__metadata__", {}))
    if len(table) > MAX_TENSORS:
        raise ValueError(f"{len(table)} tensors, wanted at most {MAX_TENSORS}")
    data_begin = LENGTH_BYTES + len(text)
    tensors = {name: _parse_entry(name, entry, data_begin) for name, entry in table.items()}
    position = data_begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise ValueError(
                f"tensor {shown(name)} begins at byte {info.begin}, wanted {position}: "
                "a hole or an overlap"
            )
        position = info.end
    if position != data_begin + data_bytes:
        raise ValueError(f"tensors end at byte {position}, the file at {data_begin + data_bytes}")
    return Header(tensors, _parse_tied(metadata, tensors), metadata)


def _parse_json(text: bytes) -> dict[str, object]:
    _check_structure(text)
    table: dict[str, object] = json.loads(
        text.decode(),
        object_pairs_hook=_unique,
        parse_int=_bounded_int,
        parse_float=_refuse_number,
        parse_constant=_refuse_number,
    )
    return table


def _check_structure(text: bytes) -> None:
    # json builds whatever the bytes say, so count and bound it before.
    if not text.startswith(b"{"):
        raise ValueError(f"a header that starts with {text[:1]!r}, wanted b'{{'")
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > _MAX_QUOTES:
        raise ValueError(f"too many strings for {MAX_TENSORS} tensors")
    outside = b"".join(text.split(b'"')[::2])
    brackets = outside.translate(None, _NOT_BRACKETS)
    tensor_count = brackets.count(b"{") - 1
    if tensor_count > MAX_TENSORS + 1 or outside.count(b",") > _MAX_COMMAS:
        raise ValueError(f"{tensor_count} tensors or long lists, wanted at most {MAX_TENSORS}")
    if brackets.replace(b"[]", b"").replace(b"{}", b"") not in (b"{}", b""):
        raise ValueError("brackets that don't nest as {name: {shape: []}}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the name {shown(counts.most_common(1)[0][0])} twice")
    return table


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_number(digits: str) -> object:
    raise ValueError(f"the number {shown(digits)}, wanted an integer")


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ValueError("a __metadata__ that is not an object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("a __metadata__ value that is not a string")
    return metadata


def _parse_entry(name: str, entry: object, data_begin: int) -> TensorInfo:
    check_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {shown(name)} without just dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise ValueError(f"tensor {shown(name)} of dtype {shown(code)}, wanted {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"tensor {shown(name)} whose shape or data_offsets is no list")
    if len(offsets) != 2 or not all(type(offset) is int and offset >= 0 for offset in offsets):
        raise ValueError(f"tensor {shown(name)} whose data_offsets are not two sizes >= 0")
    try:
        wanted = count_bytes(shape, dtype.itemsize)
    except ValueError as error:
        raise ValueError(f"tensor {shown(name)}: {error}") from None
    begin, end = offsets
    if end - begin != wanted:
        raise ValueError(f"tensor {shown(name)} of {end - begin} bytes, its shape wants {wanted}")
    return TensorInfo(dtype, tuple(shape), data_begin + begin, data_begin + end)


def _parse_tied(metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    tied: dict[str, str] = {}
    for alias, source in _parse_json(metadata.get(TIED_KEY, "{}").encode()).items():
        check_name(alias)
        if alias in tensors or not isinstance(source, str) or source not in tensors:
            raise ValueError(f"the alias {shown(alias)}, which is tied to no other tensor")
        tied[alias] = source
    if len(tied) + len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tied) + len(tensors)} names, wanted at most {MAX_TENSORS}")
    return tied


class SafetensorsFile:
    """An open safetensors file: its header is checked, its tensors are read on demand."""

    def __init__(self, path: str, fd: int, header: Header) -> None:
        """Take over an open descriptor; use `open` to get one with its header."""
        self.path = path
        self.tensors = header.tensors
        self.tied = header.tied
        self.metadata = header.metadata
        self._fd = fd

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SafetensorsFile:
        """Open a file and check all of its header.

        Raises FileNotFoundError where there is none, CheckpointError where it is damaged.
        """
        name = os.fspath(path)
        fd = open_regular(name)
        try:
            return cls(name, fd, _read_header(fd, name))
        except BaseException:
            os.close(fd)
            raise

    def read(self, name: str) -> Array:
        """Return one tensor, or the tensor that an alias is tied to, as a new writable array."""
        info = self.tensors[self.tied.get(name, name)]
        array: Array = np.empty(info.shape, info.dtype)
        read_into(self._fd, info.begin, array.reshape(-1).view(np.uint8).data, self.path)
        try:
            check_bools(array)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {shown(name)}: found {error}") from None
        return array

    def read_bytes(self, begin: int, end: int) -> bytearray:
        """Return the file's bytes from begin to end, such as some rows of one tensor."""
        data = bytearray(end - begin)
        read_into(self._fd, begin, memoryview(data), self.path)
        return data

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> SafetensorsFile:
        """Return the open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def _read_header(fd: int, path: str) -> Header:
    size_bytes = os.fstat(fd).st_size
    if size_bytes < LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: found {size_bytes} bytes, wanted a safetensors file of at least "
            f"{LENGTH_BYTES}; fetch or save it again"
        )
    prefix = bytearray(LENGTH_BYTES)
    read_into(fd, 0, memoryview(prefix), path)
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > min(MAX_HEADER_BYTES, size_bytes - LENGTH_BYTES):
        raise CheckpointError(
            f"{path}: found a header of {header_bytes} bytes in a file of {size_bytes}, wanted at "
            f"most {MAX_HEADER_BYTES} and all of it in the file; fetch or save it again"
        )
    text = bytearray(header_bytes)
    read_into(fd, LENGTH_BYTES, memoryview(text), path)
    try:
        return parse_header(bytes(text), size_bytes - LENGTH_BYTES - header_bytes)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged safetensors file of {size_bytes} bytes: found {error}; "
            "fetch or save it again"
        ) from error


def build_header(
    layouts: Mapping[str, tuple[Dtype, tuple[int, ...]]], tied: Mapping[str, str]
) -> bytes:
    """Return the length and header of a file that holds these tensors one after another.

    Raises ValueError where a file of them would break the limits that `open` checks.
    """
    table: dict[str, object] = {"__metadata__": {TIED_KEY: json.dumps(tied)}} if tied else {}
    end = 0
    for name, (dtype, shape) in layouts.items():
        begin, end = end, end + count_bytes(shape, dtype.itemsize)
        table[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    if len(text) > MAX_HEADER_BYTES or len(layouts) + len(tied) > MAX_TENSORS:
        raise ValueError(
            f"{len(layouts) + len(tied)} names with a header of {len(text)} bytes, wanted at most "
            f"{MAX_TENSORS} and {MAX_HEADER_BYTES}; save fewer tensors to a file"
        )
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
