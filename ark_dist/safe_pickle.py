"""Turn pickled and torch checkpoints into arrays without running any code they name."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ark_dist.core.errors import CheckpointError
from ark_dist.pickle_records import (
    GLOBALS,
    ArrayRecord,
    DtypeRecord,
    Encoded,
    Global,
    StorageRecord,
    TensorRecord,
    told,
)
from ark_dist.safetensors_file import Array, Dtype, copy_native, count_bytes, shown

# Reads the bytes of one torch storage, given its key and the size it must have.
ReadStorage: TypeAlias = Callable[[str, int], "bytes | memoryview"]

MAX_OPCODES = 2_000_000
MAX_TUPLE = 32
# Views of one storage may repeat its data, but a small file must not become a huge dict.
MAX_GROWTH = 8
FREE_BYTES = 1 << 20
CONVERT_HINT = "convert it to safetensors where the file comes from"
_MESSAGE_CHARS = 300

# torch.serialization: MAGIC_NUMBER and PROTOCOL_VERSION of files before the zip format.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
# Larger integers mean nothing here, and as keys of a dict they can be made to collide.
MAX_INT = 2**63 - 1
_LENGTH_BYTES = 8

_TO_MARK = -1
# Opcode -> (values it pops, values it pushes). What is missing here is refused.
_EFFECTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        **dict.fromkeys(("PROTO", "FRAME", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE"), (0, 0)),
        **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"), (0, 1)),
        **dict.fromkeys(("LONG1", "BINFLOAT", "BINGET", "LONG_BINGET", "GLOBAL"), (0, 1)),
        **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), (0, 1)),
        **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), (0, 1)),
        **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"), (0, 1)),
        **dict.fromkeys(("APPENDS", "SETITEMS"), (_TO_MARK, 0)),
        **dict.fromkeys(("APPEND", "BUILD", "STOP"), (1, 0)),
        **dict.fromkeys(("STACK_GLOBAL", "REDUCE"), (2, 1)),
        "TUPLE": (_TO_MARK, 1),
        "TUPLE1": (1, 1),
        "TUPLE2": (2, 1),
        "TUPLE3": (3, 1),
        "SETITEM": (2, 0),
        "BINPERSID": (1, 1),
    }
)


class _Scan:
    """Follow the stack and memo of a pickle by tuple depths alone, building nothing."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: list[int] = []

    def step(self, name: str, arg: object) -> None:
        """Apply one opcode; raise UnpicklingError where a sane pickle would not have it."""
        pops, pushes = _EFFECTS[name]
        floor = self.marks[-1] if self.marks else 0
        begin = floor if pops == _TO_MARK else len(self.stack) - pops
        if begin < floor or (pops == _TO_MARK and not self.marks):
            raise pickle.UnpicklingError(f"{name} on too small a stack")
        popped = self.stack[begin:]
        del self.stack[begin:]
        if pops == _TO_MARK:
            self.marks.pop()
        if name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._put(len(self.memo) if name == "MEMOIZE" else arg)
        elif name in ("BINGET", "LONG_BINGET"):
            self._get(arg)
        elif pushes:
            # A wide tuple is copied by each call, a deep one overruns the stack when hashed.
            is_tuple = name.startswith("TUPLE")
            self.stack.append(1 + max(popped, default=0) if is_tuple else 0)
            if max(self.stack[-1], len(popped) if is_tuple else 0) > MAX_TUPLE:
                raise pickle.UnpicklingError(f"tuples wider or deeper than {MAX_TUPLE}")
        elif name.startswith("SETITEM") and any(popped[::2]):
            # The hashes of tuples can be made to collide; those of str can't.
            raise pickle.UnpicklingError("a tuple as the key of a dict")

    def _put(self, index: object) -> None:
        # The C unpickler allocates a memo of the largest index, so none may be skipped.
        if not isinstance(index, int) or index > len(self.memo) or not self.stack:
            raise pickle.UnpicklingError(f"memo index {index}, wanted {len(self.memo)}")
        self.memo[index : index + 1] = [self.stack[-1]]

    def _get(self, index: object) -> None:
        if not isinstance(index, int) or index >= len(self.memo):
            raise pickle.UnpicklingError(f"memo index {index} of {len(self.memo)}")
        self.stack.append(self.memo[index])


