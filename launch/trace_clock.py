"""Estimate how far a host's clock is from that of rank 0's host, by round trips of messages."""

import time
from collections.abc import Callable

import numpy as np

from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import CommError
from ark_dist.launch.peer_data import read_integer, read_rank

# The quickest round trip tells the most; more than these hardly find a quicker one.
ROUND_TRIPS = 16
# How long ranks wait for one another when they compare clocks.
LIMIT_S = 2.0
TAG = 0


class SharedClock:
    """What has to be added to this rank's monotonic clock to have rank 0's.

    Ranks of a node share the clock: the lowest of them asks rank 0. All methods are collective;
    within one node they send nothing.
    """

    def __init__(
        self, communicator: Communicator, now_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Find out which ranks share a clock; the offset is 0 until it is measured."""
        self.offset_ns = 0
        self._now_ns = now_ns
        self._communicator: Communicator | None = None
        if len(communicator.node_ranks) < communicator.size:
            self._communicator = communicator.dup()
            mine = str(min(communicator.node_ranks)).encode()
            said = enumerate(communicator.all_gather_bytes(mine))
            self._leaders = [read_rank(name, rank, communicator.size) for rank, name in said]

    def measure(self, limit_s: float = LIMIT_S) -> None:
        """Measure the offset anew; it stays as it was if another rank does not come in time."""
        if self._communicator is None:
            return
        try:
            self.offset_ns = self._measured(self._communicator, time.monotonic() + limit_s)
        except CommError:
            # A communicator that failed once is of no use.
            self._communicator = None

    def _measured(self, communicator: Communicator, deadline: float) -> int:
        def left_s() -> float:
            return max(deadline - time.monotonic(), 1e-3)

        rank, own = communicator.rank, 0
        for leader in sorted({*self._leaders} - {self._leaders[0]}):
            if rank == 0:
                self._answer(communicator, leader, left_s)
            elif rank == leader:
                own = self._asked(communicator, left_s)
        said = communicator.all_gather_bytes(str(own).encode(), timeout_s=left_s())
        leader = self._leaders[rank]
        return read_integer(said[leader], leader)

    def _answer(self, communicator: Communicator, leader: int, left_s: Callable[[], float]) -> None:
        word = np.zeros(1, np.int64)
        for _ in range(ROUND_TRIPS):
            communicator.recv(word, leader, TAG, timeout_s=left_s())
            word[0] = self._now_ns()
            communicator.send(word, leader, TAG, timeout_s=left_s())

    def _asked(self, communicator: Communicator, left_s: Callable[[], float]) -> int:
        """Rank 0's clock less this one, taken in the middle of the quickest round trip."""
        word, found = np.zeros(1, np.int64), []
        for _ in range(ROUND_TRIPS):
            begin_ns = self._now_ns()
            communicator.send(word, 0, TAG, timeout_s=left_s())
            communicator.recv(word, 0, TAG, timeout_s=left_s())
            end_ns = self._now_ns()
            found.append((end_ns - begin_ns, int(word[0]) - (begin_ns + end_ns) // 2))
        return min(found)[1]
