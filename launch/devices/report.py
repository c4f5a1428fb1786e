"""Say in words why a kernel ended: which task failed, who waits for what."""

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.message import flag_text
from ark_dist.core.op import OPS
from ark_dist.core.plan import Method, Plan, own_flags

DECISION = 0xFFFFFFFF
PHASES = {
    abi.IDLE: "is idle",
    abi.WAITING: "waits in",
    abi.COMPUTING: "computes",
    abi.EXITED: "has left, last at",
    abi.JOINING: "waits for the command before",
}

Status = npt.NDArray[np.void]


def task_text(plan: Plan, method: Method, task_id: int) -> str:
    """A task by number, operators and the names they write."""
    last = method.groups[method.tasks[task_id].group].nodes[-1]
    return (
        f"task {task_id} ({task_ops(method, task_id)} {method.nodes[last].name!r}) "
        f"of method {method.name!r}"
    )


def task_ops(method: Method, task_id: int) -> str:
    """The operators of a task, such as `matmul+add`."""
    group = method.groups[method.tasks[task_id].group]
    return "+".join(method.nodes[n].op for n in group.nodes)


def failure_text(plan: Plan, failure: np.void) -> str:
    """The task that met a bad value."""
    method = plan.methods[int(failure["method"])]
    task_id = int(failure["task"])
    what = _failure(method, task_id)
    return (
        f"rank {plan.rank}, worker {int(failure['worker'])}: "
        f"{task_text(plan, method, task_id)}, iteration {int(failure['iteration'])}: "
        + what.format(value=int(failure["value"]), limit=int(failure["limit"]))
    )


def _failure(method: Method, task_id: int) -> str:
    """What a bad value means to the one operator of a task that can meet any."""
    group = method.groups[method.tasks[task_id].group]
    kernels = [OPS[method.nodes[n].op].kernel for n in group.nodes]
    texts = [kernel.failure for kernel in kernels if kernel is not None and kernel.failure]
    return texts[0] if texts else "value {value} is outside its limit {limit}"


def stall_text(plan: Plan, statuses: Status, *, limit_s: float | None = None) -> str:
    """What every worker is doing: the stalled ones first, those that wait for others' work last."""

    def place(worker: int) -> tuple[bool, bool]:
        status = statuses[worker]
        return int(status["phase"]) == abi.JOINING, not int(status["is_stalled"])

    lines = [_status_text(plan, w, statuses[w]) for w in sorted(range(len(statuses)), key=place)]
    limit = "" if limit_s is None else f"no progress for {limit_s:g} s: "
    return f"rank {plan.rank}: {limit}" + "; ".join(lines)


def waiting_text(plan: Plan, statuses: Status) -> str:
    """What the workers that wait wait for; "" if none does."""
    waits: dict[str, None] = {}
    for status in statuses:
        if int(status["phase"]) == abi.WAITING:
            method = plan.methods[int(status["method"])]
            what = _counter_text(plan, method, int(status["counter"]))
            waits[f"{what} in turn {int(status['turn'])}"] = None
    return f"rank {plan.rank} waits for {', '.join(waits)}" if waits else ""


def _status_text(plan: Plan, worker: int, status: np.void) -> str:
    method = plan.methods[int(status["method"])]
    phase = int(status["phase"])
    text = f"worker {worker} {PHASES.get(phase, '?')}"
    if method.queues[worker] and phase not in (abi.IDLE, abi.JOINING):
        text += f" {task_text(plan, method, int(status['task']))}, turn {int(status['turn'])}"
    is_stalled = int(status["is_stalled"]) and phase != abi.JOINING
    if is_stalled or phase == abi.WAITING:
        text += f", {_counter_text(plan, method, int(status['counter']))}: "
        text += f"have {int(status['have'])}, want {int(status['want'])}"
    return text


def _counter_text(plan: Plan, method: Method, index: int) -> str:
    if index == DECISION:
        return "the decision of an earlier turn"
    first = 0
    for other in plan.methods:
        if other is method:
            break
        first += len(other.counters) + len(own_flags(other))
    if index - first >= len(method.counters):
        return flag_text(own_flags(method)[index - first - len(method.counters)])
    counter = method.counters[index - first]
    owner = "worker" if counter.kind == "clock" else "group"
    return f"counter {counter.id} ({counter.kind} of {owner} {counter.owner})"
