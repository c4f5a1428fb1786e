"""Check that tasks which touch the same data are ordered, within a turn and across two."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core.accesses import Access
from ark_dist.core.graph import Buffer
from ark_dist.core.happens_before import TURNS, HappensBefore, Ints
from ark_dist.core.plan import Method

# These bound the time of a proof; real plans stay far below.
MAX_PAIRS = 2**20
MAX_TILE_PAIRS = 2**30
BLOCK_ENTRIES = 2**22


def decision_problems(method: Method, clocks: HappensBefore) -> Iterator[str]:
    """Yield effects of turn u+1 that don't come after the decision of turn u."""
    stop = method.stop_task
    if stop is None or method.depth == 1:
        # At depth 1 nobody starts a turn before the decision of the one before.
        return
    tasks = np.array([t.id for t in method.tasks if t.effect == "effect"], np.int64)
    is_before = clocks.is_before(np.array(stop), tasks, 1)
    for task in tasks[~is_before]:
        yield (
            f"task {task} has an effect and does not come after stop task {stop} of the turn before"
        )


def completion_problems(method: Method, clocks: HappensBefore) -> Iterator[str]:
    """Yield group counters that may be raised for a turn before the last one is complete."""
    for counter in method.counters:
        if counter.kind == "group" and counter.signals > 1:
            done = clocks.group_done[len(method.groups) + counter.owner]
            if (done < clocks.group_reach[counter.owner]).any():
                yield (
                    f"counter {counter.id}: a task of group {counter.owner} may raise it while "
                    "others of the group are still in the turn before"
                )


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two accesses to one buffer that must be ordered: `first` in turn 0, `second` in `turn`."""

    buffer: int
    first: Access
    second: Access
    turn: int


def data_problems(
    buffers: Sequence[Buffer], touched: Mapping[int, Sequence[Access]], clocks: HappensBefore
) -> Iterator[str]:
    """Yield tasks that touch overlapping parts of a buffer, one writing, and are not ordered."""
    pairs: list[_Pair] = []
    for buffer, sequence in touched.items():
        for pair in _pairs(buffer, sequence):
            pairs.append(pair)
            if len(pairs) > MAX_PAIRS:
                yield f"{buffers[buffer].name!r} is touched in too many pieces to prove their order"
                return
    corners: dict[int, Ints] = {}
    budget = MAX_TILE_PAIRS
    for index in np.flatnonzero(~_are_groups_ordered(pairs, clocks)):
        pair = pairs[index]
        budget -= len(pair.first.tasks) * len(pair.second.tasks)
        if budget < 0:
            yield f"{buffers[pair.buffer].name!r} has too many tiles to prove their order"
            return
        found = _unordered(pair, clocks, corners)
        if found is not None:
            first, second = found
            when = "and the next turn's" if pair.turn else "and"
            yield (
                f"tasks {first} {when} {second} touch the same part of "
                f"{buffers[pair.buffer].name!r}, but {second} does not come after {first}"
            )


def _pairs(buffer: int, sequence: Sequence[Access]) -> Iterator[_Pair]:
    """Yield the pairs of accesses from which all others follow.

    What a write fills entirely is forgotten: later accesses come after the write, and the
    write after what it replaced.
    """
    alive: list[tuple[int, Access]] = []
    for turn in range(TURNS):
        for access in sequence:
            for turn_before, before in alive:
                # Pairs within turn 1 are as those in turn 0. Tiles of one group are disjoint.
                if (
                    turn_before == 0
                    and (before.is_write or access.is_write)
                    and not (turn == 0 and before.group == access.group)
                ):
                    yield _Pair(buffer, before, access, turn)
            if access.cover is not None:
                cover = access.cover
                alive = [item for item in alive if not item[1].is_inside(cover)]
            alive.append((turn, access))


def _are_groups_ordered(pairs: Sequence[_Pair], clocks: HappensBefore) -> npt.NDArray[np.bool_]:
    """For each pair: does every task of the second group come after all of the first?"""
    first = np.array([p.first.group for p in pairs], np.int64)
    second = np.array([p.second.group for p in pairs], np.int64)
    second += np.array([p.turn for p in pairs], np.int64) * len(clocks.group_reach)
    result = np.zeros(len(pairs), np.bool_)
    step = max(1, BLOCK_ENTRIES // len(clocks.lengths))
    for start in range(0, len(pairs), step):
        part = slice(start, start + step)
        known, needed = clocks.group_done[second[part]], clocks.group_reach[first[part]]
        result[part] = (known >= needed).all(axis=1)
    return result


def _unordered(
    pair: _Pair, clocks: HappensBefore, cache: dict[int, Ints]
) -> tuple[int, int] | None:
    """Return two tasks of the pair that touch the same part and are not ordered."""
    before, after = (
        cache.setdefault(id(a), a.corners()) if id(a) not in cache else cache[id(a)]
        for a in (pair.first, pair.second)
    )
    first_tasks, second_tasks = np.array(pair.first.tasks), np.array(pair.second.tasks)
    step = max(1, BLOCK_ENTRIES // len(before))
    for start in range(0, len(after), step):
        part, tasks = after[start : start + step], second_tasks[start : start + step]
        bad = ~clocks.is_before(first_tasks[:, None], tasks[None, :], pair.turn)
        for dim in range(before.shape[1]):
            bad &= before[:, None, dim, 0] < part[None, :, dim, 1]
            bad &= part[None, :, dim, 0] < before[:, None, dim, 1]
        if bad.any():
            one, two = np.unravel_index(int(bad.argmax()), bad.shape)
            return int(first_tasks[one]), int(tasks[two])
    return None
