"""Read what another rank sent, and trust nothing of it: bytes that are wrong are a CommError."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from ark_dist.core.errors import CommError
from ark_dist.core.message import Call

# What one rank may send at most; lists and texts in it can't be longer either.
MAX_BYTES = 1 << 28
# Of a 64-bit integer.
MAX_DIGITS = 19
WORD_BYTES = 8
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Exports:
    """Where a rank's flags and exported buffers lie in its window: first byte and length."""

    flags: dict[str, Range]
    buffers: dict[str, Range]


@dataclass(frozen=True, slots=True)
class Said:
    """What a rank says about its graph before it plans it."""

    version: str
    methods: tuple[str, ...]
    calls: tuple[Call, ...]


def read_exports(data: bytes, rank: int, window_bytes: int) -> Exports:
    """Read a rank's tables; everything in them lies within its window."""
    fields = _fields(_unpacked(data, rank), rank, "flags", "exports")
    tables = []
    for table in fields:
        ranges: dict[str, Range] = {}
        for name, place in _dict(table, rank).items():
            start, size = (_int(item, rank) for item in _list(place, rank, 2))
            is_inside = 0 <= start <= start + size <= window_bytes and size >= 0
            if not is_inside or start % WORD_BYTES:
                raise _bad(rank, f"{name!r} can't be {size} bytes at {start} of its memory")
            ranges[name] = start, size
        tables.append(ranges)
    return Exports(*tables)


def read_said(data: bytes, rank: int, world_size: int) -> Said:
    """Read what a rank says about its graph."""
    version, methods, calls = _fields(_unpacked(data, rank), rank, "version", "methods", "calls")
    return Said(
        _text(version, rank),
        tuple(_text(name, rank) for name in _list(methods, rank)),
        tuple(_call(item, rank, world_size) for item in _list(calls, rank)),
    )


def read_names(data: bytes, rank: int) -> list[str]:
    """Read a list of names."""
    return [_text(name, rank) for name in _list(_unpacked(data, rank), rank)]


def read_integer(data: bytes, rank: int) -> int:
    """Read an integer, in digits."""
    digits = data.removeprefix(b"-")
    if not (digits.isdigit() and len(digits) <= MAX_DIGITS):
        raise _bad(rank, f"{data[:30]!r} is no integer")
    return int(data)


def read_rank(data: bytes, rank: int, world_size: int) -> int:
    """Read the number of a rank, in digits."""
    if not (data.isdigit() and len(data) <= len(str(world_size)) and int(data) < world_size):
        raise _bad(rank, f"{data[:20]!r} is none of {world_size} ranks")
    return int(data)


def _call(item: object, rank: int, world_size: int) -> Call:
    key, ranks, op, what, node = _list(item, rank, 5)
    group = tuple(_int(r, rank) for r in _list(ranks, rank))
    if list(group) != sorted(set(group)) or not all(0 <= r < world_size for r in group):
        raise _bad(rank, f"{group} are no ranks, increasing and below {world_size}")
    if rank not in group:
        raise _bad(rank, f"it is not one of {group} itself")
    return Call(_text(key, rank), group, *(_text(text, rank) for text in (op, what, node)))


def _unpacked(data: bytes, rank: int) -> object:
    if len(data) > MAX_BYTES:
        raise _bad(rank, f"{len(data)} bytes are more than {MAX_BYTES}")
    try:
        return msgpack.unpackb(data, strict_map_key=True, max_ext_len=0)
    # Whatever a parser meets in foreign bytes.
    except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise _bad(rank, f"no msgpack: {type(error).__name__}: {error}") from None


def _fields(value: object, rank: int, *names: str) -> list[object]:
    found = _dict(value, rank)
    if set(found) != set(names):
        raise _bad(rank, f"it has the fields {sorted(found)[:10]}, not {sorted(names)}")
    return [found[name] for name in names]


def _dict(value: object, rank: int) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _bad(rank, f"a {type(value).__name__} is no table of names")
    return value


def _list(value: object, rank: int, length: int | None = None) -> Sequence[object]:
    if not isinstance(value, list) or length not in (None, len(value)):
        wanted = "" if length is None else f" of {length}"
        raise _bad(rank, f"a {type(value).__name__} is no list{wanted}")
    return value


def _text(value: object, rank: int) -> str:
    if not isinstance(value, str):
        raise _bad(rank, f"a {type(value).__name__} is no text")
    return value


def _int(value: object, rank: int) -> int:
    if type(value) is not int:
        raise _bad(rank, f"a {type(value).__name__} is no integer")
    return value


def _bad(rank: int, what: str) -> CommError:
    return CommError(
        f"rank {rank} sent what can't be read: {what}; do all ranks run the same ark_dist?"
    )
