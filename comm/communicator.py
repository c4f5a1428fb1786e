"""The interface of a communicator: what ranks can do with each other, whatever carries it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from ark_dist.core.errors import CommError
from ark_dist.core.op import Array

Bytes = npt.NDArray[np.uint8]

# What `Communicator.capabilities` may hold.
CAPABILITIES = frozenset({"windows", "threads", "symmetric", "device_api", "stream"})
REDUCE_OPS = ("sum", "max", "min", "mean")
DEFAULT_TIMEOUT_S = 60.0


class Work(Protocol):
    """A send or receive under way; its array must stay alive and untouched until it is done."""

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is done, or raise; after CommTimeout it may be waited for again."""

    def done(self) -> bool:
        """Make progress and tell whether it ended, well or not; never blocks."""

    def exception(self) -> BaseException | None:
        """The error it ended with; None if there is none, or none yet."""


class Window:
    """Memory that the ranks of a node share: page aligned, and zero at first.

    Attributes:
        own: this rank's bytes.
        peers: the bytes of every rank of the node by rank, this one included.
    """

    def __init__(self, rank: int, parts: Mapping[int, Bytes]) -> None:
        self._rank = rank
        self._parts: Mapping[int, Bytes] | None = MappingProxyType(dict(parts))

    @property
    def own(self) -> Bytes:
        """This rank's bytes."""
        return self.peers[self._rank]

    @property
    def peers(self) -> Mapping[int, Bytes]:
        """The bytes of every rank of the node."""
        if self._parts is None:
            raise CommError(f"rank {self._rank}: the window is closed; allocate another one")
        return self._parts

    def close(self) -> None:
        """Give it up; memory that arrays still look at is unmapped with the last of them."""
        self._parts = None


class Communicator(Protocol):
    """A group of ranks that exchange NumPy arrays.

    Arrays are C-contiguous, of any dtype of numbers (bfloat16 of ml_dtypes included) or bool.
    Every blocking call has a limit, `timeout_s`, by default the communicator's own, and then
    raises CommTimeout. A reduction combines the ranks' values in the order of the ranks, 16-bit
    floats in fp32 with one rounding at the end: all ranks get the same bits, in every run.
    Collective calls are made by all ranks in the same order, by one thread at a time.

    After a failed call the communicator is broken and says so at every call, except after a
    receive that timed out: it can be tried again.

    Attributes:
        rank: this rank in the group.
        size: how many ranks the group has.
        backend: what carries the data, such as "mpi".
        node_ranks: ranks that share memory with this one, itself included, sorted.
        capabilities: which of `CAPABILITIES` it has.
    """

    @property
    def rank(self) -> int:
        """This rank in the group."""

    @property
    def size(self) -> int:
        """How many ranks the group has."""

    @property
    def backend(self) -> str:
        """What carries the data."""

    @property
    def node_ranks(self) -> tuple[int, ...]:
        """Ranks that share memory with this one, itself included, sorted."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of `CAPABILITIES` it has."""

    def send(self, array: Array, dst: int, tag: int = 0, *, timeout_s: float | None = None) -> None:
        """Send an array to a rank; may return before it is received."""

    def recv(self, array: Array, src: int, tag: int = 0, *, timeout_s: float | None = None) -> None:
        """Fill an array with the next one that a rank sent with this tag."""

    def isend(self, array: Array, dst: int, tag: int = 0) -> Work:
        """Start to send an array."""

    def irecv(self, array: Array, src: int, tag: int = 0) -> Work:
        """Start to receive an array."""

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

    def all_reduce(
        self,
        send: Array,
        recv: Array | None = None,
        op: str = "sum",
        *,
        timeout_s: float | None = None,
    ) -> Array:
        """Combine the ranks' arrays; every rank gets the result, in `send` without `recv`."""

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

    def reduce_scatter(
        self,
        send: Array,
        recv: Array | None = None,
        op: str = "sum",
        *,
        timeout_s: float | None = None,
    ) -> Array:
        """Combine arrays of shape (size, ...); rank r gets row r of the result."""

    def all_gather(
        self, send: Array, recv: Array | None = None, *, timeout_s: float | None = None
    ) -> Array:
        """Give every rank all arrays, stacked: `recv` has shape (size, *send.shape)."""

    def all_to_all(
        self, send: Array, recv: Array | None = None, *, timeout_s: float | None = None
    ) -> Array:
        """Send row r to rank r; row r of the result came from rank r; in place without `recv`."""

    def broadcast(self, array: Array, root: int = 0, *, timeout_s: float | None = None) -> Array:
        """Fill every rank's array with that of `root`."""

    def barrier(self, *, timeout_s: float | None = None) -> None:
        """Return when all ranks have made this call."""

    def all_gather_bytes(self, data: bytes, *, timeout_s: float | None = None) -> list[bytes]:
        """Give every rank the bytes of all, whose lengths may differ."""

    def broadcast_bytes(
        self, data: bytes | None, root: int = 0, *, timeout_s: float | None = None
    ) -> bytes:
        """Give every rank the bytes of `root`; the other ranks pass None."""

    def allocate_window(self, size_bytes: int, *, timeout_s: float | None = None) -> Window:
        """Share memory with the ranks of this node: collective over all ranks of all nodes."""

    def group(self) -> AbstractContextManager[None]:
        """Start the sends and receives made inside together, and complete them at the end."""

    def split(self, color: int, key: int) -> "Communicator":
        """Join the ranks that pass the same color, in the order of key, then of rank."""

    def dup(self) -> "Communicator":
        """The same group again, with messages of its own."""

    def abort(self, code: int, reason: str) -> NoReturn:
        """End the work of all ranks, the processes' too where the launcher can."""

    def check(self) -> None:
        """Raise if the communicator is broken, closed, or has lost a rank of this node."""

    def close(self) -> None:
        """Give it up; calls that wait for this rank then raise PeerLost."""
