"""What every communicator has to do: cases that all ranks run together, on any backend."""

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce

import ml_dtypes
import msgpack
import numpy as np

from ark_dist.comm.communicator import CAPABILITIES, REDUCE_OPS, Communicator, Work
from ark_dist.comm.group import GroupCommunicator
from ark_dist.comm.names import IN_PLACE, MAX, MpiNames
from ark_dist.core.errors import CommAborted, CommError, CommMismatch, CommTimeout
from ark_dist.core.op import Array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16, np.dtype(np.float64))
INTEGERS = tuple(np.dtype(name) for name in ("int8", "uint8", "int32", "uint32", "int64"))
DTYPES = (*FLOATS, *INTEGERS, np.dtype(np.bool_))
SHAPES = ((), (0,), (1,), (3, 0, 2), (2, 3, 5), (10_007,))
SHORT_S = 0.15
Raised = dict[str, str]


def data_of(rank: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """The array of a rank: random, and the same in every process."""
    rng = np.random.default_rng([rank, len(shape), sum(shape)])
    values = rng.standard_normal(shape) * 50
    with np.errstate(invalid="ignore"):
        kind: Array = values if dtype.kind in "fV" else np.rint(values)
        if dtype.kind == "b":
            return np.asarray(values > 0)
        if dtype.kind == "u":
            kind = np.rint(np.abs(values))
        return np.asarray(kind).astype(dtype)


def combined(parts: list[Array], op: str) -> Array:
    """The reduction in rank order, 16-bit floats in fp32: the bits that must come out."""
    dtype = parts[0].dtype
    wide = np.dtype(np.float32) if dtype in (np.dtype(np.float16), BFLOAT16) else dtype
    step = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}[op]
    with np.errstate(all="ignore"):
        total = reduce(step, [np.asarray(part, wide) for part in parts])
        if op == "mean":
            total = np.asarray(total / wide.type(len(parts)), wide)
        return np.asarray(np.asarray(total).astype(dtype))


def assert_bits(found: Array | None, wanted: Array) -> None:
    """Compare shape, dtype and every bit."""
    assert found is not None
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


@contextmanager
def raising(
    kind: type[BaseException] | tuple[type[BaseException], ...], *texts: str
) -> Iterator[Raised]:
    """Assert that a block raises, with texts in the message."""
    found: Raised = {}
    try:
        yield found
    except kind as error:
        found["text"] = str(error)
        found["type"] = type(error).__name__
        for text in texts:
            assert text in str(error), f"{text!r} is not in: {error}"
    else:
        raise AssertionError(f"{kind} was not raised")


