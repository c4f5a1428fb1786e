"""Checks name the first operator whose result is not finite, or not the same on all ranks."""

import numpy as np
import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import CommAborted, TaskError
from ark_dist.core.settings import read_settings
from ark_dist.launch.open import open_session
from ark_dist.scheduler.plan import PlanOptions
from tests.rank_threads import on_ranks

DEVICES = ["numpy", "cpu", "emulated"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_first_operator_that_makes_a_bad_number_is_named(device: str, dtype: str) -> None:
    model = ark.Model()
    x = model.tensor((3, 40), dtype, name="x")
    y = model.add(x, 1.0, name="shifted")
    model.exp(model.log(y, name="logarithm"), name="back")
    with ark.Executor(model=model, device=device, workers=1, check_numerics=True) as exe:
        exe.compile()
        exe.launch()
        x.from_numpy(np.ones((3, 40)))
        exe.run(2)
        assert exe.wait() == 2
        bad = np.ones((3, 40))
        bad[2, 17] = -1.0
        x.from_numpy(bad)
        exe.run(1)
        with pytest.raises(TaskError, match=r"log logarithm.*NaN or infinite"):
            exe.wait()


def test_the_rank_that_has_it_is_named() -> None:
    def work(communicator: Communicator) -> str:
        with world.use(communicator):
            model = ark.Model()
            x = model.tensor(64, name="x")
            model.all_reduce(model.mul(x, 2.0, name="twice"))
            with ark.Executor(model=model, device="cpu", workers=1, check_numerics=True) as exe:
                exe.compile()
                exe.launch()
                value = np.full(64, np.inf if communicator.rank == 1 else 1.0, np.float32)
                x.from_numpy(value)
                exe.run(1)
                with pytest.raises((TaskError, CommAborted)) as error:
                    exe.wait()
                return str(error.value)

    for text in on_ranks(2, work):
        assert "rank 1" in text and "mul twice" in text


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("transport", ["peer", "proxy"])
def test_results_of_a_sum_are_compared_over_ranks(device: str, transport: str) -> None:
    def work(communicator: Communicator) -> None:
        with world.use(communicator):
            model = ark.Model()
            x = model.tensor(5000, name="x")
            total = model.all_reduce(x)
            options = PlanOptions(check_replicas=True, transport=transport)
            with ark.Executor(model=model, device=device, workers=1, options=options) as exe:
                exe.compile()
                exe.launch()
                x.from_numpy(np.arange(5000, dtype=np.float32) + communicator.rank)
                exe.run(3)
                assert exe.wait() == 3
                np.testing.assert_array_equal(total.to_numpy(), 2 * np.arange(5000) + 1)

    on_ranks(2, work)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_flipped_bit_is_found(device: str) -> None:
    """Each rank flips a bit of its own after the sum, as a broken memory would."""

    def work(communicator: Communicator) -> str:
        builder = GraphBuilder("flipped", rank=communicator.rank, world_size=2)
        total = builder.apply("all_reduce", [builder.constant(1.0, (300,))])
        off = builder.constant(float(communicator.rank) * 2.0**-20, (300,))
        spoilt = builder.apply("add", [total, off])
        high, low = (
            builder.apply("all_reduce", [spoilt], {"reduce": how}) for how in ("max", "min")
        )
        builder.apply("check_equal", [high, low], name="check")
        opened = open_session(
            builder.freeze(),
            device=device,
            settings=read_settings(),
            worker_count=1,
            communicator=communicator,
        )
        opened.session.compile(lambda path: None)
        opened.session.launch()
        opened.session.run(1, "forward", {})
        with pytest.raises((TaskError, CommAborted)) as error:
            opened.session.wait()
        opened.session.close()
        return str(error.value)

    for text in on_ranks(2, work):
        assert "ranks have different results" in text
