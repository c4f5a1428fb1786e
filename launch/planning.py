"""Find a rank's plan: kept by an earlier start, or made now."""

from collections.abc import Mapping
from dataclasses import dataclass

from ark_dist.comm.communicator import Communicator
from ark_dist.core.layout import Share
from ark_dist.core.plan import Plan
from ark_dist.core.settings import Settings
from ark_dist.core.source import Source
from ark_dist.kernels.emit import EMITTERS
from ark_dist.kernels.tables import Tables
from ark_dist.launch.agreement import check_agreement, check_same_graph, said_of
from ark_dist.launch.devices.base import Emit
from ark_dist.launch.plan_cache import PlanCache
from ark_dist.launch.plan_entry import PlanEntry
from ark_dist.launch.plan_key import PlanRequest, plan_key
from ark_dist.scheduler.partition import partition
from ark_dist.scheduler.plan import make_plan

# Fewer nodes are planned in 20 ms, of which a kept plan would save half.
LEAST_NODES = 100


@dataclass(frozen=True, slots=True)
class Found:
    """A rank's plan, what ranks have of the global graph, and what emits the plan's source."""

    plan: Plan
    shares: Mapping[int, Share]
    emit: Emit


@dataclass(frozen=True, slots=True)
class _Kept:
    """A place in the cache for one plan."""

    cache: PlanCache
    key: str


def find_plan(request: PlanRequest, settings: Settings, communicator: Communicator | None) -> Found:
    """Return the plan of a request, after comparing it with those of the other ranks.

    Raises:
        PlanMismatchError: on every rank, if their graphs do not fit together.
    """
    graph, mesh = request.graph, request.mesh
    if communicator is not None and mesh is not None:
        check_same_graph(graph, mesh, communicator)
    kept = _kept(request, settings)
    entry = None if kept is None else kept.cache.load(kept.key)
    if entry is not None:
        if communicator is not None:
            check_agreement(entry.said, communicator)
        return Found(entry.plan, entry.shares, lambda _: (entry.source, entry.tables))
    return _made(request, kept, communicator)


def _kept(request: PlanRequest, settings: Settings) -> _Kept | None:
    nodes = sum(len(method.nodes) for method in request.graph.methods)
    if not settings.has_plan_cache or not request.language or nodes < LEAST_NODES:
        return None
    key = plan_key(request)
    return None if key is None else _Kept(PlanCache(settings.cache_dir), key)


def _made(request: PlanRequest, kept: _Kept | None, communicator: Communicator | None) -> Found:
    own, shares, said = request.graph, {}, b""
    if communicator is not None:
        if request.mesh is not None:
            cut = partition(own, request.mesh, request.rank, request.topology)
            own, shares = cut.graph, dict(cut.shares)
        said = said_of(own, request.rank, communicator.size)
        check_agreement(said, communicator)
    plan = make_plan(
        own, request.target, request.options, rank=request.rank, topology=request.topology
    )

    def emit(plan: Plan) -> tuple[Source, Tables]:
        source, tables = EMITTERS[request.language](plan)
        if kept is not None:
            kept.cache.save(kept.key, PlanEntry(plan, shares, said, source, tables))
        return source, tables

    return Found(plan, shares, emit)
