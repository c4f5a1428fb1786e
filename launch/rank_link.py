"""Connect one rank's running program to the others: shared memory, and a thread for messages."""

from ark_dist.comm.communicator import Communicator
from ark_dist.core.errors import PlanWorldSizeError
from ark_dist.core.plan import Plan
from ark_dist.launch.memory import Arenas, allocate
from ark_dist.launch.proxy import Proxy, requests
from ark_dist.launch.rank_memory import RankMemory
from ark_dist.launch.vigil import Vigil

_NO, _YES = b"\0", b"\1"


class RankLink:
    """What a device of one of several ranks has beside its kernel."""

    def __init__(
        self,
        plan: Plan,
        communicator: Communicator,
        flags: dict[str, int],
        counter_count: int,
        timeout_s: float,
        *,
        is_packed: bool = True,
    ) -> None:
        """Allocate memory, and find the others'; collective. `is_packed` is for `allocate`."""
        self.memory = RankMemory(plan, communicator, flags, counter_count)
        self.arenas: Arenas = allocate(plan, self.memory, is_packed=is_packed)
        self.vigil = Vigil(timeout_s, self.memory.stopped)
        self._communicator = communicator
        self._proxy: Proxy | None = None
        if self._is_any(bool(requests(plan))):
            self._proxy = Proxy(
                plan, communicator, self.memory, self.arenas, timeout_s, self.memory.give_up
            )

    def start(self) -> None:
        """Begin anew, together with all ranks."""
        self.memory.start()
        if self._proxy is not None:
            # Messages that a failure left under way must not meet those of this time.
            if self._is_any(self._proxy.is_unfinished):
                self._proxy.reconnect()
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

    def _is_any(self, mine: bool) -> bool:
        """Whether it is so on any rank; collective."""
        return _YES in self._communicator.all_gather_bytes(_YES if mine else _NO)


def check_world_size(plan: Plan, communicator: Communicator | None) -> None:
    """Raise PlanWorldSizeError for a plan that these ranks can't run."""
    rank, size = (0, 1) if communicator is None else (communicator.rank, communicator.size)
    if plan.world_size != size:
        raise PlanWorldSizeError(
            f"rank {rank}: program {plan.name!r} was planned for {plan.world_size} ranks, and "
            f"there are {size}; start {plan.world_size} ranks, or plan the graph again"
        )
    if plan.rank != rank:
        raise PlanWorldSizeError(
            f"rank {rank}: program {plan.name!r} was planned for rank {plan.rank}; give each rank "
            "its own plan"
        )
