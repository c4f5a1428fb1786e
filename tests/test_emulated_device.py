"""The GPU's kernel, emulated: commands, turns, early ends, failures, and plans that are wrong."""

from dataclasses import replace

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.abi import COMMAND_RING
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import ArkError, StallError, TaskError
from ark_dist.core.plan import Plan
from ark_dist.launch.emulation import EmulationFault
from tests.emulated import emulated, gpu_plan
from tests.lifecycle_models import NEVER, check_loop, looping, lopsided, set_stop
from tests.plan_models import block
from tests.test_cpu_device import Pair, pair_of_methods

MODES = [(0, False), (1, False), (2, False), (0, True)]
IDS = ["seed 0", "seed 1", "seed 2", "race"]
# What the watchdog says of a task that waits.
STALLED = r"no progress for 0.5 s: worker \d waits in task \d+ \([^;]*: have \d+, want \d+"


@pytest.mark.parametrize(("seed", "race"), MODES, ids=IDS)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_of_seven_turns_and_one_that_ends_early(workers: int, seed: int, race: bool) -> None:
    loop = looping()
    with emulated(gpu_plan(loop.graph, workers=workers), seed=seed, race=race) as session:
        set_stop(session, loop, NEVER)
        session.run(7, "forward", {})
        assert session.wait() == 7
        check_loop(session, loop, 7, "seven")
        set_stop(session, loop, 10)
        session.run(100, "forward", {})
        session.run(5, "forward", {})  # queued behind: ends too
        assert session.wait() == 3
        check_loop(session, loop, 10, "early end")
        set_stop(session, loop, NEVER)
        session.run(4, "forward", {})
        assert session.wait() == 4
        check_loop(session, loop, 14, "as if never interrupted")


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_workers_that_run_ahead_stop_where_they_should(depth: int, seed: int) -> None:
    loop, _ = lopsided(depth)
    with emulated(gpu_plan(loop.graph, workers=2, depth=depth), seed=seed) as session:
        set_stop(session, loop, 5)
        session.run(50, "forward", {})
        assert session.wait() == 5
        assert {n: int(session.read(v.view)[0]) for n, v in loop.readable.items()} == {
            "step": 5,
            "free": 5,
        }


@pytest.mark.parametrize(("seed", "race"), MODES, ids=IDS)
def test_two_methods_with_scalars_and_more_commands_than_the_ring_holds(
    seed: int, race: bool
) -> None:
    builder, values = pair_of_methods()
    rng = np.random.default_rng(seed)
    oracle = Pair()
    with emulated(gpu_plan(builder.freeze()), seed=seed, race=race) as session:
        wanted = 0
        for number in range(COMMAND_RING + 20):
            method = "back" if rng.random() < 0.4 else "forward"
            iterations = int(rng.integers(0, 3))
            scalars = {"factor": number} if number % 5 == 0 else {}
            session.run(iterations, method, scalars)
            wanted += oracle.run(method, iterations, scalars)[0]
        assert session.wait() == wanted
        assert np.array_equal(session.read(values["vector"].view), oracle.vector)
        assert int(session.read(values["turns"].view)[0]) == oracle.turns


@pytest.mark.parametrize(("seed", "race"), MODES, ids=IDS)
def test_a_bad_index_ends_the_run_and_names_its_task(seed: int, race: bool) -> None:
    builder = GraphBuilder("lookup")
    index = builder.tensor((3,), "int32")
    table = builder.parameter((5, 33), "fp32")
    result = builder.apply("embedding", [index, table])
    data = np.random.default_rng(seed).normal(size=(5, 33)).astype(np.float32)
    with emulated(gpu_plan(builder.freeze()), seed=seed, race=race) as session:
        session.write(table.view, data)
        session.write(index.view, np.array([4, 0, 2], np.int32))
        session.run(2, "forward", {})
        assert session.wait() == 2
        assert np.array_equal(session.read(result.view), data[[4, 0, 2]])
        session.write(index.view, np.array([1, 5, 2], np.int32))
        session.run(2, "forward", {})
        with pytest.raises(TaskError, match=r"embedding.*iteration 0: index 5 .* 5"):
            session.wait()


def never_raised(plan: Plan, late: int | None = None) -> Plan:
    """Let one task, the last that waits, wait for a signal that nobody gives, then for others."""
    method = plan.methods[0]
    if late is None:
        late = max(task for task, waits in enumerate(method.waits) if waits)
    waits = list(method.waits)
    first, *rest = waits[late]
    waits[late] = (replace(first, threshold=first.threshold + 1), *rest)
    return replace(plan, methods=(replace(method, waits=tuple(waits)),))


def test_a_missing_signal_is_a_deadlock_with_have_and_want() -> None:
    plan = never_raised(gpu_plan(block()))
    with emulated(plan) as session:
        session.run(1, "forward", {})
        text = r"gpu_wait on 'counters' .*have \d+, want \d+"
        with pytest.raises(EmulationFault, match=text) as info:
            session.wait()
        assert info.value.kind == "deadlock"


def test_a_missing_signal_is_ended_by_the_watchdog() -> None:
    plan = never_raised(gpu_plan(block()))
    with emulated(plan, watchdog=True, timeout_s=0.5) as session:
        session.run(1, "forward", {})
        with pytest.raises(StallError, match=STALLED):
            session.wait()


@pytest.mark.parametrize("seed", range(4))
def test_a_stall_with_commands_queued_names_the_task_first(seed: int) -> None:
    plan = never_raised(gpu_plan(block()))
    with emulated(plan, watchdog=True, timeout_s=0.5, seed=seed) as session:
        session.run(1, "forward", {})
        session.run(1, "forward", {})
        others = "worker . waits for the command before"
        with pytest.raises(StallError, match=rf"{STALLED}; {others}; {others}$"):
            session.wait()


@pytest.mark.parametrize("seed", range(8))
def test_a_stall_names_the_counter_that_is_missing_not_one_that_came_late(seed: int) -> None:
    plan = gpu_plan(looping(busy=3).graph)
    number, waits = next((i, w) for i, w in enumerate(plan.methods[0].waits) if len(w) > 1)
    missing = rf"waits in task {number} .* counter {waits[0].counter} \(.*\): have 1, want 2"
    late = never_raised(plan, number)
    with emulated(late, watchdog=True, timeout_s=0.5, seed=seed) as session:
        session.run(1, "forward", {})
        with pytest.raises(StallError, match=missing):
            session.wait()


def test_an_aborted_kernel_ends() -> None:
    loop = looping()
    with emulated(gpu_plan(loop.graph)) as session:
        set_stop(session, loop, NEVER)
        session.run(5, "forward", {})
        session._device.abort()
        with pytest.raises(ArkError, match="the kernel was aborted"):
            session.wait()


def test_the_public_api_runs_on_it() -> None:
    model = ark.Model()
    a, b = model.tensor(ark.Dims(33), ark.FP16), model.tensor(ark.Dims(33), ark.FP16)
    c = model.add(a, b)
    with ark.Executor(0, 0, 1, model, "emulated", device="emulated", workers=2) as exe:
        exe.compile()
        exe.launch()
        x = np.random.default_rng(0).normal(size=(2, 33)).astype(np.float16)
        a.from_numpy(x[0])
        b.from_numpy(x[1])
        exe.run(3)
        assert exe.wait() == 3
        assert np.array_equal(c.to_numpy(), x[0] + x[1])
        assert exe.stop() >= 0
