"""Turn JSON text that nobody vouches for into a dict, once it can't cost much memory or time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

# A tensor's entry holds 5 strings and at most 11 commas; the rest is room for metadata.
_PER_NAME = 12
_MAX_DIGITS = 19
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SHOWN_CHARS = 80


def shown(text: object) -> str:
    """Return a short, printable form of text that came out of a file."""
    return ascii(str(text)[:_SHOWN_CHARS])


def parse_table(
    text: bytes, nesting: Sequence[bytes], max_names: int, *, can_float: bool = False
) -> dict[str, object]:
    """Return the object that the text holds; raise ValueError or RecursionError on any flaw.

    `nesting` lists pairs of brackets, the innermost first: without them, one after the other,
    no bracket may be left. Names that come twice are refused, and so are numbers that are no
    integers, unless `can_float`.
    """
    _check_structure(text, nesting, max_names)
    table: dict[str, object] = json.loads(
        text.decode(),
        object_pairs_hook=_unique,
        parse_int=_bounded_int,
        parse_float=float if can_float else _refuse_number,
        parse_constant=_refuse_number,
    )
    return table


def _check_structure(text: bytes, nesting: Sequence[bytes], max_names: int) -> None:
    # json builds whatever the bytes say, so count and bound it before.
    if not text.startswith(b"{"):
        raise ValueError(f"text that starts with {text[:1]!r}, wanted b'{{'")
    text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if text.count(b'"') > _PER_NAME * max_names:
        raise ValueError(f"too many strings for {max_names} tensors")
    outside = b"".join(text.split(b'"')[::2])
    brackets = outside.translate(None, _NOT_BRACKETS)
    object_count = brackets.count(b"{") - 1
    # +1: the metadata
    if object_count > max_names + 1 or outside.count(b",") > _PER_NAME * max_names:
        raise ValueError(f"{object_count} tensors or long lists, wanted at most {max_names}")
    for pair in nesting:
        brackets = brackets.replace(pair, b"")
    if brackets:
        raise ValueError(f"brackets that don't nest as {b' in '.join(nesting).decode()}")


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
