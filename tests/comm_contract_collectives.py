"""What every communicator has to do: the calls that all ranks make together."""

import time

import numpy as np

from ark_dist.comm.communicator import REDUCE_OPS, Communicator
from tests.comm_data import BFLOAT16, DTYPES, FLOATS, SHAPES, assert_bits, combined, data_of


class CollectiveCases:
    """Calls that all ranks make together."""

    def all_reduce_has_the_bits_of_rank_order(self, comm: Communicator) -> None:
        for dtype in (*FLOATS, *(np.dtype(name) for name in ("int8", "uint32", "bool"))):
            for shape in (*SHAPES, (comm.size - 1,), (3, 7001)):
                parts = [data_of(rank, shape, dtype) for rank in range(comm.size)]
                ops = REDUCE_OPS if dtype in FLOATS else REDUCE_OPS[:3]
                for op in ops if shape in ((2, 3, 5), (10_007,)) else ("sum",):
                    wanted = combined(parts, op)
                    send = parts[comm.rank].copy()
                    assert_bits(comm.all_reduce(send, np.empty_like(send), op), wanted)
                    assert_bits(send, parts[comm.rank])
                    assert comm.all_reduce(send, op=op) is send
                    assert_bits(send, wanted)

    def all_reduce_gives_nan_and_infinity_to_all(self, comm: Communicator) -> None:
        for dtype in FLOATS:
            array = np.ones(40_000, dtype)
            if comm.rank == comm.size - 1:
                array[::3], array[1::3] = np.nan, np.inf
            for op in REDUCE_OPS:
                found = comm.all_reduce(array.copy(), op=op)
                assert np.isnan(found[0]), (dtype, op)
                bits = comm.all_gather_bytes(found.tobytes())
                assert {*bits} == {bits[0]}

    def an_overlapping_result_is_right(self, comm: Communicator) -> None:
        memory = np.zeros(30_000, np.float32)
        memory[:20_000] = data_of(comm.rank, (20_000,), memory.dtype)
        found = comm.all_reduce(memory[:20_000], memory[10_000:])
        parts = [data_of(rank, (20_000,), memory.dtype) for rank in range(comm.size)]
        assert_bits(found, combined(parts, "sum"))

    def reduce_serves_the_root_alone(self, comm: Communicator) -> None:
        for root in range(comm.size):
            parts = [data_of(rank, (4, 5), BFLOAT16) for rank in range(comm.size)]
            send = parts[comm.rank].copy()
            found = comm.reduce(send, None, root, "max")
            if comm.rank == root:
                assert found is send
                assert_bits(send, combined(parts, "max"))
                assert_bits(comm.reduce(parts[root], send, root), combined(parts, "sum"))
            else:
                assert found is None
                assert_bits(send, parts[comm.rank])
                assert comm.reduce(send, None, root) is None

    def reduce_scatter_gives_each_rank_its_row(self, comm: Communicator) -> None:
        for dtype in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int32)):
            for row in ((), (0,), (3, 4), (9001,)):
                shape = (comm.size, *row)
                parts = [data_of(rank, shape, dtype) for rank in range(comm.size)]
                wanted = combined(parts, "sum")[comm.rank : comm.rank + 1].reshape(row)
                assert_bits(comm.reduce_scatter(parts[comm.rank]), wanted)
                recv = np.empty(row, dtype)
                assert comm.reduce_scatter(parts[comm.rank], recv) is recv
                assert_bits(recv, wanted)

    def all_gather_stacks_the_arrays(self, comm: Communicator) -> None:
        for dtype in (BFLOAT16, np.dtype(np.bool_), np.dtype(np.float64)):
            for shape in SHAPES:
                parts = [data_of(rank, shape, dtype) for rank in range(comm.size)]
                assert_bits(comm.all_gather(parts[comm.rank]), np.stack(parts))
        recv = np.zeros((comm.size, 3))
        recv[comm.rank] = comm.rank
        assert comm.all_gather(recv[comm.rank], recv) is recv
        assert recv[:, 2].tolist() == list(range(comm.size))

    def all_to_all_sends_row_r_to_rank_r(self, comm: Communicator) -> None:
        for shape in ((comm.size,), (comm.size, 0), (comm.size, 2, 3), (comm.size, 5001)):
            parts = [data_of(rank, shape, FLOATS[0]) for rank in range(comm.size)]
            wanted = np.stack([part[comm.rank] for part in parts])
            send = parts[comm.rank].copy()
            assert_bits(comm.all_to_all(send, np.empty_like(send)), wanted)
            assert comm.all_to_all(send) is send
            assert_bits(send, wanted)

    def broadcast_comes_from_any_root(self, comm: Communicator) -> None:
        for root in range(comm.size):
            for dtype in DTYPES:
                array = data_of(comm.rank, (3, 5), dtype)
                assert comm.broadcast(array, root) is array
                assert_bits(array, data_of(root, (3, 5), dtype))

    def a_barrier_waits_for_the_last(self, comm: Communicator) -> None:
        for late in range(comm.size):
            comm.barrier()
            if comm.rank == late:
                time.sleep(0.03)
            arrived = time.monotonic()
            comm.barrier()
            left = time.monotonic()
            times = comm.all_gather(np.array([arrived, left]))
            assert times[:, 0].max() <= times[:, 1].min()

    def bytes_of_different_lengths_are_passed_on(self, comm: Communicator) -> None:
        wanted = [bytes(range(rank)) * rank * 1000 for rank in range(comm.size)]
        assert comm.all_gather_bytes(wanted[comm.rank]) == wanted
        assert comm.all_gather_bytes(b"") == [b""] * comm.size
        for root in range(comm.size):
            for data in (b"", b"plan" * 1000):
                mine = data if comm.rank == root else None
                assert comm.broadcast_bytes(mine, root) == data

    def a_random_walk_through_the_calls_stays_in_step(self, comm: Communicator) -> None:
        rng = np.random.default_rng(7)
        own = np.random.default_rng(comm.rank)
        for _ in range(60):
            if own.random() < 0.1:
                time.sleep(0.002)
            count, kind, root = (int(rng.integers(high)) for high in (9000, 5, comm.size))
            array = np.full(count, comm.rank + 1, np.int64)
            if kind == 0:
                assert (comm.all_reduce(array) == comm.size * (comm.size + 1) // 2).all()
            elif kind == 1:
                assert (comm.broadcast(array, root) == root + 1).all()
            elif kind == 2:
                found = comm.all_gather(array)
                assert (np.arange(1, comm.size + 1) == found.T).all()
            elif kind == 3:
                comm.barrier()
            else:
                peer = (root - comm.rank) % comm.size
                back = np.empty_like(array)
                comm.sendrecv(array, peer, back, peer)
                assert (back == peer + 1).all()
