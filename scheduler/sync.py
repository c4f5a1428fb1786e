"""Derive counters and waits, and leave out every wait that others imply."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ark_dist.core.plan import Counter, Wait
from ark_dist.core.task import Task
from ark_dist.scheduler.deps import Access, Edges, Ints, Reuse
from ark_dist.scheduler.memory import Lifetime, Placement
from ark_dist.scheduler.order import Positions, Queues
from ark_dist.scheduler.sync_clocks import clock_waits
from ark_dist.scheduler.sync_groups import group_waits


@dataclass(frozen=True, slots=True)
class Sync:
    """Counters, what each task signals, and what each waits for."""

    counters: tuple[Counter, ...]
    signals: tuple[int, ...]
    waits: tuple[tuple[Wait, ...], ...]


def positions(task_count: int, queues: Queues) -> Positions:
    """Look up tables of the queues."""
    worker = np.zeros(task_count, np.int64)
    place = np.zeros(task_count, np.int64)
    for index, queue in enumerate(queues):
        worker[list(queue)] = index
        place[list(queue)] = np.arange(1, len(queue) + 1)
    return Positions(worker, place, np.array([len(q) for q in queues], np.int64))


def sync(
    tasks: Sequence[Task],
    queues: Queues,
    edges: Sequence[Edges],
    reuse: Sequence[Reuse],
    counter_kind: str,
    stop_task: int | None,
    depth: int,
) -> Sync:
    """Return the counters and the pruned waits.

    `edges` are the dependencies by region, `reuse` those by shared memory. With `depth` above
    1, tasks with an effect also come after the decision of the turn before.
    """
    at = positions(len(tasks), queues)
    counters, signals = make_counters(tasks, queues, counter_kind)
    ordered = list(reuse)
    if stop_task is not None and depth > 1:
        seen = [t.id for t in tasks if t.effect != "none" and t.id != stop_task]
        ordered.append(Reuse(np.array(seen, np.int64), np.array([stop_task]), 1))
    # At depth 1 nobody starts a turn before the decision of the one before.
    gate = stop_task if depth == 1 else None
    if counter_kind == "clock":
        waits = clock_waits(at, edges, ordered, gate)
    else:
        waits = group_waits(at, np.array(signals, np.int64), edges, ordered, gate)
    return Sync(counters, signals, waits)


def make_counters(
    tasks: Sequence[Task], queues: Queues, kind: str
) -> tuple[tuple[Counter, ...], tuple[int, ...]]:
    """One clock per worker, or one counter per group with tasks."""
    if kind == "clock":
        clocks = tuple(Counter(w, "clock", w, len(q)) for w, q in enumerate(queues))
        owner = {task: w for w, queue in enumerate(queues) for task in queue}
        return clocks, tuple(owner[task.id] for task in tasks)
    sizes: dict[int, int] = {}
    for task in tasks:
        sizes[task.group] = sizes.get(task.group, 0) + 1
    index = {group: i for i, group in enumerate(sizes)}
    groups = tuple(Counter(i, "group", g, sizes[g]) for g, i in index.items())
    return groups, tuple(index[task.group] for task in tasks)


def reuse_edges(
    lives: Sequence[Lifetime], placement: Placement, touched: dict[int, list[Access]]
) -> list[Reuse]:
    """Find who used an activation's memory last: every writer comes after all of those.

    Walks two turns; of each byte range only the latest owner counts, since that one came
    after its own predecessors.
    """
    owners: list[tuple[int, int, int, int]] = []
    result = []
    for turn in (0, 1):
        for life in lives:
            start = placement.offsets[life.buffer]
            stop = start + max(life.size_bytes, 1)
            previous, owners = _take_over(owners, start, stop, life.buffer, turn)
            writers = _tasks_of(touched[life.buffer], is_write=True)
            for buffer, owner_turn in sorted(previous) if turn == 1 else ():
                before = _tasks_of(touched[buffer], is_write=None)
                result.append(Reuse(writers, before, turn - owner_turn))
    return result


def _take_over(
    owners: list[tuple[int, int, int, int]], start: int, stop: int, buffer: int, turn: int
) -> tuple[set[tuple[int, int]], list[tuple[int, int, int, int]]]:
    previous = set()
    kept = [(start, stop, buffer, turn)]
    for low, high, owner, owner_turn in owners:
        if low < stop and start < high:
            previous.add((owner, owner_turn))
            if low < start:
                kept.append((low, start, owner, owner_turn))
            if stop < high:
                kept.append((stop, high, owner, owner_turn))
        else:
            kept.append((low, high, owner, owner_turn))
    return previous, kept


def _tasks_of(sequence: Sequence[Access], *, is_write: bool | None) -> Ints:
    chosen = [a.tasks for a in sequence if is_write is None or a.is_write == is_write]
    return np.unique(np.concatenate(chosen))
