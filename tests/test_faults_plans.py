"""Fault rows 13 to 21: ranks whose programs do not fit are refused before anything runs."""

import re
from dataclasses import replace

import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import PlanWorldSizeError
from ark_dist.core.graph import Graph
from ark_dist.core.settings import read_settings
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from tests.fault_runs import LAUNCHERS, LIMIT_S, QUICK_S, cause, check_failed
from tests.mpi import run_mpi
from tests.plan_faults import DIFFERENT, HEAD, run_different
from tests.rank_cases import plans_of
from tests.rank_threads import on_ranks


@pytest.mark.long
@pytest.mark.timeout(60)
@pytest.mark.parametrize("by", LAUNCHERS)
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_do_not_fit_are_told_where(name: str, n: int, by: str) -> None:
    done = run_different(name, n, by)
    check_failed(done, 76, by, QUICK_S)
    assert "launched" not in done.stdout, done
    assert "PlanMismatchError" in done.stderr, done
    if n == 2:  # a third rank may be the one that speaks
        assert re.search(DIFFERENT[name][1], done.stderr), done


@pytest.mark.long
@pytest.mark.timeout(60)
def test_row_18_a_message_to_oneself_is_refused_where_it_is_made() -> None:
    program = f"{HEAD}model.send(tensor(8), dst=rank)\n"
    done = run_mpi(2, program, timeout_s=LIMIT_S, is_guarded=False, by="ark-dist")
    check_failed(done, 70, "ark-dist", QUICK_S)
    assert re.search(r"ValueError: send: dst is \d, which is this rank", cause(done)), done


def summing(rank: int, size: int) -> Graph:
    """A sum over all ranks."""
    builder = GraphBuilder("sum", rank=rank, world_size=size)
    builder.apply("all_reduce", [builder.tensor((8,), "fp32", name="x")])
    return builder.freeze()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_row_21_a_plan_for_four_ranks_does_not_run_on_two(device: str) -> None:
    plans = plans_of(lambda rank: summing(rank, 4), 4)

    def work(communicator: Communicator) -> None:
        plan = plans[communicator.rank]
        made = (
            CpuDevice(plan, read_settings(), communicator)
            if device == "cpu"
            else NumpyDevice(plan, communicator=communicator)
        )
        session = Session(plan, made, SessionOptions())
        text = r"rank \d: program 'sum' was planned for 4 ranks, and there are 2; start 4 ranks"
        with pytest.raises(PlanWorldSizeError, match=text):
            session.compile(lambda path: None)
        session.close()

    on_ranks(2, work)


def test_row_21_a_plan_of_another_rank_or_of_several_alone_is_refused() -> None:
    plans = plans_of(lambda rank: summing(rank, 2), 2)

    def work(communicator: Communicator) -> None:
        swapped = NumpyDevice(plans[1 - communicator.rank], communicator=communicator)
        with pytest.raises(PlanWorldSizeError, match=r"rank \d: .* was planned for rank \d; give"):
            swapped.allocate()

    on_ranks(2, work)
    with pytest.raises(PlanWorldSizeError, match="planned for 2 ranks, and there are 1"):
        NumpyDevice(plans[0]).allocate()
    alone = replace(plans[0], rank=1, world_size=1)
    with pytest.raises(PlanWorldSizeError, match="planned for rank 1"):
        NumpyDevice(alone).allocate()
