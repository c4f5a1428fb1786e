"""A loop that ends itself ends at one iteration for all workers, and the next run goes on."""

from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.plan import Plan
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.machine import Chooser
from ark_dist.launch.session import Session
from tests.lifecycle_models import (
    NEVER,
    Loop,
    adversaries,
    at_random,
    check_loop,
    looping,
    lopsided,
    plan_for,
    set_stop,
    start,
    without_early_end_waits,
)

WAYS = [
    (workers, depth, counters)
    for workers in (1, 2, 3)
    for depth in (1, 2, 3)
    for counters in ("clock", "group")
]


def stop_and_go_on(session: Session, loop: Loop, label: str) -> None:
    """Stop at 7 of 64, drop what is queued, go on; then at the last and first iteration."""
    method = session.plan.method_names[0]

    def run(stop: int, *runs: int) -> int:
        set_stop(session, loop, stop)
        for iterations in runs:
            session.run(iterations, method, {})
        return session.wait()

    assert run(7, 64, 9, 0, 3) == 7, label
    check_loop(session, loop, 7, f"{label}, stopped at 7")
    check_workers(session, label)
    assert run(NEVER, 5) == 5, label
    check_loop(session, loop, 12, f"{label}, 5 more")
    assert run(22, 4, 6, 8) == 10, f"{label}: a stop at the last iteration drops what is queued"
    check_loop(session, loop, 22, f"{label}, stopped at the last iteration")
    assert run(23, 50) == 1, f"{label}: a stop at the first iteration"
    check_loop(session, loop, 23, f"{label}, stopped at the first iteration")
    assert run(24, 1) == 1, label
    assert run(NEVER, 0) == 0, label
    assert run(NEVER, 1, 0, 2) == 3, label
    check_loop(session, loop, 27, f"{label}, at the end")
    check_workers(session, label)


def check_workers(session: Session, label: str) -> None:
    """All workers of a CPU kernel stand at the same turn, with every counter complete."""
    device = session._device
    if not isinstance(device, CpuDevice):
        return
    blocks = device._blocks
    assert blocks is not None
    method = session.plan.methods[0]
    busy = [w for w, queue in enumerate(method.queues) if queue]
    turns = [int(blocks.statuses["turn"][w]) for w in busy]
    assert len(set(turns)) == 1, f"{label}: workers stand at turns {turns}"
    counts = [int(value) for value in blocks.counters["value"]]
    complete = {count // c.signals for count, c in zip(counts, method.counters, strict=False)}
    assert len(complete) == 1, f"{label}: counters stand at {counts}"
    assert all(n % c.signals == 0 for n, c in zip(counts, method.counters, strict=False)), label


@pytest.mark.parametrize(("workers", "depth", "counters"), WAYS)
@pytest.mark.parametrize("is_stop_first", [False, True])
def test_a_stopped_loop_goes_on_as_if_never_interrupted(
    device: str, workers: int, depth: int, counters: str, is_stop_first: bool
) -> None:
    loop = looping(busy=2, is_stop_first=is_stop_first)
    plan = plan_for(loop.graph, workers=workers, depth=depth, counters=counters)
    session = start(plan, device)
    try:
        stop_and_go_on(session, loop, f"{device}, {workers} workers, depth {depth}, {counters}")
    finally:
        session.close()


@pytest.mark.parametrize(("workers", "depth", "counters"), WAYS)
def test_no_order_of_steps_that_the_waits_allow_changes_a_result(
    workers: int, depth: int, counters: str
) -> None:
    loop = looping(busy=3, is_stop_first=depth == 2)
    plan = plan_for(loop.graph, workers=workers, depth=depth, counters=counters)
    named = adversaries(plan)
    for seed in range(5):
        named[f"random {seed}"] = at_random(seed)
    for name, choose in named.items():
        session = start(plan, "numpy", choose=choose)
        stop_and_go_on(session, loop, f"{workers} workers, depth {depth}, {counters}, {name}")


def iterations_seen(plan: Plan, loop: Loop, choose: Chooser) -> int:
    """Stop at 7 of 64 and tell how often the state that stands alone was raised."""
    session = start(plan, "numpy", choose=choose)
    set_stop(session, loop, 7)
    session.run(64, "forward", {})
    assert session.wait() == 7
    return int(session.read(loop.readable["free"].view)[0])


@pytest.mark.parametrize("depth", [2, 3])
def test_an_adversary_finds_the_missing_wait_that_random_orders_miss(depth: int) -> None:
    loop, plan = lopsided(depth)
    broken = without_early_end_waits(plan)
    found = {n: iterations_seen(broken, loop, c) for n, c in adversaries(broken).items()}
    assert found["starving 0"] == found["delaying the stop"] == 6 + depth
    for name, choose in adversaries(plan).items():
        assert iterations_seen(plan, loop, choose) == 7, name
    wrong = sum(iterations_seen(broken, loop, at_random(seed)) != 7 for seed in range(40))
    assert wrong <= 4, f"{wrong} of 40 random orders found it: make the model harder"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_slow_decision_holds_a_fast_worker_back(depth: int) -> None:
    loop, plan = lopsided(depth, matmul=192)
    session = start(plan, "cpu")
    try:
        session.write(loop.inputs["weight"].view, np.eye(192, dtype=np.float32))
        stop_and_go_on(session, loop, f"slow worker, depth {depth}")
    finally:
        session.close()


def test_without_its_waits_a_fast_worker_of_a_real_kernel_runs_too_far() -> None:
    loop, plan = lopsided(3, matmul=192)
    session = start(without_early_end_waits(plan), "cpu")
    seen = set()
    try:
        session.write(loop.inputs["weight"].view, np.eye(192, dtype=np.float32))
        set_stop(session, loop, 7)
        # A busy machine may hold the fast worker back for once.
        for _ in range(50):
            session.run(64, "forward", {})
            assert session.wait() == 7
            seen.add(int(session.read(loop.readable["free"].view)[0]))
            if max(seen) > 7:
                break
            session.reset_state()
    finally:
        session.close()
    assert max(seen) > 7, "the test of the slow decision above shows nothing"


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_without_tasks_takes_no_part(device: str, workers: int) -> None:
    loop = looping(is_stop_first=True)
    plan = plan_for(loop.graph, workers=1, depth=2)
    method = plan.methods[0]
    # All tasks on the first worker; the others have a clock that never moves.
    idle = tuple(replace(method.counters[0], id=w, owner=w, signals=0) for w in range(1, workers))
    wide = replace(
        plan,
        target=replace(plan.target, worker_count=workers),
        methods=(
            replace(
                method,
                queues=(*method.queues, *((),) * (workers - 1)),
                counters=(*method.counters, *idle),
            ),
        ),
    )
    session = start(wide, device)
    try:
        set_stop(session, loop, 7)
        session.run(64, "forward", {})
        assert session.wait() == 7
        check_loop(session, loop, 7, "idle workers")
    finally:
        session.close()
