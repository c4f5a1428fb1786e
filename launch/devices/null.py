"""Simulate a plan without data: time comes from the target's cost model."""

from collections.abc import Callable
from pathlib import Path

from ark_dist.core.plan import Method, Plan, Wait
from ark_dist.launch.machine import Command, Machine, in_task_order
from ark_dist.launch.memory import Arenas, allocate
from ark_dist.scheduler.sync import positions


class NullDevice:
    """Counts turns and seconds; tensors keep whatever the host wrote."""

    def __init__(self, plan: Plan) -> None:
        """Take any plan, whatever target it was made for."""
        self.plan = plan
        self._machine = Machine(plan, self._body, in_task_order)
        self._pending: list[Command] = []
        # By method, task and parity of the turn: waits look back one turn at most.
        self._finish_s: dict[tuple[str, int, int], float] = {}
        self._free_s = [0.0] * plan.target.worker_count
        self._worker = {m.name: positions(len(m.tasks), m.queues).worker for m in plan.methods}
        self._members: dict[tuple[str, int], list[int]] = {}
        for method in plan.methods:
            for task in method.tasks:
                self._members.setdefault((method.name, task.group), []).append(task.id)

    @property
    def simulated_s(self) -> float:
        """Time at which the last worker is through, in seconds since the start."""
        return max(self._free_s, default=0.0)

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """There is nothing to compile."""

    def allocate(self) -> Arenas:
        """Make the program's memory in that of this process."""
        return allocate(self.plan, is_packed=False)

    def start(self, arenas: Arenas) -> None:
        """Set the clock to zero."""
        self._free_s = [0.0] * self.plan.target.worker_count
        self._finish_s = {}

    def post(self, command: Command) -> None:
        """Remember the command; the simulation is done by `wait`."""
        self._pending.append(command)

    def wait(self, timeout_s: float) -> list[int]:
        """Simulate all that was posted."""
        pending, self._pending = self._pending, []
        results = []
        for command in pending:
            results.append(self._machine.run(command))
            # Commands join all workers.
            self._free_s = [self.simulated_s] * len(self._free_s)
        return results

    def abort(self) -> None:
        """There is no kernel that runs by itself."""

    def leave(self) -> None:
        """There are no other ranks."""

    def stop(self) -> None:
        """Forget what was not run."""
        self._pending = []

    def _body(self, method: Method, task_id: int, iteration: int, command: Command) -> bool:
        target = self.plan.target
        worker = self._worker[method.name][task_id]
        start = self._free_s[worker]
        for wait in method.waits[task_id]:
            # A command joins all workers: nothing of it waits for turns before it.
            if wait.turns_back <= iteration:
                turn = iteration - wait.turns_back
                start = max(start, self._signalled_s(method, wait, turn))
        end = start + target.seconds(method.tasks[task_id].cost)
        self._free_s[worker] = self._finish_s[method.name, task_id, iteration % 2] = end
        return False

    def _signalled_s(self, method: Method, wait: Wait, turn: int) -> float:
        counter = method.counters[wait.counter]
        if counter.kind == "clock":
            tasks = list(method.queues[counter.owner][wait.threshold - 1 : wait.threshold])
        else:
            tasks = self._members[method.name, counter.owner]
        times = (self._finish_s.get((method.name, task, turn % 2), 0.0) for task in tasks)
        return max(times, default=0.0) + self.plan.target.hop_s
