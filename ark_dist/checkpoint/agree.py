"""Let all ranks know what failed on any of them, so that all raise the same error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from ark_dist.core.errors import (
    CheckpointError,
    LifecycleError,
    ShardCorruptError,
    StateDictError,
)

# Gives a text to all ranks, and returns what each of them gave, in order of rank.
Agree: TypeAlias = Callable[["str | None"], "list[str | None]"]
T = TypeVar("T")

# Errors that come back as what they were; they are made of a text.
_KINDS = {
    kind.__name__: kind
    for kind in (
        CheckpointError,
        FileNotFoundError,
        LifecycleError,
        MemoryError,
        ShardCorruptError,
        StateDictError,
        TypeError,
        ValueError,
    )
}
_MAX_RANKS = 8


class RefusedError(Exception):
    """Carries an error that all ranks know of, through code that must tell it from others."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def alone(text: str | None) -> list[str | None]:
    """Agree where there is one rank."""
    return [text]


def together(agree: Agree, action: Callable[[], T]) -> T:
    """Do something on every rank; where it fails on any, raise the same error on all.

    The ranks' texts are in it, each with the ranks that gave it. Its class is that of the
    lowest rank that failed.
    """
    try:
        return together_or_refuse(agree, action)
    except RefusedError as refused:
        raise refused.error from refused.error.__cause__


def together_or_refuse(agree: Agree, action: Callable[[], T]) -> T:
    """Do as `together`, but raise RefusedError: what `agree` raises, not all ranks may know."""
    result, error = None, None
    try:
        result = action()
    except Exception as caught:
        error = caught
    texts = agree(None if error is None else f"{type(error).__name__}: {error}")
    failed = {rank: text for rank, text in enumerate(texts) if text is not None}
    if failed:
        if error is not None and len(texts) == 1:
            raise RefusedError(error)
        joined = _joined(failed)
        joined.__cause__ = error
        raise RefusedError(joined)
    return result  # type: ignore[return-value]  # it is set where nothing failed


def share(agree: Agree, text: str) -> list[str]:
    """Return the texts that all ranks give here."""
    return [other or "" for other in agree(text)]


def _joined(failed: dict[int, str]) -> Exception:
    ranks: dict[str, list[int]] = {}
    for rank, text in failed.items():
        ranks.setdefault(text.partition(": ")[2], []).append(rank)
    text = "; ".join(f"{_numbered(numbers)}: {text}" for text, numbers in ranks.items())
    kind = next(iter(failed.values())).partition(": ")[0]
    return _KINDS[kind](text) if kind in _KINDS else CheckpointError(f"{kind}: {text}")


def _numbered(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - _MAX_RANKS} more" if len(ranks) > _MAX_RANKS else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:_MAX_RANKS]))}{more}"
