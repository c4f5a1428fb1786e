"""Hold the memory that the ranks of a node share: flags, exported buffers, and a board of news."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import numpy.typing as npt

from ark_dist.comm.communicator import Communicator, Window
from ark_dist.comm.process import process_id
from ark_dist.core import abi
from ark_dist.core.errors import (
    ArkError,
    CommAborted,
    CommMismatch,
    PeerLost,
    PlanError,
    PlanMismatchError,
)
from ark_dist.core.graph import HOST, Raise
from ark_dist.core.plan import ALIGNMENT_BYTES, ARENAS, Plan
from ark_dist.launch.peer_data import Exports, read_exports
from ark_dist.launch.processes import GONE, STOPPED, process_state

Bytes = npt.NDArray[np.uint8]
Memory = npt.NDArray[np.void]

# States on the board.
NEW, READY, LEFT, FAILED = range(4)
# How often a rank that waits looks at the processes of the others.
LOOK_EVERY_S = 0.05
# How long a kernel may compute on after a neighbour's death, so that the error can say what it
# waits for.
LAST_WORDS_S = 0.5
# What ranks on other nodes say of their memory is not used here.
UNSEEN_BYTES = 1 << 62
COMMAND_TEXT_BYTES = 120
ERROR_TEXT_BYTES = 2048
BOARD = np.dtype(
    [
        ("pid", "u8"),
        ("start", "u8"),
        ("state", "u4"),
        ("reserved", "u4"),
        ("posted", "u8"),
        ("commands", f"S{COMMAND_TEXT_BYTES}", (abi.COMMAND_RING,)),
        ("error", f"S{ERROR_TEXT_BYTES}"),
    ]
)


@dataclass(frozen=True, slots=True)
class _Map:
    """Where things lie in a rank's window, in bytes from its start."""

    board: int
    counters: int
    symmetric: int
    size: int


def _lay_out(counter_count: int, symmetric_bytes: int) -> _Map:
    def aligned(offset: int) -> int:
        return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    board = aligned(abi.CONTROL.dtype.itemsize)
    counters = aligned(board + BOARD.itemsize)
    symmetric = aligned(counters + counter_count * abi.COUNTER.dtype.itemsize)
    return _Map(board, counters, symmetric, symmetric + symmetric_bytes)


