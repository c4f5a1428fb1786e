"""Threads as ranks: faults on demand, and what the others see of them."""

import threading
import time

import numpy as np
import pytest

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.group import GroupCommunicator
from ark_dist.comm.inproc import Delay, Drop, Kill, inproc_world
from ark_dist.core.errors import CommAborted, CommMismatch, CommTimeout, PeerLost
from tests.threads import failures, on_threads


def reduce_thrice(comm: Communicator) -> None:
    for _ in range(3):
        comm.all_reduce(np.ones(4))


def test_a_dropped_message_is_a_time_out_that_names_the_sender() -> None:
    world = inproc_world(2, timeout_s=0.2, faults=[Drop(0, 1, 0)])
    late = failures(world, lambda comm: comm.barrier())[1]
    assert isinstance(late, CommTimeout)
    assert (late.rank, late.op, late.seq, late.missing) == (1, "barrier", 1, (0,))
    assert late.waited_s >= 0.2
    assert "rank 1: barrier #1: nothing from rank 0 in 0.2" in str(late)
    assert "\n  rank 0: barrier #1, ended" in str(late)


def test_a_message_that_is_missing_in_the_middle_is_a_mismatch() -> None:
    world = inproc_world(2, timeout_s=10, faults=[Drop(0, 1, 1)])
    error = failures(world, reduce_thrice)[1]
    assert isinstance(error, CommMismatch)
    assert "rank 1 called all_reduce #2" in str(error)
    assert "rank 0 called all_reduce #3" in str(error)


def test_a_delayed_message_arrives_and_order_is_kept() -> None:
    found = np.zeros((2, 1))

    def run(comm: Communicator) -> None:
        if comm.rank == 0:
            works = [comm.isend(np.array([float(i)]), 1) for i in range(2)]
            for work in works:
                work.wait()
        else:
            begun = time.monotonic()
            comm.recv(found[0], 0)
            assert time.monotonic() - begun > 0.09
            comm.recv(found[1], 0)

    on_threads(inproc_world(2, timeout_s=10, faults=[Delay(0, 1, 0, 0.1)]), run)
    assert found.ravel().tolist() == [0, 1]


def test_a_delay_past_the_limit_is_a_time_out() -> None:
    world = inproc_world(2, timeout_s=0.1, faults=[Delay(1, 0, 0, 0.5)])
    errors = failures(world, lambda comm: comm.barrier())
    # Either may run out of time first: on a busy machine a thread may begin late.
    assert any(isinstance(error, CommTimeout) for error in errors)
    assert all(isinstance(error, (CommTimeout, CommAborted)) for error in errors)


def test_a_killed_rank_is_lost_to_the_others() -> None:
    # Each of three ranks begins four messages in a small all_reduce.
    world = inproc_world(3, timeout_s=10, faults=[Kill(1, 5)])
    errors = failures(world, reduce_thrice)
    assert isinstance(errors[1], CommAborted)
    assert "rank 1 was killed by a fault at all_reduce #2" in str(errors[1])
    others = [errors[0], errors[2]]
    assert any(isinstance(error, PeerLost) for error in others)
    for error in others:
        assert isinstance(error, (PeerLost, CommAborted))
        assert "rank 1 closed its communicator after 2 calls" in str(error)
        if isinstance(error, PeerLost):
            assert error.lost == (1,)
    with pytest.raises((PeerLost, CommAborted)):
        world[0].check()


def test_faults_strike_the_same_message_in_every_run() -> None:
    for _ in range(3):
        # Each of two ranks begins two messages in a small all_reduce.
        error = failures(inproc_world(2, timeout_s=10, faults=[Kill(0, 5)]), reduce_thrice)[0]
        assert str(error) == "rank 0 was killed by a fault at all_reduce #3 float64 x 4 sum"


def test_abort_ends_the_waits_of_all_threads() -> None:
    def run(comm: Communicator) -> None:
        if comm.rank == 2:
            time.sleep(0.05)
            comm.abort(3, "enough")
        comm.barrier()

    for error in failures(inproc_world(3, timeout_s=10), run):
        assert isinstance(error, CommAborted)
        assert "rank 2 gave up with code 3: enough" in str(error)


def test_a_closed_rank_is_lost_and_check_says_so() -> None:
    world = inproc_world(2, timeout_s=10)
    world[0].check()
    world[1].close()
    with pytest.raises(PeerLost, match="rank 1 closed its communicator after 0 calls"):
        world[0].check()
    with pytest.raises(PeerLost, match="rank 0: recv #1 fp32 x 1: rank 1 closed"):
        world[0].recv(np.zeros(1, np.float32), 1)


def test_a_message_that_does_not_fit_breaks_the_receiver_and_names_both_sides() -> None:
    world = inproc_world(2, timeout_s=10)
    work = world[0].isend(np.zeros(3, np.float32), 1, 4)
    with pytest.raises(
        CommMismatch,
        match=r"rank 1 called recv #1 int32 x 3 \(12 bytes\), rank 0 tag 4 sent fp32 x 3",
    ):
        world[1].recv(np.zeros(3, np.int32), 0, 4)
    work.wait()
    with pytest.raises(CommAborted, match="broken since recv #1 int32 x 3: CommMismatch"):
        world[1].barrier()


def test_an_error_inside_a_group_withdraws_its_messages() -> None:
    world = inproc_world(2, timeout_s=10)
    kept = np.zeros(1)
    with pytest.raises(KeyError), world[1].group():
        world[1].recv(kept, 0)
        raise KeyError
    work = world[0].isend(np.ones(1), 1)
    assert not work.done()
    world[1].recv(found := np.zeros(1), 0)
    work.wait()
    assert (kept[0], found[0]) == (0, 1)


def test_an_interrupted_collective_breaks_the_group_and_leaves_the_arrays_alone() -> None:
    world = inproc_world(2, timeout_s=10)
    array = np.zeros(4)
    comm = world[0]
    assert isinstance(comm, GroupCommunicator)

    def interrupt(round_index: int) -> None:
        raise KeyboardInterrupt

    comm.endpoint.pause = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        comm.all_reduce(array)
    with pytest.raises(CommAborted, match=r"broken since all_reduce #1 .* KeyboardInterrupt"):
        comm.barrier()
    with pytest.raises(CommAborted, match=r"rank 0 failed: all_reduce #1 .* KeyboardInterrupt"):
        world[1].all_reduce(np.ones(4))
    assert not array.any()


def test_a_world_needs_a_rank_and_a_limit() -> None:
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        inproc_world(0)
    with pytest.raises(ValueError, match="timeout_s is 0; it must be above 0"):
        inproc_world(1, timeout_s=0)


def test_a_world_of_many_threads_makes_progress() -> None:
    def run(comm: Communicator) -> None:
        assert comm.all_reduce(np.array([comm.rank]))[0] == 120

    on_threads(inproc_world(16, timeout_s=20), run)
    assert threading.active_count() < 16
