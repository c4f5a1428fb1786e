"""Compute what is certain to be done before each task of a plan starts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core.plan import Method, Wait

# Two turns tell all: waits look back one turn at most, and any turn is like turn 1.
TURNS = 2

Ints = npt.NDArray[np.int64]
Clock = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class HappensBefore:
    """Two turns of one method as vector clocks.

    A worker's tasks are numbered from 1 through both turns, in the order it runs them.
    Turn 0 is a first turn: nothing was done before it.

    Attributes:
        worker: for each task, who runs it.
        place: for each task, its number in turn 0.
        lengths: for each worker, its tasks per turn.
        done: for turn u and task t, row u * tasks + t: how many of each worker's tasks are
            certain to be done when this one is.
        group_reach: for each group and worker, the highest place of the group's tasks.
        group_done: for turn u and group g, row u * groups + g: what is certain to be done
            when any task of the group is; high for groups without tasks.
    """

    worker: Ints
    place: Ints
    lengths: Ints
    done: Clock
    group_reach: Clock
    group_done: Clock

    @property
    def task_count(self) -> int:
        """Tasks per turn."""
        return len(self.worker)

    def rows(self, tasks: Ints, turn: int) -> Clock:
        """The clocks of these tasks of one turn."""
        return self.done[turn * self.task_count + tasks]

    def is_before(self, first: Ints, second: Ints, turn: int) -> npt.NDArray[np.bool_]:
        """For each pair: is `first` of turn 0 done before `second` of `turn` starts?

        Both index arrays broadcast. A task of the same turn counts as before itself.
        """
        known = self.done[turn * self.task_count + second, self.worker[first]]
        return np.asarray(known >= self.place[first])


def happens_before(method: Method) -> HappensBefore:
    """Compute the clocks of a method whose queues, counters and waits obey `verify_sync`."""
    worker, place, lengths = _positions(method)
    done = _Walk(method, worker, place, lengths).done
    groups = np.array([task.group for task in method.tasks], np.int64)
    count, workers = len(method.groups), len(lengths)
    reach = np.zeros((count, workers), np.int32)
    np.maximum.at(reach, (groups, worker), place.astype(np.int32))
    group_done = np.full((TURNS * count, workers), np.iinfo(np.int32).max, np.int32)
    present, starts = np.unique(groups, return_index=True)
    for turn in range(TURNS if len(groups) else 0):
        part = done[turn * len(groups) : (turn + 1) * len(groups)]
        group_done[turn * count + present] = np.minimum.reduceat(part, starts, axis=0)
    return HappensBefore(worker, place, lengths, done, reach, group_done)


def _positions(method: Method) -> tuple[Ints, Ints, Ints]:
    worker = np.zeros(len(method.tasks), np.int64)
    place = np.zeros(len(method.tasks), np.int64)
    for index, queue in enumerate(method.queues):
        worker[list(queue)] = index
        place[list(queue)] = np.arange(1, len(queue) + 1)
    return worker, place, np.array([len(queue) for queue in method.queues], np.int64)


class _Walk:
    """Steps through two turns in the linear order, which every wait agrees with."""

    def __init__(self, method: Method, worker: Ints, place: Ints, lengths: Ints) -> None:
        self._method = method
        self._count = len(method.tasks)
        self._lengths = lengths
        self._worker: list[int] = worker.tolist()
        self._place: list[int] = place.tolist()
        self._members: dict[int, list[int]] = {}
        for task in method.tasks:
            self._members.setdefault(task.group, []).append(task.id)
        self._met: dict[tuple[int, int, int], Clock | None] = {}
        self.done = np.zeros((TURNS * self._count, len(lengths)), np.int32)
        for turn in range(TURNS):
            self._walk(turn)

    def _walk(self, turn: int) -> None:
        base = turn * self._count
        last: list[int | None] = [self._previous_end(w, turn) for w in range(len(self._lengths))]
        gate = self._gate(turn)
        for task, waits in enumerate(self._method.waits):
            worker = self._worker[task]
            row = self.done[base + task]
            before = last[worker]
            if before is not None:
                row[:] = self.done[before]
            if self._place[task] == 1 and gate is not None:
                np.maximum(row, self.done[gate], out=row)
            for wait in waits:
                met = self._met_by(wait, turn - wait.turns_back)
                if met is not None:
                    np.maximum(row, met, out=row)
            row[worker] = self._place[task] + turn * self._lengths[worker]
            last[worker] = base + task

    def _previous_end(self, worker: int, turn: int) -> int | None:
        queue = self._method.queues[worker]
        return (turn - 1) * self._count + queue[-1] if turn and queue else None

    def _gate(self, turn: int) -> int | None:
        """The row of the decision that a worker awaits before it starts this turn."""
        stop, decided = self._method.stop_task, turn - self._method.depth
        return decided * self._count + stop if stop is not None and decided >= 0 else None

    def _met_by(self, wait: Wait, turn: int) -> Clock | None:
        """What is done once the counter has `threshold` signals of `turn`; None is nothing."""
        if turn < 0:
            return None
        key = (wait.counter, wait.threshold, turn)
        if key not in self._met:
            self._met[key] = self._meet(wait, turn)
        return self._met[key]

    def _meet(self, wait: Wait, turn: int) -> Clock | None:
        counter = self._method.counters[wait.counter]
        if counter.kind == "clock":
            task = self._method.queues[counter.owner][wait.threshold - 1]
            row: Clock = self.done[turn * self._count + task]
            return row
        if wait.threshold < counter.signals:
            # Any of the group's tasks may be the missing ones.
            return None
        members = np.array(self._members[counter.owner])
        met: Clock = self.done[turn * self._count + members].max(axis=0)
        return met