class Contract:
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

    def bad_arguments_are_named(self, comm: Communicator) -> None:
        array = np.zeros((4, 4))
        locked = array.copy()
        locked.flags.writeable = False
        rows = np.zeros((comm.size, 2))
        calls: list[tuple[type[Exception], str, Callable[[], object]]] = [
            (TypeError, "array is a list", lambda: comm.send([1], 0)),  # type: ignore[arg-type]
            (TypeError, "dtype object", lambda: comm.send(np.array([None]), 0)),
            (TypeError, "dtype >f8", lambda: comm.broadcast(array.astype(">f8"), 0)),
            (ValueError, "not C-contiguous", lambda: comm.send(array.T[:2], 0)),
            (ValueError, "is read-only", lambda: comm.recv(locked, 0)),
            (ValueError, "is read-only", lambda: comm.all_reduce(locked)),
            (ValueError, f"dst is {comm.size}", lambda: comm.send(array, comm.size)),
            (ValueError, "src is -1", lambda: comm.irecv(array, -1)),
            (ValueError, "tag is -1", lambda: comm.isend(array, 0, -1)),
            (ValueError, "root is 99", lambda: comm.broadcast(array, 99)),
            (ValueError, "root is 99", lambda: comm.reduce(array, None, 99)),
            (ValueError, "data is None", lambda: comm.broadcast_bytes(None, comm.rank)),
            (ValueError, "recv is", lambda: comm.all_reduce(array, np.zeros(4))),
            (ValueError, "recv is", lambda: comm.all_gather(array, np.zeros(4))),
            (ValueError, "recv is", lambda: comm.reduce_scatter(rows, np.zeros(3))),
            (ValueError, "recv is", lambda: comm.all_to_all(rows, np.zeros(3))),
            (ValueError, "a row per rank", lambda: comm.all_to_all(np.zeros(()))),
            (ValueError, "a row per rank", lambda: comm.reduce_scatter(np.zeros((99, 2)))),
            (ValueError, "op is 'prod'", lambda: comm.all_reduce(array, op="prod")),
            (TypeError, "mean of int32", lambda: comm.all_reduce(np.zeros(2, "i4"), op="mean")),
            (TypeError, "can't be combined", lambda: comm.all_reduce(np.zeros(2, "c8"))),
            (ValueError, "timeout_s is 0", lambda: comm.barrier(timeout_s=0)),
            (ValueError, "size_bytes is -1", lambda: comm.allocate_window(-1)),
        ]
        for kind, text, call in calls:
            with raising(kind, text):
                call()
        comm.barrier()

    def a_receive_that_timed_out_can_be_tried_again(self, comm: Communicator) -> None:
        found = np.zeros(2)
        peer = (comm.rank + 1) % comm.size
        begun = time.monotonic()
        with raising(CommTimeout, f"rank {comm.rank}: recv #1 ", f"nothing from rank {peer} in"):
            comm.recv(found, peer, 4, timeout_s=SHORT_S)
        assert SHORT_S <= time.monotonic() - begun < SHORT_S + 2
        comm.barrier()
        sent = comm.isend(np.array([1.0, 2.0]), (comm.rank - 1) % comm.size, 4)
        comm.recv(found, peer, 4)
        sent.wait()
        assert found.tolist() == [1, 2]

    def a_time_out_names_who_is_late_and_breaks_the_group(self, comm: Communicator) -> None:
        if comm.size == 1:
            return
        last = comm.size - 1
        comm.barrier()
        if comm.rank == last:
            time.sleep(2 * SHORT_S)
            return
        with raising((CommTimeout, CommAborted), f"nothing from rank {last} in") as found:
            comm.all_reduce(np.zeros(8, np.float32), timeout_s=SHORT_S)
        if found["type"] == "CommTimeout":
            assert "all_reduce #2 fp32 x 8 sum" in found["text"]
            assert f"\n  rank {last}: barrier #1, ended" in found["text"], found["text"]
        with raising(CommAborted, "broken since", f"nothing from rank {last}"):
            comm.barrier()
        with raising(CommAborted, "broken since"):
            comm.check()

    def different_counts_are_an_error(self, comm: Communicator) -> None:
        self._mismatch(
            comm,
            lambda: comm.all_reduce(np.zeros(2000 if comm.rank else 1000, np.float32)),
            ("fp32 x 1000", "fp32 x 2000"),
        )

    def different_dtypes_are_an_error(self, comm: Communicator) -> None:
        array = np.ones(100, np.int32 if comm.rank else np.float32)
        self._mismatch(comm, lambda: comm.all_reduce(array), ("fp32 x 100", "int32 x 100"))

    def different_reductions_are_an_error(self, comm: Communicator) -> None:
        op = "max" if comm.rank else "sum"
        self._mismatch(comm, lambda: comm.all_reduce(np.ones(10), op=op), ("sum", "max"))

    def different_calls_are_an_error(self, comm: Communicator) -> None:
        calls: list[Callable[[], object]] = [
            lambda: comm.all_gather(np.ones(4)),
            lambda: comm.all_reduce(np.ones(4)),
        ]
        self._mismatch(comm, calls[min(1, comm.rank)], ("all_gather #1", "all_reduce #1"))

    def different_messages_are_an_error(self, comm: Communicator) -> None:
        if comm.size == 1:
            return
        is_compared = comm.backend != "mpi" or getattr(comm, "debug", False)
        texts = ("fp32 x 3", "int32 x 6") if is_compared else ("12 bytes", "24")
        if comm.rank == 0:
            comm.isend(np.ones(6, np.int32), 1)
        elif comm.rank == 1:
            with raising(CommMismatch, "rank 1 called recv", *texts[:1]):
                comm.recv(np.ones(3, np.float32), 0)

    def _mismatch(
        self, comm: Communicator, call: Callable[[], object], texts: tuple[str, str]
    ) -> None:
        """At least one rank sees both sides, all of them in debug mode; no rank gets numbers."""
        if comm.size == 1:
            return
        with raising((CommMismatch, CommAborted)) as found:
            call()
        world = getattr(self, "world", None)
        assert isinstance(world, GroupCommunicator)
        kinds = world.all_gather_bytes(found["type"].encode())
        if getattr(comm, "debug", False):
            assert {*kinds} == {b"CommMismatch"}, kinds
        assert b"CommMismatch" in kinds
        if found["type"] == "CommMismatch":
            for text in texts:
                assert text in found["text"], found["text"]

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

    def a_closed_communicator_says_so(self, comm: Communicator) -> None:
        twin = comm.dup()
        twin.close()
        twin.close()
        with raising(CommError, "the communicator is closed"):
            twin.barrier()
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


CASES = tuple(name for name in vars(Contract) if not name.startswith("_"))


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
