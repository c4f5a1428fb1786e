"""The Runtime: which model it takes, and the order of its calls."""

import logging

import numpy as np
import pytest

import ark_dist as ark


def build() -> tuple[ark.Tensor, ark.Tensor]:
    """An input of the current model and an output."""
    x = ark.tensor([2], ark.FP16, name="x")
    return x, x * 2


def test_build_launch_load_run_and_read(device: str) -> None:
    runtime = ark.Runtime(0, 1, device=device, workers=1)
    x, y = build()
    runtime.launch()
    x.from_numpy(np.array([1, 2]))
    assert runtime.run() == 1
    assert y.to_numpy().tolist() == [2, 4]
    x.from_numpy(np.array([3, 4]))
    assert runtime.run(iter=5, non_blocking=True) is None
    assert runtime.wait() == 5
    assert y.to_numpy().tolist() == [6, 8]
    elapsed_ms = runtime.stop()
    assert isinstance(elapsed_ms, float)
    assert elapsed_ms > 0
    assert y.to_numpy().tolist() == [6, 8]
    runtime.close()


def test_a_runtime_takes_tensors_made_before_it() -> None:
    x, y = build()
    with ark.Runtime(device="numpy") as runtime:
        assert runtime.model is x.model
        runtime.launch()
        runtime.run()
        assert y.to_numpy().tolist() == [0, 0]


def test_a_second_runtime_starts_a_model_of_its_own() -> None:
    one = ark.Runtime(device="numpy")
    x, y = build()
    two = ark.Runtime(device="numpy")
    z, w = build()
    assert x.model is one.model
    assert z.model is two.model
    assert one.model is not two.model
    for runtime, source in ((one, x), (two, z)):
        runtime.launch()
        source.from_numpy(np.array([1, 2 if runtime is one else 3]))
        runtime.run()
    assert y.to_numpy().tolist() == [2, 4]
    assert w.to_numpy().tolist() == [2, 6]


def test_a_model_that_an_executor_runs_is_not_taken() -> None:
    x, _ = build()
    ark.Executor(device="numpy")
    assert ark.Runtime(device="numpy").model is not x.model


def test_launching_twice_warns_and_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    runtime = ark.Runtime(device="numpy")
    build()
    runtime.launch()
    executor = runtime.executor
    with caplog.at_level(logging.WARNING, "ark_dist"):
        runtime.launch()
    assert caplog.messages == ["launch: the runtime is launched already; skipped"]
    assert runtime.executor is executor


def test_waiting_and_stopping_when_idle_warn_and_are_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = ark.Runtime(device="numpy")
    build()
    with caplog.at_level(logging.WARNING, "ark_dist"):
        assert runtime.wait() == 0
        assert runtime.stop() == 0.0
        runtime.launch()
        runtime.run()
        assert runtime.wait() == 0
        runtime.stop()
        assert runtime.stop() == 0.0
    idle, stopped = "wait: the runtime is not running; skipped", "stop: the runtime is not launched"
    assert caplog.messages == [idle, f"{stopped}; skipped", idle, f"{stopped}; skipped"]


def test_running_before_launch_and_after_stop_is_an_error() -> None:
    runtime = ark.Runtime(device="numpy")
    build()
    with pytest.raises(RuntimeError, match=r"run: the runtime is new, not launched; call launch"):
        runtime.run()
    runtime.launch()
    runtime.stop()
    with pytest.raises(ark.LifecycleError, match="run: the runtime is compiled, not launched"):
        runtime.run()


def test_launching_again_keeps_weights_and_states(device: str) -> None:
    runtime = ark.Runtime(device=device)
    weight = ark.parameter(2, ark.FP32)
    total = ark.state(2, ark.FP32)
    ark.assign(total, total + weight)
    runtime.launch()
    weight.from_numpy(np.array([1, 10]))
    runtime.run()
    runtime.stop()
    runtime.launch()
    runtime.run(2)
    assert total.to_numpy().tolist() == [3, 30]
    runtime.close()


def test_a_model_that_grew_can_not_be_launched_again() -> None:
    runtime = ark.Runtime(device="numpy")
    x, _ = build()
    runtime.launch()
    runtime.stop()
    _ = x + 1
    with pytest.raises(ark.LifecycleError, match="launch: the model grew since the first launch"):
        runtime.launch()


def test_a_reset_begins_anew() -> None:
    runtime = ark.Runtime(device="numpy")
    x, _ = build()
    runtime.launch()
    runtime.reset()
    assert runtime.state == "new"
    y, z = build()
    assert y.model is runtime.model
    assert y.model is not x.model
    runtime.launch()
    runtime.run()
    assert z.to_numpy().tolist() == [0, 0]
    with pytest.raises(ark.LifecycleError, match="the program was closed"):
        x.to_numpy()


def test_a_closed_runtime_says_so_and_the_next_tensor_starts_a_new_model() -> None:
    with ark.Runtime(device="numpy") as runtime:
        x, _ = build()
        runtime.launch()
    runtime.close()
    assert repr(runtime) == "Runtime('model', closed)"
    with pytest.raises(ark.LifecycleError, match="launch: the runtime was closed; make a new"):
        runtime.launch()
    with pytest.raises(
        ark.LifecycleError, match=r"run: the runtime is closed, .* make a new Runti"
    ):
        runtime.run()
    with pytest.raises(ark.LifecycleError, match="reset: the runtime was closed; make a new"):
        runtime.reset()
    assert ark.tensor(1).model is not x.model


def test_the_executor_underneath_is_there_after_launch() -> None:
    runtime = ark.Runtime(device="numpy")
    x, y = build()
    with pytest.raises(ark.LifecycleError, match=r"the runtime has no executor yet; call launch"):
        _ = runtime.executor
    runtime.launch()
    executor = runtime.executor
    executor.tensor_memcpy_host_to_device(x, np.array([1, 2], np.float16))
    executor.run(1)
    assert runtime.state == "running"
    assert runtime.wait() == 1
    out = np.zeros(2, np.float16)
    executor.tensor_memcpy_device_to_host(out, y)
    assert out.tolist() == [2, 4]


def test_methods_and_scalars_pass_through() -> None:
    runtime = ark.Runtime(device="numpy")
    n = ark.scalar("n")
    with ark.method("step"):
        ark.assign(n, n + 1)
    runtime.launch()
    runtime.run(2, method="step", scalars={"n": 5})
    assert n.to_numpy().tolist() == [7]


@pytest.mark.parametrize(
    ("rank", "world_size", "error", "text"),
    [
        (1, 1, ValueError, "Runtime: rank is 1 and world_size is 1; rank must be 0 to"),
        (
            0,
            4,
            ark.ArkError,
            "Runtime: rank is 0 and world_size is 4, but this process is rank 0 of 1",
        ),
    ],
)
def test_several_ranks_are_refused(
    rank: int, world_size: int, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        ark.Runtime(rank, world_size)


def test_an_early_end_is_told_by_the_iterations_done(device: str) -> None:
    with ark.Runtime(device=device) as runtime:
        n = ark.scalar("n")
        ark.assign(n, n + 1)
        ark.stop_when(n >= 3)
        runtime.launch()
        assert runtime.run(10) == 3
