"""Derive counters and waits, and leave out every wait that others imply."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ark_dist.core.plan import Counter, Wait
from ark_dist.core.task import Task
from ark_dist.scheduler.deps import Access, Edges, predecessors
from ark_dist.scheduler.memory import Lifetime, Placement
from ark_dist.scheduler.order import Queues

Clock = npt.NDArray[np.int64]
# A position no queue reaches back to: nothing is known.
UNKNOWN = -(1 << 60)


@dataclass(frozen=True, slots=True)
class Sync:
    """Counters, what each task signals, and what each waits for."""

    counters: tuple[Counter, ...]
    signals: tuple[int, ...]
    waits: tuple[tuple[Wait, ...], ...]


@dataclass(frozen=True, slots=True)
class Positions:
    """Where tasks stand: worker and 1-based place in its queue, and queue lengths."""

    worker: Clock
    place: Clock
    lengths: Clock


@dataclass(frozen=True, slots=True)
class Need:
    """Hold until the counter has `threshold` signals of the turn `turns_back` ago.

    `wanted` is why: for each worker, how far its queue has to have come, in places of the turn
    the counter is read for. `reached` is what is known once the wait is met, which is more
    where a counter stands for a whole group.
    """

    wait: Wait
    wanted: Clock
    reached: Clock


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
    reuse: Sequence["Reuse"],
    counter_kind: str,
    stop_task: int | None,
    depth: int,
) -> Sync:
    """Return the counters and the pruned waits.

    `edges` are the dependencies by region, `reuse` those by shared memory. Two passes over
    one turn: the first knows nothing of the turn before, the second knows what the first
    found to be known at its end; both are sound, the second waits less.
    """
    at = positions(len(tasks), queues)
    counters, signals = make_counters(tasks, queues, counter_kind)
    raw = _raw_needs(tasks, at, edges, reuse, counter_kind, counters, signals)
    if stop_task is not None and depth > 1:
        for task in tasks:
            if task.effect != "none" and task.id != stop_task:
                raw[task.id].append(_task_need(stop_task, 1, at, counter_kind, signals, counters))
    known_before = np.full((len(tasks), len(queues)), UNKNOWN, np.int64)
    waits: list[tuple[Wait, ...]] = []
    for _ in range(2):
        waits, known_before = _pass(tasks, at, raw, known_before, stop_task, depth)
    return Sync(counters, signals, tuple(waits))


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


def _task_need(
    task: int,
    turns_back: int,
    at: Positions,
    kind: str,
    signals: Sequence[int],
    counters: Sequence[Counter],
) -> Need:
    assert kind == "clock" or counters[signals[task]].signals == 1
    reached = np.full(len(at.lengths), UNKNOWN, np.int64)
    reached[at.worker[task]] = at.place[task]
    threshold = int(at.place[task]) if kind == "clock" else 1
    return Need(Wait(signals[task], threshold, turns_back), reached, reached)


def _raw_needs(
    tasks: Sequence[Task],
    at: Positions,
    edges: Sequence[Edges],
    reuse: Sequence["Reuse"],
    kind: str,
    counters: tuple[Counter, ...],
    signals: tuple[int, ...],
) -> list[list[Need]]:
    raw: list[list[Need]] = [[] for _ in tasks]
    make = _clock_needs if kind == "clock" else _group_needs
    members = _members(signals, counters)
    for turns_back in (0, 1):
        some = [e for e in edges if e.turns_back == turns_back]
        for task, before in enumerate(predecessors(len(tasks), some)):
            if len(before):
                raw[task] += make(before, turns_back, at, signals, members)
    for item in reuse:
        needs = make(item.before, item.turns_back, at, signals, members)
        for task in item.writers:
            raw[task] += needs
    if kind == "group":
        # Nobody may raise a counter for a later turn before the earlier one is complete.
        for task_id, counter in enumerate(signals):
            if counters[counter].signals > 1:
                raw[task_id] += make(members[counter], 1, at, signals, members)
    return raw


def _members(signals: Sequence[int], counters: Sequence[Counter]) -> list[Clock]:
    order = np.argsort(np.array(signals, np.int64), kind="stable")
    edges = np.searchsorted(np.array(signals, np.int64)[order], np.arange(len(counters) + 1))
    return [order[a:b] for a, b in pairwise(edges)]


def _clock_needs(
    before: Clock,
    turns_back: int,
    at: Positions,
    signals: Sequence[int],
    members: Sequence[Clock],
) -> list[Need]:
    reached = _reach(before, at)
    needs = []
    for worker in np.flatnonzero(reached > 0):
        only = np.full(len(at.lengths), UNKNOWN, np.int64)
        only[worker] = reached[worker]
        needs.append(Need(Wait(int(worker), int(reached[worker]), turns_back), only, only))
    return needs


def _group_needs(
    before: Clock,
    turns_back: int,
    at: Positions,
    signals: Sequence[int],
    members: Sequence[Clock],
) -> list[Need]:
    needs = []
    owners = np.array([signals[task] for task in before.tolist()], np.int64)
    for counter in np.unique(owners).tolist():
        everyone = members[counter]
        wait = Wait(counter, len(everyone), turns_back)
        needs.append(Need(wait, _reach(before[owners == counter], at), _reach(everyone, at)))
    return needs


def _reach(tasks: Clock, at: Positions) -> Clock:
    """How far each worker's queue has come when these tasks are done."""
    reach = np.full(len(at.lengths), UNKNOWN, np.int64)
    np.maximum.at(reach, at.worker[tasks], at.place[tasks])
    return reach


