"""Commands of several methods, early ends and failures: the emulated GPU does what NumPy does."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ark_dist.core.abi import COMMAND_RING
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import TaskError
from ark_dist.core.plan import Plan
from ark_dist.core.target import Target
from ark_dist.core.task import Task
from ark_dist.kernels import text
from ark_dist.scheduler.deps import Edges
from ark_dist.scheduler.order import Queues
from tests.emulated import emulated, gpu_plan
from tests.lifecycle_models import NEVER, start

MODES = [(0, False), (1, False), (0, True)]
IDS = ["seed 0", "seed 1", "race"]
WORKERS = 4
ROWS = 6


def three_methods() -> tuple[GraphBuilder, Value, list[Value]]:
    """Methods that change the same states, two of which stop; where to stop, and the states."""
    builder = GraphBuilder("three")
    apply = builder.apply
    stop_at = builder.tensor((1,), "int32", name="stop_at")
    step = builder.state((1,), "int32", name="step")
    factor = builder.state((1,), "int32", name="factor", init=1)
    a = builder.state((8,), "int32", name="a", init=np.arange(8))
    b = builder.state((40,), "int32", name="b", init=1)
    for method in ("forward", "back", "free"):
        builder.select_method(method)
        apply("add", [step, 1], output=step)
        if method != "free":
            builder.command_scalar(factor)
            apply("add", [apply("mul", [a, factor]), step], output=a)
        if method == "back":
            apply("stop_when", [apply("equal", [step, stop_at])])
        apply("sub", [apply("mul", [b, 3]), step], output=b)
        if method == "forward":
            apply("stop_when", [apply("equal", [step, stop_at])])
    return builder, stop_at, [step, factor, a, b]


def lazy(seed: int) -> Callable[..., Queues]:
    """A policy by which some workers have nothing to do, others in each method."""
    rng = random.Random(seed)

    def policy(tasks: Sequence[Task], edges: Sequence[Edges], target: Target) -> Queues:
        busy = rng.sample(range(target.worker_count), 2)
        owner = {task.id: rng.choice(busy) for task in tasks}
        workers = range(target.worker_count)
        return tuple(tuple(t.id for t in tasks if owner[t.id] == w) for w in workers)

    return policy


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("seed", "race"), MODES, ids=IDS)
def test_methods_with_queues_of_their_own_do_what_numpy_does(
    depth: int, seed: int, race: bool
) -> None:
    builder, stop_at, states = three_methods()
    plan = gpu_plan(builder.freeze(), workers=WORKERS, depth=depth, policy=lazy(depth))
    rng = random.Random(seed)
    with emulated(plan, seed=seed, race=race) as session:
        reference = start(plan, "numpy")
        both = (session, reference)
        for count in (1, COMMAND_RING + 8, 5, 12):
            stop = int(reference.read(states[0].view)[0]) + rng.choice((1, 4, 30, NEVER))
            for either in both:
                either.write(stop_at.view, np.array([stop], np.int32))
            for _ in range(count):
                method, iterations = rng.choice(plan.method_names), rng.choice((0, 1, 2, 5))
                is_given = method != "free" and rng.random() < 0.5
                scalars = {"factor": rng.randint(-3, 3)} if is_given else {}
                for either in both:
                    either.run(iterations, method, scalars)
            assert session.wait() == reference.wait()
            for state in states:
                assert np.array_equal(session.read(state.view), reference.read(state.view))
            if count == 5:
                for either in both:
                    either.stop()
                    either.launch()
        reference.close()


def looking_up() -> tuple[GraphBuilder, dict[str, Value]]:
    """Turn t reads row t of a table that has `ROWS`; whether it stops is known late."""
    builder = GraphBuilder("look_up")
    stop_at = builder.tensor((1,), "int32", name="stop_at")
    row = builder.state((1,), "int32", name="row")
    step = builder.state((1,), "int32", name="step")
    table = builder.parameter((ROWS, 7), "fp32", name="table")
    total = builder.state((1, 7), "fp32", name="total")
    # A state, not an activation, whose memory would let the next turn's first task come later.
    flag = builder.state((1,), "bool", name="flag")
    # In a task of its own, without an effect: it need not wait for a decision.
    found = builder.apply("embedding", [row, table])
    builder.apply("add", [total, builder.apply("softmax", [found], {"axis": -1})], output=total)
    builder.apply("add", [row, 1], output=row)
    late = step
    for _ in range(4):
        late = builder.apply("copy", [late])
    builder.apply("add", [late, 1], output=step)
    builder.apply("equal", [step, stop_at], output=flag)
    builder.apply("stop_when", [flag])
    return builder, {"stop_at": stop_at, "row": row, "table": table}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_turn_past_an_early_end_can_meet_bad_data_and_nothing_fails(
    depth: int, seed: int
) -> None:
    builder, values = looking_up()
    with emulated(gpu_plan(builder.freeze(), depth=depth), seed=seed) as session:
        session.write(values["table"].view, np.zeros((ROWS, 7), np.float32))
        session.write(values["stop_at"].view, np.array([ROWS], np.int32))
        session.run(50, "forward", {})
        session.run(3, "forward", {})  # queued behind: ends too
        assert session.wait() == ROWS
        assert session.read(values["row"].view)[0] == ROWS
        session.run(2, "forward", {})
        with pytest.raises(TaskError, match=rf"iteration 0: index {ROWS} .* {ROWS}"):
            session.wait()


@pytest.mark.parametrize("race", [False, True], ids=["value", "race"])
def test_tasks_with_too_many_integers_for_the_ctas_memory_read_them_where_they_are(
    race: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PACKET_PARAMS", 0)
    builder, values = looking_up()
    plan: Plan = gpu_plan(builder.freeze())
    with emulated(plan, race=race) as session:
        session.write(values["table"].view, np.zeros((ROWS, 7), np.float32))
        session.write(values["stop_at"].view, np.array([4], np.int32))
        session.run(9, "forward", {})
        assert session.wait() == 4
        assert session.read(values["row"].view)[0] == 4
