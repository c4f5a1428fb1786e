"""Give every task a worker: one static queue each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from ark_dist.core.target import Target
from ark_dist.core.task import Task
from ark_dist.scheduler.deps import Edges, Ints, by_successor

Queues = tuple[tuple[int, ...], ...]
Policy = Callable[[Sequence[Task], Sequence[Edges], Target], Queues]
Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Positions:
    """Where tasks stand: worker and 1-based place in its queue, and queue lengths."""

    worker: Ints
    place: Ints
    lengths: Ints


@dataclass(frozen=True, slots=True)
class _Ready:
    """When a task could start: at `elsewhere`, but on worker `near` already at `here`.

    `near` ran the dependency that finishes last; -1 is nobody.
    """

    elsewhere: float
    near: int
    here: float


def earliest_finish(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
    """Put each task, in linear order, on the worker that finishes it first.

    A dependency on another worker costs `target.hop_s`. Among equals the worker is taken
    that the tile's place in its group points at, so that equal tiles keep their worker.
    """
    workers = target.worker_count
    if workers == 1:
        return (tuple(range(len(tasks))),)
    before, starts = by_successor(len(tasks), edges)
    preferred = _preferred(tasks, workers)
    finish = np.zeros(len(tasks))
    owner = np.zeros(len(tasks), np.int64)
    free = np.zeros(workers)
    queues: list[list[int]] = [[] for _ in range(workers)]
    for first, last in _independent_runs(before, starts):
        ready = _ready(before, starts[first : last + 1], finish, owner, target.hop_s)
        for task, when in zip(tasks[first:last], ready, strict=True):
            choice, start = _earliest(free, when, preferred[task.id])
            owner[task.id] = choice
            finish[task.id] = free[choice] = start + target.seconds(task.cost)
            queues[choice].append(task.id)
    return tuple(tuple(queue) for queue in queues)


def _independent_runs(before: Ints, starts: Ints) -> Iterator[tuple[int, int]]:
    """Cut the linear order into runs of tasks of which none comes after another one."""
    latest = np.full(len(starts) - 1, -1, np.int64)
    has_any = np.diff(starts) > 0
    if len(before):
        latest[has_any] = np.maximum.reduceat(before, starts[:-1][has_any])
    first = 0
    for task, dependency in enumerate(latest.tolist()):
        if dependency >= first:
            yield first, task
            first = task
    if first < len(latest):
        yield first, len(latest)


def _ready(
    before: Ints, starts: Ints, finish: Seconds, owner: Ints, hop_s: float
) -> Iterator[_Ready]:
    """For each task of a run, when its dependencies are done.

    Away from the worker that ends last, that one's hop decides, whatever else is near.
    """
    counts = np.diff(starts)
    needed = before[starts[0] : starts[-1]]
    if not len(needed):
        return repeat(_Ready(0.0, -1, 0.0), len(counts))
    segments = (starts[:-1] - starts[0])[counts > 0]
    sizes = counts[counts > 0]
    times, owners = finish[needed], owner[needed]
    last = np.maximum.reduceat(times, segments)
    near = np.maximum.reduceat(np.where(times == np.repeat(last, sizes), owners, -1), segments)
    away = np.where(owners == np.repeat(near, sizes), -np.inf, times)
    here = np.maximum(last, np.maximum.reduceat(away, segments) + hop_s)
    found = map(_Ready, (last + hop_s).tolist(), near.tolist(), here.tolist())
    return (next(found) if count else _Ready(0.0, -1, 0.0) for count in counts.tolist())


def _earliest(free: Seconds, ready: _Ready, preferred: int) -> tuple[int, float]:
    """The worker that can start first, the preferred one among equals, and when."""
    soonest = ready.elsewhere if ready.near < 0 else min(ready.elsewhere, ready.here)
    start = max(float(free[preferred]), ready.here if preferred == ready.near else ready.elsewhere)
    if start <= soonest:
        return preferred, start
    starts = np.maximum(free, ready.elsewhere)
    if ready.near >= 0:
        starts[ready.near] = max(free[ready.near], ready.here)
    choice = int(starts.argmin())
    return (preferred, start) if start <= starts[choice] else (choice, float(starts[choice]))


def _preferred(tasks: Sequence[Task], workers: int) -> list[int]:
    sizes: dict[int, int] = {}
    for task in tasks:
        sizes[task.group] = sizes.get(task.group, 0) + 1
    seen: dict[int, int] = {}
    result = []
    for task in tasks:
        position = seen.get(task.group, 0)
        seen[task.group] = position + 1
        result.append(position * workers // max(sizes[task.group], 1))
    return result
