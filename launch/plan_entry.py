"""Write a plan, and what was made with it, as bytes; read them back."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgpack
import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.errors import PlanFormatError
from ark_dist.core.graph import Raise
from ark_dist.core.layout import Share
from ark_dist.core.packed import Limits, Reader, column, ragged, unpack
from ark_dist.core.plan import Plan
from ark_dist.core.planfile import plan_from_bytes, plan_to_bytes
from ark_dist.core.shape import Box
from ark_dist.core.source import Source
from ark_dist.kernels.tables import Tables

_Scalar = TypeVar("_Scalar", bound=np.generic)

# Entries come from ourselves, as their sums prove. One rank of 8 of Llama 3 70B, for 132 workers,
# has 67 MB, nearly all of it the table of what streams; compressed it has 6.6 MB.
LIMITS = Limits(size_bytes=256 * 2**20, objects=4_000_000, items=8_000_000, entries=64_000_000)
ROWS = {
    "tasks": abi.TASK,
    "operands": abi.OPERAND,
    "waits": abi.WAIT,
    "queues": abi.QUEUE,
    "methods": abi.METHOD,
    "streams": abi.QUEUE,
    "segments": abi.SEGMENT,
}
COUNTS = ("counter_count", "scratch_elems", "shared_bytes")


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What one rank needs to start a program, but for the binary.

    Attributes:
        plan: the rank's.
        shares: what ranks have of the global graph's buffers, by id; empty without a mesh.
        said: what it tells other ranks of its messages, as `said_of` has it; empty if alone.
        source: the program that the plan became.
        tables: what that program walks.
    """

    plan: Plan
    shares: Mapping[int, Share]
    said: bytes
    source: Source
    tables: Tables


def entry_to_bytes(entry: PlanEntry) -> bytes:
    """Encode an entry.

    Raises PlanError where the plan can't be written, and ValueError for a share or table that
    can't, and for an entry that nobody would read again.
    """
    source = entry.source
    body = {
        "plan": plan_to_bytes(entry.plan),
        "said": entry.said,
        "shares": _shares_body(entry.shares),
        "source": {"name": source.name, "language": source.language, "text": source.text},
        "tables": _tables_body(entry.tables),
    }
    packed = msgpack.packb(body, unicode_errors="surrogatepass")
    if len(packed) > LIMITS.size_bytes:
        raise ValueError(f"the entry has {len(packed)} bytes, at most {LIMITS.size_bytes} are read")
    return zlib.compress(packed, level=1)


def entry_from_bytes(data: bytes) -> PlanEntry:
    """Decode what `entry_to_bytes` made of a plan that was verified.

    Raises PlanFormatError for anything else that can be told apart from it.
    """
    top = Reader(unpack(_inflated(data), LIMITS), "", LIMITS)
    plan = plan_from_bytes(_bytes(top, "plan"), limits=LIMITS, is_verified=True)
    source = top.reader("source")
    entry = PlanEntry(
        plan,
        _shares(top.reader("shares"), plan.world_size),
        _bytes(top, "said"),
        Source(source.text("name"), source.text("language"), source.text("text")),
        _tables(top.reader("tables")),
    )
    top.finish()
    return entry


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        body = stream.decompress(data, LIMITS.size_bytes)
    except zlib.error as error:
        raise PlanFormatError(f"the entry is no zlib stream: {error}") from None
    if not stream.eof or stream.unused_data:
        raise PlanFormatError(f"the entry is cut, goes on, or has over {LIMITS.size_bytes} bytes")
    return body


def _shares_body(shares: Mapping[int, Share]) -> Mapping[str, object]:
    edges = [
        [edge for box in share.parts for interval in box for edge in interval]
        for share in shares.values()
    ]
    return {
        "id": column(list(shares)),
        # From 1 on; 0 is none.
        "buffer": column([share.buffer + 1 for share in shares.values()]),
        "parts": ragged(edges),
    }


