"""Carry generated source to the compiler, and its product to the device."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Source:
    """One self-contained generated program.

    Attributes:
        name: the program's name as the user gave it; never used as a path or identifier.
        language: "c++" or "cuda".
        text: the source code; it includes no file of ours.
    """

    name: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Binary:
    """One compiled program.

    Attributes:
        path: the shared library or cubin, inside the cache.
        source_path: the generated source file beside it, for people to read.
        key: hash of everything that went into the compilation.
        is_cached: whether the cache had it already.
    """

    path: Path
    source_path: Path
    key: str
    is_cached: bool
