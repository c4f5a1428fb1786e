"""Write commands as the records that kernels read."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.plan import Plan
from ark_dist.kernels.tables import Tables
from ark_dist.launch.machine import Command

Memory = npt.NDArray[Any]

# Nanoseconds of a longer limit do not fit 63 bits together with the clock.
MAX_TIMEOUT_S = 1e9
NEVER = 1 << 62

_COMMAND = struct.Struct(f"<QqqIIQ{abi.MAX_SCALARS}Q")
# Where the host's words stand; all have 8 bytes.
_HOST_WORDS = [name for name, *_ in abi.HOST.fields]
POSTED, COMPLETED = _HOST_WORDS.index("posted"), _HOST_WORDS.index("completed")
_COMMAND_BYTES = abi.COMMAND.dtype.itemsize
# Of `done`, the iterations done, in a record.
DONE_OFFSET = 16
_NO_SCALARS = (0,) * abi.MAX_SCALARS


def command_text(command: Command) -> str:
    """A command as its user wrote it."""
    scalars = "".join(f", {name}={value!r}" for name, value in command.scalars)
    return f"run({command.iterations}, method={command.method!r}{scalars})"


def command_offset(sequence: int) -> int:
    """Byte offset of a command's record in the ring."""
    return (sequence % abi.COMMAND_RING) * _COMMAND_BYTES


def write_command(
    ring: memoryview,
    sequence: int,
    plan: Plan,
    tables: Tables,
    command: Command,
    participants: int,
) -> None:
    """Write a command into its row; `participants` workers have to finish it."""
    method = plan.method_names.index(command.method)
    scalars, given = _scalars(plan, tables, command, method)
    _COMMAND.pack_into(
        ring,
        command_offset(sequence),
        command.epoch,
        command.iterations,
        command.iterations,  # done, unless the kernel writes another number
        method,
        participants,
        given,
        *scalars,
    )


def _scalars(
    plan: Plan, tables: Tables, command: Command, method: int
) -> tuple[Sequence[int], int]:
    """The words of a command's scalars, and which are given."""
    if not command.scalars:
        return _NO_SCALARS, 0
    values, given = [0] * abi.MAX_SCALARS, 0
    slots = tables.scalar_slots[method]
    dtypes = {
        str(n.attributes["name"]): n.output.dtype
        for n in plan.methods[method].nodes
        if n.op == "command_scalar"
    }
    for name, value in command.scalars:
        if name not in dtypes:
            continue  # only other ranks read it
        data = np.asarray(value).astype(dtypes[name].numpy).tobytes()
        values[slots[name]] = int.from_bytes(data.ljust(8, b"\0"), "little")
        given |= 1 << slots[name]
    return values, given


class CommandRing:
    """The host's side of the commands of a kernel on a GPU."""

    def __init__(self, plan: Plan, tables: Tables, host: Memory, commands: Memory) -> None:
        """Take the blocks that the kernel reads: the words, and the rows of commands."""
        self._plan = plan
        self._tables = tables
        # Through memoryviews: what NumPy takes to read a word counts in a wait.
        self._words = host.reshape(-1).view(np.uint64).data
        self._rows = commands.reshape(-1).view(np.uint8).data
        self._collected = 0
        self._results: list[int] = []

    @property
    def posted(self) -> int:
        """Sequence number of the last command: the very word that the kernel sees."""
        return int(self._words[POSTED])

    @property
    def completed(self) -> int:
        """Sequence number of the last command that is done."""
        return int(self._words[COMPLETED])

    @property
    def is_full(self) -> bool:
        """Whether a command has to be collected before another can be posted."""
        return self.posted - self._collected == abi.COMMAND_RING

    @property
    def oldest(self) -> int:
        """Sequence number of the first command that is not collected."""
        return self._collected + 1

    def post(self, command: Command) -> None:
        """Let the kernel see a command."""
        workers, sequence = self._plan.target.worker_count, self.posted + 1
        write_command(self._rows, sequence, self._plan, self._tables, command, workers)
        self._words[POSTED] = sequence

    def post_exit(self) -> None:
        """Let the kernel exit after what was posted."""
        sequence = self.posted + 1
        row = command_offset(sequence)
        _COMMAND.pack_into(self._rows, row, 0, 0, 0, abi.EXIT, 0, 0, *_NO_SCALARS)
        self._words[POSTED] = sequence

    def collect(self) -> None:
        """Keep the results of all commands that are done."""
        last = self.completed
        new = [self._done(sequence) for sequence in range(self._collected + 1, last + 1)]
        # Together: Ctrl-C comes before both or after them.
        self._results, self._collected = self._results + new, last

    def _done(self, sequence: int) -> int:
        start = command_offset(sequence) + DONE_OFFSET
        return int.from_bytes(self._rows[start : start + 8], "little")

    def take_results(self) -> list[int]:
        """Iterations done by each command since the last call."""
        self.collect()
        results, self._results = self._results, []
        return results
