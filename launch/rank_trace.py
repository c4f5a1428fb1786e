"""Write what one of several ranks did into the trace that all of them share."""

import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgpack

from ark_dist.comm.communicator import Communicator
from ark_dist.core.plan import Plan
from ark_dist.launch.peer_data import read_names
from ark_dist.launch.trace import Row, TraceEvent, metadata, slices
from ark_dist.launch.trace_clock import SharedClock
from ark_dist.launch.trace_flows import flows
from ark_dist.launch.trace_merge import RankPart, merge, read_part, write_part

# What a rank that traces says: its process, and the program's number.
NAMES = ("run", "program")


class RankTrace:
    """The trace of one program on one rank. Making it, and `start`, are collective."""

    def __init__(self, plan: Plan, communicator: Communicator, path: Path | None) -> None:
        """Agree with all ranks on names; `path` is None on ranks that write no trace."""
        self._plan = plan
        self._path = path
        self._launches = 0
        self._first_tid: int | None = None
        mine: list[str] = [] if path is None else [_process_name(), uuid.uuid4().hex]
        packed = communicator.all_gather_bytes(msgpack.packb(mine))
        said = [read_names(data, rank) for rank, data in enumerate(packed)]
        named = [names for names in said if len(names) == len(NAMES)]
        self._run, self._program = named[0] if named else ("", "")
        # All or none: the clocks are compared by messages.
        self._clock = SharedClock(communicator) if len(named) == len(said) else None

    def start(self) -> None:
        """The kernel is launched once more."""
        self._launches += 1
        if self._clock is not None:
            self._clock.measure()

    def write(self, events: Sequence[TraceEvent], *, is_complete: bool) -> None:
        """Add a stopped kernel's events.

        `is_complete` says that it did all its work, as the others then do: the clocks can be
        compared once more.
        """
        if self._path is None:
            return
        shift_ns = 0
        if self._clock is not None:
            if is_complete:
                self._clock.measure()
            shift_ns = self._clock.offset_ns
        plan = self._plan
        part = read_part(self._path, plan.rank)
        if part is None or part.run != self._run:
            part = RankPart(self._run, plan.rank, plan.world_size, "")
            self._first_tid = None
        rows: list[Row] = []
        if self._first_tid is None:
            self._first_tid = part.thread_count
            rows += self._names(self._first_tid)
        first_tid, launch = self._first_tid, f"{self._program} {self._launches}"
        rows += slices(plan, events, plan.rank, first_tid=first_tid, shift_ns=shift_ns)
        rows += flows(plan, events, launch, first_tid=first_tid, shift_ns=shift_ns)
        part = part.with_rows(rows)
        write_part(self._path, part)
        merge(self._path, part)

    def _names(self, first_tid: int) -> list[Row]:
        """Names of the process, by the first program of a rank, and of the program's threads."""
        pid = self._plan.rank
        of = f" of {self._plan.name}" if first_tid else ""
        rows = [
            metadata("thread_name", pid, first_tid + worker, name=f"worker {worker}{of}")
            for worker in range(self._plan.target.worker_count)
        ]
        if first_tid:
            return rows
        return [
            metadata("process_name", pid, name=f"rank {pid}"),
            metadata("process_labels", pid, labels=self._plan.name),
            metadata("process_sort_index", pid, sort_index=pid),
            *rows,
        ]


@cache
def _process_name() -> str:
    """A name that no other process ever has: it tells runs apart."""
    return uuid.uuid4().hex
