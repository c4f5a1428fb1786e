"""What every communicator has to do: errors that name both sides and the way out."""

import time
from collections.abc import Callable

import numpy as np

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.group import GroupCommunicator
from ark_dist.core.errors import CommAborted, CommError, CommMismatch, CommTimeout
from tests.comm_data import SHORT_S, raising


class ErrorCases:
    """Mistakes, mismatches and time-outs."""

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

    def a_closed_communicator_says_so(self, comm: Communicator) -> None:
        twin = comm.dup()
        twin.close()
        twin.close()
        with raising(CommError, "the communicator is closed"):
            twin.barrier()
        comm.barrier()
