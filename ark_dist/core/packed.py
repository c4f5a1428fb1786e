"""Pack columns of integers and nested values into msgpack, and take them apart with suspicion."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

import msgpack
import numpy as np

from ark_dist.core.errors import PlanFormatError

_T = TypeVar("_T")

# Column widths in bytes; a column takes the smallest that holds its largest number.
WIDTHS = (1, 2, 4, 8)
MAX_INT = 2**62
MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan file may ask of its reader.

    Attributes:
        size_bytes: length of the file.
        depth: nesting of arrays and maps.
        objects: msgpack values, before anything is made of them.
        items: nodes, tasks, buffers and so on, of each kind.
        entries: everything that lists of a plan hold, counted each time a list is used.
    """

    size_bytes: int = 16 * 2**20
    depth: int = 32
    objects: int = 300_000
    items: int = 1_000_000
    entries: int = 2_000_000


class Table(Generic[_T]):
    """Distinct values in order of first use; `index` adds and finds them."""

    def __init__(self) -> None:
        self._ids: dict[_T, int] = {}

    def index(self, value: _T) -> int:
        """The position of `value`, which is added if it is new."""
        return self._ids.setdefault(value, len(self._ids))

    def __iter__(self) -> Iterator[_T]:
        """The values in order; nothing may be added meanwhile."""
        return iter(self._ids)


def column(values: Sequence[int]) -> bytes:
    """Numbers, 0 or more, as little-endian integers behind one byte that holds their width."""
    top = max(values, default=0)
    if top >= MAX_INT or min(values, default=0) < 0:
        raise ValueError(f"{min(values)} to {top} does not fit a column, 0 to 2**62")
    width = next(w for w in WIDTHS if top < 1 << 8 * w)
    return bytes([width]) + np.array(values, f"<u{width}").tobytes()


def ragged(lists: Sequence[Sequence[int]]) -> list[bytes]:
    """Lists of numbers as two columns: their lengths, and all their items."""
    return [column([len(x) for x in lists]), column([item for x in lists for item in x])]


def unpack(data: bytes, limits: Limits) -> object:
    """Return the one msgpack value in `data`; PlanFormatError if it is none, or too large."""
    scan(data, limits)
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=True,
            object_pairs_hook=_distinct_keys,
            unicode_errors="surrogatepass",
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=limits.objects,
            max_map_len=limits.objects,
        )
    except PlanFormatError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise PlanFormatError(f"the plan is no valid msgpack: {error}") from None


