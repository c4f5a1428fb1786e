"""Run a function on the ranks of a world, each in a thread, with a limit."""

import threading
from collections.abc import Callable, Sequence

from ark_dist.comm.communicator import Communicator

LIMIT_S = 30.0
Body = Callable[[Communicator], object]


def failures(world: Sequence[Communicator], body: Body) -> list[BaseException | None]:
    """Run it at every rank; return what each raised."""
    found: list[BaseException | None] = [None] * len(world)

    def run(comm: Communicator) -> None:
        try:
            body(comm)
        except BaseException as error:
            found[comm.rank] = error

    threads = [threading.Thread(target=run, args=(comm,), daemon=True) for comm in world]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "a rank still waits"
    return found


def on_threads(world: Sequence[Communicator], body: Body) -> None:
    """Run it at every rank; raise what the first one raised."""
    for error in failures(world, body):
        if error is not None:
            raise error