def _shares(reader: Reader, world_size: int) -> dict[int, Share]:
    ids = reader.column("id")
    buffers = reader.column("buffer", count=len(ids))
    edges = reader.ragged("parts", count=len(ids))
    reader.finish()
    return {
        buffer_id: Share(buffer - 1, _boxes(flat, world_size))
        for buffer_id, buffer, flat in zip(ids, buffers, edges, strict=True)
    }


def _boxes(flat: Sequence[int], count: int) -> tuple[Box, ...]:
    """So many boxes of equal dimensions from all their edges."""
    size, rest = divmod(len(flat), 2 * max(count, 1))
    if rest:
        raise PlanFormatError(f"shares.parts: {len(flat)} edges are not those of {count} boxes")
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    return tuple(tuple(pairs[i * size : (i + 1) * size]) for i in range(count))


def _tables_body(tables: Tables) -> Mapping[str, object]:
    names = [list(slots) for slots in tables.scalar_slots]
    return {
        **{name: getattr(tables, name).tobytes() for name in (*ROWS, "params")},
        **{name: getattr(tables, name) for name in COUNTS},
        "scalars": names,
        "scalar_slots": ragged([list(slots.values()) for slots in tables.scalar_slots]),
        "flags": list(tables.flags),
        "flag_places": column(list(tables.flags.values())),
        "raise_flags": [item.flag for item in tables.raises],
        # From 1 on; 0 is the host.
        "raise_ranks": column([item.rank + 1 for item in tables.raises]),
        "peers": column(tables.peers),
    }


def _tables(reader: Reader) -> Tables:
    rows = {name: _array(reader, name, record.dtype) for name, record in ROWS.items()}
    counts = {name: reader.integer(name) for name in COUNTS}
    tables = Tables(
        tasks=rows["tasks"],
        params=_array(reader, "params", np.dtype(np.int64)),
        operands=rows["operands"],
        waits=rows["waits"],
        queues=rows["queues"],
        methods=rows["methods"],
        counter_count=counts["counter_count"],
        scratch_elems=counts["scratch_elems"],
        shared_bytes=counts["shared_bytes"],
        scalar_slots=_scalar_slots(reader),
        streams=rows["streams"],
        segments=rows["segments"],
        flags=_flags(reader),
        raises=_raises(reader),
        peers=tuple(reader.column("peers")),
    )
    reader.finish()
    return tables


def _scalar_slots(reader: Reader) -> tuple[dict[str, int], ...]:
    scalars = [_words(names, "tables.scalars") for names in reader.items("scalars")]
    slots = reader.ragged("scalar_slots", count=len(scalars))
    return tuple(
        dict(zip(names, places, strict=True)) for names, places in zip(scalars, slots, strict=True)
    )


def _flags(reader: Reader) -> dict[str, int]:
    names = _words(reader.items("flags"), "tables.flags")
    places = reader.column("flag_places", count=len(names))
    return dict(zip(names, places, strict=True))


def _raises(reader: Reader) -> tuple[Raise, ...]:
    flags = _words(reader.items("raise_flags"), "tables.raise_flags")
    ranks = reader.column("raise_ranks", count=len(flags))
    return tuple(Raise(rank - 1, flag) for rank, flag in zip(ranks, flags, strict=True))


def _array(reader: Reader, name: str, dtype: np.dtype[_Scalar]) -> npt.NDArray[_Scalar]:
    data = _bytes(reader, name)
    if len(data) % dtype.itemsize:
        raise PlanFormatError(f"tables.{name} ends within a row of {dtype.itemsize} bytes")
    # The kernel reads it where it lies: a copy is aligned.
    array: npt.NDArray[_Scalar] = np.frombuffer(data, dtype).copy()
    return array


def _bytes(reader: Reader, name: str) -> bytes:
    value = reader.raw(name)
    if not isinstance(value, bytes):
        raise PlanFormatError(f"{reader.name(name)} is a {type(value).__name__}; wanted bytes")
    return value


def _words(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise PlanFormatError(f"{where} is {value!r:.80}; it must hold strings only")
    return value
