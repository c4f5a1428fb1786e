"""Make models that loop, stop and fail, and the sessions that run them in every way."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import Array, AttrValue
from ark_dist.core.plan import Method, Plan
from ark_dist.core.settings import read_settings
from ark_dist.core.target import Target, cpu_target
from ark_dist.core.task import Task
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.machine import Chooser, in_task_order
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.deps import Edges
from ark_dist.scheduler.order import Queues
from ark_dist.scheduler.plan import PlanOptions, make_plan

# A step no test reaches.
NEVER = 1_000_000_000
MATMUL: dict[str, AttrValue] = {
    "transpose_input": False,
    "transpose_other": False,
    "is_relu": False,
}


@dataclass
class Loop:
    """A model with integer states, an input that says when to stop, and what can be read."""

    builder: GraphBuilder
    stop_at: Value
    readable: dict[str, Value] = field(default_factory=dict)
    inputs: dict[str, Value] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.builder.freeze()


def looping(*, busy: int = 0, is_stop_first: bool = False) -> Loop:
    """States that feed each other, one that stands alone, and a stop at step `stop_at`.

    `busy` tasks in a row come before the state that stands alone.
    """
    builder = GraphBuilder("loop")
    loop = Loop(builder, builder.tensor((1,), "int32", name="stop_at"))
    step = builder.state((1,), "int32", name="step")
    a = builder.state((8,), "int32", name="a", init=np.arange(8))
    b = builder.state((8,), "int32", name="b", init=1)
    free = builder.state((1,), "int32", name="free")
    apply = builder.apply
    apply("add", [step, 1], output=step)
    if is_stop_first:
        apply("stop_when", [apply("equal", [step, loop.stop_at])])
    x = apply("mul", [a, 3])
    apply("add", [apply("add", [x, b]), step], output=a)
    work = free
    for _ in range(busy):
        work = apply("copy", [work])
    apply("add", [work, 1], output=free)
    apply("sub", [b, apply("mul", [x, 5])], output=b)
    loop.readable = {"step": step, "a": a, "b": b, "free": free, "sum": apply("add", [a, b])}
    if not is_stop_first:
        apply("stop_when", [apply("equal", [step, loop.stop_at])])
    return loop


def lopsided(depth: int, *, matmul: int = 0) -> tuple[Loop, Plan]:
    """Worker 0 decides; worker 1 does a long row of tasks and then raises a state of its own.

    Before it decides, worker 0 multiplies two square matrices of size `matmul`, if not 0.
    """
    builder = GraphBuilder("lopsided")
    loop = Loop(builder, builder.tensor((1,), "int32", name="stop_at"))
    step = builder.state((1,), "int32", name="step")
    flag = builder.state((1,), "bool", name="flag")
    free = builder.state((1,), "int32", name="free")
    apply = builder.apply
    if matmul:
        loop.inputs["weight"] = builder.tensor((matmul, matmul), "fp32", name="weight")
        product = apply("matmul", [loop.inputs["weight"]] * 2, MATMUL)
        corner = apply("narrow", [product], {"axis": 0, "start": 0, "length": 1})
        corner = apply("narrow", [corner], {"axis": 1, "start": 0, "length": 1})
        one = apply("reshape", [corner], {"shape": (1,)})
        apply("add", [step, apply("cast", [one], {"dtype": "int32"})], output=step)
    else:
        apply("add", [step, 1], output=step)
    apply("equal", [step, loop.stop_at], output=flag)
    apply("stop_when", [flag])
    # States, not activations: shared memory would order the two workers.
    row = [builder.state((1,), "int32", name=f"row_{number}") for number in range(24)]
    for source, target in pairwise([free, *row]):
        apply("copy", [source], output=target)
    apply("add", [row[-1], 1], output=free)
    loop.readable = {"step": step, "free": free}
    second = {value.view.buffer for value in (*row, free)}

    def policy(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
        owner = {task.id: int(task.writes[0].buffer in second) for task in tasks}
        return tuple(tuple(t.id for t in tasks if owner[t.id] == w) for w in (0, 1))

    return loop, plan_for(loop.graph, workers=2, depth=depth, counters="group", policy=policy)


def loop_oracle(iterations: int) -> dict[str, Array]:
    """What `looping` must hold after so many iterations."""
    step = np.zeros(1, np.int32)
    a, b, free = np.arange(8, dtype=np.int32), np.ones(8, np.int32), np.zeros(1, np.int32)
    for _ in range(iterations):
        step = step + np.int32(1)
        x = a * np.int32(3)
        a = x + b + step
        free = free + np.int32(1)
        b = b - x * np.int32(5)
    return {"step": step, "a": a, "b": b, "free": free, "sum": a + b}


def check_loop(session: Session, loop: Loop, iterations: int, label: str) -> None:
    """Compare all that can be read with the oracle."""
    oracle = loop_oracle(iterations)
    for name, value in loop.readable.items():
        found, wanted = session.read(value.view), oracle[name]
        assert np.array_equal(found, wanted), f"{label}: {name} is {found}, wanted {wanted}"


def counting(*, is_stoppable: bool = True) -> Loop:
    """A counter, its copy on another worker, and a float that is exact; they never settle."""
    builder = GraphBuilder("counting")
    loop = Loop(builder, builder.tensor((1,), "int32", name="stop_at"))
    count = builder.state((1,), "int32", name="count")
    echo = builder.state((1,), "int32", name="echo")
    total = builder.state((1,), "fp32", name="total")
    builder.apply("add", [count, 1], output=count)
    builder.apply("copy", [count], output=echo)
    builder.apply("add", [total, 2.0], output=total)
    if is_stoppable:
        builder.apply("stop_when", [builder.apply("equal", [count, loop.stop_at])])
    loop.readable = {"count": count, "echo": echo, "total": total}
    return loop


def scattered(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
    """Deal the tasks out in turn, so that even tiny models keep all workers busy."""
    count = target.worker_count
    return tuple(tuple(t.id for t in tasks if t.id % count == w) for w in range(count))


def plan_for(
    graph: Graph,
    *,
    workers: int,
    depth: int = 1,
    counters: str = "clock",
    policy: Callable[..., Queues] = scattered,
) -> Plan:
    """A plan for this machine's CPU."""
    target = replace(cpu_target(workers, best_isa()), counters=counters)
    return make_plan(graph, target, PlanOptions(depth=depth, policy=policy))


