"""What must hold when a program on a GPU fails or is ended in the middle: cases for any GPU."""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.abi import COMMAND_RING
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import ArkError, StallError, TaskError
from ark_dist.core.graph import Graph
from ark_dist.core.plan import Plan
from ark_dist.core.source import Source
from ark_dist.kernels.emit import emit_cuda
from ark_dist.kernels.tables import Tables
from ark_dist.launch.session import Session
from tests.cuda_cases import (
    ENDLESS,
    PATIENCE_S,
    Open,
    Planner,
    interrupted_after,
    running_endlessly,
)
from tests.lifecycle_models import NEVER, looping
from tests.test_emulated_device import never_raised

ROWS, WIDTH = 12, 256
# Rounds of ending a kernel somewhere and starting it anew.
ROUNDS = 4


class Streamed:
    """Six products of one row, whose weights come through the ring, and a loop around them."""

    def __init__(self, *, has_stop: bool = True) -> None:
        """Build the graph; all numbers stay small integers, so results are exact."""
        builder = GraphBuilder("streamed")
        self.row = builder.state((1, WIDTH), "fp32", name="row", init=1.0)
        self.stop_at = builder.tensor((1,), "int32", name="stop_at")
        self.weights: list[Value] = []
        step = builder.state((1,), "int32", name="step")
        x = self.row
        attrs = {"transpose_input": False, "transpose_other": True, "is_relu": False}
        for number in range(6):
            name = f"weight_{number}"
            self.weights.append(builder.parameter((WIDTH, WIDTH), "bf16", name=name))
            x = builder.apply("cast", [x], {"dtype": "bf16"})
            x = builder.apply("matmul", [x, self.weights[-1]], {**attrs, "dtype": "fp32"})
        builder.apply("add", [step, 1], output=step)
        builder.apply("copy", [x], output=self.row)
        is_last = builder.apply("equal", [step, self.stop_at])
        if has_stop:
            builder.apply("stop_when", [is_last])
        self.graph: Graph = builder.freeze()
        rng = np.random.default_rng(0)
        # Permutations: numbers move and do not grow.
        self.orders = [rng.permutation(WIDTH) for _ in self.weights]

    def fill(self, session: Session) -> None:
        """Write the weights, and a row in which every place can be told."""
        for weight, order in zip(self.weights, self.orders, strict=True):
            session.write(weight.view, np.eye(WIDTH, dtype=weight.view.dtype.numpy)[order])
        self.reset(session)

    def reset(self, session: Session) -> None:
        """Begin again."""
        session.reset_state()
        session.write(self.stop_at.view, np.array([NEVER], np.int32))
        session.write(self.row.view, np.arange(WIDTH, dtype=np.float32)[None])

    def check(self, session: Session, iterations: int) -> None:
        """Compare the row with what so many iterations make of it."""
        row = np.arange(WIDTH)
        for _ in range(iterations):
            for order in self.orders:
                row = row[order]
        assert session.read(self.row.view)[0].tolist() == row.tolist()


def lookups(table_rows: int) -> tuple[Graph, Value, Value]:
    """Look up row `step` of a table; all other workers wait for it. With step and the result."""
    builder = GraphBuilder("lookups")
    step = builder.state((1,), "int32", name="step")
    table = builder.constant(np.arange(table_rows, dtype=np.float32)[:, None].repeat(WIDTH, 1))
    found = builder.apply("embedding", [step, table])
    wide = builder.apply("mul", [found, builder.constant(1.0, (ROWS, WIDTH), "fp32")])
    turned = builder.apply("transpose", [wide], {"perm": (1, 0)})
    total = builder.apply("reduce_sum", [turned], {"axis": 1, "keepdims": False})
    builder.apply("add", [step, 1], output=step)
    result = builder.apply("mul", [total, 1.0])
    return builder.freeze(), step, result


def a_failed_task_ends_the_workers_that_wait_for_it(open: Open, plan: Planner) -> None:
    graph, step, result = lookups(5)
    with open(plan(graph)) as session:
        for _ in range(3):
            session.reset_state()
            session.launch()
            session.run(100, "forward", {})
            session.run(100, "forward", {})
            with pytest.raises(TaskError, match=r"embedding.*iteration 5: index 5 .* 5"):
                session.wait()
            assert session.state == "failed"
            session.reset_state()
            session.launch()
            session.run(5, "forward", {})
            assert session.wait() == 5
            assert int(session.read(step.view)[0]) == 5
            assert (session.read(result.view) == 4.0 * ROWS).all()
            session.stop()


