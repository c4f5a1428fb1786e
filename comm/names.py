"""Offer a communicator under mpi4py's upper-case names."""

from typing import NoReturn

from ark_dist.comm.communicator import Communicator, Work
from ark_dist.core.op import Array

SUM, MAX, MIN = "sum", "max", "min"


class InPlace:
    """What IN_PLACE is: it stands for a send buffer that is the receive buffer."""

    def __repr__(self) -> str:
        return "IN_PLACE"


IN_PLACE = InPlace()


class MpiNames:
    """A communicator for code written for mpi4py: `Allreduce`, `Bcast`, `Send`, `Get_rank`...

    Buffers are NumPy arrays; counts and types come from them.
    """

    def __init__(self, communicator: Communicator) -> None:
        self.communicator = communicator

    @property
    def rank(self) -> int:
        """This rank."""
        return self.communicator.rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.communicator.size

    def Get_rank(self) -> int:
        """This rank."""
        return self.communicator.rank

    def Get_size(self) -> int:
        """How many ranks there are."""
        return self.communicator.size

    def Send(self, buf: Array, dest: int, tag: int = 0) -> None:
        """Send an array."""
        self.communicator.send(buf, dest, tag)

    def Recv(self, buf: Array, source: int, tag: int = 0) -> None:
        """Fill an array."""
        self.communicator.recv(buf, source, tag)

    def Isend(self, buf: Array, dest: int, tag: int = 0) -> Work:
        """Start to send an array."""
        return self.communicator.isend(buf, dest, tag)

    def Irecv(self, buf: Array, source: int, tag: int = 0) -> Work:
        """Start to fill an array."""
        return self.communicator.irecv(buf, source, tag)

    def Sendrecv(
        self, sendbuf: Array, dest: int, recvbuf: Array, source: int, tag: int = 0
    ) -> None:
        """Send and receive at the same time."""
        self.communicator.sendrecv(sendbuf, dest, recvbuf, source, tag)

    def Barrier(self) -> None:
        """Wait for all ranks."""
        self.communicator.barrier()

    def Bcast(self, buf: Array, root: int = 0) -> None:
        """Fill the array with the root's."""
        self.communicator.broadcast(buf, root)

    def Allreduce(self, sendbuf: Array | InPlace, recvbuf: Array, op: str = SUM) -> None:
        """Combine the ranks' arrays at all of them."""
        send = recvbuf if isinstance(sendbuf, InPlace) else sendbuf
        self.communicator.all_reduce(send, recvbuf, op)

    def Reduce(
        self, sendbuf: Array | InPlace, recvbuf: Array | None, op: str = SUM, root: int = 0
    ) -> None:
        """Combine the ranks' arrays at the root."""
        if isinstance(sendbuf, InPlace):
            if recvbuf is None:
                raise ValueError("Reduce: IN_PLACE needs the array as recvbuf")
            self.communicator.reduce(recvbuf, None, root, op)
        else:
            recv = recvbuf if self.rank == root else None
            self.communicator.reduce(sendbuf, recv, root, op)

    def Reduce_scatter_block(self, sendbuf: Array, recvbuf: Array, op: str = SUM) -> None:
        """Combine row r of the ranks' arrays at rank r."""
        self.communicator.reduce_scatter(sendbuf, recvbuf, op)

    def Allgather(self, sendbuf: Array | InPlace, recvbuf: Array) -> None:
        """Collect the ranks' arrays at all of them, a row for each."""
        if isinstance(sendbuf, InPlace):
            sendbuf = recvbuf[self.rank : self.rank + 1].reshape(recvbuf.shape[1:])
        self.communicator.all_gather(sendbuf, recvbuf)

    def Alltoall(self, sendbuf: Array | InPlace, recvbuf: Array) -> None:
        """Send row r to rank r."""
        send = recvbuf if isinstance(sendbuf, InPlace) else sendbuf
        self.communicator.all_to_all(send, recvbuf)

    def Split(self, color: int = 0, key: int = 0) -> "MpiNames":
        """Join the ranks of the same color."""
        return MpiNames(self.communicator.split(color, key))

    def Dup(self) -> "MpiNames":
        """The same group again."""
        return MpiNames(self.communicator.dup())

    def Abort(self, errorcode: int = 1) -> NoReturn:
        """End all ranks."""
        self.communicator.abort(errorcode, "Abort was called")

    def Free(self) -> None:
        """Give the communicator up."""
        self.communicator.close()
