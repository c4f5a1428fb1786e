"""Give every task a worker: one static queue each."""

from collections.abc import Callable, Sequence

import numpy as np

from ark_dist.core.target import Target
from ark_dist.core.task import Task
from ark_dist.scheduler.deps import Edges, predecessors

Queues = tuple[tuple[int, ...], ...]
Policy = Callable[[Sequence[Task], Sequence[Edges], Target], Queues]


def earliest_finish(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
    """Put each task, in linear order, on the worker that finishes it first.

    A dependency on another worker costs `target.hop_s`. Among equals the worker is taken
    that the tile's place in its group points at, so that equal tiles keep their worker.
    """
    workers = target.worker_count
    if workers == 1:
        return (tuple(range(len(tasks))),)
    before = predecessors(len(tasks), edges)
    preferred = _preferred(tasks, workers)
    finish = np.zeros(len(tasks))
    owner = np.zeros(len(tasks), np.int64)
    free = np.zeros(workers)
    queues: list[list[int]] = [[] for _ in range(workers)]
    for task in tasks:
        ready = np.zeros(workers)
        needed = before[task.id]
        if len(needed):
            times = finish[needed]
            ready += times.max() + target.hop_s
            # A worker with dependencies of its own waits less for those.
            for worker in np.unique(owner[needed]) if workers <= len(needed) * 4 else owner[needed]:
                here = owner[needed] == worker
                local = times[here].max()
                remote = times[~here].max(initial=-np.inf) + target.hop_s
                ready[worker] = max(local, remote)
        start = np.maximum(free, ready)
        best = start.min()
        choice = preferred[task.id]
        if start[choice] > best:
            choice = int(start.argmin())
        owner[task.id] = choice
        finish[task.id] = free[choice] = start[choice] + target.seconds(task.cost)
        queues[choice].append(task.id)
    return tuple(tuple(queue) for queue in queues)


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
