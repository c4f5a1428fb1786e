"""Open programs of several ranks: step by step in one thread, or with a kernel for each."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import Value
from ark_dist.core.graph import Graph
from ark_dist.core.settings import read_settings
from ark_dist.launch.open import open_session
from ark_dist.launch.session import Session
from ark_dist.scheduler.plan import PlanOptions
from tests.rank_cases import plans_of
from tests.rank_threads import on_ranks
from tests.rank_world import RankWorld

ONE_SHOT = "ark_dist.scheduler.communicate.ONE_SHOT_BYTES"
BOTH_WAYS = pytest.mark.parametrize("limit", [0, 1 << 20], ids=["two-shot", "one-shot"])
BOTH_TRANSPORTS = pytest.mark.parametrize("transport", ["peer", "proxy"])
SEEDS = 4


@dataclass(frozen=True, slots=True)
class Program:
    """What a rank runs, and the tensors that a test looks at."""

    graph: Graph
    seen: dict[str, Value]


Make = Callable[[int], Program]


def world_of(
    make: Make, size: int, seed: int = 0, *, depth: int = 1
) -> tuple[RankWorld, list[Program]]:
    """The ranks' memory and steps, in an order that a seed chooses."""
    programs = [make(rank) for rank in range(size)]
    return RankWorld(plans_of(lambda r: programs[r].graph, size, depth=depth), seed), programs


def on_kernels(
    make: Make,
    size: int,
    work: Callable[[Session, Program], object],
    *,
    transport: str = "auto",
    depth: int = 1,
) -> list[object]:
    """Run every rank's kernel in threads of this process, and do the same with each session."""

    def run(communicator: Communicator) -> object:
        program = make(communicator.rank)
        session = open_session(
            program.graph,
            device="cpu",
            settings=read_settings(),
            worker_count=2,
            options=PlanOptions(transport=transport, depth=depth),
            communicator=communicator,
        ).session
        try:
            session.compile(lambda path: None)
            session.launch()
            result = work(session, program)
            session.stop()
            return result
        finally:
            session.close()

    return on_ranks(size, run)
