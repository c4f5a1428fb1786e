"""Let the ranks of a node see which of them are there, stopped, gone, or done."""

import os
import signal
import time
from contextlib import suppress

import numpy as np

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.process import process_id
from ark_dist.core.errors import PeerLost, StallError
from ark_dist.launch.processes import GONE, STOPPED, process_state

BOARD = np.dtype([("pid", "u8"), ("start", "u8"), ("has_left", "u8")])
# A rank that waits for the others to leave looks this often: first, and later on.
FIRST_PAUSE_S, LONG_PAUSE_S = 0.5e-3, 50e-3


class NodeBoard:
    """A few words per rank in the node's memory. Making it is collective over all ranks."""

    def __init__(self, communicator: Communicator) -> None:
        """Enter this process, and find the others'."""
        self._rank = communicator.rank
        self._window = communicator.allocate_window(BOARD.itemsize)
        own = self._row(self._rank)
        own["pid"], own["start"] = process_id()
        communicator.barrier()
        rows = {rank: self._row(rank) for rank in communicator.node_ranks if rank != self._rank}
        self._others = {rank: (int(row["pid"]), int(row["start"])) for rank, row in rows.items()}

    def state(self, rank: int) -> str:
        """How the process of another rank is: RUNS, STOPPED or GONE."""
        return process_state(*self._others[rank])

    def resume_others(self) -> None:
        """Let stopped ranks go on, so that they can be ended: what is stopped takes no SIGTERM."""
        for rank, (pid, _) in self._others.items():
            if self.state(rank) == STOPPED:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGCONT)

    def leave(self) -> None:
        """Say that this rank is through with its work."""
        self._row(self._rank)["has_left"] = 1

    def wait_until_all_leave(self, timeout_s: float) -> None:
        """Leave, and wait for the others of the node, who may work as long as they like.

        What ends MPI waits without a limit: nobody may go there while another rank can't.

        Raises:
            PeerLost: at once, for a rank that ended without leaving.
            StallError: for one that was stopped for `timeout_s` seconds.
        """
        self.leave()
        stopped_s: dict[int, float] = {}
        pause_s = FIRST_PAUSE_S
        while waited := [r for r in self._others if not int(self._row(r)["has_left"])]:
            for rank in waited:
                state = self.state(rank)
                # It may have left, and then ended, since it was looked at.
                if state == GONE and not int(self._row(rank)["has_left"]):
                    raise self._lost(rank)
                stopped_s[rank] = stopped_s.get(rank, 0.0) + pause_s if state == STOPPED else 0.0
                if stopped_s[rank] > timeout_s:
                    raise self._stalled(rank, timeout_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONG_PAUSE_S)

    def _row(self, rank: int) -> np.void:
        row: np.void = self._window.peers[rank].view(BOARD)[0]
        return row

    def _lost(self, rank: int) -> PeerLost:
        return PeerLost(
            f"rank {self._rank} is done, rank {rank} (pid {self._others[rank][0]}) ended without "
            "a word before it was",
            rank=self._rank,
            lost=(rank,),
        )

    def _stalled(self, rank: int, timeout_s: float) -> StallError:
        return StallError(
            f"rank {self._rank} is done and waits for rank {rank}, whose process "
            f"{self._others[rank][0]} {STOPPED} for {timeout_s:g} s"
        )
