"""Hold the tables that a kernel walks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core.graph import Raise

Table = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Tables:
    """What the kernel walks; rows are laid out by `core/abi.py`.

    Attributes, besides the tables:
        flags: the rank's flags, and where they stand among the counters.
        raises: for each row of the table of raises, whose flag it is, by name.
        peers: buffers of other ranks; operand rows name them as arenas after the rank's own.
    """

    tasks: Table
    params: npt.NDArray[np.int64]
    operands: Table
    waits: Table
    queues: Table
    methods: Table
    counter_count: int
    scratch_elems: int
    shared_bytes: int
    scalar_slots: tuple[dict[str, int], ...]
    streams: Table
    segments: Table
    flags: dict[str, int]
    raises: tuple[Raise, ...]
    peers: tuple[int, ...]

    @property
    def has_stream(self) -> bool:
        """Whether weights come through the ring."""
        return len(self.segments) > 1
