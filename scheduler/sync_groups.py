"""Derive the waits of plans whose counters count groups: all tasks of a group at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ark_dist.core.plan import Wait
from ark_dist.scheduler.deps import Edges, Ints, Reuse
from ark_dist.scheduler.order import Positions

# A place no queue reaches back to: nothing is known.
UNKNOWN = -(1 << 60)
TURNS_BACK = (0, 1)


@dataclass(frozen=True, slots=True)
class _Need:
    """Tasks `after` need worker `worker` to have come to `place`, which `counter` can tell.

    The arrays broadcast. Places are those of the turn that `after` runs in: the turn before is
    at places <= 0.
    """

    counter: int
    turns_back: int
    after: Ints
    worker: Ints
    place: Ints


@dataclass(frozen=True, slots=True)
class _Round:
    """Tasks of one counter, each on a worker of its own, and what they need, latest first."""

    counter: int
    tasks: Ints
    needs: tuple[_Need, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """For each worker, the place its queue is known to have reached, in places of one turn.

    Attributes:
        ends: what each worker knows when it has done its tasks, (workers, workers).
        met: what is known once each counter is complete, (counters, workers).
        gate: what is known once the gate is passed.
    """

    ends: Ints
    met: Ints
    gate: Ints


def group_waits(
    at: Positions, signals: Ints, edges: Sequence[Edges], reuse: Sequence[Reuse], gate: int | None
) -> tuple[tuple[Wait, ...], ...]:
    """Return what each task waits for.

    `signals` are the counters that tasks raise; a counter's tasks follow one another. `gate` is
    the task that every worker awaits between turns. Two passes over one turn: the first knows
    nothing of the turn before, the second knows what the first found to be known at its end;
    both are sound, the second waits less.
    """
    members = _members(signals)
    rounds = _rounds(at, signals, members, _needs(at, signals, members, edges, reuse))
    ends = np.full((len(at.lengths),) * 2, UNKNOWN, np.int64)
    reach = np.stack([_reach(at, m) for m in members]) if members else ends[:0]
    known = _Known(ends, reach, _reach(at, np.array([] if gate is None else [gate], np.int64)))
    kept: list[tuple[int, int, Ints]] = []
    for _ in range(2):
        kept, known = _pass(at, rounds, known, gate)
    return _tuples(kept, [len(m) for m in members], len(signals))


def _members(signals: Ints) -> list[Ints]:
    assert (np.diff(signals) >= 0).all(), "a counter's tasks must follow one another"
    bounds = np.flatnonzero(np.diff(signals, prepend=-1, append=-1))
    return [np.arange(a, b) for a, b in pairwise(bounds.tolist())]


def _reach(at: Positions, tasks: Ints) -> Ints:
    """How far each worker's queue has come when these tasks are done."""
    reach = np.full(len(at.lengths), UNKNOWN, np.int64)
    np.maximum.at(reach, at.worker[tasks], at.place[tasks])
    return reach


def _needs(
    at: Positions,
    signals: Ints,
    members: Sequence[Ints],
    edges: Sequence[Edges],
    reuse: Sequence[Reuse],
) -> list[list[_Need]]:
    """For each counter what its tasks need."""
    needs: list[list[_Need]] = [[] for _ in members]
    for edge in edges:
        worker = at.worker[edge.before]
        place = at.place[edge.before] - edge.turns_back * at.lengths[worker]
        need = _Need(int(signals[edge.before[0]]), edge.turns_back, edge.after, worker, place)
        needs[signals[edge.after[0]]].append(need)
    for item in reuse:
        for after in _by_counter(signals, item.writers):
            for before in _by_counter(signals, item.before):
                need = _all_of(at, signals, after, before, item.turns_back)
                needs[signals[after[0]]].append(need)
    for counter, tasks in enumerate(members):
        if len(tasks) > 1:
            # Nobody may raise a counter for a later turn before the earlier one is complete.
            needs[counter].append(_all_of(at, signals, tasks, tasks, 1))
    return needs


def _by_counter(signals: Ints, tasks: Ints) -> Iterator[Ints]:
    """Cut increasing tasks into those of one counter each."""
    cuts = np.flatnonzero(np.diff(signals[tasks])) + 1
    return (part for part in np.split(tasks, cuts) if len(part))


def _all_of(at: Positions, signals: Ints, after: Ints, before: Ints, turns_back: int) -> _Need:
    """All of `after` come after all of `before`, tasks of one counter."""
    reach = _reach(at, before)
    worker = np.flatnonzero(reach > 0)
    place = reach[worker] - turns_back * at.lengths[worker]
    return _Need(int(signals[before[0]]), turns_back, after[:, None], worker, place)


