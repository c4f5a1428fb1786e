"""What `order` and `sync` compute, task by task and with sets: slow, and easy to believe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ark_dist.core.plan import Wait
from ark_dist.core.target import Target
from ark_dist.core.task import Task
from ark_dist.scheduler.deps import Edges, Reuse, predecessors
from ark_dist.scheduler.order import Queues
from ark_dist.scheduler.sync import make_counters

# A turn and a task of it.
Done = tuple[int, int]


def naive_queues(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
    """Put each task, in linear order, on the worker that finishes it first."""
    before = predecessors(len(tasks), edges)
    sizes = [sum(t.group == task.group for t in tasks) for task in tasks]
    first = {task.group: task.id for task in reversed(tasks)}
    free = [0.0] * target.worker_count
    queues: list[list[int]] = [[] for _ in free]
    finish: dict[int, float] = {}
    for task in tasks:
        starts = list(free)
        for worker, queue in enumerate(queues):
            for needed in before[task.id].tolist():
                hop_s = 0.0 if needed in queue else target.hop_s
                starts[worker] = max(starts[worker], finish[needed] + hop_s)
        preferred = (task.id - first[task.group]) * len(free) // sizes[task.id]
        best = min(starts)
        choice = preferred if starts[preferred] == best else starts.index(best)
        finish[task.id] = free[choice] = best + target.seconds(task.cost)
        queues[choice].append(task.id)
    return tuple(map(tuple, queues))


@dataclass(frozen=True)
class _Need:
    wait: Wait
    wanted: frozenset[int]
    told: frozenset[int]


class NaiveSync:
    """Two turns, of which the first knows nothing of the one before; waits are the second's."""

    def __init__(
        self,
        tasks: Sequence[Task],
        queues: Queues,
        edges: Sequence[Edges],
        reuse: Sequence[Reuse],
        kind: str,
        stop_task: int | None,
        depth: int,
    ) -> None:
        self.queues, self.kind = queues, kind
        self.gate = stop_task if depth == 1 else None
        self.counters, self.signals = make_counters(tasks, queues, kind)
        self.worker = {t: w for w, queue in enumerate(queues) for t in queue}
        self.place = {t: i for queue in queues for i, t in enumerate(queue, 1)}
        self.needs: list[list[_Need]] = [[] for _ in tasks]
        for turns_back in (0, 1):
            chosen = [e for e in edges if e.turns_back == turns_back]
            for task, before in enumerate(predecessors(len(tasks), chosen)):
                self._add(task, before.tolist(), turns_back)
        for item in reuse:
            for task in item.writers.tolist():
                self._add(task, item.before.tolist(), item.turns_back)
        for task in range(len(tasks)):
            if kind == "group":
                self._add(task, self._members(self.signals[task]), 1)
            if stop_task is not None and depth > 1 and task != stop_task:
                self._add(task, [stop_task] if tasks[task].effect != "none" else [], 1)
        self.known: dict[Done, set[Done]] = {}
        self.waits = [[self._run(turn, t) for t in range(len(tasks))] for turn in (0, 1)][1]

    def _members(self, counter: int) -> list[int]:
        return [t for t, signal in enumerate(self.signals) if signal == counter]

    def _add(self, task: int, before: Sequence[int], turns_back: int) -> None:
        for counter in {self.signals[b] for b in before}:
            wanted = frozenset(b for b in before if self.signals[b] == counter)
            if self.kind == "clock":
                told = frozenset([max(wanted)])
                wait = Wait(counter, self.place[max(wanted)], turns_back)
            else:
                told = frozenset(self._members(counter))
                wait = Wait(counter, len(told), turns_back)
            self.needs[task].append(_Need(wait, wanted, told))

    def _run(self, turn: int, task: int) -> tuple[Wait, ...]:
        known = self._start(turn, task)
        kept = []
        for need in sorted(self.needs[task], key=self._latest_first):
            then = turn - need.wait.turns_back
            if not {(then, t) for t in need.wanted} <= known:
                kept.append(need.wait)
                known |= {d for t in need.told for d in self._implied(then, t)}
        self.known[turn, task] = known | {(turn, task)}
        return tuple(sorted(kept, key=lambda w: (w.counter, w.turns_back)))

    def _start(self, turn: int, task: int) -> set[Done]:
        queue, place = self.queues[self.worker[task]], self.place[task]
        known = {(turn - 1, t) for t in queue}
        if place > 1:
            return known | self.known[turn, queue[place - 2]]
        known |= set(self._implied(turn - 1, queue[-1]))
        return known | (set() if self.gate is None else set(self._implied(turn - 1, self.gate)))

    def _latest_first(self, need: _Need) -> tuple[int, int, int]:
        return need.wait.turns_back, -max(self.place[t] for t in need.told), need.wait.counter

    def _implied(self, turn: int, task: int) -> Iterator[Done]:
        """All that is done once a task is."""
        queue = self.queues[self.worker[task]]
        yield from ((turn, t) for t in queue[: self.place[task]])
        yield from ((turn - 1, t) for t in queue)
        yield from self.known.get((turn, task), ())