def _pass(
    tasks: Sequence[Task],
    at: Positions,
    raw: Sequence[Sequence[Need]],
    before: Clock,
    stop_task: int | None,
    depth: int,
) -> tuple[list[tuple[Wait, ...]], Clock]:
    """Walk one turn in linear order; return the waits kept and what is known after each task.

    Row t of `before` and of the result: for each worker, the place its queue is known to
    have reached once task t of that turn is done (places of the turn itself; the turn
    before is at places <= 0).
    """
    done = np.full_like(before, UNKNOWN)
    by_place = [np.flatnonzero(at.worker == w) for w in range(len(at.lengths))]
    current = [_turn_start(w, at, before, by_place, stop_task, depth) for w in range(len(by_place))]
    waits = []
    for task in tasks:
        worker = int(at.worker[task.id])
        known = current[worker]
        kept = []
        # The latest needs first: they imply the most.
        for need in sorted(raw[task.id], key=_latest_first):
            shift = need.wait.turns_back * at.lengths
            if (known >= need.wanted - shift).all():
                continue
            kept.append(need.wait)
            known = np.maximum(known, need.reached - shift)
            known = _learn(known, need, at, done if need.wait.turns_back == 0 else before, by_place)
        waits.append(tuple(sorted(set(kept), key=lambda w: (w.counter, w.turns_back))))
        known = known.copy()
        known[worker] = at.place[task.id]
        done[task.id] = known
        current[worker] = known
    return waits, done


def _latest_first(need: Need) -> tuple[int, int, int]:
    return need.wait.turns_back, -int(need.reached.max()), need.wait.counter


def _learn(
    known: Clock, need: Need, at: Positions, table: Clock, by_place: Sequence[Clock]
) -> Clock:
    """Add what the tasks that the need names knew when they were done."""
    shift = need.wait.turns_back * at.lengths
    for worker in np.flatnonzero(need.reached > 0).tolist():
        last = by_place[worker][need.reached[worker] - 1]
        known = np.maximum(known, table[last] - shift)
    return known


def _turn_start(
    worker: int,
    at: Positions,
    before: Clock,
    by_place: Sequence[Clock],
    stop_task: int | None,
    depth: int,
) -> Clock:
    known = np.full(len(at.lengths), UNKNOWN, np.int64)
    if len(by_place[worker]):
        known = np.maximum(known, before[by_place[worker][-1]] - at.lengths)
    if stop_task is not None and depth == 1:
        known = np.maximum(known, before[stop_task] - at.lengths)
        known[at.worker[stop_task]] = max(
            known[at.worker[stop_task]],
            at.place[stop_task] - at.lengths[at.worker[stop_task]],
        )
    known[worker] = max(known[worker], 0)
    return known


@dataclass(frozen=True, slots=True)
class Reuse:
    """Tasks `writers` overwrite memory that tasks `before` used in the turn `turns_back` ago."""

    writers: tuple[int, ...]
    before: Clock
    turns_back: int


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
                before = np.array(_tasks_of(touched[buffer], is_write=None), np.int64)
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


def _tasks_of(sequence: Sequence[Access], *, is_write: bool | None) -> tuple[int, ...]:
    chosen = [a.tasks for a in sequence if is_write is None or a.is_write == is_write]
    return tuple(int(t) for t in np.unique(np.concatenate(chosen)))
