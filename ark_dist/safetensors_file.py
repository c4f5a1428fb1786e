"""Turn the header of a safetensors file into checked tensor descriptions, and back."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ark_dist.bounded_json import parse_table
from ark_dist.bounded_json import shown as shown
from ark_dist.core.errors import CheckpointError, ShardCorruptError

Array: TypeAlias = npt.NDArray[np.generic]
Dtype: TypeAlias = "np.dtype[np.generic]"

# Our caps, from row 42 of the fault matrix; the format itself allows 100 MB headers.
MAX_HEADER_BYTES = 25_000_000
MAX_TENSORS = 200_000
MAX_RANK = 8
MAX_NAME_BYTES = 512
LENGTH_BYTES = 8
TIED_KEY = "ark_dist.tied"
LFS_MAGIC = b"version https://git-lfs"
# {name: {shape: []}}
_NESTING = (b"[]", b"{}", b"{}")
_MAX_BYTES = 2**63 - 1
_LINK_HINT = (
    "wanted a file of this folder alone; copy it here, or open_checkpoint(path, allow_links=True) "
    "if you trust where it leads"
)

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
class Entry:
    """What one tensor is and where it lies: begin and end count bytes from the file's start."""

    dtype: Dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The checked header of one file; tied maps an alias to the tensor that holds its data."""

    tensors: Mapping[str, Entry]
    tied: Mapping[str, str]
    metadata: Mapping[str, str]


def native(dtype: Dtype) -> Dtype | None:
    """Return this dtype in the machine's byte order; None where a file can't hold it."""
    return DTYPES.get(CODES.get(dtype.newbyteorder("="), ""))


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


def open_regular(path: str, *, allow_links: bool = True) -> int:
    """Open a regular file for reading and return its descriptor; never wait for a FIFO.

    Without `allow_links` the name itself must be no symlink, and the file must have no other.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if allow_links else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if not allow_links and isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise CheckpointError(f"{path}: found a symlink, {_LINK_HINT}") from None
        raise CheckpointError(f"{path}: can't be opened for reading: {error}") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: found a folder or special file, wanted a regular file")
    if status.st_nlink != 1 and not allow_links:
        os.close(fd)
        raise CheckpointError(f"{path}: found a file with {status.st_nlink} names, {_LINK_HINT}")
    return fd


def read_into(fd: int, begin: int, target: memoryview, path: str) -> None:
    """Fill target with the file's bytes from begin on; raise ShardCorruptError where it ends."""
    done = 0
    while done < len(target):
        try:
            count = os.preadv(fd, [target[done:]], begin + done)
        except OSError as error:
            raise CheckpointError(f"{path}: reading at byte {begin + done}: {error}") from error
        if count == 0:
            raise ShardCorruptError(
                f"{path}: the file ends at byte {os.fstat(fd).st_size}, wanted "
                f"{begin + len(target)}; "
                "it was cut short while it was read, fetch it again"
            )
        done += count


def parse_header(text: bytes, data_bytes: int) -> Header:
    """Return what a header says of data_bytes bytes of data; raise ValueError on any flaw."""
    table = parse_table(text, _NESTING, MAX_TENSORS)
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


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ValueError("a __metadata__ that is not an object")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("a __metadata__ value that is not a string")
    return metadata


def _parse_entry(name: str, entry: object, data_begin: int) -> Entry:
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
    return Entry(dtype, tuple(shape), data_begin + begin, data_begin + end)


def _parse_tied(metadata: Mapping[str, str], tensors: Mapping[str, Entry]) -> dict[str, str]:
    tied: dict[str, str] = {}
    text = metadata.get(TIED_KEY, "{}").encode()
    for alias, source in parse_table(text, _NESTING, MAX_TENSORS).items():
        check_name(alias)
        if alias in tensors or not isinstance(source, str) or source not in tensors:
            raise ValueError(f"the alias {shown(alias)}, which is tied to no other tensor")
        tied[alias] = source
    if len(tied) + len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tied) + len(tensors)} names, wanted at most {MAX_TENSORS}")
    return tied


def refuse_pointer(head: bytes | bytearray, size_bytes: int, path: str) -> None:
    """Raise ShardCorruptError for the text that git LFS leaves where the file should be."""
    if head.startswith(LFS_MAGIC):
        raise ShardCorruptError(
            f"{path}: found a git LFS pointer of {size_bytes} bytes, wanted the weights; "
            "run `git lfs pull`"
        )


def read_header(fd: int, path: str) -> Header:
    """Return the checked header of an open file; raise ShardCorruptError on any flaw."""
    size_bytes = os.fstat(fd).st_size
    head = bytearray(min(size_bytes, len(LFS_MAGIC)))
    read_into(fd, 0, memoryview(head), path)
    refuse_pointer(head, size_bytes, path)
    if size_bytes < LENGTH_BYTES:
        raise ShardCorruptError(
            f"{path}: found {size_bytes} bytes, wanted a safetensors file of at least "
            f"{LENGTH_BYTES}; fetch or save it again"
        )
    header_bytes = int.from_bytes(head[:LENGTH_BYTES], "little")
    if header_bytes > min(MAX_HEADER_BYTES, size_bytes - LENGTH_BYTES):
        raise ShardCorruptError(
            f"{path}: found a header of {header_bytes} bytes in a file of {size_bytes}, wanted at "
            f"most {MAX_HEADER_BYTES} and all of it in the file; fetch or save it again"
        )
    text = bytearray(header_bytes)
    read_into(fd, LENGTH_BYTES, memoryview(text), path)
    try:
        return parse_header(bytes(text), size_bytes - LENGTH_BYTES - header_bytes)
    except (ValueError, RecursionError) as error:
        raise ShardCorruptError(
            f"{path}: damaged safetensors file of {size_bytes} bytes: found {error}; "
            "fetch or save it again"
        ) from error


def build_header(
    layouts: Mapping[str, tuple[Dtype, tuple[int, ...]]],
    tied: Mapping[str, str],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """Return the length and header of a file that holds these tensors one after another.

    Raises ValueError where a file of them would break the limits that `read_header` checks.
    """
    extra = {**metadata, **({TIED_KEY: json.dumps(tied)} if tied else {})}
    table: dict[str, object] = {"__metadata__": extra} if extra else {}
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
