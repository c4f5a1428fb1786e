"""Go on with exchanges of messages as far as those that have come allow."""

from collections.abc import Generator, Sequence

from ark_dist.comm.communicator import Work

# What is under way: yields the messages that have to be done before it goes on.
Steps = Generator[Sequence[Work], None, None]


class Running:
    """An order under way."""

    def __init__(self, steps: Steps, since_s: float) -> None:
        self.since_s = since_s
        self._steps = steps
        self._works: list[Work] = []

    def is_done(self) -> bool:
        """Go as far as finished messages allow; tell whether that is to the end."""
        while True:
            self._works = [work for work in self._works if not _is_over(work)]
            if self._works:
                return False
            try:
                self._works = list(next(self._steps))
            except StopIteration:
                return True


def _is_over(work: Work) -> bool:
    if not work.done():
        return False
    error = work.exception()
    if error is not None:
        raise error
    return True
