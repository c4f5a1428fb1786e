"""What every communicator has to do: cases that all ranks run together, on any backend."""

import sys
import threading
import time
import traceback

import msgpack
import numpy as np

from ark_dist.comm.communicator import CAPABILITIES, Communicator, Work
from ark_dist.comm.group import GroupCommunicator
from ark_dist.comm.names import IN_PLACE, MAX, MpiNames
from ark_dist.core.errors import CommError, CommTimeout
from tests.comm_contract_collectives import CollectiveCases
from tests.comm_contract_errors import ErrorCases
from tests.comm_data import (
    DTYPES,
    SHAPES,
    assert_bits,
    data_of,
    raising,
)


class Contract(CollectiveCases, ErrorCases):
    """The cases: each is called at every rank, with a communicator of its own."""

    def ranks_are_counted(self, comm: Communicator) -> None:
        seen = comm.all_gather(np.array(comm.rank))
        assert seen.tolist() == list(range(comm.size))
        assert comm.node_ranks == tuple(range(comm.size))
        assert comm.capabilities <= CAPABILITIES
        assert {"windows", "threads"} <= comm.capabilities
        comm.check()

    def messages_go_round(self, comm: Communicator) -> None:
        right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        for dtype in DTYPES:
            for shape in SHAPES:
                mine = data_of(comm.rank, shape, dtype)
                found = np.ones_like(mine)
                comm.sendrecv(mine, right, found, left, 3)
                assert_bits(found, data_of(left, shape, dtype))

    def blocking_sends_meet_receives(self, comm: Communicator) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        for src in range(comm.size):
            dst = (src + 1) % comm.size
            if src == dst:
                continue
            if comm.rank == src:
                comm.send(array + src, dst, 7)
            elif comm.rank == dst:
                found = np.empty_like(array)
                comm.recv(found, src, 7)
                assert_bits(found, array + src)

    def long_messages_arrive(self, comm: Communicator) -> None:
        shape = (800_003,)
        peer = comm.size - 1 - comm.rank
        found = np.zeros(shape, np.float32)
        comm.sendrecv(data_of(comm.rank, shape, found.dtype), peer, found, peer)
        assert_bits(found, data_of(peer, shape, found.dtype))

    def tags_keep_messages_apart_and_order_keeps_equal_tags(self, comm: Communicator) -> None:
        peer = comm.size - 1 - comm.rank
        sent = [comm.isend(np.array([tag, i]), peer, tag) for tag in (1, 2) for i in range(3)]
        found = []
        for tag in (2, 1):
            for _ in range(3):
                box = np.empty(2, np.int64)
                comm.recv(box, peer, tag)
                found.append(box.tolist())
        for work in sent:
            work.wait()
        assert found == [[tag, i] for tag in (2, 1) for i in range(3)]

    def a_rank_can_send_to_itself(self, comm: Communicator) -> None:
        found = np.zeros(5)
        receive = comm.irecv(found, comm.rank)
        comm.send(np.arange(5.0), comm.rank)
        receive.wait()
        assert found.tolist() == [0, 1, 2, 3, 4]

    def work_tells_whether_it_is_done(self, comm: Communicator) -> None:
        found = np.zeros(3, np.int32)
        receive: Work = comm.irecv(found, comm.rank, 5)
        assert not receive.done()
        assert receive.exception() is None
        with raising(CommTimeout):
            receive.wait(0.02)
        send = comm.isend(np.array([1, 2, 3], np.int32), comm.rank, 5)
        receive.wait()
        send.wait()
        assert receive.done() and send.done()
        assert receive.exception() is None
        assert found.tolist() == [1, 2, 3]

    def a_group_of_calls_starts_together(self, comm: Communicator) -> None:
        found = np.zeros((comm.size, 4))
        with comm.group():
            for peer in range(comm.size):
                comm.send(np.full(4, float(comm.rank)), peer)
                comm.recv(found[peer], peer)
        assert found[:, 0].tolist() == list(range(comm.size))

    def threads_may_send_side_by_side(self, comm: Communicator) -> None:
        errors: list[BaseException] = []

        def talk(tag: int) -> None:
            try:
                for i in range(20):
                    found = np.zeros(100, np.int64)
                    peer = comm.size - 1 - comm.rank
                    comm.sendrecv(np.full(100, tag * 1000 + i), peer, found, peer, tag)
                    assert (found == tag * 1000 + i).all()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=talk, args=(tag,), daemon=True) for tag in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not errors, errors
        assert not any(thread.is_alive() for thread in threads)

    def parts_of_a_group_do_not_hear_each_other(self, comm: Communicator) -> None:
        part = comm.split(comm.rank % 2, -comm.rank)
        mine = [rank for rank in range(comm.size) if rank % 2 == comm.rank % 2][::-1]
        assert part.size == len(mine)
        assert mine[part.rank] == comm.rank
        assert part.node_ranks == tuple(range(part.size))
        twin = part.dup()
        for talk in (part, twin):
            right, left = (talk.rank + 1) % talk.size, (talk.rank - 1) % talk.size
            found = np.empty(1, np.int64)
            works = [comm.isend(np.array([i]), comm.rank, 9) for i in range(2)]
            talk.sendrecv(np.array([100 + talk.rank]), right, found, left, 9)
            assert found[0] == 100 + left
            for i, work in enumerate(works):
                comm.recv(found, comm.rank, 9)
                work.wait()
                assert found[0] == i
        assert part.all_gather(np.array(comm.rank)).tolist() == mine
        again = part.split(0, 0)
        assert again.all_reduce(np.array([1]))[0] == len(mine)
        window = part.allocate_window(10)
        window.own[:] = comm.rank
        part.barrier()
        assert [int(window.peers[rank][9]) for rank in range(part.size)] == mine
        part.barrier()
        window.close()
        for talk in (again, twin, part):
            talk.close()

    def a_window_is_shared_zeroed_and_aligned(self, comm: Communicator) -> None:
        size = 5000 + comm.rank
        window = comm.allocate_window(size)
        assert sorted(window.peers) == list(comm.node_ranks)
        assert window.own.nbytes == size
        assert not window.own.any()
        assert window.own.ctypes.data % 4096 == 0
        assert [part.nbytes for part in window.peers.values()] == [5000 + r for r in window.peers]
        comm.barrier()
        for peer, part in window.peers.items():
            part[comm.rank * 10] = 100 + peer
        comm.barrier()
        assert window.own[: comm.size * 10 : 10].tolist() == [100 + comm.rank] * comm.size
        view = window.own
        comm.barrier()
        window.close()
        window.close()
        assert view[0] == 100 + comm.rank
        with raising(CommError, "the window is closed"):
            _ = window.own
        assert comm.allocate_window(0).own.nbytes == 0

    def the_flight_record_tells_the_last_calls(self, comm: Communicator) -> None:
        assert isinstance(comm, GroupCommunicator)
        comm.all_reduce(np.zeros(3, np.float32))
        comm.sendrecv(np.zeros(2), comm.rank, np.ones(2), comm.rank, 5)
        comm.barrier()
        text = comm.flight_text()
        for rank in range(comm.size):
            assert f"rank {rank}: process " in text
        assert text.count("all_reduce #1 fp32 x 3 sum, ended") >= comm.size
        assert f"float64 x 2 with rank {comm.rank} tag 5, ended" in text
        comm.barrier()

    def the_names_of_mpi4py_work(self, comm: Communicator) -> None:
        names = MpiNames(comm)
        size, rank = names.Get_size(), names.Get_rank()
        assert (names.size, names.rank) == (size, rank)
        array = np.full(4, rank, np.float32)
        total = np.empty_like(array)
        names.Allreduce(array, total)
        names.Allreduce(IN_PLACE, array, MAX)
        assert (total[0], array[0]) == (size * (size - 1) / 2, size - 1)
        rows = np.zeros((size, 2))
        rows[rank] = rank
        names.Allgather(IN_PLACE, rows)
        names.Allgather(np.full(2, float(rank)), rows)
        assert rows[:, 0].tolist() == list(range(size))
        names.Alltoall(IN_PLACE, rows)
        assert (rows == rank).all()
        names.Bcast(array, 0)
        row = np.empty(2)
        names.Reduce_scatter_block(np.ones((size, 2)), row)
        assert row.tolist() == [size, size]
        names.Reduce(IN_PLACE, row, root=0)
        names.Reduce(np.ones(2), row if rank == 0 else None)
        peer, back = size - 1 - rank, np.empty(1)
        names.Sendrecv(np.array([rank + 0.5]), peer, back, peer)
        work = names.Irecv(back, rank, 1)
        names.Send(np.array([3.0]), rank, 1)
        work.wait()
        work = names.Isend(np.array([4.0]), rank, 1)
        names.Recv(back, rank, 1)
        work.wait()
        assert back[0] == 4
        names.Barrier()
        part = names.Split(rank, 0)
        assert part.size == 1
        names.Dup().Free()


