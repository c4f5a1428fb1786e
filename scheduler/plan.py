"""Call the passes in order: graph in, plan out."""

from collections.abc import Sequence
from dataclasses import dataclass

from ark_dist.core.graph import Buffer, Graph, GraphMethod, Node
from ark_dist.core.plan import PLAN_VERSION, Method, Plan
from ark_dist.core.target import Target, Topology, topology_of
from ark_dist.core.task import Group, Task
from ark_dist.core.verify_graph import verify_graph
from ark_dist.core.verify_plan import verify_plan
from ark_dist.scheduler.checks import add_checks
from ark_dist.scheduler.communicate import communicate
from ark_dist.scheduler.deps import (
    Access,
    Edges,
    accesses,
    next_turn_edges,
    same_turn_edges,
)
from ark_dist.scheduler.expand import expand
from ark_dist.scheduler.fuse import fuse
from ark_dist.scheduler.memory import Lifetime, Placement, lifetimes, place, place_activations
from ark_dist.scheduler.order import Policy, Queues, earliest_finish
from ark_dist.scheduler.pack import pack_weights
from ark_dist.scheduler.sync import reuse_edges, sync
from ark_dist.scheduler.tile import tile


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Choices of the caller.

    Attributes:
        is_fused: merge nodes into groups where that is possible.
        depth: how many turns may be under way before the oldest one's decision is known.
        policy: how tasks find their worker.
        transport: how messages travel: "peer" (memory that ranks share), "proxy" (the host
            moves them), or "auto" (peer within a node).
        check_numerics: let every operator whose result is NaN or infinite fail; slow.
        check_replicas: compare what each all_reduce gives to its ranks; slow.
        is_packed: store weights as a CPU's matrix kernels read them fastest; False keeps them
            row-major, to compare the two.
    """

    is_fused: bool = True
    depth: int = 1
    policy: Policy = earliest_finish
    transport: str = "auto"
    check_numerics: bool = False
    check_replicas: bool = False
    is_packed: bool = True


@dataclass(frozen=True, slots=True)
class _Draft:
    """A method before its memory is placed."""

    source: GraphMethod
    groups: tuple[Group, ...]
    tasks: tuple[Task, ...]
    touched: dict[int, list[Access]]
    edges: tuple[Edges, ...]
    queues: Queues
    lives: dict[str, tuple[Lifetime, ...]]
    placements: dict[str, Placement]


def make_plan(
    graph: Graph,
    target: Target,
    options: PlanOptions | None = None,
    *,
    rank: int = 0,
    topology: Topology | None = None,
) -> Plan:
    """Plan all methods of a rank's graph for one target; `topology` has all ranks."""
    options = options or PlanOptions()
    topology = topology or topology_of((0,))
    verify_graph(graph)
    graph = add_checks(graph, is_finite=options.check_numerics, is_equal=options.check_replicas)
    graph = communicate(graph, rank, topology, options.transport)
    methods, buffers = _expanded(graph, target)
    if options.is_packed:
        buffers = pack_weights(methods, buffers, target)
    drafts = [_draft(method, buffers, target, options) for method in methods]
    places, arena_bytes = place(buffers, [d.placements for d in drafts])
    plan = Plan(
        PLAN_VERSION,
        graph.name,
        rank,
        topology.size,
        target,
        buffers,
        places,
        arena_bytes,
        tuple(_method(draft, target, options) for draft in drafts),
    )
    verify_plan(plan)
    return plan


def _expanded(graph: Graph, target: Target) -> tuple[tuple[GraphMethod, ...], tuple[Buffer, ...]]:
    methods, buffers = [], graph.buffers
    for method in graph.methods:
        steps, buffers = expand(method, buffers, target)
        methods.append(steps)
    return tuple(methods), buffers


def _draft(
    method: GraphMethod, buffers: Sequence[Buffer], target: Target, options: PlanOptions
) -> _Draft:
    nodes: tuple[Node, ...] = method.nodes
    groups = fuse(nodes, buffers, is_enabled=options.is_fused, target=target)
    tasks = tile(groups, nodes, buffers, target)
    touched = accesses(tasks, buffers)
    edges = tuple(same_turn_edges(touched))
    queues = options.policy(tasks, edges, target)
    lives = lifetimes(tasks, buffers)
    placements = {arena: place_activations(some) for arena, some in lives.items()}
    return _Draft(method, groups, tasks, touched, edges, queues, lives, placements)


def _method(draft: _Draft, target: Target, options: PlanOptions) -> Method:
    buffers_lasting = _lasting(draft)
    back = tuple(next_turn_edges(draft.touched, lambda b: b in buffers_lasting))
    stop_task = next((t.id for t in draft.tasks if t.effect == "stop"), None)
    result = sync(
        draft.tasks,
        draft.queues,
        (*draft.edges, *back),
        [
            item
            for arena, lives in draft.lives.items()
            for item in reuse_edges(lives, draft.placements[arena], draft.touched)
        ],
        target.counters,
        stop_task,
        options.depth,
    )
    return Method(
        draft.source.name,
        draft.source.nodes,
        draft.groups,
        draft.tasks,
        draft.queues,
        result.counters,
        result.signals,
        result.waits,
        stop_task,
        options.depth,
    )


def _lasting(draft: _Draft) -> frozenset[int]:
    placed = {b for placement in draft.placements.values() for b in placement.offsets}
    return frozenset(b for b in draft.touched if b not in placed)
