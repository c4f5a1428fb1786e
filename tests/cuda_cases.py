"""What a CUDA device must do behind a session: cases for a real GPU, and for one that is faked."""

import gc
import re
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.abi import COMMAND_RING
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import ArkError, LifecycleError, StallError, TaskError
from ark_dist.core.op import AttrValue
from ark_dist.core.plan import Plan
from ark_dist.core.settings import Settings, read_settings
from ark_dist.kernels.emit import emit_cuda
from ark_dist.launch.devices.base import Emit
from ark_dist.launch.devices.cuda import CudaDevice
from ark_dist.launch.devices.cupy_gpu import GpuPart
from ark_dist.launch.session import Session, SessionOptions
from tests.lifecycle_models import NEVER, Loop, check_loop, looping, lopsided, set_stop
from tests.patience import patient
from tests.plan_models import block
from tests.test_cpu_device import Pair, pair_of_methods
from tests.test_emulated_device import never_raised

# A session, compiled but not launched, whose device is on this GPU; closed at the end.
Open = Callable[..., AbstractContextManager[Session]]
Planner = Callable[..., Plan]

# More turns than anybody waits for.
ENDLESS = 1 << 40
# Ctrl-C, stop and close have to be through by then; a faked GPU is slow.
PATIENCE_S = patient(5.0)
# And everything else.
LIMIT_S = patient(20.0)


@contextmanager
def opened(
    plan: Plan,
    *,
    settings: Settings | None = None,
    gpu_id: int = 0,
    sms: range | None = None,
    timeout_s: float = LIMIT_S,
    watchdog: bool = False,
    emit: Emit = emit_cuda,
) -> Iterator[Session]:
    """A session on a GPU; the kernel of a real one always has its watchdog."""
    settings = replace(settings or read_settings(), timeout_s=timeout_s)
    options = SessionOptions(timeout_s)
    # The session alone has the device.
    session = Session(plan, CudaDevice(plan, settings, GpuPart(gpu_id, sms), emit=emit), options)
    try:
        session.compile(lambda path: None)
        yield session
    finally:
        session.close()


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Press Ctrl-C once the time is over."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def running_endlessly(session: Session, loop: Loop) -> None:
    """Launch a loop that runs for as long as nobody ends it."""
    session.launch()
    set_stop(session, loop, NEVER)
    session.run(ENDLESS, "forward", {})


