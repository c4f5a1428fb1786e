"""Cases that a review found: each was wrong once."""

import threading
import time

import numpy as np
import pytest

import ark_dist as ark


def test_a_float_scalar_is_rounded_to_its_dtype(device: str) -> None:
    model = ark.Model()
    rate = model.scalar("rate", ark.FP32, init=0.1)
    total = model.state(1)
    model.assign(total, total + rate)
    with ark.Executor(model=model, device=device, workers=1) as exe:
        exe.compile()
        exe.launch()
        exe.run(1, scalars={"rate": 0.2})
        exe.run(1)
        exe.wait()
        assert total.to_numpy() == np.float32(0.2) + np.float32(0.2)
        for bad in (10**400, "x"):
            with pytest.raises(TypeError, match="run: scalar 'rate'"):
                exe.run(1, scalars={"rate": bad})  # type: ignore[dict-item]  # wrong on purpose


def test_a_product_over_an_empty_inner_size_is_zero(device: str) -> None:
    model = ark.Model()
    empty = model.relu(model.tensor((3, 0)))
    result = model.matmul(empty, model.tensor((0, 4)))
    with ark.Executor(model=model, device=device, workers=2) as exe:
        exe.compile()
        exe.launch()
        exe.run(2)
        exe.wait()
        np.testing.assert_array_equal(result.to_numpy(), np.zeros((3, 4), np.float32))


def test_close_ends_a_run_that_another_thread_waits_for() -> None:
    model = ark.Model()
    x = model.tensor((8,))
    model.add(x, 1.0)
    exe = ark.Executor(model=model, device="cpu", workers=1)
    exe.compile()
    exe.launch()
    exe.run(2**40)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            exe.wait()
        except ark.ArkError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.2)
    exe.close()
    waiter.join(timeout=30)
    assert not waiter.is_alive()
    assert "the kernel was aborted" in str(errors[0])


def test_absurd_worker_counts_are_refused() -> None:
    model = ark.Model()
    model.add(model.tensor((4,)), 1.0)
    with pytest.raises(ValueError, match="workers is 100000; it must be 1 to 1024"):
        ark.Executor(model=model, device="numpy", workers=100_000)


def test_a_computed_tensor_can_not_be_written(device: str) -> None:
    model = ark.Model()
    result = model.add(model.tensor((4,)), 1.0)
    with ark.Executor(model=model, device=device) as exe:
        exe.compile()
        with pytest.raises(ValueError, match="only inputs, states and parameters"):
            result.from_numpy(np.ones(4, np.float32))
