"""Compare values with the types that their dataclasses declare."""

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache

from ark_dist.core.layout import P

# Offsets, sizes and their sums stay in 64 bits with room to add.
INT_LIMIT = 2**62

# Objects already checked, by identity and checker: plans share most of their parts.
_Seen = set[tuple[int, int]]
_Checker = Callable[[object, _Seen], None]


class _MismatchError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.path: list[str] = []


def type_problem(value: object, wanted: type) -> str | None:
    """Where and how `value` departs from dataclass `wanted`, or None.

    Types are matched exactly: a bool is no int, a list no tuple. Integers lie within 2**62.
    """
    try:
        _checker(wanted)(value, set())
    except _MismatchError as mismatch:
        return "".join(reversed(mismatch.path)).lstrip(".") + mismatch.text
    return None


@cache
def _checker(wanted: object) -> _Checker:
    """Make the function that checks one declared type."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _dataclass_checker(wanted)
    if wanted is P:
        return _tuple_checker(P, (str | None, ...))
    arguments = typing.get_args(wanted)
    if typing.get_origin(wanted) is tuple:
        return _tuple_checker(tuple, arguments)
    if arguments:
        return _union_checker(arguments)
    return _atom_checker(wanted)


def _atom_checker(wanted: object) -> _Checker:
    def check(value: object, seen: _Seen) -> None:
        kind = type(value)
        if kind is int and wanted in (int, float):
            if not -INT_LIMIT < value < INT_LIMIT:  # type: ignore[operator]  # an int
                raise _MismatchError(f" is {_short(value)}, which is out of range")
        elif kind is not wanted:
            name = "None" if wanted is types.NoneType else getattr(wanted, "__name__", wanted)
            raise _MismatchError(f" is {_short(value)}; it must be {name}")

    return check


def _union_checker(options: tuple[object, ...]) -> _Checker:
    checkers = {_runtime_type(option): _checker(option) for option in options}
    names = " or ".join("None" if t is types.NoneType else t.__name__ for t in checkers)

    def check(value: object, seen: _Seen) -> None:
        checker = checkers.get(type(value))
        if checker is None:
            raise _MismatchError(f" is {_short(value)}; it must be {names}")
        checker(value, seen)

    return check


def _runtime_type(option: object) -> type:
    origin = typing.get_origin(option) or option
    assert isinstance(origin, type), f"{option} has no class"
    return origin


def _tuple_checker(wanted: type, items: tuple[object, ...]) -> _Checker:
    is_open = items[-1:] == (...,)
    checkers = tuple(_checker(item) for item in items if item is not ...)
    serial = id(checkers)

    def check(value: object, seen: _Seen) -> None:
        key = (id(value), serial)
        if key in seen:
            return
        if type(value) is not wanted:
            raise _MismatchError(f" is {_short(value)}; it must be a {wanted.__name__}")
        assert isinstance(value, tuple)
        if not is_open and len(value) != len(checkers):
            raise _MismatchError(f" has {len(value)} items; it must have {len(checkers)}")
        index = 0
        try:
            for index, item in enumerate(value):
                checkers[0 if is_open else index](item, seen)
        except _MismatchError as mismatch:
            mismatch.path.append(f"[{index}]")
            raise
        seen.add(key)

    return check


def _dataclass_checker(wanted: type) -> _Checker:
    hints = typing.get_type_hints(wanted)
    fields = tuple((name, _checker(hint)) for name, hint in hints.items())
    serial = id(fields)

    def check(value: object, seen: _Seen) -> None:
        key = (id(value), serial)
        if key in seen:
            return
        if type(value) is not wanted:
            raise _MismatchError(f" is {_short(value)}; it must be a {wanted.__name__}")
        name = ""
        try:
            for name, checker in fields:
                checker(getattr(value, name), seen)
        except _MismatchError as mismatch:
            mismatch.path.append(f".{name}")
            raise
        seen.add(key)

    return check


def _short(value: object) -> str:
    if isinstance(value, int) and not -INT_LIMIT < value < INT_LIMIT:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 60 else text[:57] + "..."
    return f"a {type(value).__name__}"