class RankMemory:
    """One rank's part of what its node shares, and the way to its neighbours'.

    Making it is collective: all ranks of the program allocate, and tell one another where
    their flags and exported buffers lie.
    """

    def __init__(
        self, plan: Plan, communicator: Communicator, flags: Mapping[str, int], counter_count: int
    ) -> None:
        """Allocate; `flags` says where each flag stands among `counter_count` counters."""
        self._plan = plan
        self._check_exports()
        self._communicator = communicator
        sizes = dict(zip(ARENAS, plan.arena_bytes, strict=True))
        self._map = _lay_out(counter_count, sizes["symmetric"])
        self._window: Window = communicator.allocate_window(self._map.size)
        self._tables = self._exchange(flags)
        self._check_imports()
        self._error: ArkError | None = None
        self._compared = dict.fromkeys(self._neighbours(), 0)
        self._look_at = 0.0
        self._gone_at: dict[int, float] = {}
        self.board["pid"], self.board["start"] = process_id()

    def _check_exports(self) -> None:
        names = [b.export for b in self._plan.buffers if b.export and b.kind != "peer"]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise PlanError(
                f"rank {self._plan.rank} has two buffers that others know as {twice[0]!r}; each "
                "needs a name of its own"
            )

    def _exchange(self, flags: Mapping[str, int]) -> Sequence[Exports]:
        line = abi.COUNTER.dtype.itemsize
        exports = {
            buffer.export: [
                self._map.symmetric + self._plan.places[buffer.id].offset,
                buffer.size_bytes,
            ]
            for buffer in self._plan.buffers
            if buffer.export and buffer.kind != "peer"
        }
        mine = {
            "flags": {flag: [self._map.counters + row * line, line] for flag, row in flags.items()},
            "exports": exports,
        }
        packed = self._communicator.all_gather_bytes(msgpack.packb(mine))
        seen = {rank: part.size for rank, part in self._window.peers.items()}
        return [
            read_exports(data, rank, seen.get(rank, UNSEEN_BYTES))
            for rank, data in enumerate(packed)
        ]

    def _check_imports(self) -> None:
        """Raise PlanMismatchError unless every rank has what this one will use of it."""
        rank = self._plan.rank
        for buffer in self._plan.buffers:
            if buffer.kind != "peer":
                continue
            self._check_peer(buffer.peer, f"reads {buffer.export!r} of")
            found = self._tables[buffer.peer].buffers.get(buffer.export)
            if found is None or found[1] != buffer.size_bytes:
                has = "nothing of that name" if found is None else f"{found[1]} bytes"
                raise PlanMismatchError(
                    f"rank {rank} reads {buffer.export!r} of rank {buffer.peer} as "
                    f"{buffer.size_bytes} bytes, rank {buffer.peer} has {has}; all ranks must "
                    "build the same communication"
                )
        for item in self._raised():
            if item.rank == HOST:
                continue
            self._check_peer(item.rank, f"raises flag {item.flag!r} of")
            if item.flag not in self._tables[item.rank].flags:
                raise PlanMismatchError(
                    f"rank {rank} raises flag {item.flag!r} of rank {item.rank}, which waits for "
                    "no such flag; all ranks must build the same communication"
                )

    def _check_peer(self, peer: int, does: str) -> None:
        if peer not in self._window.peers:
            raise PlanMismatchError(
                f"rank {self._plan.rank} {does} rank {peer}, which shares no memory with it; "
                f"those that do are {sorted(self._window.peers)}"
            )

    def _raised(self) -> list[Raise]:
        return [r for m in self._plan.methods for node in m.nodes for r in node.raises]

    # This rank's own.

    @property
    def control(self) -> Memory:
        """The control block: others may abort this rank through it."""
        return self._control(self._plan.rank)

    @property
    def counters(self) -> Memory:
        """Counters and flags."""
        # Alignment leaves a few more lines than there are counters.
        lines = self._window.own[self._map.counters : self._map.symmetric]
        return lines.view(abi.COUNTER.dtype)

    @property
    def place_on_node(self) -> tuple[int, int]:
        """This rank's place among those that share its node's memory, and how many they are."""
        ranks = sorted(self._window.peers)
        return ranks.index(self._plan.rank), len(ranks)

    @property
    def symmetric(self) -> Bytes:
        """The arena of exported buffers."""
        return self._window.own[self._map.symmetric : self._map.size]

    @property
    def board(self) -> np.void:
        """What this rank tells the others' hosts."""
        return self._board(self._plan.rank)

    # Others'.

    def _board(self, rank: int) -> np.void:
        part = self._window.peers[rank][self._map.board : self._map.board + BOARD.itemsize]
        board: np.void = part.view(BOARD)[0]
        return board

    def flag(self, item: Raise) -> npt.NDArray[np.uint64]:
        """The word of a flag that this rank raises: a neighbour's, or one for its own host."""
        rank = self._plan.rank if item.rank < 0 else item.rank
        offset, _ = self._tables[rank].flags[item.flag]
        return self._window.peers[rank][offset : offset + 8].view(np.uint64)

    def buffer(self, buffer_id: int) -> Bytes:
        """The memory of a buffer that lies on a neighbour."""
        buffer = self._plan.buffers[buffer_id]
        offset, size = self._tables[buffer.peer].buffers[buffer.export]
        return self._window.peers[buffer.peer][offset : offset + size]

    # News.

    def start(self) -> None:
        """Begin anew, together with all ranks: nobody's kernel runs between the two barriers."""
        self._communicator.barrier()
        self._error = None
        self.counters["value"] = 0
        self.control[...] = np.zeros((), abi.CONTROL.dtype)
        self.board["posted"] = 0
        self._compared = dict.fromkeys(self._neighbours(), 0)
        self.board["commands"] = b""
        self.board["state"] = READY
        self._communicator.barrier()

    def post(self, sequence: int, text: str) -> None:
        """Let the others see which command this rank posts."""
        commands = self.board["commands"]
        commands[sequence % abi.COMMAND_RING] = text.encode("utf-8", "replace")[:COMMAND_TEXT_BYTES]
        self.board["posted"] = sequence

    def complete_one(self) -> None:
        """Count a command as done, for a machine that has no kernel to do so."""
        self.control["completed"] += 1

    def fail(self, text: str) -> None:
        """End the neighbours' kernels too, and say why."""
        self.board["error"] = text.encode("utf-8", "replace")[:ERROR_TEXT_BYTES]
        self.board["state"] = FAILED
        for rank in self._neighbours():
            word = self._control(rank)
            if int(word["abort"][0]) == abi.RUNNING:
                word["abort"] = abi.PEER_ABORT

    def give_up(self, error: ArkError) -> None:
        """End this rank's kernel because of an error of its host; `check` raises it."""
        self._error = error
        if int(self.control["abort"][0]) == abi.RUNNING:
            self.control["abort"] = abi.PEER_ABORT

    def leave(self) -> None:
        """Say that this rank computes no more."""
        if int(self.board["state"]) == READY:
            self.board["state"] = LEFT

    def check(self, waits: Callable[[], str]) -> None:
        """Raise if a neighbour that this rank waits for will not come.

        CommMismatch for one that was given another command, PeerLost for one that ended,
        CommAborted for one that failed; `waits` says what this rank waits for.
        """
        if self._error is not None:
            raise self._error
        now = time.monotonic()
        is_look = now >= self._look_at
        if is_look:
            self._look_at = now + LOOK_EVERY_S
        for rank in self._neighbours():
            self.compare(rank)
            board = self._board(rank)
            state = int(board["state"])
            if state == FAILED:
                text = _text(board["error"])
                raise CommAborted(f"rank {self._plan.rank}: rank {rank} failed: {text}")
            mine = int(self.board["posted"])
            if state == LEFT and self._completed(rank) < mine:
                raise self._lost(
                    rank,
                    f"finished after {self._completed(rank)} runs, this rank has posted {mine}; "
                    "all ranks must run the same",
                    waits(),
                )
            if is_look and state != NEW and self._state(rank) == GONE:
                text, since = waits(), self._gone_at.setdefault(rank, now)
                if text or now >= since + LAST_WORDS_S:
                    raise self._lost(rank, f"(pid {int(board['pid'])}) ended without a word", text)

    def stopped(self) -> str:
        """Say which neighbours' processes are stopped; "" if none is."""
        texts = (
            f"; rank {rank} (pid {int(self._board(rank)['pid'])}) {STOPPED}"
            for rank in self._neighbours()
            if self._state(rank) == STOPPED
        )
        return "".join(texts)

    def _state(self, rank: int) -> str:
        board = self._board(rank)
        return process_state(int(board["pid"]), int(board["start"]))

    def _completed(self, rank: int) -> int:
        """How many commands a neighbour's kernel did."""
        return int(self._control(rank)["completed"][0])

    def _control(self, rank: int) -> Memory:
        size = abi.CONTROL.dtype.itemsize
        return self._window.peers[rank][:size].view(abi.CONTROL.dtype)

    def compare_all(self) -> None:
        """Raise CommMismatch if a neighbour was given other commands than this rank."""
        for rank in self._neighbours():
            self.compare(rank)

    def compare(self, rank: int) -> None:
        """Compare the commands that this rank and a neighbour were given since the last time."""
        board, own = self._board(rank), self.board
        last = min(int(board["posted"]), int(own["posted"]))
        for sequence in range(max(self._compared[rank], last - abi.COMMAND_RING) + 1, last + 1):
            slot = sequence % abi.COMMAND_RING
            here, there = own["commands"][slot], board["commands"][slot]
            if here != there:
                raise CommMismatch(
                    f"rank {self._plan.rank} called {_text(here)}, rank {rank} called "
                    f"{_text(there)} as command {sequence}; all ranks must run the same"
                )
            self._compared[rank] = sequence

    def _lost(self, rank: int, what: str, waits: str) -> PeerLost:
        mine = self._plan.rank
        text = "; ".join(filter(None, (f"rank {mine}: rank {rank} {what}", waits)))
        return PeerLost(text, rank=mine, lost=(rank,))

    def _neighbours(self) -> list[int]:
        return [r for r in self._window.peers if r != self._plan.rank]

    def close(self) -> None:
        """Let go of the window."""
        self._window.close()


def _text(data: bytes) -> str:
    return bytes(data).decode("utf-8", "replace")
