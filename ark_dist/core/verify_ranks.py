"""Prove for the plans of all ranks together that they come to an end and never race."""

from collections.abc import Iterator, Mapping, Sequence

from ark_dist.core.errors import PlanError
from ark_dist.core.graph import HOST, Buffer, Node
from ark_dist.core.plan import Method, Plan
from ark_dist.core.rank_order import (
    MAX_CLOCK_ENTRIES,
    Flags,
    RankOrder,
    Where,
    ask_flag,
    done_flag,
)
from ark_dist.core.verify_plan import stored_buffers
from ark_dist.core.verify_rank_data import Exports, data_problems

# The name of a flag, and the rank that it lies on.
_Flag = tuple[int, str]


def verify_ranks(plans: Sequence[Plan]) -> None:
    """Raise PlanError naming the first rule that the plans of all ranks break together.

    Each of them has passed `verify_plan`. This is for tests and small plans: it refuses plans
    whose proof takes too long.
    """
    for problem in rank_problems(plans):
        raise PlanError(f"plans of {len(plans)} ranks: {problem}")


def rank_problems(plans: Sequence[Plan]) -> Iterator[str]:
    """Yield broken rules as sentences; later rules rely on earlier ones."""
    for rules in (_header_problems, _buffer_problems):
        problems = list(rules(plans))
        yield from problems
        if problems:
            return
    tables: dict[str, Flags] = {}
    problems = list(_flag_problems(plans, tables))
    yield from problems
    if problems:
        return
    exports = exports_of(plans)
    for name, flags in tables.items():
        methods = [plan.method(name) for plan in plans]
        for problem in _method_problems(plans, methods, flags, exports):
            yield f"method {name!r}: {problem}"


def _header_problems(plans: Sequence[Plan]) -> Iterator[str]:
    for position, plan in enumerate(plans):
        if (plan.rank, plan.world_size) != (position, len(plans)):
            yield f"plan {position} is that of rank {plan.rank} of {plan.world_size}"
        if plan.name != plans[0].name:
            yield f"rank {position} runs {plan.name!r}, rank 0 {plans[0].name!r}"
        if set(plan.method_names) != set(plans[0].method_names):
            yield (
                f"rank {position} has methods {plan.method_names}, rank 0 {plans[0].method_names}"
            )


# Buffers.


def exports_of(plans: Sequence[Plan]) -> Exports:
    """For each rank, its buffers that others may reach, by the name they know."""
    return [{b.export: b for b in plan.buffers if b.export and b.kind != "peer"} for plan in plans]


def _buffer_problems(plans: Sequence[Plan]) -> Iterator[str]:
    for plan in plans:
        names = [b.export for b in plan.buffers if b.export and b.kind != "peer"]
        for name in dict.fromkeys(n for n in names if names.count(n) > 1):
            yield f"rank {plan.rank} has two buffers that others know as {name!r}"
    exports = exports_of(plans)
    stored = [stored_buffers(plan) for plan in plans]
    for plan in plans:
        for buffer in plan.buffers:
            if buffer.kind == "peer":
                problem = _peer_problem(plan.rank, buffer, exports, stored)
                if problem is not None:
                    yield f"rank {plan.rank} uses {buffer.export!r} of rank {problem}"


def _peer_problem(
    rank: int, buffer: Buffer, exports: Exports, stored: Sequence[frozenset[int]]
) -> str | None:
    peer = buffer.peer
    if not 0 <= peer < len(exports) or peer == rank:
        return f"{peer}, which is not one of the other {len(exports)}"
    found = exports[peer].get(buffer.export)
    if found is None:
        return f"{peer}, which has nothing of that name"
    if (found.dtype, found.size_bytes) != (buffer.dtype, buffer.size_bytes):
        return (
            f"{peer} as {buffer.size_bytes} bytes of {buffer.dtype}; "
            f"there it has {found.size_bytes} of {found.dtype}"
        )
    if found.slots != 1 or buffer.slots != 1:
        return f"{peer}, which has it in several slots"
    if found.size_bytes and found.id not in stored[peer]:
        return f"{peer}, where no task touches it and it has no memory"
    return None


# Flags.


def _flag_problems(plans: Sequence[Plan], tables: dict[str, Flags]) -> Iterator[str]:
    """Yield flags that do not pair up; `tables` gets those of each method that do."""
    homes: dict[_Flag, str] = {}
    for name in plans[0].method_names:
        tables[name] = Flags()
        for plan in plans:
            for problem in _collected(plan.method(name), plan.rank, homes, tables[name]):
                yield f"method {name!r}: rank {plan.rank}: {problem}"
    for name, flags in tables.items():
        problems = [
            *_raise_problems(flags, homes, name, len(plans)),
            *_request_problems(flags, len(plans)),
        ]
        if not problems:
            problems += _end_problems([plan.method(name) for plan in plans], flags)
        yield from (f"method {name!r}: {problem}" for problem in problems)


