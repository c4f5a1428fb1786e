"""Run the plans of all ranks in one thread, step by step, in any order a seed chooses."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ark_dist.core.graph import Raise
from ark_dist.core.op import Array
from ark_dist.core.plan import Plan, peer_buffers
from ark_dist.core.verify_ranks import verify_ranks
from ark_dist.core.view import View
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.machine import Command, Machine
from ark_dist.launch.memory import Arenas, allocate


@dataclass(slots=True)
class DictFlags:
    """All ranks' flags in one dictionary, seen from one rank."""

    rank: int
    values: dict[tuple[int, str], int] = field(default_factory=dict)

    def value(self, flag: str) -> int:
        """The flag's turns."""
        return self.values.get((self.rank, flag), 0)

    def set(self, item: Raise, value: int) -> None:
        """Raise a flag by one turn; it has one writer."""
        rank = self.rank if item.rank < 0 else item.rank
        assert self.values.get((rank, item.flag), 0) == value - 1, f"{item} is raised twice"
        self.values[rank, item.flag] = value

    def pause(self, reason: str) -> None:
        """The world steps all ranks itself."""
        raise AssertionError(reason)


class RankWorld:
    """The ranks of one program; every command goes to all of them."""

    def __init__(self, plans: Sequence[Plan], seed: int = 0) -> None:
        """Prove that the plans fit together, and let each rank see the others' memory."""
        verify_ranks(plans)
        self.plans = plans
        self._rng = np.random.default_rng(seed)
        own = [allocate(plan, is_packed=False) for plan in plans]
        values: dict[tuple[int, str], int] = {}
        self.arenas = [
            replace(arenas, peers={b: _exported(plan, b, own) for b in peer_buffers(plan)})
            for plan, arenas in zip(plans, own, strict=True)
        ]
        self._machines = []
        for rank, plan in enumerate(plans):
            device = NumpyDevice(plan)
            device.start(self.arenas[rank])
            machine = Machine(plan, device._body, self._choose, DictFlags(rank, values))
            self._machines.append(machine)

    def _choose(self, ready: Sequence[tuple[int, int]]) -> int:
        return ready[int(self._rng.integers(len(ready)))][0]

    def write(self, rank: int, view: View, value: Array) -> None:
        """Store an array in a rank's memory."""
        self.arenas[rank].write(view, value)

    def read(self, rank: int, view: View) -> Array:
        """A copy of what a rank holds."""
        return self.arenas[rank].read(view)

    def run(self, iterations: int, method: str = "forward", epoch: int = 0) -> list[int]:
        """Run a method on all ranks; return the iterations each did."""
        command = Command(method, iterations, epoch)
        steps = {rank: machine.walk(command) for rank, machine in enumerate(self._machines)}
        done = [0] * len(self.plans)
        blocked: dict[int, str] = {}
        while steps:
            rank = list(steps)[int(self._rng.integers(len(steps)))]
            try:
                reason = next(steps[rank])
            except StopIteration as end:
                done[rank] = end.value
                del steps[rank]
                blocked = {}
                continue
            # A rank that can't go on has to be asked again only after another one moved.
            blocked = {**blocked, rank: reason} if reason else {}
            assert len(blocked) < len(steps) or not steps, f"no rank can go on: {blocked}"
        return done


def _exported(plan: Plan, buffer_id: int, own: Sequence[Arenas]) -> npt.NDArray[np.uint8]:
    wanted = plan.buffers[buffer_id]
    arenas = own[wanted.peer]
    found = next(b for b in arenas.plan.buffers if b.export == wanted.export and b.kind != "peer")
    assert found.size_bytes == wanted.size_bytes, f"{wanted} is {found} on rank {wanted.peer}"
    place = arenas.plan.places[found.id]
    return arenas.memory[place.arena][place.offset : place.offset + found.size_bytes]
