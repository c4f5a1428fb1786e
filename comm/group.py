"""Turn calls on arrays into messages of an endpoint, with limits, checks and a flight record."""

import atexit
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import numpy as np

from ark_dist.comm import collectives
from ark_dist.comm.arrays import (
    apart,
    as_bytes,
    check_array,
    check_like,
    check_reduction,
    dtype_name,
    is_same,
    spelled,
)
from ark_dist.comm.collectives import Talk
from ark_dist.comm.communicator import DEFAULT_TIMEOUT_S, Bytes, Window
from ark_dist.comm.endpoint import (
    COLLECTIVE,
    COMPARE,
    POINT_TO_POINT,
    Contexts,
    Endpoint,
    Route,
    farewell,
)
from ark_dist.comm.flight import EVERYWHERE, LABEL_BYTES, Label
from ark_dist.comm.waiting import Call, MessageWork, Waiter
from ark_dist.core.errors import CommMismatch, CommTimeout
from ark_dist.core.op import Array


class GroupCommunicator:
    """A communicator over any endpoint; `communicator.py` describes the calls.

    Args:
        endpoint: what carries the messages.
        timeout_s: limit of a call that names none.
        debug: compare the calls of all ranks before each collective call.
        contexts: the numbers of the groups that were split off the same world.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        debug: bool = False,
        contexts: Contexts | None = None,
    ) -> None:
        self.rank = endpoint.rank
        self.size = len(endpoint.members)
        self.backend = endpoint.backend
        self.capabilities = endpoint.capabilities
        self.debug = debug
        self.endpoint = endpoint
        self.waiter = Waiter(endpoint, timeout_s)
        self._lock = threading.Lock()
        self._collective_count = 0
        self._message_count = 0
        self._contexts = contexts or Contexts()
        self._posted: list[tuple[MessageWork, float | None]] | None = None

    @property
    def node_ranks(self) -> tuple[int, ...]:
        """Ranks that share memory with this one, itself included, sorted."""
        return self.endpoint.node_ranks

    # --- one to one -----------------------------------------------------------------------

    def isend(self, array: Array, dst: int, tag: int = 0) -> MessageWork:
        """Start to send an array."""
        check_array("send", "array", array)
        return self._post("send", array, dst, tag)

    def irecv(self, array: Array, src: int, tag: int = 0) -> MessageWork:
        """Start to receive an array."""
        check_array("recv", "array", array, is_written=True)
        return self._post("recv", array, src, tag)

    def send(self, array: Array, dst: int, tag: int = 0, *, timeout_s: float | None = None) -> None:
        """Send an array to a rank; may return before it is received."""
        self._complete([self.isend(array, dst, tag)], timeout_s)

    def recv(self, array: Array, src: int, tag: int = 0, *, timeout_s: float | None = None) -> None:
        """Fill an array with the next one that a rank sent with this tag."""
        self._complete([self.irecv(array, src, tag)], timeout_s)

    def sendrecv(
        self,
        send: Array,
        dst: int,
        recv: Array,
        src: int,
        tag: int = 0,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Send to one rank and receive from another at the same time."""
        self._complete([self.irecv(recv, src, tag), self.isend(send, dst, tag)], timeout_s)

    @contextmanager
    def group(self) -> Iterator[None]:
        """Start the sends and receives made inside together, and complete them at the end."""
        if self._posted is not None:  # the outer group completes them
            yield
            return
        posted: list[tuple[MessageWork, float | None]] = []
        self._posted = posted
        try:
            yield
        except BaseException:
            for work, _ in posted:
                work.cancel()
            raise
        finally:
            self._posted = None
        limits = [timeout_s for _, timeout_s in posted if timeout_s is not None]
        is_limited = len(limits) == len(posted) > 0
        self._complete([work for work, _ in posted], max(limits) if is_limited else None)

    # --- all together ---------------------------------------------------------------------

    def all_reduce(
        self,
        send: Array,
        recv: Array | None = None,
        op: str = "sum",
        *,
        timeout_s: float | None = None,
    ) -> Array:
        """Combine the ranks' arrays; every rank gets the result, in `send` without `recv`."""
        name = "all_reduce"
        check_array(name, "send", send, is_written=recv is None)
        check_reduction(name, op, send.dtype)
        out = send if recv is None else check_like(name, recv, send.shape, send.dtype)
        with self._collective(name, send, op, timeout_s) as talk:
            collectives.all_reduce(talk, apart(send, out), out, op)
        return out

    def reduce(
        self,
        send: Array,
        recv: Array | None = None,
        root: int = 0,
        op: str = "sum",
        *,
        timeout_s: float | None = None,
    ) -> Array | None:
        """Combine the ranks' arrays; `root` gets the result, in `send` without `recv`."""
        name = "reduce"
        self._check_rank(name, "root", root)
        is_root = self.rank == root
        check_array(name, "send", send, is_written=is_root and recv is None)
        check_reduction(name, op, send.dtype)
        out = send
        if is_root and recv is not None:
            out = check_like(name, recv, send.shape, send.dtype)
        with self._collective(name, send, f"{op} to {root}", timeout_s) as talk:
            collectives.reduce(talk, send, out, root, op)
        return out if is_root else None

    def reduce_scatter(
        self,
        send: Array,
        recv: Array | None = None,
        op: str = "sum",
        *,
        timeout_s: float | None = None,
    ) -> Array:
        """Combine arrays of shape (size, ...); rank r gets row r of the result."""
        name = "reduce_scatter"
        self._check_rows(name, send)
        check_reduction(name, op, send.dtype)
        if recv is None:
            recv = np.empty(send.shape[1:], send.dtype)
        check_like(name, recv, send.shape[1:], send.dtype)
        with self._collective(name, send, op, timeout_s) as talk:
            collectives.reduce_scatter(talk, send, recv, op)
        return recv

    def all_gather(
        self, send: Array, recv: Array | None = None, *, timeout_s: float | None = None
    ) -> Array:
        """Give every rank all arrays, stacked: `recv` has shape (size, *send.shape)."""
        name = "all_gather"
        check_array(name, "send", send)
        if recv is None:
            recv = np.empty((self.size, *send.shape), send.dtype)
        check_like(name, recv, (self.size, *send.shape), send.dtype)
        with self._collective(name, send, "", timeout_s) as talk:
            own = recv[self.rank : self.rank + 1].reshape(send.shape)
            collectives.all_gather(talk, send if is_same(send, own) else apart(send, recv), recv)
        return recv

    def all_to_all(
        self, send: Array, recv: Array | None = None, *, timeout_s: float | None = None
    ) -> Array:
        """Send row r to rank r; row r of the result came from rank r; in place without `recv`."""
        name = "all_to_all"
        self._check_rows(name, send)
        out = send if recv is None else recv
        check_like(name, out, send.shape, send.dtype)
        with self._collective(name, send, "", timeout_s) as talk:
            source = send.copy() if np.may_share_memory(send, out) else send
            collectives.all_to_all(talk, source, out)
        return out

    def broadcast(self, array: Array, root: int = 0, *, timeout_s: float | None = None) -> Array:
        """Fill every rank's array with that of `root`."""
        name = "broadcast"
        self._check_rank(name, "root", root)
        check_array(name, "array", array, is_written=self.rank != root)
        with self._collective(name, array, f"from {root}", timeout_s) as talk:
            collectives.broadcast(talk, array, root)
        return array

    def barrier(self, *, timeout_s: float | None = None) -> None:
        """Return when all ranks have made this call."""
        with self._collective("barrier", None, "", timeout_s) as talk:
            collectives.barrier(talk)

    def all_gather_bytes(self, data: bytes, *, timeout_s: float | None = None) -> list[bytes]:
        """Give every rank the bytes of all, whose lengths may differ."""
        with self._collective("all_gather_bytes", None, "", timeout_s) as talk:
            return collectives.all_gather_bytes(talk, data)

    def broadcast_bytes(
        self, data: bytes | None, root: int = 0, *, timeout_s: float | None = None
    ) -> bytes:
        """Give every rank the bytes of `root`; the other ranks pass None."""
        self._check_rank("broadcast_bytes", "root", root)
        if self.rank == root and data is None:
            raise ValueError(f"broadcast_bytes: data is None at rank {root}, the root; pass bytes")
        with self._collective("broadcast_bytes", None, f"from {root}", timeout_s) as talk:
            return collectives.broadcast_bytes(talk, data, root)

    # --- groups, memory, the end ------------------------------------------------------------

    def allocate_window(self, size_bytes: int, *, timeout_s: float | None = None) -> Window:
        """Share memory with the ranks of this node: collective over all ranks of all nodes."""
        if size_bytes < 0:
            raise ValueError(f"allocate_window: size_bytes is {size_bytes}; it can't be negative")
        return self.endpoint.allocate_window(size_bytes, self, timeout_s)

    def split(self, color: int, key: int) -> "GroupCommunicator":
        """Join the ranks that pass the same color, in the order of key, then of rank."""
        return self._part(color, key)

    def dup(self) -> "GroupCommunicator":
        """The same group again, with messages of its own."""
        return self._part(0, 0)

    def flight_text(self) -> str:
        """Say what the last calls of each rank of this node were, for a report of a fault."""
        records = self.endpoint.records
        known = [(rank, records.get(world)) for rank, world in enumerate(self.endpoint.members)]
        return "\n".join(f"rank {rank}: {record.text()}" for rank, record in known if record)

    def abort(self, code: int, reason: str) -> NoReturn:
        """End the work of all ranks, the processes' too where the launcher can."""
        text = farewell(self.rank, code, reason)
        self.waiter.failure = text
        self.waiter.record.fail(EVERYWHERE, text)
        self.endpoint.abort(code, reason)

    def check(self) -> None:
        """Raise if the communicator is broken, closed, or has lost a rank of this node."""
        self.waiter.check()

    def close(self) -> None:
        """Give it up; calls that wait for this rank then raise PeerLost."""
        if not self.waiter.is_closed:
            atexit.unregister(self.close)
            self.waiter.is_closed = True
            self.endpoint.close(is_broken=self.waiter.failure is not None)

    def close_at_exit(self) -> None:
        """Close it when the process ends, by an exception too: the others know at once."""
        atexit.register(self.close)

    def __enter__(self) -> "GroupCommunicator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _part(self, color: int, key: int) -> "GroupCommunicator":
        rows = np.empty((self.size, 3), np.int64)
        self.all_gather(np.array([color, key, self._contexts.next], np.int64), rows)
        # Larger than any that a member has used: messages of two groups never meet.
        context = int(rows[:, 2].max())
        self._contexts.next = context + 1
        ranks = [rank for rank in range(self.size) if rows[rank, 0] == color]
        ranks.sort(key=lambda rank: (int(rows[rank, 1]), rank))
        return GroupCommunicator(
            self.endpoint.split(tuple(ranks), context),
            timeout_s=self.waiter.timeout_s,
            debug=self.debug,
            contexts=self._contexts,
        )

    def _post(self, op: str, array: Array, peer: int, tag: int) -> MessageWork:
        self._check_rank(op, "dst" if op == "send" else "src", peer)
        if not 0 <= tag < self.endpoint.tag_limit:
            raise ValueError(f"{op}: tag is {tag}; it must be in 0..{self.endpoint.tag_limit - 1}")
        with self._lock:
            self._message_count += 1
            label = Label(self._message_count, op, dtype_name(array.dtype), array.size)
        call = self.waiter.begin(label, None, peer=peer, tag=tag)
        post = self.endpoint.post_send if op == "send" else self.endpoint.post_recv
        request = post(as_bytes(array), Route(peer, POINT_TO_POINT, tag), label)
        return MessageWork(self.waiter, call, request)

    def _complete(self, works: Sequence[MessageWork], timeout_s: float | None) -> None:
        if self._posted is not None:
            self._posted += [(work, timeout_s) for work in works]
            return
        try:
            for work in works:
                work.wait(timeout_s)
        except CommTimeout as error:
            if not all([work.cancel() for work in works]):
                self.waiter.fail(f"{type(error).__name__}: {error}")
            raise

    @contextmanager
    def _collective(
        self, op: str, array: Array | None, detail: str, timeout_s: float | None
    ) -> Iterator[Talk]:
        dtype, count = ("", 0) if array is None else (dtype_name(array.dtype), array.size)
        with self._lock:
            self._collective_count += 1
            label = Label(self._collective_count, op, dtype, count, detail)
        call = self.waiter.begin(label, timeout_s)
        try:
            if self.debug:
                self._compare(call)
            yield Talk(
                self.rank, self.size, lambda out, into: self._exchange(call, COLLECTIVE, out, into)
            )
        except BaseException as error:
            # Even Ctrl-C: the other ranks' messages are out of step from here on.
            self.waiter.end(call, error)
            raise
        self.waiter.end(call, None)

    def _exchange(
        self, call: Call, channel: int, sends: Mapping[int, Bytes], recvs: Mapping[int, Bytes]
    ) -> None:
        label = call.label if channel == COLLECTIVE else Label(call.label.seq, "compare", "", 0)
        into = {
            self.endpoint.post_recv(data, Route(peer, channel, 0), label): peer
            for peer, data in recvs.items()
        }
        out = {
            self.endpoint.post_send(data, Route(peer, channel, 0), label): peer
            for peer, data in sends.items()
        }
        try:
            self.waiter.wait(call, {**into, **out})
        except BaseException:
            # The caller's arrays are not ours any more.
            for request in (*into, *out):
                request.cancel()
            raise

    def _compare(self, call: Call) -> None:
        """Raise at every rank unless all make the same call."""
        found = {
            rank: np.empty(LABEL_BYTES, np.uint8) for rank in range(self.size) if rank != self.rank
        }
        mine = np.frombuffer(call.label.pack(), np.uint8)
        self._exchange(call, COMPARE, dict.fromkeys(found, mine), found)
        labels = {rank: Label.unpack(data.tobytes()) for rank, data in found.items()}
        labels[self.rank] = call.label
        if len({*labels.values()}) > 1:
            calls = "".join(f"\n  rank {rank} called {labels[rank]}" for rank in sorted(labels))
            raise CommMismatch(
                f"rank {self.rank}: the ranks' calls differ; all must make the same calls "
                f"in the same order:{calls}"
            )

    def _check_rank(self, op: str, what: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise ValueError(f"{op}: {what} is {rank}; the ranks are 0..{self.size - 1}")

    def _check_rows(self, op: str, send: Array) -> None:
        check_array(op, "send", send)
        if send.ndim == 0 or send.shape[0] != self.size:
            raise ValueError(
                f"{op}: send is {spelled(send)}; its first dimension must be {self.size}, "
                "a row per rank"
            )
