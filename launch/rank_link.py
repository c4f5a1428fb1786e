"""Connect one rank's running program to the others: shared memory, and a thread for messages."""

from ark_dist.comm.communicator import Communicator
from ark_dist.core.plan import Plan
from ark_dist.launch.memory import Arenas, allocate
from ark_dist.launch.proxy import Proxy, requests
from ark_dist.launch.rank_memory import RankMemory


class RankLink:
    """What a device of one of several ranks has beside its kernel."""

    def __init__(
        self,
        plan: Plan,
        communicator: Communicator,
        flags: dict[str, int],
        counter_count: int,
        timeout_s: float,
    ) -> None:
        """Allocate memory, and find the others'; collective."""
        self.memory = RankMemory(plan, communicator, flags, counter_count)
        self.arenas: Arenas = allocate(plan, self.memory)
        self._proxy: Proxy | None = None
        asks = communicator.all_gather_bytes(bytes([bool(requests(plan))]))
        if any(asks != b"\0" for asks in asks):
            self._proxy = Proxy(
                plan, communicator, self.memory, self.arenas, timeout_s, self.memory.give_up
            )

    def start(self) -> None:
        """Begin anew, together with all ranks."""
        self.memory.start()
        if self._proxy is not None:
            self._proxy.start()

    def post(self, sequence: int, text: str) -> None:
        """Say which command this rank runs next."""
        self.memory.post(sequence, text)
        if self._proxy is not None:
            self._proxy.wake()

    def rest(self) -> None:
        """Say that all commands are done."""
        self.memory.compare_all()
        if self._proxy is not None:
            self._proxy.rest()

    def stop(self) -> None:
        """The kernel has ended."""
        if self._proxy is not None:
            self._proxy.stop()
        self.memory.leave()
