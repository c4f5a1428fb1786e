"""Check queues, counters and waits of a method: that they fit together and let all tasks run."""

from collections.abc import Iterator
from itertools import chain, pairwise

from ark_dist.core.plan import Counter, Method, Plan, Wait

MAX_DEPTH = 2**20


def sync_problems(plan: Plan, method: Method) -> Iterator[str]:
    """Yield the broken rules; the method's tasks are in order.

    Stops after the first group of rules that is broken: each relies on those before it.
    """
    for rules in (_queue_problems, _counter_problems, _signal_problems, _wait_problems):
        problems = list(rules(plan, method))
        yield from problems
        if problems:
            return
    yield from _stop_problems(method)


def _queue_problems(plan: Plan, method: Method) -> Iterator[str]:
    if len(method.queues) != plan.target.worker_count:
        yield f"{len(method.queues)} queues for {plan.target.worker_count} workers"
    for worker, queue in enumerate(method.queues):
        if any(a >= b for a, b in pairwise(queue)):
            yield f"worker {worker}: its tasks do not increase"
    queued = sorted(chain.from_iterable(method.queues))
    if queued != list(range(len(method.tasks))):
        odd = next((q for i, q in enumerate(queued) if q != i), len(queued))
        yield (
            f"the queues hold {len(queued)} tasks of {len(method.tasks)}; task {odd} "
            "is missing, there twice, or unknown"
        )


def _counter_problems(plan: Plan, method: Method) -> Iterator[str]:
    kind = plan.target.counters
    sizes = _tasks_per_group(method)
    if kind == "clock" and len(method.counters) != len(method.queues):
        yield f"{len(method.counters)} clocks for {len(method.queues)} workers"
        return
    owners = set()
    for position, counter in enumerate(method.counters):
        where = f"counter {position}"
        if counter.id != position:
            yield f"{where}: its id is {counter.id}"
        if counter.kind != kind:
            yield f"{where}: kind is {counter.kind!r}, the target's is {kind!r}"
            continue
        if kind == "clock" and counter.owner != position:
            yield f"{where}: belongs to worker {counter.owner}"
        elif not 0 <= counter.owner < len(sizes if kind == "group" else method.queues):
            yield f"{where}: group {counter.owner} does not exist"
        else:
            yield from _signals_problems(method, counter, sizes)
        if counter.owner in owners:
            yield f"{where}: {kind} {counter.owner} has another one"
        owners.add(counter.owner)


def _tasks_per_group(method: Method) -> list[int]:
    sizes = [0] * len(method.groups)
    for task in method.tasks:
        sizes[task.group] += 1
    return sizes


def _signals_problems(method: Method, counter: Counter, sizes: list[int]) -> Iterator[str]:
    own = len(method.queues[counter.owner]) if counter.kind == "clock" else sizes[counter.owner]
    if counter.signals != own:
        yield (
            f"counter {counter.id}: {counter.signals} signals, its {counter.kind} has {own} tasks"
        )


def _signal_problems(plan: Plan, method: Method) -> Iterator[str]:
    count = len(method.tasks)
    if len(method.signals) != count or len(method.waits) != count:
        yield (
            f"{len(method.signals)} signals and {len(method.waits)} lists of waits "
            f"for {count} tasks"
        )
        return
    by_owner = {counter.owner: counter.id for counter in method.counters}
    if plan.target.counters == "clock":
        owners = {t: worker for worker, queue in enumerate(method.queues) for t in queue}
    else:
        owners = {task.id: task.group for task in method.tasks}
    for task, signal in enumerate(method.signals):
        if by_owner.get(owners[task]) != signal:
            yield (
                f"task {task}: signals counter {signal}, not that of {plan.target.counters} "
                f"{owners[task]}"
            )


def _wait_problems(plan: Plan, method: Method) -> Iterator[str]:
    last_of_group: dict[int, int] = {task.group: task.id for task in method.tasks}
    for task, waits in enumerate(method.waits):
        for wait in waits:
            problem = _wait_problem(method, task, wait, last_of_group)
            if problem is not None:
                yield f"task {task}: {problem}"


def _wait_problem(
    method: Method, task: int, wait: Wait, last_of_group: dict[int, int]
) -> str | None:
    if not 0 <= wait.counter < len(method.counters):
        return f"waits for counter {wait.counter} of {len(method.counters)}"
    counter = method.counters[wait.counter]
    if not 1 <= wait.threshold <= counter.signals:
        return (
            f"waits for {wait.threshold} signals of counter {wait.counter}, "
            f"which has {counter.signals} a turn"
        )
    if wait.turns_back not in (0, 1):
        return f"waits for {wait.turns_back} turns back; it must be 0 or 1"
    if wait.turns_back:
        return None
    # Within a turn all that is awaited comes first in the linear order: somebody can go on.
    if counter.kind == "clock":
        awaited = method.queues[counter.owner][wait.threshold - 1]
    else:
        awaited = last_of_group[counter.owner]
    return None if awaited < task else f"waits for task {awaited}, which comes no earlier"


def _stop_problems(method: Method) -> Iterator[str]:
    if not 1 <= method.depth <= MAX_DEPTH:
        yield f"depth is {method.depth}; it must be 1 to {MAX_DEPTH}"
    # One node decides at most, and its result is one element.
    stops = [task.id for task in method.tasks if task.effect == "stop"]
    wanted = stops[0] if stops else None
    if method.stop_task != wanted:
        yield f"stop_task is {method.stop_task}; it must be {wanted}"