def a_program_is_launched_run_stopped_and_launched_again(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        set_stop(session, loop, NEVER)
        for total in (3, 7):
            session.launch()
            session.run(1, "forward", {})
            session.run(total - 1, "forward", {})
            assert session.wait() == total
            check_loop(session, loop, total, "before the stop")
            assert session.wait() == 0
            assert session.stop() > 0
            check_loop(session, loop, total, "after the stop")
            session.reset_state()
            session.compile(lambda path: None)
        session.launch()
        session.run(2, "forward", {})
        session.stop()
        check_loop(session, loop, 2, "stop waits")


def early_ends_close_the_queue_and_wait_opens_it_again(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        session.launch()
        set_stop(session, loop, 10)
        session.run(100, "forward", {})
        session.run(5, "forward", {})
        assert session.wait() == 10
        check_loop(session, loop, 10, "early end")
        set_stop(session, loop, NEVER)
        session.run(4, "forward", {})
        assert session.wait() == 4
        check_loop(session, loop, 14, "as if never interrupted")


def workers_that_run_ahead_stop_where_they_should(open: Open, plan: Planner) -> None:
    for depth in (1, 2, 3):
        loop, _ = lopsided(depth)
        with open(plan(loop.graph, workers=2, depth=depth)) as session:
            session.launch()
            set_stop(session, loop, 5)
            session.run(50, "forward", {})
            assert session.wait() == 5
            found = {n: int(session.read(v.view)[0]) for n, v in loop.readable.items()}
            assert found == {"step": 5, "free": 5}, f"depth {depth}"


def hundreds_of_queued_commands_with_scalars_do_what_python_does(open: Open, plan: Planner) -> None:
    builder, values = pair_of_methods()
    rng, oracle = np.random.default_rng(3), Pair()
    with open(plan(builder.freeze())) as session:
        session.launch()
        for _ in range(2):
            wanted = 0
            for _ in range(2 * COMMAND_RING + 7):
                method = "back" if rng.random() < 0.4 else "forward"
                iterations = int(rng.integers(0, 3))
                scalars = {"factor": int(rng.integers(-9, 9))} if rng.random() < 0.3 else {}
                session.run(iterations, method, scalars)
                with np.errstate(over="ignore"):
                    wanted += oracle.run(method, iterations, scalars)[0]
            assert session.wait() == wanted
            assert np.array_equal(session.read(values["vector"].view), oracle.vector)
            assert int(session.read(values["turns"].view)[0]) == oracle.turns


def strided_views_are_written_and_read(open: Open, plan: Planner) -> None:
    builder = GraphBuilder("views")
    apply = builder.apply
    base = builder.state((6, 5, 4), "bf16", name="base")
    turned = apply("transpose", [base], {"perm": (2, 0, 1)})
    part_of: dict[str, AttrValue] = {"axis": 1, "start": 2, "length": 3}
    part = apply("narrow", [turned], part_of)
    rows = apply("narrow", [base], {"axis": 0, "start": 1, "length": 2})
    empty = builder.tensor((0, 3), "fp32", name="empty")
    total = apply("add", [apply("cast", [part], {"dtype": "fp32"}), 1.0])
    builder.keep(apply("copy", [empty]))
    rng = np.random.default_rng(5)
    data = rng.integers(-99, 99, (6, 5, 4)).astype(np.float32)
    with open(plan(builder.freeze())) as session:
        session.write(base.view, data.astype(base.view.dtype.numpy))
        mine = rng.integers(-99, 99, (4, 3, 5)).astype(np.float32)
        data.transpose(2, 0, 1)[:, 2:5] = mine
        session.write(part.view, mine.astype(base.view.dtype.numpy))
        data[1:3] = 7.0
        session.write(rows.view, np.full((2, 5, 4), 7.0, base.view.dtype.numpy))
        session.write(empty.view, np.zeros((0, 3), np.float32))
        assert session.read(empty.view).shape == (0, 3)
        session.launch()
        session.run(1, "forward", {})
        session.wait()
        for value, wanted in [
            (base, data),
            (turned, data.transpose(2, 0, 1)),
            (part, data.transpose(2, 0, 1)[:, 2:5]),
            (rows, data[1:3]),
            (total, data.transpose(2, 0, 1)[:, 2:5] + 1),
        ]:
            assert np.array_equal(session.read(value.view).astype(np.float32), wanted)


def inputs_nobody_wrote_are_zero_and_outputs_are_poisoned(open: Open, plan: Planner) -> None:
    builder = GraphBuilder("fresh")
    x = builder.tensor((3, 1000), "fp32", name="x")
    y = builder.apply("add", [x, 1.0])
    with open(plan(builder.freeze())) as session:
        assert not session.read(x.view).any()
        assert np.isnan(session.read(y.view)).all()
        session.launch()
        session.run(1, "forward", {})
        session.wait()
        assert (session.read(y.view) == 1.0).all()


def a_bad_index_is_a_task_error_and_the_program_can_be_launched_again(
    open: Open, plan: Planner
) -> None:
    builder = GraphBuilder("lookup")
    index = builder.tensor((3,), "int32")
    table = builder.parameter((5, 33), "fp32")
    result = builder.apply("embedding", [index, table])
    data = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    with open(plan(builder.freeze())) as session:
        session.write(table.view, data)
        for bad in (5, -1):
            session.launch()
            session.write(index.view, np.array([1, bad, 2], np.int32))
            session.run(2, "forward", {})
            with pytest.raises(TaskError, match=rf"embedding.*iteration 0: index {bad} .* 5"):
                session.wait()
            assert session.state == "failed"
            session.write(index.view, np.array([4, 0, 2], np.int32))
            session.launch()
            session.run(2, "forward", {})
            assert session.wait() == 2
            assert np.array_equal(session.read(result.view), data[[4, 0, 2]])
            session.stop()


def a_missing_signal_is_ended_by_the_watchdog(open: Open, plan: Planner) -> None:
    with open(never_raised(plan(block())), timeout_s=0.5, watchdog=True) as session:
        for _ in range(2):
            session.launch()
            session.run(1, "forward", {})
            with pytest.raises(StallError, match=r"no progress for 0.5 s: .*have \d+, want \d+"):
                session.wait()
            assert session.state == "failed"


def wait_has_a_limit_and_the_run_goes_on(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        running_endlessly(session, loop)
        for limit_s in (0, 0.2):
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=r"still running after .* wait again"):
                session.wait(limit_s)
            assert limit_s <= time.monotonic() - began < limit_s + 1
        assert session.state == "running"


def another_thread_can_close_a_program_that_is_waited_for(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        running_endlessly(session, loop)
        closer = threading.Timer(0.2, session.close)
        closer.start()
        with pytest.raises(ArkError, match="the kernel was aborted"):
            session.wait()
        closer.join()
        assert session.state == "closed"


def closing_a_running_program_takes_little_time(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        running_endlessly(session, loop)
        began = time.monotonic()
        session.close()
        session.close()
        assert time.monotonic() - began < PATIENCE_S


def ctrl_c_ends_wait_within_a_second_and_the_run_goes_on(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        running_endlessly(session, loop)
        began = time.monotonic()
        with interrupted_after(0.2), pytest.raises(KeyboardInterrupt):
            session.wait()
        assert time.monotonic() - began < 1.2
        assert session.state == "running"
        with pytest.raises(TimeoutError):
            session.wait(0.05)


def a_program_that_is_dropped_ends_its_kernel(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        running_endlessly(session, loop)
        device = session._device
        program = device._program  # type: ignore[attr-defined]  # a CudaDevice
        gone = weakref.ref(device)
        # As if the session were dropped: the context manager still has it.
        session._device = None  # type: ignore[assignment]
        session._state = "closed"
        del device
        gc.collect()
        assert gone() is None
        assert program.gpu.has_exited()
    with open(plan(loop.graph)) as session:
        session.launch()
        set_stop(session, loop, NEVER)
        session.run(2, "forward", {})
        assert session.wait() == 2
        check_loop(session, loop, 2, "the next program")


def two_programs_of_one_binary_run_beside_each_other(open: Open, plan: Planner) -> None:
    loop = looping()
    made = plan(loop.graph, workers=2)
    with open(made, sms=range(2)) as first, open(made, sms=range(2, 4)) as second:
        for session in (first, second):
            set_stop(session, loop, NEVER)
            session.launch()
        first.run(5, "forward", {})
        second.run(3, "forward", {})
        first.run(2, "forward", {})
        assert (second.wait(), first.wait()) == (3, 7)
        check_loop(first, loop, 7, "first")
        check_loop(second, loop, 3, "second")


def what_would_wait_for_a_resident_kernel_is_refused(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        session.launch()
        text = r"compile\(\) of program 'loop' would wait for the kernel of program 'loop'"
        with pytest.raises(LifecycleError, match=text), open(plan(loop.graph)):
            pass
        session.stop()
        with open(plan(loop.graph)) as other:
            other.launch()


def calls_come_from_any_thread(open: Open, plan: Planner) -> None:
    loop = looping()
    with open(plan(loop.graph)) as session:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                session.launch()
                set_stop(session, loop, NEVER)
                session.run(3, "forward", {})
                assert session.wait() == 3
                check_loop(session, loop, 3, "in a thread")
                session.stop()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not errors, errors


CASES: dict[str, Callable[[Open, Planner], None]] = {
    re.sub("_", " ", case.__name__): case
    for case in (
        a_program_is_launched_run_stopped_and_launched_again,
        early_ends_close_the_queue_and_wait_opens_it_again,
        workers_that_run_ahead_stop_where_they_should,
        hundreds_of_queued_commands_with_scalars_do_what_python_does,
        strided_views_are_written_and_read,
        inputs_nobody_wrote_are_zero_and_outputs_are_poisoned,
        a_bad_index_is_a_task_error_and_the_program_can_be_launched_again,
        a_missing_signal_is_ended_by_the_watchdog,
        wait_has_a_limit_and_the_run_goes_on,
        another_thread_can_close_a_program_that_is_waited_for,
        closing_a_running_program_takes_little_time,
        ctrl_c_ends_wait_within_a_second_and_the_run_goes_on,
        a_program_that_is_dropped_ends_its_kernel,
        two_programs_of_one_binary_run_beside_each_other,
        what_would_wait_for_a_resident_kernel_is_refused,
        calls_come_from_any_thread,
    )
}
