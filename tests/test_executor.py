"""The Executor: its arguments, its lifecycle, its copies, and what it logs."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.plan import Plan
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.machine import Command
from ark_dist.launch.open import DEVICES
from ark_dist.launch.session import TRANSITIONS, WAYS_OUT

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "examples" / "tutorial" / "model_tutorial.py"
STATES = ("new", "compiled", "launched", "running", "failed", "closed")
NEEDS_CPU = pytest.mark.skipif("cpu" not in DEVICES, reason="there is no cpu device yet")


class Failing(NumpyDevice):
    """A device whose runs end with an error."""

    def post(self, command: Command) -> None:
        self._pending.append(Command("nothing", 1, 0))

    def wait(self, timeout_s: float) -> list[int]:
        raise ark.TaskError("rank 0: task 0 failed")


def small_model() -> tuple[ark.Model, ark.Tensor, ark.Tensor]:
    """A model with an input and an output of 4 fp16."""
    model = ark.Model("small")
    x = model.tensor(4, ark.FP16, name="x")
    return model, x, model.add(x, 1)


def executor_in(state: str, monkeypatch: pytest.MonkeyPatch) -> tuple[ark.Executor, ark.Tensor]:
    """An executor in a state of the lifecycle, and a tensor it can read and write."""

    def failing(
        plan: Plan, settings: object, gpu: object, ranks: object, emit: object
    ) -> NumpyDevice:
        return Failing(plan)

    if state == "failed":
        monkeypatch.setitem(DEVICES, "numpy", failing)
    model, x, _ = small_model()
    exe = ark.Executor(model=model, device="numpy")
    if state in ("compiled", "launched", "running", "failed"):
        exe.compile()
    if state in ("launched", "running", "failed"):
        exe.launch()
    if state in ("running", "failed"):
        exe.run(1)
    if state == "failed":
        with pytest.raises(ark.TaskError, match="rank 0: task 0 failed"):
            exe.wait()
    if state == "closed":
        exe.close()
    assert exe.state == state
    return exe, x


CALLS: dict[str, Callable[[ark.Executor, ark.Tensor], object]] = {
    "compile": lambda exe, x: exe.compile(),
    "write": lambda exe, x: exe.tensor_memcpy_host_to_device(x, np.zeros(4, np.float16)),
    "read": lambda exe, x: exe.tensor_memcpy_device_to_host(np.zeros(4, np.float16), x),
    "launch": lambda exe, x: exe.launch(),
    "run": lambda exe, x: exe.run(1),
    "wait": lambda exe, x: exe.wait(),
    "stop": lambda exe, x: exe.stop(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", STATES)
def test_every_call_in_every_state_does_what_the_table_says(
    state: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exe, x = executor_in(state, monkeypatch)
    after = TRANSITIONS.get((state, call))
    if after is None:
        text = rf"{call}\(\) is not allowed while {state}; {re.escape(WAYS_OUT[state])}"
        with pytest.raises(ark.LifecycleError, match=text):
            CALLS[call](exe, x)
        assert exe.state == state
    else:
        CALLS[call](exe, x)
        assert exe.state == after


def test_the_table_knows_no_other_calls_and_states() -> None:
    assert {call for _, call in TRANSITIONS} == set(CALLS)
    assert {*(s for s, _ in TRANSITIONS), *TRANSITIONS.values(), "closed"} == set(STATES)
    assert set(WAYS_OUT) == set(STATES)


@pytest.mark.parametrize("state", STATES)
def test_closing_works_in_every_state_and_twice(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exe, _ = executor_in(state, monkeypatch)
    exe.close()
    exe.close()
    assert exe.state == "closed"


def test_the_seed_call_runs_the_scheduler() -> None:
    model, _, _ = small_model()
    exe = ark.Executor(0, 0, 1, model, "tutorial_model", 16, device="numpy")
    assert exe.plan.name == "tutorial_model"
    assert 'plan "tutorial_model" version' in str(exe.plan)
    assert repr(exe) == "Executor('tutorial_model', numpy, new)"
    assert exe.model is model
    assert exe.graph.name == "tutorial_model"


def test_without_arguments_it_takes_the_current_model() -> None:
    x = ark.tensor(2) + 1
    exe = ark.Executor(device="numpy")
    assert exe.model is x.model
    assert exe.plan.name == "model"


def test_the_tutorial_sequence_adds_in_float16(device: str) -> None:
    model, x, y = small_model()
    with ark.Executor(0, 0, 1, model, device=device) as exe:
        exe.compile()
        x_np = np.array([[1.5, 2, 3, 1000]], np.float16)
        exe.tensor_memcpy_host_to_device(x, x_np)
        exe.launch()
        exe.run(1)
        exe.run(2)
        assert exe.wait() == 3
        assert exe.wait() == 0
        elapsed_ms = exe.stop()
        assert isinstance(elapsed_ms, float)
        assert elapsed_ms > 0
        y_np = np.zeros((1, 4), np.float16)
        exe.tensor_memcpy_device_to_host(y_np, y)
        np.testing.assert_array_equal(y_np, x_np + np.float16(1))
    assert exe.state == "closed"


def test_an_executor_can_be_launched_again_after_stop(device: str) -> None:
    model, x, y = small_model()
    with ark.Executor(model=model, device=device) as exe:
        exe.compile()
        for value in (1, 2):
            x.from_numpy(np.full(4, value))
            exe.launch()
            exe.run(1)
            exe.stop()
            assert y.to_numpy().tolist() == [value + 1] * 4


def test_an_empty_model_runs(device: str) -> None:
    with ark.Executor(model=ark.Model(), device=device) as exe:
        exe.compile()
        exe.launch()
        exe.run(3)
        assert exe.wait() == 3


def test_two_executors_work_independently(device: str) -> None:
    model, x, y = small_model()
    one, two = (ark.Executor(model=model, device=device, workers=1) for _ in range(2))
    for value, exe in ((1, one), (5, two)):
        exe.compile()
        exe.tensor_memcpy_host_to_device(x, np.full(4, value, np.float16))
        exe.launch()
        exe.run(1)
    out = np.zeros(4, np.float16)
    for value, exe in ((2, one), (6, two)):
        exe.stop()
        exe.tensor_memcpy_device_to_host(out, y)
        assert out.tolist() == [value] * 4
    one.close()
    two.tensor_memcpy_device_to_host(out, y)
    two.close()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"gpu_id": -1}, ValueError, "gpu_id is -1; it must be 0 or more"),
        ({"sms": 66}, TypeError, r"sms is 66; it must be a range, such as range\(0, 66\)"),
        ({"sms": range(0)}, ValueError, r"sms is range\(0, 0\); it must be a range from 0"),
        ({"sms": range(0, 9, 2)}, ValueError, "it must be a range .* in steps of 1"),
        ({"gpu_id": "0"}, TypeError, "gpu_id is '0'; it must be an integer"),
        ({"num_warps_per_sm": 0}, ValueError, "num_warps_per_sm is 0; it must be 1 or more"),
        ({"workers": 0}, ValueError, "workers is 0; it must be 1 or more"),
        ({"workers": 1.5}, TypeError, "workers is 1.5; it must be an integer"),
        ({"rank": 1}, ValueError, "rank is 1 and world_size is 1; rank must be 0 to"),
        ({"world_size": 0}, ValueError, "rank is 0 and world_size is 0"),
        (
            {"world_size": 2},
            ark.ArkError,
            "rank is 0 and world_size is 2, but this process is rank 0 of 1",
        ),
        ({"model": "m"}, TypeError, "model is a str, wanted an ark.Model"),
        ({"name": ""}, TypeError, "name is ''; it must be a non-empty string"),
        ({"timeout_s": 0}, ValueError, "timeout_s is 0; it must be above 0"),
        ({"device": "tpu"}, ValueError, "device is 'tpu'; it must be one of auto, cpu, cuda"),
        ({"device": "cuda"}, ark.DeviceNotFoundError, "device 'cuda' needs cupy"),
    ],
)
def test_an_argument_that_does_not_work_is_explained(
    arguments: dict[str, object],
    error: type[Exception],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # it can't be imported
    with pytest.raises(error, match=text):
        ark.Executor(**{"device": "numpy", **arguments})  # type: ignore[arg-type]  # on purpose


def compiled() -> tuple[ark.Executor, ark.Tensor, ark.Tensor]:
    """A compiled executor, its input x and its output."""
    model, x, y = small_model()
    exe = ark.Executor(model=model, device="numpy")
    exe.compile()
    return exe, x, y


def test_arguments_in_the_wrong_order_are_recognised() -> None:
    exe, x, y = compiled()
    array = np.zeros(4, np.float16)
    with pytest.raises(TypeError, match="the first argument, dst, is a ndarray; wanted a tensor"):
        exe.tensor_memcpy_host_to_device(array, x)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="the second argument, src, is a ndarray; wanted a tensor"):
        exe.tensor_memcpy_device_to_host(y, array)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        ([1.0], TypeError, "found a list, wanted a numpy.ndarray"),
        (np.zeros(3, np.float16), ValueError, "the array has shape (3,), tensor 'x' has (4,)"),
        (np.zeros(4, np.float32), TypeError, "the array of shape (4,) is float32, tensor 'x' is"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(
    array: object, error: type[Exception], text: str
) -> None:
    exe, x, _ = compiled()
    with pytest.raises(error, match=re.escape(text)):
        exe.tensor_memcpy_host_to_device(x, array)  # type: ignore[arg-type]  # on purpose


def test_a_source_may_be_strided_or_of_the_other_byte_order() -> None:
    exe, x, _ = compiled()
    exe.tensor_memcpy_host_to_device(x, np.arange(8, dtype=">f2")[::2])
    assert x.to_numpy().tolist() == [0, 2, 4, 6]


def test_a_tensor_of_another_model_is_refused() -> None:
    exe, _, _ = compiled()
    other = ark.Model("other").tensor(4, ark.FP16, name="z")
    text = "tensor 'z' belongs to model 'other', the program runs 'small'"
    with pytest.raises(ValueError, match=text):
        exe.tensor_memcpy_host_to_device(other, np.zeros(4, np.float16))
    with pytest.raises(ValueError, match=text):
        exe.tensor_memcpy_device_to_host(np.zeros(4, np.float16), other)


@pytest.mark.parametrize(
    ("iterations", "error", "text"),
    [
        (-1, ValueError, "iterations is -1; it must be 0 to"),
        (1.5, TypeError, "iterations is 1.5; it must be an integer"),
        (True, TypeError, "iterations is True; it must be an integer"),
    ],
)
def test_a_number_of_iterations_that_does_not_work_is_refused(
    iterations: int, error: type[Exception], text: str
) -> None:
    exe, _, _ = compiled()
    exe.launch()
    with pytest.raises(error, match=text):
        exe.run(iterations)
    assert exe.state == "launched"


def test_a_timeout_must_be_a_duration() -> None:
    exe, _, _ = compiled()
    exe.launch()
    with pytest.raises(ValueError, match="wait: timeout is -1; it must be 0 or more seconds"):
        exe.wait(-1)


def test_no_run_with_weights_that_were_never_written(device: str) -> None:
    model = ark.Model()
    used, unused = model.parameter(4, name="w"), model.parameter(4, name="unused")
    y = used + 1
    with model.method("other"):
        model.relu(unused)
    with ark.Executor(model=model, device=device) as exe:
        exe.compile()
        exe.launch()
        with pytest.raises(ark.LifecycleError, match="run: 1 weights were never written: w; load"):
            exe.run(1)
        assert exe.state == "launched"
        used[:2].from_numpy(np.array([1, 2]))
        with pytest.raises(ark.LifecycleError, match="never written: w;"):
            exe.run(1)
        used[2:].from_numpy(np.array([3, 4]))
        exe.run(1)
        exe.wait()
        assert y.to_numpy().tolist() == [2, 3, 4, 5]
        with pytest.raises(ark.LifecycleError, match="never written: unused;"):
            exe.run(1, method="other")


def test_many_unset_weights_are_counted_and_the_first_are_listed() -> None:
    model = ark.Model()
    total = model.parameter(1, name="w")
    for _ in range(24):
        total = total + model.parameter(1, name="w")  # type: ignore[assignment]  # a Tensor
    exe = ark.Executor(model=model, device="numpy")
    exe.compile()
    exe.launch()
    with pytest.raises(ark.LifecycleError, match=r"25 weights .* w_19 and 5 more; load them"):
        exe.run(1)


# Logging.


def child(code: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@NEEDS_CPU
def test_compiling_logs_one_line_with_a_file_one_can_read(tmp_path: Path) -> None:
    for _ in range(2):  # the second time the cache has it
        done = child(TUTORIAL.read_text(), ARK_DIST_CACHE_DIR=str(tmp_path), ARK_DIST_DEVICE="cpu")
        assert done.returncode == 0, done.stderr
        (line,) = done.stderr.splitlines()
        found = re.fullmatch(r"INFO (\S+):(\d+) Compiling (\S+)", line)
        assert found, line
        assert (ROOT / found[1]).is_file()
        assert "LOGGER.info" in (ROOT / found[1]).read_text().splitlines()[int(found[2]) - 1]
        assert Path(found[3]).read_text().strip()


def test_a_device_without_source_logs_nothing() -> None:
    done = child(TUTORIAL.read_text(), ARK_DIST_DEVICE="numpy")
    assert (done.returncode, done.stderr) == (0, "")


LOG = "ark.init(); ark.init(); logging.getLogger('ark_dist').info('hello')"


def test_a_user_who_set_up_logging_is_left_alone() -> None:
    before = child(
        "import logging, ark_dist as ark\n"
        f"logging.basicConfig(format='mine %(message)s', level='INFO'); {LOG}"
    )
    assert before.stderr == "mine hello\n"
    after = child(
        "import logging, ark_dist as ark\n"
        f"ark.init(); logging.basicConfig(format='mine %(message)s', level='INFO'); {LOG}"
    )
    assert after.stderr == "mine hello\n"


@pytest.mark.parametrize(("level", "lines"), [("INFO", 1), ("debug", 1), ("WARNING", 0)])
def test_the_environment_sets_the_level(level: str, lines: int) -> None:
    done = child(f"import logging, ark_dist as ark; {LOG}", ARK_DIST_LOG=level)
    assert len(done.stderr.splitlines()) == lines, done.stderr


def test_a_level_that_does_not_exist_is_named() -> None:
    done = child("import ark_dist as ark; ark.init()", ARK_DIST_LOG="loud")
    assert "ARK_DIST_LOG is 'LOUD'; it must be DEBUG, INFO" in done.stderr


def test_the_logger_is_named_after_the_package() -> None:
    assert logging.getLogger("ark_dist") is __import__("ark_dist.context").context.LOGGER


def test_one_process_is_rank_0_of_1() -> None:
    assert (ark.rank(), ark.world_size()) == (0, 1)