CASES = tuple(name for name in dir(Contract) if not name.startswith("_"))


def run_cases(world: Communicator, names: tuple[str, ...] = CASES) -> dict[str, list[str]]:
    """Run cases at this rank; return for each the ranks' errors, "" where there is none."""
    contract = Contract()
    contract.world = world  # type: ignore[attr-defined]  # cases compare what the ranks saw
    results = {}
    for name in names:
        comm = world.dup()
        error = ""
        begun = time.monotonic()
        try:
            getattr(contract, name)(comm)
        except BaseException:
            error = f"rank {world.rank}:\n{traceback.format_exc()}"
        if world.rank == 0 and "-v" in sys.argv:
            print(f"{time.monotonic() - begun:.3f} s {name}", file=sys.stderr, flush=True)
        results[name] = [text.decode() for text in world.all_gather_bytes(error.encode())]
        comm.close()
    return results


def main() -> None:
    """Run all cases on the ranks of mpirun, as they are and in debug mode; rank 0 prints them."""
    from ark_dist.comm.mpi import mpi_world
    from ark_dist.comm.shm import shm_world

    found = {}
    plain = mpi_world(timeout_s=10)
    worlds = {"mpi": plain, "shm": shm_world(plain, timeout_s=10)}
    if "debug" in sys.argv:
        # Small pieces and rings: even short messages come in several.
        worlds["mpi, debug"] = mpi_world(timeout_s=10, debug=True, piece_bytes=100_000)
        worlds["shm, debug"] = shm_world(plain, timeout_s=10, debug=True, rank_bytes=1)
    for name, world in worlds.items():
        begun = time.monotonic()
        found[name] = run_cases(world)
        if world.rank == 0:
            print(f"{name}: {time.monotonic() - begun:.2f} s", file=sys.stderr, flush=True)
    if plain.rank == 0:
        print("results", msgpack.packb(found).hex(), flush=True)


Results = dict[str, dict[str, list[str]]]

if __name__ == "__main__":
    main()