def scan_pickle(data: bytes, begin: int) -> int:
    """Check all opcodes of the pickle at begin and return where it ends.

    Raises pickle.UnpicklingError, or what pickletools raises, before anything is built.
    """
    stream = io.BytesIO(data)
    stream.seek(begin)
    scan = _Scan()
    for count, (opcode, arg, position) in enumerate(pickletools.genops(stream)):
        name = opcode.name
        if name not in _EFFECTS or (name == "PROTO") != (position == begin):
            raise pickle.UnpicklingError(f"opcode {name} at byte {position}")
        if count >= MAX_OPCODES:
            raise pickle.UnpicklingError(f"more than {MAX_OPCODES} opcodes")
        if name == "LONG1" and isinstance(arg, int) and abs(arg) > MAX_INT and arg != LEGACY_MAGIC:
            raise pickle.UnpicklingError(f"an integer of {arg.bit_length()} bits")
        if name == "FRAME" and isinstance(arg, int) and arg > len(data) - stream.tell():
            raise pickle.UnpicklingError(f"a frame of {arg} bytes, which the file has not")
        scan.step(name, arg)
    if scan.stack or scan.marks:
        raise pickle.UnpicklingError("values that are built and left over")
    return stream.tell()


class _AllowListUnpickler(pickle.Unpickler):
    """An unpickler for which only the names in GLOBALS exist."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.storages: dict[str, StorageRecord] = {}

    def find_class(self, module: str, name: str) -> Global:
        """Return the harmless stand-in for a name; refuse all others."""
        found = GLOBALS.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(
                f"the global {shown(f'{module}.{name}')}, wanted only arrays in plain containers"
            )
        return found

    def persistent_load(self, pid: object) -> StorageRecord:
        """Return the storage that torch names by (kind, type, key, location, size)."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("a persistent id that is not a torch storage")
        kind, key, size = pid[1], pid[2], pid[4]
        dtype = kind.dtype if isinstance(kind, Global) else None
        if dtype is None or not isinstance(key, str) or type(size) is not int or size < 0:
            raise pickle.UnpicklingError("a torch storage without type, key or size")
        if pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a torch storage that is a view of another")
        storage = self.storages.setdefault(key, StorageRecord(key, dtype, size))
        if (storage.dtype, storage.size) != (dtype, size):
            raise pickle.UnpicklingError(f"two meanings of the torch storage {shown(key)}")
        return storage


def _no_storage(_key: str, _size_bytes: int) -> bytes:
    raise pickle.UnpicklingError("a torch storage in a pickle without any")


class _Builder:
    """Turn records into arrays, and refuse more data than the file can mean."""

    def __init__(self, file_bytes: int, read_storage: ReadStorage, *, is_big_endian: bool) -> None:
        self._left_bytes = MAX_GROWTH * file_bytes + FREE_BYTES
        self._read_storage = read_storage
        self._order: Literal["<", ">"] = ">" if is_big_endian else "<"
        self._storage: tuple[str, bytes | memoryview] = ("", b"")

    def build_all(self, table: object) -> dict[str, Array]:
        """Return the arrays of a flat state_dict; tied tensors come back as one array."""
        if not isinstance(table, dict):
            raise pickle.UnpicklingError(f"a {told(table)}, wanted a dict of name to array")
        built: dict[object, Array] = {}
        arrays: dict[str, Array] = {}
        # One torch storage after another, so that only one is in memory besides the arrays.
        for name, value in sorted(table.items(), key=_storage_key):
            if not isinstance(name, str) or not isinstance(value, ArrayRecord | TensorRecord):
                raise pickle.UnpicklingError(
                    f"{told(name)} of type {type(value).__name__}, wanted an array for each name; "
                    "save only the state_dict itself"
                )
            identity = value.view if isinstance(value, TensorRecord) else id(value)
            if identity not in built:
                built[identity] = self._build(value)
            arrays[name] = built[identity]
        return {name: arrays[name] for name in table}

    def _build(self, value: ArrayRecord | TensorRecord) -> Array:
        if isinstance(value, TensorRecord):
            return copy_native(self._tensor(value))
        return copy_native(self._array(value))

    def _take(self, shape: tuple[object, ...], dtype: Dtype) -> int:
        size_bytes = count_bytes(shape, dtype.itemsize)
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise pickle.UnpicklingError(f"arrays of over {MAX_GROWTH} times the file's size")
        return size_bytes

    def _array(self, value: ArrayRecord) -> Array:
        data = value.data.text if isinstance(value.data, Encoded) else value.data
        if not isinstance(data, str | bytes | bytearray) or not isinstance(value.shape, tuple):
            raise pickle.UnpicklingError("an array without shape or bytes")
        if not isinstance(value.dtype, DtypeRecord):
            raise pickle.UnpicklingError("an array without a dtype")
        if self._take(value.shape, value.dtype.dtype) != len(data):
            raise pickle.UnpicklingError(f"an array whose shape does not fit {len(data)} bytes")
        raw = data.encode("latin-1") if isinstance(data, str) else data
        order: Literal["C", "F"] = "F" if value.order == "F" else "C"
        array: Array = np.ndarray(value.shape, value.dtype.dtype, raw, order=order)
        return array.transpose(value.axes) if isinstance(value.axes, tuple) else array

    def _tensor(self, value: TensorRecord) -> Array:
        _, offset, shape, strides, dtype = value.view
        if self._take(shape, dtype) == 0:
            return np.empty(shape, dtype)
        raw = self._read(value.storage)
        last = offset + sum((dim - 1) * step for dim, step in zip(shape, strides, strict=True))
        if last >= len(raw) // dtype.itemsize:
            raise pickle.UnpicklingError("a tensor that reaches past its storage")
        flat: Array = np.frombuffer(raw, dtype.newbyteorder(self._order))[offset:]
        return as_strided(flat, shape, [step * dtype.itemsize for step in strides])

    def _read(self, storage: StorageRecord) -> bytes | memoryview:
        if self._storage[0] != storage.key:
            self._storage = (storage.key, b"")
            data = self._read_storage(storage.key, storage.size * storage.dtype.itemsize)
            self._storage = (storage.key, data)
        return self._storage[1]


