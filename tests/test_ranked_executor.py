"""Executors of several ranks run one program together, in kernels that talk to each other."""

import numpy as np
import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import CommAborted, CommMismatch, PlanMismatchError, TaskError
from tests.rank_threads import on_ranks

DEVICES = ("numpy", "cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_reduce_what_their_users_wrote(device: str, size: int) -> None:
    def work(communicator: Communicator) -> None:
        with world.use(communicator):
            model = ark.Model()
            x = model.tensor((37, 11), ark.FP32)
            total = model.all_reduce(model.mul(x, 2))
            with ark.Executor(model=model, device=device, workers=2) as exe:
                exe.compile()
                for turn in range(3):
                    exe.launch()
                    x.from_numpy(np.full((37, 11), communicator.rank + turn, np.float32))
                    exe.run(2)
                    assert exe.wait() == 2
                    want = 2 * sum(r + turn for r in range(size))
                    np.testing.assert_array_equal(total.to_numpy(), want)
                    exe.stop()

    on_ranks(size, work)


@pytest.mark.parametrize("device", DEVICES)
def test_a_failing_task_ends_all_ranks(device: str) -> None:
    def work(communicator: Communicator) -> str:
        with world.use(communicator):
            model = ark.Model()
            index = model.tensor((4,), ark.INT32)
            table = model.parameter((8, 4), ark.FP32)
            model.all_reduce(model.embedding(index, table), name="sum")
            with ark.Executor(model=model, device=device, workers=1) as exe:
                exe.compile()
                exe.launch()
                table.from_numpy(np.ones((8, 4), np.float32))
                bad = 99 if communicator.rank == 1 else 3
                index.from_numpy(np.full(4, bad, np.int32))
                exe.run(5)
                with pytest.raises((TaskError, CommAborted)) as error:
                    exe.wait()
                return f"{type(error.value).__name__}: {error.value}"

    first, second = on_ranks(2, work)
    assert "rank 1" in first and "99" in first and first.startswith("CommAborted")
    assert second.startswith("TaskError") and "99" in second


@pytest.mark.parametrize("device", DEVICES)
def test_ranks_that_run_different_counts_are_told(device: str) -> None:
    def work(communicator: Communicator) -> str:
        with world.use(communicator):
            model = ark.Model()
            x = model.tensor((4,), ark.FP32)
            model.all_reduce(x)
            with ark.Executor(model=model, device=device, workers=1) as exe:
                exe.compile()
                exe.launch()
                x.from_numpy(np.ones(4, np.float32))
                exe.run(5 + communicator.rank)
                with pytest.raises((CommMismatch, CommAborted)) as error:
                    exe.wait()
                    exe.run(1)
                    exe.wait()
                return str(error.value)

    texts = on_ranks(2, work)
    assert any("run(5" in text and "run(6" in text for text in texts)


def test_different_models_are_refused_before_anything_runs() -> None:
    def work(communicator: Communicator) -> None:
        with world.use(communicator):
            model = ark.Model()
            dtype = ark.FP32 if communicator.rank else ark.INT32
            model.all_reduce(model.tensor((4,), dtype), name="sum")
            with pytest.raises(PlanMismatchError, match=r"int32\[4\].*fp32\[4\]|fp32.*int32"):
                ark.Executor(model=model, device="numpy")

    on_ranks(2, work)
