"""Run plans for a GPU under emulation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ark_dist.core.graph import Graph
from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_settings
from ark_dist.core.target import wide_target
from ark_dist.launch.devices.emulated import EmulatedDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.order import Queues
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.lifecycle_models import scattered
from tests.plan_models import eager


def gpu_plan(
    graph: Graph,
    *,
    workers: int = 3,
    arch: str = "sm_90a",
    depth: int = 1,
    policy: Callable[..., Queues] = scattered,
) -> Plan:
    """A plan that cuts even tiny operators into tiles, and deals them out to all workers."""
    target = eager(wide_target(workers, arch, "cuda"))
    return make_plan(graph, target, PlanOptions(depth=depth, policy=policy))


@contextmanager
def emulated(
    plan: Plan,
    *,
    seed: int = 0,
    race: bool = False,
    watchdog: bool = False,
    timeout_s: float = 20.0,
) -> Iterator[Session]:
    """A session that is launched on an emulated GPU."""
    settings = replace(read_settings(), timeout_s=timeout_s)
    device = EmulatedDevice(plan, settings, seed=seed, is_race_checked=race, has_watchdog=watchdog)
    session = Session(plan, device, SessionOptions(timeout_s=timeout_s))
    session.compile(lambda path: None)
    session.launch()
    try:
        yield session
    finally:
        session.close()
