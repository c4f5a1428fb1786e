"""Walk a plan's queues step by step, as a kernel's workers would, in any order one likes."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ark_dist.core.errors import StallError, TaskError
from ark_dist.core.graph import Node, Raise
from ark_dist.core.message import flag_text
from ark_dist.core.op import AttrValue
from ark_dist.core.plan import Method, Plan

Scalars = Mapping[str, int | float | bool]
# Given the workers that can take a step and their next tasks, the one that does.
Chooser = Callable[[Sequence[tuple[int, int]]], int]


@dataclass(frozen=True, slots=True)
class Command:
    """What the host asks for: run a method some iterations, with scalars for iteration 0."""

    method: str
    iterations: int
    epoch: int
    scalars: tuple[tuple[str, AttrValue], ...] = ()


class Flags(Protocol):
    """The flags through which ranks tell one another how far they are."""

    def value(self, flag: str) -> int:
        """How many turns of its work are done, as far as this rank's flag says."""

    def set(self, item: Raise, value: int) -> None:
        """Raise another rank's flag, or one for this rank's host."""

    def pause(self, reason: str) -> None:
        """Wait a little for other ranks; raises when there is no hope."""


class NoFlags:
    """The flags of a program that one rank runs alone: it has none."""

    def value(self, flag: str) -> int:
        """There are none."""
        raise AssertionError(f"flag {flag!r} of a program without other ranks")

    def set(self, item: Raise, value: int) -> None:
        """There are none."""
        raise AssertionError(f"flag {item!r} of a program without other ranks")

    def pause(self, reason: str) -> None:
        """Nobody else will change anything."""
        raise StallError(reason)


@dataclass(slots=True)
class MethodState:
    """Counters and turns of one method; both only grow."""

    counters: list[int]
    turn: int = 0
    last_turn: int | None = None
    decided: int = 0
    # The earliest turn with a task that failed; it may turn out not to count.
    failure: tuple[int, TaskError] | None = None


@dataclass(slots=True)
class Worker:
    """Where one worker stands in the current command."""

    turn: int
    position: int = 0


