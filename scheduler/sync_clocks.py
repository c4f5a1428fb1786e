"""Derive the waits of plans whose counters are clocks, one per worker: task by task."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ark_dist.core.plan import Wait
from ark_dist.scheduler.deps import Edges, Reuse
from ark_dist.scheduler.order import Positions

Clocks = npt.NDArray[np.int32]
# A place no queue reaches back to: nothing is known.
UNKNOWN = -(1 << 30)
# Turns back, place in the queue, worker: what a task needs to be done before it.
Need = tuple[int, int, int]


def clock_waits(
    at: Positions, edges: Sequence[Edges], reuse: Sequence[Reuse], gate: int | None
) -> tuple[tuple[Wait, ...], ...]:
    """Return what each task waits for.

    `gate` is the task that every worker awaits between turns. Two passes over one turn: the
    first knows nothing of the turn before, the second knows what the first found to be known
    at its end; both are sound, the second waits less.
    """
    needs = list(_needs(at, edges, reuse))
    count, workers = len(at.worker), len(at.lengths)
    done = np.full((count, workers), UNKNOWN, np.int32)
    done[np.arange(count), at.worker] = at.place
    waits: list[tuple[Wait, ...]] = []
    for _ in range(2):
        waits, done = _pass(at, needs, done, gate)
    return tuple(waits)


def _needs(at: Positions, edges: Sequence[Edges], reuse: Sequence[Reuse]) -> Iterator[list[Need]]:
    """For each task the latest that it needs of each worker; the latest of all comes first.

    That one implies the most.
    """
    count, workers = len(at.worker), len(at.lengths)
    found = []
    for turns_back in (0, 1):
        needed = np.zeros((count, workers), np.int32)
        for edge in edges:
            if edge.turns_back == turns_back:
                where = edge.after, at.worker[edge.before]
                np.maximum.at(needed, where, at.place[edge.before])
        for item in reuse:
            if item.turns_back == turns_back:
                reach = np.zeros(workers, np.int32)
                np.maximum.at(reach, at.worker[item.before], at.place[item.before])
                needed[item.writers] = np.maximum(needed[item.writers], reach)
        task, worker = np.nonzero(needed)
        found.append((task, np.full_like(task, turns_back), needed[task, worker], worker))
    tasks, *columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((columns[2], -columns[1], columns[0], tasks))
    rows = list(zip(*(column[order].tolist() for column in columns), strict=True))
    starts = np.searchsorted(tasks[order], np.arange(count + 1)).tolist()
    return (rows[a:b] for a, b in pairwise(starts))


def _pass(
    at: Positions, needs: Sequence[Sequence[Need]], before: Clocks, gate: int | None
) -> tuple[list[tuple[Wait, ...]], Clocks]:
    """Walk one turn in linear order; return the waits kept and what is known after each task.

    Row t of `before` and of the result: for each worker, the place its queue is known to
    have reached once task t of that turn is done (places of the turn itself; the turn
    before is at places <= 0).
    """
    lengths = at.lengths.astype(np.int32)
    done = np.empty_like(before)
    known_by_turn = (done, before - lengths)
    by_place = [np.flatnonzero(at.worker == w).tolist() for w in range(len(lengths))]
    current = [_turn_start(w, queue, known_by_turn[1], gate) for w, queue in enumerate(by_place)]
    size, worker_of, place_of = lengths.tolist(), at.worker.tolist(), at.place.tolist()
    waits = []
    for task, (worker, place) in enumerate(zip(worker_of, place_of, strict=True)):
        known = current[worker].copy()
        kept = []
        for turns_back, needed, owner in needs[task]:
            if known[owner] < needed - turns_back * size[owner]:
                kept.append(Wait(owner, needed, turns_back))
                np.maximum(known, known_by_turn[turns_back][by_place[owner][needed - 1]], out=known)
        waits.append(tuple(sorted(kept, key=lambda w: (w.counter, w.turns_back))))
        known[worker] = place
        done[task] = current[worker] = known
    return waits, done


def _turn_start(worker: int, queue: Sequence[int], before: Clocks, gate: int | None) -> Clocks:
    known: Clocks = np.full(before.shape[1], UNKNOWN, np.int32)
    for task in (*queue[-1:], *(() if gate is None else (gate,))):
        known = np.maximum(known, before[task])
    known[worker] = max(known[worker], 0)
    return known
