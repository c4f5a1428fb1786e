"""Print a plan as text that people read and golden tests compare."""

from ark_dist.core.graph import describe_node, quoted
from ark_dist.core.plan import ARENAS, Method, Plan, Wait
from ark_dist.core.shape import Box


def plan_text(plan: Plan) -> str:
    """The whole plan, one line per buffer, group and task."""
    target = plan.target
    lines = [
        f"plan {quoted(plan.name)} version {plan.version} rank {plan.rank} of {plan.world_size}",
        f"target {target.kind} {target.arch} workers {target.worker_count} {target.counters}",
    ]
    sizes = zip(ARENAS, plan.arena_bytes, strict=True)
    lines.append("arenas " + " ".join(f"{name}={size}" for name, size in sizes))
    for buffer, place in zip(plan.buffers, plan.places, strict=True):
        lines.append(
            f"  %{buffer.id} {quoted(buffer.name)} {buffer.dtype}{list(buffer.shape)} "
            f"{buffer.kind} {place.arena}+{place.offset}"
            + (f" {buffer.packing}" if buffer.packing else "")
        )
    for method in plan.methods:
        lines += method_lines(plan, method)
    return "\n".join(lines) + "\n"


def method_lines(plan: Plan, method: Method) -> list[str]:
    """One method: its groups with their nodes, then each worker's queue."""
    lines = [f"method {quoted(method.name)} depth {method.depth}"]
    if method.stop_task is not None:
        lines[0] += f" stop t{method.stop_task}"
    for group in method.groups:
        lines.append(f"  group {group.id} {group.effect}")
        lines += [f"    {describe_node(method.nodes[n], plan.buffers)}" for n in group.nodes]
    for worker, queue in enumerate(method.queues):
        lines.append(f"  worker {worker}: {len(queue)} tasks")
        lines += [f"    {task_line(method, task_id)}" for task_id in queue]
    return lines


def task_line(method: Method, task_id: int) -> str:
    """One task: group, operators, tile, waits, signal."""
    task = method.tasks[task_id]
    ops = "+".join(method.nodes[n].op for n in method.groups[task.group].nodes)
    text = f"t{task_id} g{task.group} {ops} {box_text(task.box)}"
    waits = method.waits[task_id]
    if waits:
        text += " waits " + " ".join(wait_text(w) for w in waits)
    return f"{text} signals c{method.signals[task_id]}"


def wait_text(wait: Wait) -> str:
    """A wait as `c1>=3`, with the turns it looks back as `@-1`."""
    back = f"@-{wait.turns_back}" if wait.turns_back else ""
    return f"c{wait.counter}>={wait.threshold}{back}"


def box_text(box: Box) -> str:
    """A box as `[0:4,0:8]`."""
    return "[" + ",".join(f"{a}:{b}" for a, b in box) + "]"
