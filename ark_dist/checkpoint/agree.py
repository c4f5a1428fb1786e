"""Let all ranks know what failed on any of them, so that all raise the same error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from ark_dist.comm.communicator import Communicator
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
# A shared disk that serves all ranks at once is hardly slower: some may wait for one that reads.
_SLOWEST_BYTES_PER_S = 20e6


@dataclass(frozen=True, slots=True)
class Ranks:
    """Those that load or save together.

    Attributes:
        rank: this one.
        world_size: how many there are.
        agree: gives a text to all of them, and returns what each gave.
        timeout_s: limit for waiting for one of them.
    """

    rank: int
    world_size: int
    agree: Agree
    timeout_s: float

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0


class RefusedError(Exception):
    """Carries an error that all ranks know of, through code that must tell it from others."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def alone(text: str | None) -> list[str | None]:
    """Agree where there is one rank."""
    return [text]


ALONE = Ranks(0, 1, alone, float("inf"))


def ranks_of(communicator: Communicator | None, size_bytes: int, timeout_s: float) -> Ranks:
    """Return the ranks of a communicator, None for one alone, that read or write `size_bytes`.

    `timeout_s` is the limit for what takes no time.
    """
    if communicator is None:
        return ALONE
    limit_s = timeout_s + size_bytes / _SLOWEST_BYTES_PER_S

    def agree(text: str | None) -> list[str | None]:
        # A mark before a text: an empty one is not None.
        data = b"" if text is None else b"=" + text.encode("utf-8", "surrogatepass")
        found = communicator.all_gather_bytes(data, timeout_s=limit_s)
        return [data[1:].decode("utf-8", "surrogatepass") if data else None for data in found]

    return Ranks(communicator.rank, communicator.size, agree, limit_s)


def check_same_path(call: str, ranks: Ranks, path: str) -> None:
    """Raise ValueError on all ranks, unless all were given the same path."""
    paths = share(ranks.agree, path)
    others = [rank for rank, other in enumerate(paths) if other != paths[0]]
    if others:
        raise ValueError(
            f"{call}: rank 0 was given the path {paths[0]!r}, rank {others[0]} "
            f"{paths[others[0]]!r}; all ranks save one state_dict together: give all the same "
            "path, or save dict(state_dict) on each rank alone"
        )


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
