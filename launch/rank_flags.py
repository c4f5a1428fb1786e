"""Read and raise the flags of ranks from Python, for a machine that looks at them now and then."""

import time

import numpy as np
import numpy.typing as npt

from ark_dist.core.errors import StallError
from ark_dist.core.graph import HOST, Raise
from ark_dist.core.plan import Plan, own_flags
from ark_dist.launch.rank_memory import RankMemory
from ark_dist.launch.vigil import Vigil

# A rank that waits for others in Python looks this often.
PAUSE_S = 100e-6


class SharedFlags:
    """Flags in the node's memory, for a machine that looks at them now and then."""

    def __init__(self, memory: RankMemory, vigil: Vigil, timeout_s: float) -> None:
        """Give up after `timeout_s` seconds without any change."""
        self._memory = memory
        self._vigil = vigil
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
        self._memory.check(lambda: reason)
        if now - self._since > self._timeout_s:
            raise StallError(
                f"no progress for {self._timeout_s:g} s: {reason}{self._memory.stopped()}"
            )
        self._vigil.tick(reason, lambda: reason)
        time.sleep(PAUSE_S)


def flag_rows(plan: Plan) -> dict[str, int]:
    """Number the rank's flags, where there are no counters beside them."""
    names = (flag for method in plan.methods for flag in own_flags(method))
    return {flag: row for row, flag in enumerate(names)}
