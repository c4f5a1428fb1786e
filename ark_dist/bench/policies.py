"""Give tasks to workers as no plan would want them, to measure what that costs."""

from collections.abc import Sequence

from ark_dist.core.target import Target
from ark_dist.core.task import Task
from ark_dist.scheduler.deps import Edges
from ark_dist.scheduler.order import Queues


def alternating(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
    """Deal tasks out in turn, so that every dependency in a chain changes workers."""
    workers = target.worker_count
    return tuple(tuple(range(worker, len(tasks), workers)) for worker in range(workers))
