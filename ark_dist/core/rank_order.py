"""Compute what is certain to be done before each task of all ranks' plans of one method."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ark_dist.core.happens_before import TURNS
from ark_dist.core.plan import Counter, Method

Ints = npt.NDArray[np.int64]
Clock = npt.NDArray[np.int32]
# 256 MB.
MAX_CLOCK_ENTRIES = 2**26


@dataclass(frozen=True, slots=True)
class Where:
    """A task of a rank."""

    rank: int
    task: int


@dataclass(frozen=True, slots=True)
class Flags:
    """Who raises and awaits the flags of one method, each found once.

    Attributes:
        raised: for a flag and the rank that it lies on, the task that raises it.
        awaited: the same for the handshake that waits for it.
        asked: for a rank and the key of a message, the request to its host.
        groups: for a key, the ranks that take part.
    """

    raised: dict[tuple[int, str], Where] = field(default_factory=dict)
    awaited: dict[tuple[int, str], Where] = field(default_factory=dict)
    asked: dict[tuple[int, str], Where] = field(default_factory=dict)
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)


def ask_flag(key: str) -> str:
    """The flag by which a request asks its host."""
    return f"{key}.ask"


def done_flag(key: str) -> str:
    """The flag that the host raises when a request's data is there."""
    return f"{key}.done"


