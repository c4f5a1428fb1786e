"""Check that activations which share memory are never alive together, and are ordered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ark_dist.core.accesses import Access
from ark_dist.core.graph import Buffer
from ark_dist.core.happens_before import Clock, HappensBefore, Ints
from ark_dist.core.plan import Place

MAX_PIECES = 2**22


@dataclass(frozen=True, slots=True)
class _Owner:
    """A buffer in shared memory: where it lies, who touches it."""

    buffer: Buffer
    start: int
    stop: int
    accesses: Sequence[Access]

    @property
    def first(self) -> int:
        """The first group that touches it."""
        return self.accesses[0].group

    @property
    def last(self) -> int:
        """The last group that touches it."""
        return self.accesses[-1].group

    def tasks(self, *, is_write: bool | None) -> Ints:
        """The tasks that write it, read it, or both."""
        chosen = [a.tasks for a in self.accesses if is_write in (None, a.is_write)]
        return np.array(sorted({t for tasks in chosen for t in tasks}), np.int64)


def memory_problems(
    buffers: Sequence[Buffer],
    places: Sequence[Place],
    touched: Mapping[int, Sequence[Access]],
    clocks: HappensBefore,
) -> Iterator[str]:
    """Yield activations that overlap another one's memory while that one is in use.

    Of each byte only the successive owners are compared, through two turns: each one's
    tasks come after all of the one before, so the rest follows.
    """
    for arena in dict.fromkeys(place.arena for place in places):
        owners = [
            _Owner(buffers[b], places[b].offset, places[b].offset + buffers[b].size_bytes, sequence)
            for b, sequence in touched.items()
            if buffers[b].kind == "activation"
            and buffers[b].size_bytes
            and places[b].arena == arena
        ]
        owners.sort(key=lambda o: (o.first, o.last, o.buffer.id))
        yield from _arena_problems(owners, clocks)


def _arena_problems(owners: Sequence[_Owner], clocks: HappensBefore) -> Iterator[str]:
    pairs = _successive_owners(owners)
    if pairs is None:
        yield "activations overlap in too many pieces to prove their order"
        return
    reach: dict[tuple[int, bool | None], Clock] = {}
    for before, after, turn in pairs:
        one, two = owners[before], owners[after]
        if turn == 0 and one.last >= two.first:
            yield f"activations {one.buffer.name!r} and {two.buffer.name!r} share memory in use"
        elif not _is_after(one, two, turn, clocks, reach):
            when = " of the next turn" if turn else ""
            yield (
                f"{two.buffer.name!r}{when} reuses memory of {one.buffer.name!r}, "
                "but its tasks do not come after all that touch that"
            )


def _successive_owners(owners: Sequence[_Owner]) -> list[tuple[int, int, int]] | None:
    """Pairs of owners of some byte, one right after the other, and the second one's turn.

    `owners` are in the order in which they are first touched.
    """
    start = np.array([o.start for o in owners], np.int64)
    stop = np.array([o.stop for o in owners], np.int64)
    edges = np.unique(np.concatenate([start, stop]))
    low, high = np.searchsorted(edges, start), np.searchsorted(edges, stop)
    counts = high - low
    if counts.sum() > MAX_PIECES:
        return None
    owner = np.repeat(np.arange(len(owners)), counts)
    piece = np.arange(counts.sum()) + np.repeat(low - (np.cumsum(counts) - counts), counts)
    order = np.argsort(piece, kind="stable")
    owner, piece = owner[order], piece[order]
    is_same = piece[1:] == piece[:-1]
    found = {
        (int(a), int(b), 0) for a, b in zip(owner[:-1][is_same], owner[1:][is_same], strict=True)
    }
    starts = np.flatnonzero(np.concatenate([[True], ~is_same])) if len(piece) else owner
    ends = np.concatenate([starts[1:], [len(piece)]]).astype(np.int64) - 1
    wraps = zip(owner[ends[: len(starts)]], owner[starts], strict=True)
    return sorted(found | {(int(a), int(b), 1) for a, b in wraps if a != b})


def _is_after(
    one: _Owner,
    two: _Owner,
    turn: int,
    clocks: HappensBefore,
    cache: dict[tuple[int, bool | None], Clock],
) -> bool:
    """Whether all of `two` comes after all of `one`; reads don't mind reads."""
    for mine, others in ((True, None), (False, True)):
        tasks = two.tasks(is_write=mine)
        key = (one.buffer.id, others)
        if key not in cache:
            cache[key] = _reach(one.tasks(is_write=others), clocks)
        if (clocks.rows(tasks, turn) < cache[key]).any():
            return False
    return True


def _reach(tasks: Ints, clocks: HappensBefore) -> Clock:
    reach = np.zeros(len(clocks.lengths), np.int32)
    np.maximum.at(reach, clocks.worker[tasks], clocks.place[tasks].astype(np.int32))
    return reach
