"""Watch over a wait for other ranks: end it if Python hangs, and warn once of a slow rank."""

import logging
import time
from collections.abc import Callable

from ark_dist.launch.hooks import BACKSTOP_MARGIN_S, active_backstop

LOGGER = logging.getLogger("ark_dist")
# A wait without progress for this part of the limit gets a warning.
WARN_PART = 4
# Between two looks the process may have been stopped itself: such time does not count.
LONGEST_STEP_S = 0.2
# The backstop is armed anew this often: a thread is started for it.
ARM_EVERY_S = 0.1


class Vigil:
    """What a rank does each time that a wait has come back to Python with nothing."""

    def __init__(self, timeout_s: float, stopped: Callable[[], str]) -> None:
        """`stopped` says which other ranks are stopped."""
        self._timeout_s = timeout_s
        self._stopped = stopped
        self._is_armed = False
        self._has_warned = False
        self._progress: object = None
        self._last_s = self._armed_s = 0.0
        self._waited_s = 0.0

    def begin(self) -> None:
        """A wait begins."""
        self._waited_s, self._last_s = 0.0, time.monotonic()
        self._arm(self._last_s)

    def tick(self, progress: object, waits: Callable[[], str]) -> None:
        """Note that nothing came yet; `progress` is another value whenever something was done."""
        now = time.monotonic()
        step_s, self._last_s = now - self._last_s, now
        if now - self._armed_s > ARM_EVERY_S:
            self._arm(now)
        if progress != self._progress:
            self._progress, self._waited_s = progress, 0.0
            return
        self._waited_s += min(step_s, LONGEST_STEP_S)
        if self._waited_s > self._timeout_s / WARN_PART and not self._has_warned:
            text = waits()
            # Without one it is this rank that computes for long.
            if text:
                self._has_warned = True
                LOGGER.warning(
                    "slow rank: no progress for %.2g s of at most %g s: %s%s",
                    *(self._waited_s, self._timeout_s, text, self._stopped()),
                )

    def end(self) -> None:
        """The wait is over."""
        if self._is_armed:
            self._is_armed = False
            backstop = active_backstop()
            if backstop is not None:
                backstop.disarm()

    def _arm(self, now: float) -> None:
        backstop = active_backstop()
        if backstop is not None:
            backstop.arm(self._timeout_s + BACKSTOP_MARGIN_S)
            self._is_armed, self._armed_s = True, now
