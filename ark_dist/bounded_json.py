"""Turn JSON text that nobody vouches for into a dict, once it can't cost much memory or time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

# A tensor's entry holds 5 strings and at most 11 commas; the rest is room for metadata.
_PER_NAME = 12
_MAX_DIGITS = 19
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SHOWN_CHARS = 80
_CHUNK_BYTES = 1 << 20


def shown(text: object) -> str:
    """Return a short, printable form of text that came out of a file."""
    return ascii(str(text)[:_SHOWN_CHARS])


def parse_table(
    text: bytes,
    nesting: Sequence[bytes],
    max_names: int,
    *,
    max_commas: int | None = None,
    can_float: bool = False,
) -> dict[str, object]:
    """Return the object that the text holds; raise ValueError or RecursionError on any flaw.

    `nesting` lists pairs of brackets, the innermost first: without them, one after the other,
    no bracket may be left. Names that come twice are refused, and so are numbers that are no
    integers, unless `can_float`.
    """
    _check_structure(text, nesting, max_names, max_commas or _PER_NAME * max_names)
    table: dict[str, object] = json.loads(
        text.decode(),
        object_pairs_hook=_unique,
        parse_int=_bounded_int,
        parse_float=float if can_float else _refuse_number,
        parse_constant=_refuse_number,
    )
    return table


def _check_structure(
    text: bytes, nesting: Sequence[bytes], max_names: int, max_commas: int
) -> None:
    # json builds whatever the bytes say, so count and bound it before.
    if not text.startswith(b"{"):
        raise ValueError(f"text that starts with {text[:1]!r}, wanted b'{{'")
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > _PER_NAME * max_names:
        raise ValueError(f"too many strings for {max_names} tensors")
    brackets, comma_count = b"", 0
    for outside in _outside_strings(text):
        brackets += outside.translate(None, _NOT_BRACKETS)
        comma_count += outside.count(b",")
    object_count = brackets.count(b"{") - 1
    # +1: the metadata
    if object_count > max_names + 1 or comma_count > max_commas:
        raise ValueError(f"{object_count} tensors or long lists, wanted at most {max_names}")
    for pair in nesting:
        brackets = brackets.replace(pair, b"")
    if brackets:
        raise ValueError(f"brackets that don't nest as {b' in '.join(nesting).decode()}")


def _outside_strings(text: bytes) -> Iterator[bytes]:
    """Yield what stands outside of quotes, in chunks: pieces cost far more memory than text."""
    is_inside = 0
    for first in range(0, len(text), _CHUNK_BYTES):
        pieces = text[first : first + _CHUNK_BYTES].split(b'"')
        yield b"".join(pieces[is_inside::2])
        is_inside ^= (len(pieces) - 1) & 1


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
