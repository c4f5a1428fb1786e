"""Put the collective calls together from messages between pairs of ranks.

Every rank talks to every other one, so a rank that is late is known by name; made for tens of
ranks, not for thousands.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ark_dist.comm.arrays import as_bytes, reduce_in_order
from ark_dist.comm.communicator import Bytes
from ark_dist.core.op import Array

# Up to here every rank gets all arrays and combines them itself: one exchange instead of two.
SMALL_BYTES = 16384

# Send to some ranks and receive from some, all at the same time.
Exchange = Callable[[Mapping[int, Bytes], Mapping[int, Bytes]], None]


@dataclass(frozen=True, slots=True)
class Talk:
    """What a collective call needs of its communicator."""

    rank: int
    size: int
    exchange: Exchange

    @property
    def others(self) -> tuple[int, ...]:
        """All ranks but this one, the next one first."""
        return tuple((self.rank + step) % self.size for step in range(1, self.size))


def barrier(talk: Talk) -> None:
    """Wait for all ranks."""
    nothing = dict.fromkeys(talk.others, np.empty(0, np.uint8))
    talk.exchange(nothing, nothing)


def all_gather(talk: Talk, send: Array, recv: Array) -> None:
    """Fill row r of `recv` with the array of rank r."""
    data = as_bytes(send)
    talk.exchange(
        dict.fromkeys(talk.others, data), {peer: _row_bytes(recv, peer) for peer in talk.others}
    )
    recv[talk.rank] = send


def all_to_all(talk: Talk, send: Array, recv: Array) -> None:
    """Send row r to rank r, and fill row r with what it sent."""
    talk.exchange(
        {peer: _row_bytes(send, peer) for peer in talk.others},
        {peer: _row_bytes(recv, peer) for peer in talk.others},
    )
    recv[talk.rank] = send[talk.rank]


def broadcast(talk: Talk, array: Array, root: int) -> None:
    """Fill the array with that of the root."""
    data = as_bytes(array)
    if talk.rank == root:
        talk.exchange(dict.fromkeys(talk.others, data), {})
    else:
        talk.exchange({}, {root: data})


def reduce(talk: Talk, send: Array, recv: Array, root: int, op: str) -> None:
    """Combine the arrays at the root."""
    if talk.rank != root:
        talk.exchange({root: as_bytes(send)}, {})
        return
    parts = _rows(talk, send)
    talk.exchange({}, {peer: as_bytes(parts[peer]) for peer in talk.others})
    reduce_in_order(parts, op, recv)


def reduce_scatter(talk: Talk, send: Array, recv: Array, op: str) -> None:
    """Combine row r of all ranks at rank r."""
    parts = _rows(talk, send[talk.rank : talk.rank + 1])
    talk.exchange(
        {peer: _row_bytes(send, peer) for peer in talk.others},
        {peer: as_bytes(parts[peer]) for peer in talk.others},
    )
    reduce_in_order(parts, op, recv)


def all_reduce(talk: Talk, send: Array, recv: Array, op: str) -> None:
    """Combine the arrays at every rank: small ones whole, large ones a slice per rank."""
    if send.nbytes <= SMALL_BYTES:
        parts = _rows(talk, send)
        data = as_bytes(send)
        talk.exchange(
            dict.fromkeys(talk.others, data), {peer: as_bytes(parts[peer]) for peer in talk.others}
        )
        reduce_in_order(parts, op, recv)
        return
    source, target = send.reshape(-1), recv.reshape(-1)
    cuts = [source.size * rank // talk.size for rank in range(talk.size + 1)]
    slices = [slice(*pair) for pair in pairwise(cuts)]
    mine = slices[talk.rank]
    parts = _rows(talk, source[mine])
    talk.exchange(
        {peer: as_bytes(source[slices[peer]]) for peer in talk.others},
        {peer: as_bytes(parts[peer]) for peer in talk.others},
    )
    reduce_in_order(parts, op, target[mine])
    data = as_bytes(target[mine])
    talk.exchange(
        dict.fromkeys(talk.others, data),
        {peer: as_bytes(target[slices[peer]]) for peer in talk.others},
    )


def all_gather_bytes(talk: Talk, data: bytes) -> list[bytes]:
    """Collect the bytes of all ranks: first the lengths, then what they say."""
    lengths = np.zeros(talk.size, np.int64)
    all_gather(talk, np.array(len(data), np.int64), lengths)
    found = [np.empty(length, np.uint8) for length in lengths]
    own = np.array(bytearray(data), np.uint8)
    talk.exchange(dict.fromkeys(talk.others, own), {peer: found[peer] for peer in talk.others})
    found[talk.rank] = own
    return [part.tobytes() for part in found]


def broadcast_bytes(talk: Talk, data: bytes | None, root: int) -> bytes:
    """Pass on the bytes of the root: first the length, then what it says."""
    length = np.array([len(data or b"")], np.int64)
    broadcast(talk, length, root)
    if talk.rank == root:
        found = np.array(bytearray(data or b""), np.uint8)
    else:
        found = np.empty(int(length[0]), np.uint8)
    broadcast(talk, found, root)
    return found.tobytes()


def _row_bytes(array: Array, index: int) -> Bytes:
    """Look at a row as bytes; a row of a vector is an array too."""
    return as_bytes(array[index : index + 1])


def _rows(talk: Talk, own: Array) -> list[Array]:
    """Room for an array of each rank, in rank order; this rank's stands there already."""
    parts: list[Array] = [np.empty(own.shape, own.dtype) for _ in range(talk.size)]
    parts[talk.rank] = own
    return parts
