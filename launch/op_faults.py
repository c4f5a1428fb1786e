"""Let tests break a rank at a communication operator of its running kernel."""

from collections.abc import Callable

from ark_dist.core.message import read_flag
from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_faults
from ark_dist.launch.fault import fault_point


class OpFaults:
    """Which tasks of a plan begin a communication operator, and what happens there."""

    def __init__(self, plan: Plan, on_error: Callable[[BaseException], None]) -> None:
        """`on_error` is called with what a fault raises."""
        self._rank = plan.rank
        self._on_error = on_error
        self.is_armed = any(fault.point.startswith("op=") for fault in read_faults())
        self._ops = _first_tasks(plan) if self.is_armed else {}

    def pass_task(self, method: int, task: int) -> None:
        """Break what a test asked for, if the task begins an operator."""
        op = self._ops.get((method, task))
        if op is None:
            return
        try:
            fault_point(f"op={op}", self._rank)
        except BaseException as error:
            self._on_error(error)


def _first_tasks(plan: Plan) -> dict[tuple[int, int], str]:
    """The task of each message's first handshake, and the message's operator."""
    found: dict[tuple[int, int], str] = {}
    for number, method in enumerate(plan.methods):
        seen: set[str] = set()
        tasks = {method.groups[task.group].nodes[-1]: task.id for task in method.tasks}
        for node in method.nodes:
            for flag in (*(item.flag for item in node.raises), *node.waits):
                name = read_flag(flag)
                if name.key not in seen and node.id in tasks:
                    found[number, tasks[node.id]] = name.op
                seen.add(name.key)
    return found
