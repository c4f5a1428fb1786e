"""Hold the memory that the ranks of a node share: flags, exported buffers, and a board of news."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import numpy.typing as npt

from ark_dist.comm.communicator import Communicator, Window
from ark_dist.core import abi
from ark_dist.core.errors import (
    ArkError,
    CommAborted,
    CommMismatch,
    PeerLost,
    PlanMismatchError,
    StallError,
)
from ark_dist.core.graph import HOST, Raise
from ark_dist.core.plan import ALIGNMENT_BYTES, ARENAS, Plan, own_flags

Bytes = npt.NDArray[np.uint8]
Memory = npt.NDArray[np.void]

# States on the board.
NEW, READY, LEFT, FAILED = range(4)
# A rank that waits for others in Python looks this often.
PAUSE_S = 100e-6
COMMAND_TEXT_BYTES = 120
ERROR_TEXT_BYTES = 2048
BOARD = np.dtype(
    [
        ("pid", "u8"),
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
        self._communicator = communicator
        sizes = dict(zip(ARENAS, plan.arena_bytes, strict=True))
        self._map = _lay_out(counter_count, sizes["symmetric"])
        self._window: Window = communicator.allocate_window(self._map.size)
        self._tables = self._exchange(flags)
        self._check_imports()
        self._error: ArkError | None = None
        self._compared = dict.fromkeys(self._neighbours(), 0)
        self.board["pid"] = os.getpid()

    def _exchange(
        self, flags: Mapping[str, int]
    ) -> Sequence[Mapping[str, Mapping[str, list[int]]]]:
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
            "flags": {flag: [self._map.counters + row * line] for flag, row in flags.items()},
            "exports": exports,
        }
        packed = self._communicator.all_gather_bytes(msgpack.packb(mine))
        return [msgpack.unpackb(data, strict_map_key=True) for data in packed]

    def _check_imports(self) -> None:
        """Raise PlanMismatchError unless every rank has what this one will use of it."""
        rank = self._plan.rank
        for buffer in self._plan.buffers:
            if buffer.kind != "peer":
                continue
            found = self._tables[buffer.peer]["exports"].get(buffer.export)
            if found is None or found[1] != buffer.size_bytes:
                has = "nothing of that name" if found is None else f"{found[1]} bytes"
                raise PlanMismatchError(
                    f"rank {rank} reads {buffer.export!r} of rank {buffer.peer} as "
                    f"{buffer.size_bytes} bytes, rank {buffer.peer} has {has}; all ranks must "
                    "build the same communication"
                )
        for item in self._raised():
            if item.rank >= 0 and item.flag not in self._tables[item.rank]["flags"]:
                raise PlanMismatchError(
                    f"rank {rank} raises flag {item.flag!r} of rank {item.rank}, which waits for "
                    "no such flag; all ranks must build the same communication"
                )

    def _raised(self) -> list[Raise]:
        return [r for m in self._plan.methods for node in m.nodes for r in node.raises]

    # This rank's own.

    @property
    def control(self) -> Memory:
        """The control block: others may abort this rank through it."""
        return self._window.own[: abi.CONTROL.dtype.itemsize].view(abi.CONTROL.dtype)

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
        (offset,) = self._tables[rank]["flags"][item.flag]
        return self._window.peers[rank][offset : offset + 8].view(np.uint64)

    def buffer(self, buffer_id: int) -> Bytes:
        """The memory of a buffer that lies on a neighbour."""
        buffer = self._plan.buffers[buffer_id]
        offset, size = self._tables[buffer.peer]["exports"][buffer.export]
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

    def fail(self, text: str) -> None:
        """End the neighbours' kernels too, and say why."""
        self.board["error"] = text.encode("utf-8", "replace")[:ERROR_TEXT_BYTES]
        self.board["state"] = FAILED
        for rank in self._neighbours():
            word = self._window.peers[rank][: abi.CONTROL.dtype.itemsize].view(abi.CONTROL.dtype)
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

    def check(self) -> None:
        """Raise if a neighbour that this rank waits for will not come.

        CommMismatch for one that was given another command, PeerLost for one that ended,
        CommAborted for one that failed.
        """
        if self._error is not None:
            raise self._error
        for rank in self._neighbours():
            self.compare(rank)
            board = self._board(rank)
            state = int(board["state"])
            if state == FAILED:
                text = _text(board["error"])
                raise CommAborted(f"rank {self._plan.rank}: rank {rank} failed: {text}")
            posted, mine = int(board["posted"]), int(self.board["posted"])
            if state == LEFT and posted < mine:
                raise self._lost(rank, f"finished after {posted} runs, this rank has posted {mine}")
            if state != NEW and not _is_alive(int(board["pid"])):
                raise self._lost(rank, f"(pid {int(board['pid'])}) ended without a word")

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

    def _lost(self, rank: int, what: str) -> PeerLost:
        text = f"rank {self._plan.rank}: rank {rank} {what}; all ranks must run the same"
        return PeerLost(text, rank=self._plan.rank, lost=(rank,))

    def _neighbours(self) -> list[int]:
        return [r for r in self._window.peers if r != self._plan.rank]

    def close(self) -> None:
        """Let go of the window."""
        self._window.close()


class SharedFlags:
    """Flags in the node's memory, for a machine that looks at them now and then."""

    def __init__(self, memory: RankMemory, timeout_s: float) -> None:
        """Give up after `timeout_s` seconds without any change."""
        self._memory = memory
        self._timeout_s = timeout_s
        self._own: dict[str, npt.NDArray[np.uint64]] = {}
        self._others: dict[Raise, npt.NDArray[np.uint64]] = {}
        self._since: float | None = None
        self._reason = ""

    def value(self, flag: str) -> int:
        """The flag's word: the turns that are done."""
        if flag not in self._own:
            self._own[flag] = self._memory.flag(Raise(HOST, flag))
        return int(self._own[flag][0])

    def set(self, item: Raise, value: int) -> None:
        """Write another rank's flag; what it stands for was written before."""
        if item not in self._others:
            self._others[item] = self._memory.flag(item)
        self._others[item][0] = value

    def pause(self, reason: str) -> None:
        """Sleep a little; raise when another rank ended, or nothing changed for too long."""
        now = time.monotonic()
        if reason != self._reason or self._since is None:
            self._reason, self._since = reason, now
        self._memory.check()
        if now - self._since > self._timeout_s:
            raise StallError(f"no progress for {self._timeout_s:g} s: {reason}")
        time.sleep(PAUSE_S)


def flag_rows(plan: Plan) -> dict[str, int]:
    """Number the rank's flags, where there are no counters beside them."""
    names = (flag for method in plan.methods for flag in own_flags(method))
    return {flag: row for row, flag in enumerate(names)}


def _text(data: bytes) -> str:
    return bytes(data).decode("utf-8", "replace")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
