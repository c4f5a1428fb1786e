"""Find which tasks have to come after which, from the overlap of the regions they touch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from ark_dist.core.graph import Buffer
from ark_dist.core.task import Task

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Access:
    """What one group does to one buffer.

    Attributes:
        group: the group.
        is_write: whether it writes.
        tasks: ids of the tasks that touch the buffer, one entry per region.
        boxes: the regions, int64 of shape (entries, dimensions, 2).
        is_whole: whether the regions cover the buffer.
    """

    group: int
    is_write: bool
    tasks: Ints
    boxes: Ints
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Edges:
    """Task `before[i]` must finish, in the turn `turns_back` ago, before `after[i]` starts.

    All of `before` are tasks of one group, and so are all of `after`.
    """

    before: Ints
    after: Ints
    turns_back: int


@dataclass(frozen=True, slots=True)
class Reuse:
    """Tasks `writers` overwrite memory that tasks `before` used in the turn `turns_back` ago."""

    writers: Ints
    before: Ints
    turns_back: int


def accesses(tasks: Sequence[Task], buffers: Sequence[Buffer]) -> dict[int, list[Access]]:
    """For each buffer, who touches it, in linear order; a group's reads come before its writes."""
    found: dict[int, dict[tuple[int, bool], list[tuple[int, object]]]] = {}
    for task in tasks:
        for is_write, regions in ((False, task.reads), (True, task.writes)):
            for region in regions:
                if buffers[region.buffer].kind in ("weight", "constant"):
                    continue
                entries = found.setdefault(region.buffer, {})
                entries.setdefault((task.group, is_write), []).append((task.id, region.box))
    result = {}
    for buffer_id, entries in found.items():
        shape = buffers[buffer_id].shape
        result[buffer_id] = [
            _access(group, is_write, entries[group, is_write], shape)
            for group, is_write in sorted(entries)
        ]
    return result


def _access(
    group: int, is_write: bool, items: Sequence[tuple[int, object]], shape: tuple[int, ...]
) -> Access:
    ids = np.array([task for task, _ in items], np.int64)
    boxes = np.array([box for _, box in items], np.int64).reshape(len(items), len(shape), 2)
    return Access(group, is_write, ids, boxes, is_write and _covers(boxes, shape))


def _covers(boxes: Ints, shape: tuple[int, ...]) -> bool:
    """Whether boxes fill a buffer, each element once."""
    if int(np.prod(boxes[:, :, 1] - boxes[:, :, 0], axis=1).sum()) != prod(shape):
        return False
    # Tiles do not overlap, but their boxes may, where a view had to be widened: then the
    # sizes add up although there is a hole.
    return int(_meeting(boxes, boxes).sum()) == len(boxes)


def same_turn_edges(touched: dict[int, list[Access]]) -> Iterator[Edges]:
    """Yield the edges within one turn."""
    for sequence in touched.values():
        for position, later in enumerate(sequence):
            for earlier in _walk_back(later, sequence[:position]):
                edges = _overlap(earlier, later, 0)
                if edges is not None:
                    yield edges


def next_turn_edges(
    touched: dict[int, list[Access]], is_lasting: Callable[[int], bool]
) -> Iterator[Edges]:
    """Yield the edges from one turn to the next for buffers that last.

    Activations do not: they are ordered through the memory they lie in.
    """
    for buffer_id, sequence in touched.items():
        if not is_lasting(buffer_id) or not any(a.is_write for a in sequence):
            continue
        for position, later in enumerate(sequence):
            if any(a.is_whole for a in sequence[:position]):
                break
            for earlier in _walk_back(later, sequence):
                edges = _overlap(earlier, later, 1)
                if edges is not None:
                    yield edges


def _walk_back(later: Access, sequence: Sequence[Access]) -> Iterator[Access]:
    """Yield the accesses that `later` may conflict with, up to a write that hides the rest."""
    for earlier in reversed(sequence):
        if earlier.is_write or later.is_write:
            yield earlier
        if earlier.is_whole:
            return


def _overlap(earlier: Access, later: Access, turns_back: int) -> Edges | None:
    if earlier.group == later.group and turns_back == 0:
        return None
    before, after = np.nonzero(_meeting(earlier.boxes, later.boxes))
    if not len(before):
        return None
    return Edges(earlier.tasks[before], later.tasks[after], turns_back)


def _meeting(some: Ints, others: Ints) -> npt.NDArray[np.bool_]:
    """For each pair of boxes, whether they share an element."""
    start = np.maximum(some[:, None, :, 0], others[None, :, :, 0])
    stop = np.minimum(some[:, None, :, 1], others[None, :, :, 1])
    return np.asarray((start < stop).all(axis=2))


def by_successor(count: int, edges: Sequence[Edges]) -> tuple[Ints, Ints]:
    """Return (before, starts): task t comes after before[starts[t] : starts[t + 1]]."""
    none = np.zeros(0, np.int64)
    before = np.concatenate([none, *(e.before for e in edges)])
    after = np.concatenate([none, *(e.after for e in edges)])
    order = np.argsort(after, kind="stable")
    return before[order], np.searchsorted(after[order], np.arange(count + 1))


def predecessors(count: int, edges: Sequence[Edges]) -> list[Ints]:
    """For each task, the ids of the tasks it comes after."""
    before, starts = by_successor(count, edges)
    return [before[a:b] for a, b in pairwise(starts)]