def _distinct_keys(pairs: list[tuple[object, object]]) -> dict[object, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise PlanFormatError("the plan has a map with one key twice")
    return result


# First byte of a msgpack value -> bytes of its length field, and bytes per item where the
# payload is raw. Arrays and maps are told apart by _CONTAINERS.
_RAW = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_FIXED = {
    0xC0: 0,
    0xC2: 0,
    0xC3: 0,
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
}
# Length field, and values per item.
_CONTAINERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def scan(data: bytes, limits: Limits) -> None:
    """Walk the headers of msgpack `data` without making anything; raise if a limit is broken."""
    position = objects = 0
    # How many values each open container still misses; the outermost is the file itself.
    missing = [1]
    while missing:
        if missing[-1] == 0:
            missing.pop()
            continue
        missing[-1] -= 1
        objects += 1
        if objects > limits.objects:
            raise PlanFormatError(f"the plan has more than {limits.objects} msgpack values")
        position, items = _header(data, position)
        if position + items > len(data):
            raise PlanFormatError(
                f"the plan ends at byte {len(data)}, in a value that goes on to "
                f"{position + items} or further"
            )
        if items:
            missing.append(items)
            if len(missing) - 1 > limits.depth:
                raise PlanFormatError(f"the plan is nested deeper than {limits.depth}")
    if position != len(data):
        raise PlanFormatError(
            f"the plan ends at byte {position} of {len(data)}; the rest is not ours"
        )


def _header(data: bytes, position: int) -> tuple[int, int]:
    """Return where the value's header or scalar ends, and how many values it contains."""
    if position >= len(data):
        raise PlanFormatError(f"the plan ends at byte {len(data)}, where a value should start")
    kind = data[position]
    position += 1
    if kind < 0x80 or kind >= 0xE0:
        return position, 0
    if kind < 0x90:
        return position, 2 * (kind & 15)
    if kind < 0xA0:
        return position, kind & 15
    if kind < 0xC0:
        return _skip(data, position, kind & 31), 0
    if kind in _FIXED:
        return _skip(data, position, _FIXED[kind]), 0
    if kind in _RAW:
        body = _skip(data, position, _RAW[kind])
        return _skip(data, body, int.from_bytes(data[position:body], "big")), 0
    if kind in _CONTAINERS:
        width, per_item = _CONTAINERS[kind]
        body = _skip(data, position, width)
        return body, per_item * int.from_bytes(data[position:body], "big")
    raise PlanFormatError(f"the plan has a value of type 0x{kind:02x} at byte {position - 1}")


def _skip(data: bytes, position: int, count: int) -> int:
    if position + count > len(data):
        raise PlanFormatError(
            f"the plan ends at byte {len(data)}, in a value that goes on to {position + count}"
        )
    return position + count


class Reader:
    """One map of a plan file; its methods take one field each, of the type they name."""

    def __init__(self, value: object, where: str, limits: Limits) -> None:
        """Take a decoded value, which must be a map."""
        if not isinstance(value, dict):
            raise PlanFormatError(f"{where or 'the plan'} is {described(value)}; it must be a map")
        self.limits = limits
        self._fields: Mapping[object, object] = value
        self._taken: set[object] = set()
        self._where = where

    def finish(self) -> None:
        """Refuse fields that nobody asked for."""
        for key in self._fields:
            if key not in self._taken:
                raise PlanFormatError(f"{self.name(described(key))} is not a field of this version")

    def name(self, field: str) -> str:
        """The field's full name, for messages."""
        return f"{self._where}.{field}" if self._where else field

    def raw(self, field: str) -> object:
        """The field as it is."""
        if field not in self._fields:
            raise PlanFormatError(f"{self.name(field)} is missing")
        self._taken.add(field)
        return self._fields[field]

    def integer(self, field: str) -> int:
        """An integer, 0 or more and below 2**62."""
        value = self.raw(field)
        if type(value) is int and 0 <= value < MAX_INT:
            return value
        raise self._unlike(field, "an integer, 0 or more and below 2**62")

    def number(self, field: str) -> float:
        """A floating-point number."""
        value = self.raw(field)
        if isinstance(value, float):
            return value
        raise self._unlike(field, "a floating-point number")

    def text(self, field: str) -> str:
        """A string."""
        value = self.raw(field)
        if isinstance(value, str):
            return value
        raise self._unlike(field, "a string")

    def items(self, field: str) -> list[object]:
        """An array of anything."""
        value = self.raw(field)
        if isinstance(value, list):
            return value
        raise self._unlike(field, "an array")

    def reader(self, field: str) -> "Reader":
        """A map."""
        return Reader(self.raw(field), self.name(field), self.limits)

    def column(self, field: str, *, count: int | None = None, below: int = MAX_INT) -> list[int]:
        """A column of integers from 0 to `below - 1`; `count` of them, if that is given."""
        return _integers(self.raw(field), self.name(field), count, below, self.limits.items)

    def ragged(
        self, field: str, *, count: int | None, below: int = MAX_INT
    ) -> list[tuple[int, ...]]:
        """A list of lists of integers from 0 to `below - 1`."""
        value = self.items(field)
        if len(value) != 2:
            raise self._unlike(field, "two columns")
        entries = self.limits.entries
        lengths = _integers(
            value[0], f"{self.name(field)}.lengths", count, entries + 1, self.limits.items
        )
        items = _integers(value[1], f"{self.name(field)}.items", sum(lengths), below, entries)
        ends = list(accumulate(lengths, initial=0))
        return [tuple(items[start:end]) for start, end in pairwise(ends)]

    def _unlike(self, field: str, wanted: str) -> PlanFormatError:
        found = described(self._fields[field])
        return PlanFormatError(f"{self.name(field)} is {found}; it must be {wanted}")


def _integers(value: object, where: str, count: int | None, below: int, most: int) -> list[int]:
    if not isinstance(value, bytes) or not value or value[0] not in WIDTHS:
        raise PlanFormatError(f"{where} is {described(value)}; it must be a column of integers")
    size, rest = divmod(len(value) - 1, value[0])
    if rest:
        raise PlanFormatError(f"{where} ends {rest} bytes into an integer of {value[0]} bytes")
    if size > most or size != (size if count is None else count):
        wanted = f"at most {most}" if count is None or size == count else count
        raise PlanFormatError(f"{where} has {size} items; it must have {wanted}")
    numbers = np.frombuffer(value, f"<u{value[0]}", offset=1)
    if size and int(numbers.max()) >= below:
        at = int(numbers.argmax())
        raise PlanFormatError(
            f"{where}[{at}] is {numbers[at]}; it must be 0 or more and below {below}"
        )
    return list(numbers.tolist())


def described(value: object) -> str:
    """A decoded value in a few words."""
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
    return f"{type(value).__name__} of {len(value) if isinstance(value, Sized) else '?'}"