def _rounds(
    at: Positions, signals: Ints, members: Sequence[Ints], needs: Sequence[Sequence[_Need]]
) -> list[_Round]:
    """Cut each counter's tasks into rounds, in which they can't tell one another anything."""
    number = np.zeros(len(signals), np.int64)
    latest = [int(at.place[tasks].max()) for tasks in members]
    result = []
    for counter, tasks in enumerate(members):
        number[tasks] = _occurrence(at.worker[tasks])
        count = int(number[tasks].max()) + 1
        # The latest needs first: they imply the most.
        ordered = sorted(
            needs[counter], key=lambda n: (n.turns_back, -latest[n.counter], n.counter)
        )
        parts = [_split(need, number, count) for need in ordered]
        for i in range(count):
            here = tuple(part[i] for part in parts if len(part[i].after))
            result.append(_Round(counter, tasks[number[tasks] == i], here))
    return result


def _occurrence(values: Ints) -> Ints:
    """For each value, how many equal ones come before it."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    result = np.empty_like(values)
    sizes = np.diff(starts, append=len(values))
    result[order] = np.arange(len(values)) - np.repeat(starts, sizes)
    return result


def _split(need: _Need, number: Ints, count: int) -> list[_Need]:
    """The need of the tasks of each round."""
    if count == 1:
        return [need]
    rounds = number[need.after].ravel()
    order = np.argsort(rounds, kind="stable")
    cuts = np.searchsorted(rounds[order], np.arange(1, count))
    parts = []
    for chosen in np.split(order, cuts):
        is_product = need.after.ndim > 1
        worker, place = (a if is_product else a[chosen] for a in (need.worker, need.place))
        parts.append(_Need(need.counter, need.turns_back, need.after[chosen], worker, place))
    return parts


def _pass(
    at: Positions, rounds: Sequence[_Round], before: _Known, gate: int | None
) -> tuple[list[tuple[int, int, Ints]], _Known]:
    """Walk one turn; return the waits kept, as (counter, turns back, tasks), and what is known.

    In a round a worker runs one task at most: its row of `current` is what that task knows.
    """
    current = _turn_start(at, before, gate)
    met = np.full_like(before.met, UNKNOWN)
    decision = before.gate
    met_by_turn = (met, before.met - at.lengths)
    kept = []
    for item in rounds:
        runner = at.worker[item.tasks]
        for need in item.needs:
            rows = at.worker[need.after]
            is_unmet = current[rows, need.worker] < need.place
            if not is_unmet.any():
                continue
            is_waiting = np.zeros(len(current), np.bool_)
            is_waiting[np.broadcast_to(rows, is_unmet.shape)[is_unmet]] = True
            learned = met_by_turn[need.turns_back][need.counter]
            current[is_waiting] = np.maximum(current[is_waiting], learned)
            kept.append((need.counter, need.turns_back, item.tasks[is_waiting[runner]]))
        current[runner, runner] = at.place[item.tasks]
        met[item.counter] = np.maximum(met[item.counter], current[runner].max(axis=0))
        if gate is not None and gate in item.tasks:
            decision = current[at.worker[gate]].copy()
    return kept, _Known(current, met, decision)


def _turn_start(at: Positions, before: _Known, gate: int | None) -> Ints:
    known = np.where((at.lengths > 0)[:, None], before.ends - at.lengths, UNKNOWN)
    if gate is not None:
        known = np.maximum(known, before.gate - at.lengths)
    own = np.arange(len(known))
    known[own, own] = np.maximum(known[own, own], 0)
    return known


def _tuples(
    kept: Sequence[tuple[int, int, Ints]], sizes: Sequence[int], task_count: int
) -> tuple[tuple[Wait, ...], ...]:
    """For each task its waits by counter; equal ones are one object."""
    keys: list[list[tuple[int, int]]] = [[] for _ in range(task_count)]
    for counter, turns_back, tasks in kept:
        for task in tasks.tolist():
            keys[task].append((counter, turns_back))
    waits = {key: Wait(key[0], sizes[key[0]], key[1]) for key in {k for ks in keys for k in ks}}
    known: dict[tuple[tuple[int, int], ...], tuple[Wait, ...]] = {}
    result = []
    for some in keys:
        ordered = tuple(sorted(some))
        if ordered not in known:
            known[ordered] = tuple(waits[key] for key in ordered)
        result.append(known[ordered])
    return tuple(result)
