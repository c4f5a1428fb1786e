"""Check a plan against every rule that its executors rely on, before anything is allocated."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import isfinite

from ark_dist.core.accesses import accesses
from ark_dist.core.errors import PlanError
from ark_dist.core.graph import Buffer, GraphMethod
from ark_dist.core.happens_before import TURNS, happens_before
from ark_dist.core.plan import (
    ALIGNMENT_BYTES,
    ARENAS,
    PLAN_VERSION,
    Method,
    Plan,
    arena_of,
)
from ark_dist.core.target import Target
from ark_dist.core.typed import type_problem
from ark_dist.core.verify_graph import buffer_problems, method_problems
from ark_dist.core.verify_memory import memory_problems
from ark_dist.core.verify_order import completion_problems, data_problems, decision_problems
from ark_dist.core.verify_sync import sync_problems
from ark_dist.core.verify_tasks import group_problems, task_problems

TARGET_KINDS = ("cpu", "cuda", "numpy", "null")
COUNTER_KINDS = ("clock", "group")
# Wider than any device; bounds the memory that the order proof takes.
MAX_WORKERS = 4096
MAX_WORLD_SIZE = 2**24
MAX_ARENA_BYTES = 2**60
# 256 MB; the largest plan tried, 49,565 tasks on 132 workers, takes 13 M.
MAX_CLOCK_ENTRIES = 2**26


def verify_plan(plan: Plan) -> None:
    """Raise PlanError naming the first rule the plan breaks, and where."""
    for problem in plan_problems(plan):
        # Whatever was passed: that it is a plan is the first rule.
        raise PlanError(f"plan {getattr(plan, 'name', None)!r:.200}: {problem}")


def plan_problems(plan: Plan) -> Iterator[str]:
    """Yield broken rules as sentences.

    Later rules are stated in terms of earlier ones: after the first group of rules that is
    broken nothing more is looked at.
    """
    found = _type_problem(plan)
    if found is not None:
        yield found
        return
    for stage in (_header_problems, _buffer_and_name_problems, _methods_problems, _place_problems):
        problems = list(stage(plan))
        yield from problems
        if problems:
            return
    for method in plan.methods:
        yield from (f"method {method.name!r}: {p}" for p in _order_problems(plan, method))


def stored_buffers(plan: Plan) -> frozenset[int]:
    """Ids of the buffers that need memory: all but what lives inside fused groups only."""
    touched = {
        region.buffer
        for method in plan.methods
        for task in method.tasks
        for region in (*task.reads, *task.writes)
    }
    return frozenset(
        b.id
        for b in plan.buffers
        if b.size_bytes and b.kind != "peer" and (b.kind != "activation" or b.id in touched)
    )


def _type_problem(plan: Plan) -> str | None:
    version = getattr(plan, "version", None)
    if type(version) is int and version != PLAN_VERSION:
        return f"version is {version}; this ark_dist works with version {PLAN_VERSION}"
    return type_problem(plan, Plan)


def _header_problems(plan: Plan) -> Iterator[str]:
    if not 1 <= plan.world_size <= MAX_WORLD_SIZE:
        yield f"world_size is {plan.world_size}; it must be 1 to {MAX_WORLD_SIZE}"
    elif not 0 <= plan.rank < plan.world_size:
        yield f"rank {plan.rank} is not one of {plan.world_size} ranks"
    for buffer in plan.buffers:
        if buffer.kind == "peer" and not 0 <= buffer.peer < plan.world_size:
            yield f"buffer {buffer.name!r} lies on rank {buffer.peer} of {plan.world_size}"
    if len(plan.places) != len(plan.buffers):
        yield f"{len(plan.places)} places for {len(plan.buffers)} buffers"
    if len(plan.arena_bytes) != len(ARENAS):
        yield f"{len(plan.arena_bytes)} arena sizes for {len(ARENAS)} arenas"
    for name, size in zip(ARENAS, plan.arena_bytes, strict=False):
        if not 0 <= size <= MAX_ARENA_BYTES:
            yield f"arena {name!r} of {size} bytes is out of range"
    if not plan.methods:
        yield "it has no methods"
    names = plan.method_names
    if len(set(names)) != len(names):
        yield f"two methods have one name: {names}"
    yield from (f"target: {p}" for p in _target_problems(plan.target))


def _target_problems(target: Target) -> Iterator[str]:
    if target.kind not in TARGET_KINDS:
        yield f"kind {target.kind!r} is not one of {TARGET_KINDS}"
    if target.counters not in COUNTER_KINDS:
        yield f"counters {target.counters!r} is not one of {COUNTER_KINDS}"
    if not 1 <= target.worker_count <= MAX_WORKERS:
        yield f"worker_count is {target.worker_count}; it must be 1 to {MAX_WORKERS}"
    if target.cache_bytes < 0:
        yield f"cache_bytes is {target.cache_bytes}; it must be 0 or more"
    for name in ("bytes_per_s", "ops_per_s"):
        value = getattr(target, name)
        if not (isfinite(value) and value > 0):
            yield f"{name} is {value}; it must be a finite number above 0"
    for name in ("task_s", "hop_s"):
        value = getattr(target, name)
        if not (isfinite(value) and value >= 0):
            yield f"{name} is {value}; it must be a finite number, 0 or more"


def _buffer_and_name_problems(plan: Plan) -> Iterator[str]:
    yield from buffer_problems(plan.buffers)
    for buffer in plan.buffers:
        if buffer.packing and plan.target.kind != "cpu":
            yield f"buffer {buffer.name!r} is packed for a CPU, the target is {plan.target.kind!r}"


def _methods_problems(plan: Plan) -> Iterator[str]:
    for method in plan.methods:
        for problem in _method_problems(plan, method):
            yield f"method {method.name!r}: {problem}"


def _method_problems(plan: Plan, method: Method) -> Iterator[str]:
    """Yield from the first group of rules that is broken: each relies on those before it."""
    graph = GraphMethod(method.name, method.nodes)
    nodes = list(method_problems(plan.buffers, graph, is_plan=True))
    if nodes:
        yield from nodes
        return
    for rules in (group_problems, task_problems, sync_problems):
        problems = list(rules(plan, method))
        yield from problems
        if problems:
            return


def _order_problems(plan: Plan, method: Method) -> Iterator[str]:
    entries = TURNS * len(method.tasks) * plan.target.worker_count
    if entries > MAX_CLOCK_ENTRIES:
        yield f"to prove its order takes {entries} clocks; at most {MAX_CLOCK_ENTRIES} are tried"
        return
    clocks = happens_before(method)
    touched = accesses(method, plan.buffers)
    yield from decision_problems(method, clocks)
    yield from completion_problems(method, clocks)
    yield from data_problems(plan.buffers, touched, clocks)
    yield from memory_problems(plan.buffers, plan.places, touched, clocks)


def _place_problems(plan: Plan) -> Iterator[str]:
    sizes = dict(zip(ARENAS, plan.arena_bytes, strict=True))
    stored = stored_buffers(plan)
    for buffer, place in zip(plan.buffers, plan.places, strict=True):
        where = f"buffer {buffer.id} ({buffer.name!r})"
        if place.arena != arena_of(buffer):
            yield (
                f"{where}: {buffer.kind} lies in arena {place.arena!r}; "
                f"it belongs in {arena_of(buffer)!r}"
            )
        elif place.offset < 0 or place.offset % ALIGNMENT_BYTES:
            yield f"{where}: offset {place.offset} is not a multiple of {ALIGNMENT_BYTES}"
        elif buffer.id in stored and place.offset + buffer.size_bytes > sizes[place.arena]:
            yield (
                f"{where}: ends at byte {place.offset + buffer.size_bytes} of arena "
                f"{place.arena!r}, which has {sizes[place.arena]}"
            )
    yield from _shared_problems(plan, [b for b in plan.buffers if b.id in stored])


def _shared_problems(plan: Plan, stored: Sequence[Buffer]) -> Iterator[str]:
    """Yield overlaps of buffers that live as long as the program."""
    lasting = [b for b in stored if b.kind != "activation"]
    lasting.sort(key=lambda b: (plan.places[b.id].arena, plan.places[b.id].offset))
    for one, two in pairwise(lasting):
        first, second = plan.places[one.id], plan.places[two.id]
        if first.arena == second.arena and first.offset + one.size_bytes > second.offset:
            yield f"buffers {one.name!r} and {two.name!r} overlap in arena {first.arena!r}"
    ends = {plan.places[b.id].arena: plan.places[b.id].offset + b.size_bytes for b in lasting}
    for buffer in stored:
        place = plan.places[buffer.id]
        if buffer.kind == "activation" and place.offset < ends.get(place.arena, 0):
            yield f"activation {buffer.name!r} lies among what outlives it in {place.arena!r}"