@dataclass(slots=True)
class Machine:
    """Runs commands one after the other; every command ends with all workers joined.

    `body(method, task_id, iteration, command)` computes one task and returns whether a stop
    task wants to end the run. `choose` picks who steps next: any choice must give the same
    result, that is what the waits are for.
    """

    plan: Plan
    body: Callable[[Method, int, int, Command], bool]
    choose: Chooser
    flags: Flags = field(default_factory=NoFlags)
    states: dict[str, MethodState] = field(default_factory=dict)
    closed_epoch: int = -1

    def run(self, command: Command) -> int:
        """Execute one command and return how many iterations it did."""
        steps = self.walk(command)
        while True:
            try:
                blocked = next(steps)
            except StopIteration as end:
                return int(end.value)
            if blocked:
                self.flags.pause(blocked)

    def walk(self, command: Command) -> Generator[str, None, int]:
        """Execute one command step by step.

        Yields "" after a task, or says why none can run before other ranks go on; returns how
        many iterations were done.
        """
        if command.epoch <= self.closed_epoch:
            return 0
        method = self.plan.method(command.method)
        state = self.states.setdefault(method.name, MethodState([0] * len(method.counters)))
        first, end = state.turn, state.turn + command.iterations
        workers = [Worker(first) for _ in method.queues]
        while True:
            ready = []
            is_done = True
            for index, worker in enumerate(workers):
                task = self._next(method, state, worker, index, first, end)
                if task is None:
                    continue
                is_done = False
                if task >= 0:
                    ready.append((index, task))
            if is_done:
                break
            if not ready:
                yield self._stall_text(method, state, workers, end)
                continue
            self._step(method, state, workers, self.choose(ready), command, first)
            yield ""
        return self._finish(method, state, command, first, end)

    def _next(
        self, method: Method, state: MethodState, worker: Worker, index: int, first: int, end: int
    ) -> int | None:
        """The task the worker could run now; -1 if it has to wait, None if it is through."""
        queue = method.queues[index]
        while worker.turn < end and not queue:
            if self._gate(method, state, worker.turn, first) is not True:
                break
            worker.turn += 1
        if worker.turn >= end:
            return None
        if worker.position == 0:
            gate = self._gate(method, state, worker.turn, first)
            if gate is not True:
                return gate
        task = queue[worker.position]
        for wait in method.waits[task]:
            counter = method.counters[wait.counter]
            need = (worker.turn - wait.turns_back) * counter.signals + wait.threshold
            if state.counters[wait.counter] < need:
                return -1
        waits = last_node(method, task).waits
        return task if all(self.flags.value(flag) > worker.turn for flag in waits) else -1

    def _gate(self, method: Method, state: MethodState, turn: int, first: int) -> bool | int | None:
        """True if the turn may start, -1 if its decision is awaited, None if it never will."""
        if method.stop_task is None or turn - method.depth < first:
            return True
        if state.decided <= turn - method.depth:
            return -1
        is_over = state.last_turn is not None and state.last_turn <= turn - method.depth
        return None if is_over else True

    def _step(
        self,
        method: Method,
        state: MethodState,
        workers: Sequence[Worker],
        index: int,
        command: Command,
        first: int,
    ) -> None:
        worker = workers[index]
        task = method.queues[index][worker.position]
        is_live = state.last_turn is None or worker.turn <= state.last_turn
        if is_live:
            wants_stop = self._run_body(method, state, task, worker.turn, command, first)
            if task == method.stop_task:
                if wants_stop:
                    state.last_turn = worker.turn
                state.decided = worker.turn + 1
            _raise_failure(method, state, first)
        for item in last_node(method, task).raises:
            self.flags.set(item, worker.turn + 1)
        state.counters[method.signals[task]] += 1
        worker.position += 1
        if worker.position == len(method.queues[index]):
            worker.position = 0
            worker.turn += 1

    def _run_body(
        self,
        method: Method,
        state: MethodState,
        task: int,
        turn: int,
        command: Command,
        first: int,
    ) -> bool:
        try:
            return self.body(method, task, turn - first, command)
        except TaskError as error:
            if state.failure is None or turn < state.failure[0]:
                state.failure = turn, error
            return False

    def _finish(
        self, method: Method, state: MethodState, command: Command, first: int, end: int
    ) -> int:
        if state.last_turn is None:
            state.turn = end
            return command.iterations
        done = state.last_turn - first + 1
        state.turn = min(end, state.last_turn + method.depth)
        state.last_turn = None
        state.failure = None
        self.closed_epoch = command.epoch
        return done

    def _stall_text(
        self, method: Method, state: MethodState, workers: Sequence[Worker], end: int
    ) -> str:
        for index, worker in enumerate(workers):
            queue = method.queues[index]
            if not queue or worker.turn >= end:
                continue
            task = queue[worker.position]
            for wait in method.waits[task]:
                counter = method.counters[wait.counter]
                need = (worker.turn - wait.turns_back) * counter.signals + wait.threshold
                have = state.counters[wait.counter]
                if have < need:
                    ops = "+".join(
                        method.nodes[n].op for n in method.groups[method.tasks[task].group].nodes
                    )
                    return (
                        f"rank {self.plan.rank}, worker {index}: task {task} ({ops}) of method "
                        f"{method.name!r} waits for counter {wait.counter} ({counter.kind} of "
                        f"{counter.owner}): have {have}, want {need}; no worker can go on"
                    )
            for flag in last_node(method, task).waits:
                have = self.flags.value(flag)
                if have <= worker.turn:
                    return (
                        f"rank {self.plan.rank}, worker {index}: task {task} of method "
                        f"{method.name!r} waits for {flag_text(flag)}: have {have}, want "
                        f"{worker.turn + 1}"
                    )
        return f"rank {self.plan.rank}: no worker of method {method.name!r} can go on"


def last_node(method: Method, task: int) -> Node:
    """The node that a task's group ends in."""
    return method.nodes[method.groups[method.tasks[task].group].nodes[-1]]


def _raise_failure(method: Method, state: MethodState, first: int) -> None:
    """Raise a pending failure once no earlier turn can still end the run."""
    if state.failure is None:
        return
    turn, error = state.failure
    is_reached = method.stop_task is None or turn == first or state.decided >= turn
    if is_reached and (state.last_turn is None or turn <= state.last_turn):
        raise error


def in_task_order(ready: Sequence[tuple[int, int]]) -> int:
    """Step the worker whose task comes first in the linear order."""
    return min(ready, key=lambda item: item[1])[0]