def _storage_key(item: tuple[object, object]) -> str:
    return item[1].storage.key if isinstance(item[1], TensorRecord) else ""


def _unpickle(data: bytes, begin: int) -> tuple[object, dict[str, StorageRecord], int]:
    end = scan_pickle(data, begin)
    unpickler = _AllowListUnpickler(data[begin:end])
    return unpickler.load(), unpickler.storages, end


@contextmanager
def refusing(path: str, way_out: str) -> Iterator[None]:
    """Raise what goes wrong inside as one CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # hostile bytes make parsers raise nearly anything
        text = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS].encode("ascii", "replace")
        found = "".join(char if char.isprintable() else "?" for char in text.decode())
        raise CheckpointError(f"{path}: refused, {found}; {way_out}") from error


def load_torch_pickle(
    data: bytes, read_storage: ReadStorage, *, file_bytes: int, is_big_endian: bool, path: str
) -> dict[str, Array]:
    """Return the arrays that a torch pickle describes; read_storage has their bytes."""
    with refusing(path, CONVERT_HINT):
        table, _, end = _unpickle(data, 0)
        _check_end(data, end)
        builder = _Builder(file_bytes, read_storage, is_big_endian=is_big_endian)
        return builder.build_all(table)


def load_pickle(data: bytes, path: str) -> dict[str, Array]:
    """Return the arrays of a plain pickle, or of a torch file from before the zip format."""
    with refusing(path, CONVERT_HINT):
        table, _, end = _unpickle(data, 0)
        if type(table) is int and table == LEGACY_MAGIC:
            return _load_legacy(data, end)
        _check_end(data, end)
        return _Builder(len(data), _no_storage, is_big_endian=False).build_all(table)


def _check_end(data: bytes, end: int) -> None:
    if end != len(data):
        raise pickle.UnpicklingError(f"{len(data) - end} bytes after the end of the pickle")


def _load_legacy(data: bytes, begin: int) -> dict[str, Array]:
    """Read version, system, state_dict, storage keys; then a length and bytes for each key."""
    version, _, begin = _unpickle(data, begin)
    system, _, begin = _unpickle(data, begin)
    table, storages, begin = _unpickle(data, begin)
    keys, _, begin = _unpickle(data, begin)
    if type(version) is not int or version != LEGACY_VERSION or not isinstance(system, dict):
        raise pickle.UnpicklingError("an unknown version of the legacy torch format")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("a list of torch storages that is none")
    is_big_endian = system.get("little_endian") is False
    places: dict[str, memoryview] = {}
    for key in keys:
        size = int.from_bytes(data[begin : begin + _LENGTH_BYTES], "little")
        storage = storages.get(key)
        if storage is None or size != storage.size or key in places:
            raise pickle.UnpicklingError(f"a torch storage {shown(key)} that no tensor has")
        begin += _LENGTH_BYTES
        end = begin + size * storage.dtype.itemsize
        if end > len(data):
            raise pickle.UnpicklingError(f"{len(data)} bytes, wanted {end}: cut short")
        places[key] = memoryview(data)[begin:end]
        begin = end
    _check_end(data, begin)

    def read_place(key: str, _size_bytes: int) -> memoryview:
        return places[key]

    return _Builder(len(data), read_place, is_big_endian=is_big_endian).build_all(table)