def a_program_that_is_aborted_anywhere_starts_anew(open: Open, plan: Planner) -> None:
    model = Streamed()
    with open(plan(model.graph)) as session:
        model.fill(session)
        for number in range(ROUNDS):
            session.launch()
            session.run(ENDLESS, "forward", {})
            threading.Timer(0.02 * number, session._device.abort).start()
            with pytest.raises(ArkError, match="the kernel was aborted"):
                session.wait()
            model.reset(session)
            session.launch()
            session.run(3, "forward", {})
            assert session.wait() == 3
            model.check(session, 3)
            session.stop()
            model.reset(session)


def an_early_end_in_the_middle_of_a_stream_is_exact(open: Open, plan: Planner) -> None:
    model = Streamed()
    for depth in (1, 2):
        with open(plan(model.graph, depth=depth)) as session:
            model.fill(session)
            session.launch()
            session.write(model.stop_at.view, np.array([4], np.int32))
            session.run(50, "forward", {})
            assert session.wait() == 4
            session.write(model.stop_at.view, np.array([NEVER], np.int32))
            session.run(3, "forward", {})
            assert session.wait() == 3
            model.check(session, 7)


def a_full_queue_of_commands_can_be_interrupted_and_closed(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        running_endlessly(session, loop)
        with interrupted_after(0.2), pytest.raises(KeyboardInterrupt):
            for _ in range(COMMAND_RING + 1):
                session.run(1, "forward", {})
        assert session.state == "running"
        closer = threading.Timer(0.2, session.close)
        closer.start()
        with pytest.raises(ArkError, match="the kernel was aborted"):
            for _ in range(COMMAND_RING + 1):
                session.run(1, "forward", {})
        closer.join(PATIENCE_S)
        assert session.state == "closed"


def a_stall_leaves_a_full_ring_behind(open: Open, plan: Planner) -> None:
    model = Streamed()
    broken = never_raised(plan(model.graph))
    with open(broken, timeout_s=0.5, watchdog=True) as session:
        model.fill(session)
        for _ in range(2):
            session.launch()
            session.run(1, "forward", {})
            with pytest.raises(StallError, match=r"no progress for 0.5 s: .*have \d+, want \d+"):
                session.wait()
    with open(plan(model.graph)) as session:
        model.fill(session)
        session.launch()
        session.run(2, "forward", {})
        assert session.wait() == 2
        model.check(session, 2)


def without_a_fill(plan: Plan) -> tuple[Source, Tables]:
    """Leave out the last slots of one worker's stream: its product waits for ever."""
    source, tables = emit_cuda(plan)
    streams = tables.streams.copy()
    worker = int(np.argmax(streams["count"]))
    assert streams["count"][worker] > 8
    streams["count"][worker] -= 8
    return source, replace(tables, streams=streams)


def _misses_a_fill(open: Open, plan: Planner, model: Streamed) -> None:
    with open(plan(model.graph), timeout_s=0.5, watchdog=True, emit=without_a_fill) as session:
        model.fill(session)
        session.launch()
        session.run(3, "forward", {})
        with pytest.raises(StallError, match=r"no progress for 0.5 s: .*worker \d+"):
            session.wait()
        assert session.state == "failed"
    with open(plan(model.graph)) as session:
        model.fill(session)
        session.launch()
        session.run(2, "forward", {})
        assert session.wait() == 2
        model.check(session, 2)


def a_missing_fill_of_the_ring_is_a_named_stall(open: Open, plan: Planner) -> None:
    _misses_a_fill(open, plan, Streamed())


def a_missing_fill_at_the_end_of_a_command_is_a_named_stall(open: Open, plan: Planner) -> None:
    _misses_a_fill(open, plan, Streamed(has_stop=False))


CASES: dict[str, Callable[[Open, Planner], None]] = {
    case.__name__.replace("_", " "): case
    for case in (
        a_failed_task_ends_the_workers_that_wait_for_it,
        a_program_that_is_aborted_anywhere_starts_anew,
        an_early_end_in_the_middle_of_a_stream_is_exact,
        a_full_queue_of_commands_can_be_interrupted_and_closed,
        a_stall_leaves_a_full_ring_behind,
        a_missing_fill_of_the_ring_is_a_named_stall,
    )
}
