"""Run a program on several ranks that are threads of this process, each with its own kernel."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.inproc import inproc_world
from ark_dist.core.errors import CommError

_T = TypeVar("_T")
LIMIT_S = 120.0


def on_ranks(size: int, work: Callable[[Communicator], _T]) -> list[_T]:
    """Call `work` on every rank's thread; return the results, or raise the first rank's error."""
    results: dict[int, _T] = {}
    errors: dict[int, BaseException] = {}

    def run(communicator: Communicator) -> None:
        try:
            results[communicator.rank] = work(communicator)
        except BaseException as error:
            errors[communicator.rank] = error

    world: Sequence[Communicator] = inproc_world(size, timeout_s=LIMIT_S)
    threads = [threading.Thread(target=run, args=(ranks,), daemon=True) for ranks in world]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "a rank did not finish"
    if errors:
        # What a rank met by itself comes before what others make of its end.
        own = [rank for rank, error in sorted(errors.items()) if not isinstance(error, CommError)]
        raise errors[own[0] if own else min(errors)]
    return [results[rank] for rank in range(size)]