class RankOrder:
    """Two turns of one method on all ranks as vector clocks over all their workers.

    Turn 0 is a first turn: nothing was done before it. A worker's tasks are numbered from 1
    through both turns.
    """

    def __init__(self, methods: Sequence[Method], flags: Flags) -> None:
        """Take the method as each rank has it."""
        self._methods = methods
        self._flags = flags
        workers = np.cumsum([0, *(len(m.queues) for m in methods)])
        self.workers = [slice(a, b) for a, b in pairwise(workers.tolist())]
        sizes = [len(m.tasks) + len(m.counters) for m in methods]
        starts: list[int] = np.cumsum([0, *sizes]).tolist()
        self._starts, self._per_turn = starts[:-1], starts[-1]
        self._column = np.zeros(self._per_turn, np.int64)
        self._place = np.zeros(self._per_turn, np.int64)
        self._lengths = np.zeros(workers[-1], np.int64)
        for rank, method in enumerate(methods):
            for index, queue in enumerate(method.queues):
                rows = self._starts[rank] + np.array(queue, np.int64)
                self._column[rows] = workers[rank] + index
                self._place[rows] = np.arange(1, len(queue) + 1)
                self._lengths[workers[rank] + index] = len(queue)
        self._before: list[list[int]] = [[] for _ in range(TURNS * self._per_turn)]
        # What has to be done too, but may be seen to be done without what came before it.
        self._unseen: list[list[int]] = [[] for _ in range(TURNS * self._per_turn)]
        for turn in range(TURNS):
            for rank, method in enumerate(methods):
                self._add_tasks(rank, method, turn)
            self._add_flags(turn)
        self._done: Clock = np.zeros((0, 0), np.int32)

    @property
    def entries(self) -> int:
        """How many numbers the clocks have."""
        return TURNS * self._per_turn * len(self._lengths)

    def row(self, where: Where, turn: int) -> int:
        """The number of a task in a turn."""
        return turn * self._per_turn + self._starts[where.rank] + where.task

    def _add_tasks(self, rank: int, method: Method, turn: int) -> None:
        count = len(method.tasks)
        for counter in method.counters if self._is_grouped(method) else ():
            total = self._before[self.row(Where(rank, count + counter.id), turn)]
            total += [
                self.row(Where(rank, task), turn)
                for task, signal in enumerate(method.signals)
                if signal == counter.id
            ]
        for queue in method.queues:
            for place, task in enumerate(queue):
                row = self.row(Where(rank, task), turn)
                if place:
                    self._before[row].append(self.row(Where(rank, queue[place - 1]), turn))
                elif turn:
                    self._before[row].append(self.row(Where(rank, queue[-1]), turn - 1))
                stop, decided = method.stop_task, turn - method.depth
                if not place and stop is not None and decided >= 0:
                    self._before[row].append(self.row(Where(rank, stop), decided))
                self._add_waits(rank, method, task, turn)

    @staticmethod
    def _is_grouped(method: Method) -> bool:
        return any(counter.kind == "group" for counter in method.counters)

    def _add_waits(self, rank: int, method: Method, task: int, turn: int) -> None:
        row = self.row(Where(rank, task), turn)
        for wait in method.waits[task]:
            then = turn - wait.turns_back
            if then < 0:
                continue
            counter: Counter = method.counters[wait.counter]
            if counter.kind == "clock":
                awaited = method.queues[counter.owner][wait.threshold - 1]
                self._before[row].append(self.row(Where(rank, awaited), then))
                continue
            total = self.row(Where(rank, len(method.tasks) + counter.id), then)
            # Of a part of a group's tasks nobody knows which they are.
            is_whole = wait.threshold == counter.signals
            (self._before if is_whole else self._unseen)[row].append(total)

    def _add_flags(self, turn: int) -> None:
        flags = self._flags
        for (rank, flag), waiter in flags.awaited.items():
            row = self.row(waiter, turn)
            if (rank, flag) in flags.raised:
                self._before[row].append(self.row(flags.raised[rank, flag], turn))
        for (rank, key), request in flags.asked.items():
            row = self.row(flags.awaited[rank, done_flag(key)], turn)
            self._before[row].append(self.row(request, turn))
            # The host is done when all have asked theirs, which tells nothing about memory.
            self._unseen[row] += [
                self.row(flags.asked[other, key], turn) for other in flags.groups[key]
            ]

    def solve(self) -> tuple[tuple[Where, int], ...]:
        """Compute the clocks; return tasks and turns that wait for one another, or nothing."""
        count = len(self._before)
        self._done = np.zeros((count, len(self._lengths)), np.int32)
        after: list[list[int]] = [[] for _ in range(count)]
        missing = [0] * count
        for row in range(count):
            for before in (*self._before[row], *self._unseen[row]):
                after[before].append(row)
                missing[row] += 1
        ready = [row for row in range(count) if not missing[row]]
        for row in ready:  # grows
            self._fill(row)
            for later in after[row]:
                missing[later] -= 1
                if not missing[later]:
                    ready.append(later)
        return () if len(ready) == count else tuple(self._circle(missing))

    def _fill(self, row: int) -> None:
        clock = self._done[row]
        if self._before[row]:
            clock[:] = self._done[self._before[row]].max(axis=0)
        turn, here = divmod(row, self._per_turn)
        if self._place[here]:
            column = self._column[here]
            clock[column] = self._place[here] + turn * self._lengths[column]

    def _circle(self, missing: Sequence[int]) -> Iterator[tuple[Where, int]]:
        """Tasks of which each waits for the next, and the last for the first."""
        row = next(row for row, count in enumerate(missing) if count)
        path: dict[int, None] = {}
        while row not in path:
            path[row] = None
            row = next(r for r in (*self._before[row], *self._unseen[row]) if missing[r])
        rows = list(path)
        for found in rows[rows.index(row) :]:
            turn, here = divmod(found, self._per_turn)
            rank = int(np.searchsorted(self._starts, here, side="right")) - 1
            task = here - self._starts[rank]
            if task < len(self._methods[rank].tasks):
                yield Where(rank, task), turn

    # What the clocks tell.

    def is_before(self, first: Ints, second: Ints, turn: int) -> npt.NDArray[np.bool_]:
        """For each pair of rows of turn 0: is the first done before the second of `turn`?"""
        known = self._done[turn * self._per_turn + second, self._column[first]]
        return np.asarray(known >= self._place[first])

    def is_inside_turn_of(self, rank: int, begin: int, end: int) -> tuple[bool, bool]:
        """Whether the rank's own turn has begun before row `begin`, and ends after row `end`."""
        here = self.workers[rank]
        has_begun = bool(self._done[begin, here].any())
        last = [
            self.row(Where(rank, queue[-1]), 0) for queue in self._methods[rank].queues if queue
        ]
        is_awaited = bool(last) and bool(
            self._done[last, self._column[end]].max() >= self._place[end]
        )
        return has_begun, is_awaited