def _collected(method: Method, rank: int, homes: dict[_Flag, str], flags: Flags) -> Iterator[str]:
    """Put a rank's flags into the table; yield those that are there twice."""
    tasks = _single_tasks(method)
    for node in method.nodes:
        if not (node.waits or node.raises):
            continue
        if node.id not in tasks:
            yield f"node {node.id} ({node.name!r}) has flags and does not end one single task"
            continue
        here = Where(rank, tasks[node.id])
        for flag in node.waits:
            if homes.setdefault((rank, flag), method.name) != method.name:
                yield f"waits for {flag!r} in method {homes[rank, flag]!r} too"
            elif flags.awaited.setdefault((rank, flag), here) != here:
                yield f"two handshakes wait for {flag!r}"
        for item in node.raises:
            if item.rank == HOST:
                yield from _asked(node, item.flag, here, flags)
            elif flags.raised.setdefault((item.rank, item.flag), here) != here:
                other = flags.raised[item.rank, item.flag].rank
                yield f"raises {item.flag!r} of rank {item.rank}, which rank {other} raises too"


def _single_tasks(method: Method) -> dict[int, int]:
    """The task of each node that ends exactly one group of exactly one task."""
    groups: dict[int, list[int]] = {}
    for group in method.groups:
        groups.setdefault(group.nodes[-1], []).append(group.id)
    tasks: dict[int, list[int]] = {}
    for task in method.tasks:
        tasks.setdefault(task.group, []).append(task.id)
    return {
        node: tasks[ends[0]][0]
        for node, ends in groups.items()
        if len(ends) == 1 and len(tasks.get(ends[0], ())) == 1
    }


def _asked(node: Node, flag: str, here: Where, flags: Flags) -> Iterator[str]:
    attrs = node.attributes
    key, ranks = str(attrs.get("key", "")), attrs.get("ranks", ())
    assert isinstance(ranks, tuple), f"{ranks!r} are no ranks"
    if node.op != "request" or flag != ask_flag(key):
        yield f"node {node.id} ({node.op}) raises {flag!r} for the host, which is no request's"
    elif flags.asked.setdefault((here.rank, key), here) != here:
        yield f"two requests ask for {key!r}"
    elif flags.groups.setdefault(key, ranks) != ranks or here.rank not in ranks:
        yield f"asks for {key!r} of ranks {ranks}, others say {flags.groups[key]}"


def _raise_problems(
    flags: Flags, homes: Mapping[_Flag, str], method: str, size: int
) -> Iterator[str]:
    for (rank, flag), raiser in flags.raised.items():
        who = f"rank {raiser.rank} raises {flag!r} of rank {rank}"
        if not 0 <= rank < size:
            yield f"{who}; there are {size} ranks"
        elif (rank, flag) not in homes:
            yield f"{who}, which does not wait for it"
        elif homes[rank, flag] != method:
            yield f"{who}, which waits for it in method {homes[rank, flag]!r}"
    done = {(rank, done_flag(key)) for rank, key in flags.asked}
    for (rank, flag), waiter in flags.awaited.items():
        is_host, is_raised = (rank, flag) in done, (rank, flag) in flags.raised
        if not is_host and not is_raised:
            yield f"rank {rank} waits for {flag!r} in task {waiter.task}; nobody raises it"
        elif is_host and is_raised:
            other = flags.raised[rank, flag].rank
            yield f"rank {other} raises {flag!r} of rank {rank}, which its host raises too"


def _request_problems(flags: Flags, size: int) -> Iterator[str]:
    for rank, key in flags.asked:
        if (rank, done_flag(key)) not in flags.awaited:
            yield f"rank {rank} asks its host for {key!r}; no handshake waits until that is done"
        for other in flags.groups[key]:
            if not 0 <= other < size or (other, key) not in flags.asked:
                yield f"rank {rank} asks its host for {key!r}, rank {other} does not"


def _end_problems(methods: Sequence[Method], flags: Flags) -> Iterator[str]:
    """Yield ranks that talk and may end a run in another turn than others.

    An early end leaves `depth` turns behind: flags of ranks that differ would be out of step.
    """
    raised = flags.raised.items()
    talking = {rank for (home, _), raiser in raised for rank in (home, raiser.rank)}
    talking |= {rank for rank, _ in flags.asked}
    ends = {
        rank: methods[rank].depth if methods[rank].stop_task is not None else 0
        for rank in sorted(talking)
    }
    first = next(iter(ends), 0)
    for rank, depth in ends.items():
        if depth != ends[first]:
            yield (
                f"rank {first} {_end_text(ends[first])}, rank {rank} {_end_text(depth)}; "
                "ranks that communicate must end together"
            )


def _end_text(depth: int) -> str:
    return f"may end early, with depth {depth}" if depth else "never ends early"


# Order.


def _method_problems(
    plans: Sequence[Plan], methods: Sequence[Method], flags: Flags, exports: Exports
) -> Iterator[str]:
    order = RankOrder(methods, flags)
    if order.entries > MAX_CLOCK_ENTRIES:
        yield f"to prove its order takes {order.entries} clocks; at most {MAX_CLOCK_ENTRIES} work"
        return
    circle = order.solve()
    if circle:
        steps = "; ".join(
            f"{described(methods[where.rank], where)} in turn {turn}" for where, turn in circle
        )
        yield f"tasks wait for one another in a circle, each for the next: {steps}"
        return
    yield from data_problems(plans, methods, flags, exports, order)


def described(method: Method, where: Where) -> str:
    """A task, for messages."""
    node = method.nodes[method.groups[method.tasks[where.task].group].nodes[-1]]
    return f"rank {where.rank}'s task {where.task} ({node.op} {node.name!r})"