def start(
    plan: Plan, device: str, *, choose: Chooser = in_task_order, timeout_s: float = 20.0
) -> Session:
    """A session that is launched."""
    settings = replace(read_settings(), timeout_s=timeout_s)
    runner = CpuDevice(plan, settings) if device == "cpu" else NumpyDevice(plan, choose=choose)
    session = Session(plan, runner, SessionOptions(timeout_s=timeout_s))
    session.compile(lambda path: None)
    session.launch()
    return session


def set_stop(session: Session, loop: Loop, step: int) -> None:
    """Let the loop end itself at this step."""
    session.write(loop.stop_at.view, np.array([step], np.int32))


# Adversaries: choosers that try to bring out what a missing wait would allow.


def at_random(seed: int) -> Chooser:
    """Any of those that can, by a seeded coin."""
    rng = random.Random(seed)
    return lambda ready: rng.choice(ready)[0]


def starving(worker: int) -> Chooser:
    """Let everyone else run as far as they can before this worker takes a step."""

    def choose(ready: Sequence[tuple[int, int]]) -> int:
        return min(ready, key=lambda item: (item[0] == worker, item[1]))[0]

    return choose


def running_ahead() -> Chooser:
    """Let the worker that took the most steps go on for as long as it can."""
    steps: dict[int, int] = {}

    def choose(ready: Sequence[tuple[int, int]]) -> int:
        worker = max(ready, key=lambda item: (steps.get(item[0], 0), item[0]))[0]
        steps[worker] = steps.get(worker, 0) + 1
        return worker

    return choose


def delaying_the_stop(method: Method) -> Chooser:
    """Run the stop task, and whoever stands before it in its queue, when nothing else can."""
    owner = next(w for w, q in enumerate(method.queues) if method.stop_task in q)

    def choose(ready: Sequence[tuple[int, int]]) -> int:
        return min(ready, key=lambda i: (i[1] == method.stop_task, i[0] == owner, i[1]))[0]

    return choose


def hurrying_effects(method: Method) -> Chooser:
    """Run tasks that write state or outputs as early as they can, the stop task last."""
    effect = {task.id: task.effect for task in method.tasks}
    order = {"effect": 0, "none": 1, "stop": 2}

    def choose(ready: Sequence[tuple[int, int]]) -> int:
        return min(ready, key=lambda item: (order[effect[item[1]]], -item[0]))[0]

    return choose


def adversaries(plan: Plan) -> dict[str, Chooser]:
    """All of them, by name."""
    method = plan.methods[0]
    named = {f"starving {w}": starving(w) for w in range(plan.target.worker_count)}
    named["running ahead"] = running_ahead()
    named["delaying the stop"] = delaying_the_stop(method)
    named["hurrying effects"] = hurrying_effects(method)
    return named


def without_early_end_waits(plan: Plan) -> Plan:
    """Take out, by hand, that effect tasks wait for the decision of the turn before."""
    method = plan.methods[0]
    assert method.stop_task is not None
    decision = method.signals[method.stop_task]
    waits = tuple(
        tuple(w for w in row if not (w.counter == decision and w.turns_back == 1))
        if task.effect == "effect"
        else row
        for task, row in zip(method.tasks, method.waits, strict=True)
    )
    assert waits != method.waits, "the plan had none"
    return replace(plan, methods=(replace(method, waits=waits),))
