"""Check that ranks which touch the same memory do so in an order that flags enforce."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ark_dist.core.graph import Buffer
from ark_dist.core.plan import Method, Plan
from ark_dist.core.rank_order import Flags, Ints, RankOrder, Where, done_flag
from ark_dist.core.shape import Shape, row_major_strides
from ark_dist.core.view import Region, View

# For each rank, what others may reach, by name.
Exports = Sequence[Mapping[str, Buffer]]
# These bound the time of a proof.
MAX_RUNS = 2**20
MAX_VIEW_RUNS = 2**16
MAX_PAIRS = 2**20


@dataclass(frozen=True, slots=True)
class _Use:
    """A task reads or writes bytes of an owner's symmetric arena.

    Attributes:
        where: the task.
        begin, end: rows in the order between which the memory is in use; what a host moves is
            in use from the request to the handshake that waits for it.
        is_write: whether it writes.
        name: the owner's name of the buffer.
        runs: first and last byte + 1 of stretches of memory, (count, 2).
    """

    where: Where
    begin: int
    end: int
    is_write: bool
    name: str
    runs: Ints


def data_problems(
    plans: Sequence[Plan],
    methods: Sequence[Method],
    flags: Flags,
    exports: Exports,
    order: RankOrder,
) -> Iterator[str]:
    """Yield unordered conflicts in what ranks share, and uses outside of the owner's turn."""
    finder = _Finder(plans, methods, flags, exports, order)
    by_owner: dict[int, list[_Use]] = {}
    runs = 0
    for rank in range(len(plans)):
        for owner, use in finder.uses(rank):
            by_owner.setdefault(owner, []).append(use)
            runs += len(use.runs)
            if runs > MAX_RUNS:
                yield f"memory is touched in more than {MAX_RUNS} pieces; that is too much to prove"
                return
    for owner, uses in by_owner.items():
        yield from _turn_problems(owner, uses, order)
        yield from _conflicts(owner, uses, order)


class _Finder:
    """Translates what tasks touch into bytes of their owners' symmetric arenas."""

    def __init__(
        self,
        plans: Sequence[Plan],
        methods: Sequence[Method],
        flags: Flags,
        exports: Exports,
        order: RankOrder,
    ) -> None:
        self._plans = plans
        self._methods = methods
        self._exports = exports
        self._order = order
        self._ends = {
            request: flags.awaited[rank, done_flag(key)]
            for (rank, key), request in flags.asked.items()
        }
        self._known: dict[tuple[Region, tuple[View, ...]], Ints] = {}

    def uses(self, rank: int) -> Iterator[tuple[int, _Use]]:
        """What the tasks of a rank touch, with the memory's owner.

        Handshakes touch nothing: what they take over is for the order of other tasks.
        """
        method = self._methods[rank]
        for task in method.tasks:
            where = Where(rank, task.id)
            nodes = [method.nodes[n] for n in method.groups[task.group].nodes]
            if nodes[-1].op == "handshake":
                continue
            begin = self._order.row(where, 0)
            end = self._order.row(self._ends.get(where, where), 0)
            read = [view for node in nodes for view in (*node.inputs, *node.after)]
            for is_write, regions, views in (
                (False, task.reads, read),
                (True, task.writes, nodes[-1].writes),
            ):
                for region in regions:
                    found = self._find(rank, region, views)
                    if found is not None:
                        owner, name, runs = found
                        yield owner, _Use(where, begin, end, is_write, name, runs)

    def _find(
        self, rank: int, region: Region, views: Sequence[View]
    ) -> tuple[int, str, Ints] | None:
        """The owner, its name of the buffer, and the bytes; None where nobody else comes."""
        buffer = self._plans[rank].buffers[region.buffer]
        owner, target = rank, buffer
        if buffer.kind == "peer":
            owner, target = buffer.peer, self._exports[buffer.peer][buffer.export]
        place = self._plans[owner].places[target.id]
        if place.arena != "symmetric":
            return None
        seen = tuple(dict.fromkeys(view for view in views if view.buffer == region.buffer))
        if (region, seen) not in self._known:
            self._known[region, seen] = _elements(region, buffer.shape, seen)
        runs = self._known[region, seen]
        if not len(runs):
            return None
        return owner, target.name, place.offset + runs * buffer.dtype.itemsize


def _elements(region: Region, shape: Shape, views: Sequence[View]) -> Ints:
    """The stretches of elements of a region that views reach: alone it may be wider."""
    offset = sum(
        start * stride
        for (start, _), stride in zip(region.box, row_major_strides(shape), strict=True)
    )
    sizes = tuple(stop - start for start, stop in region.box)
    inside = strided_runs(offset, sizes, row_major_strides(shape))
    reached = [strided_runs(view.offset, view.shape, view.strides) for view in views]
    if not reached:
        return inside
    return _common(inside, _joined(np.concatenate(reached)))


def strided_runs(offset: int, shape: Shape, strides: Shape) -> Ints:
    """Stretches of consecutive elements of a view, (count, 2); one that holds all if too many."""
    if not prod(shape):
        return np.zeros((0, 2), np.int64)
    steps = [(size, stride) for size, stride in zip(shape, strides, strict=True) if size > 1]
    length = 1
    while steps and steps[-1][1] == length:
        length *= steps.pop()[0]
    if prod(size for size, _ in steps) > MAX_VIEW_RUNS:
        length += sum((size - 1) * stride for size, stride in steps)
        steps = []
    starts = np.array([offset], np.int64)
    for size, stride in steps:
        starts = (starts[:, None] + np.arange(size) * stride).ravel()
    starts.sort()
    return _joined(np.stack([starts, starts + length], axis=1))


def _joined(runs: Ints) -> Ints:
    """Stretches in order, without overlaps."""
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs[:, 1])
    is_first = np.concatenate([[True], runs[1:, 0] > ends[:-1]])[: len(runs)]
    is_last = np.concatenate([is_first[1:], [True]])[: len(runs)]
    return np.stack([runs[is_first, 0], ends[is_last]], axis=1)


def _common(some: Ints, others: Ints) -> Ints:
    """What two lists of stretches, each in order, have in common."""
    first = np.searchsorted(others[:, 1], some[:, 0], side="right")
    last = np.searchsorted(others[:, 0], some[:, 1], side="left")
    counts = np.maximum(last - first, 0)
    one = np.repeat(np.arange(len(some)), counts)
    two = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    start = np.maximum(some[one, 0], others[two, 0])
    stop = np.minimum(some[one, 1], others[two, 1])
    return np.stack([start, stop], axis=1)


def _turn_problems(owner: int, uses: Sequence[_Use], order: RankOrder) -> Iterator[str]:
    """Yield uses by others that need not lie within the owner's own turn.

    Outside of it the owner's host may touch the memory, and other methods may use it.
    """
    for use in uses:
        if use.where.rank == owner:
            continue
        has_begun, is_awaited = order.is_inside_turn_of(owner, use.begin, use.end)
        if not has_begun:
            yield f"{_text(use)} of rank {owner} before it knows that rank {owner} is there"
        if not is_awaited:
            yield f"{_text(use)} of rank {owner}, which ends its turn without waiting for that"


def _conflicts(owner: int, uses: Sequence[_Use], order: RankOrder) -> Iterator[str]:
    """Yield two uses of one byte, one of them writing, that no flag orders."""
    pairs = _meeting(owner, uses)
    if pairs is None:
        yield f"memory of rank {owner} is shared by more than {MAX_PAIRS} pairs of tasks"
        return
    begin = np.array([use.begin for use in uses], np.int64)
    end = np.array([use.end for use in uses], np.int64)
    one, two = pairs[:, 0], pairs[:, 1]
    is_ordered = order.is_before(end[one], begin[two], 0) | order.is_before(end[two], begin[one], 0)
    for a, b in pairs[~is_ordered].tolist():
        yield _conflict_text(owner, uses[a], uses[b], "")
    for first, second in ((one, two), (two, one)):
        is_late = order.is_before(end[first], begin[second], 1)
        for a, b in np.stack([first, second], axis=1)[~is_late].tolist():
            yield _conflict_text(owner, uses[a], uses[b], " in the next turn")


def _meeting(owner: int, uses: Sequence[_Use]) -> Ints | None:
    """Pairs of different tasks that touch one byte, one writing; None if they are too many.

    Two tasks of the owner are left out: its own plan is proven already.
    """
    runs = np.concatenate([use.runs for use in uses])
    index = np.repeat(np.arange(len(uses)), [len(use.runs) for use in uses])
    sequence = np.argsort(runs[:, 0], kind="stable")
    rows = zip(*runs[sequence].T.tolist(), index[sequence].tolist(), strict=True)
    found: set[tuple[int, int]] = set()
    active: list[tuple[int, int]] = []
    for start, stop, here in rows:
        active = [item for item in active if item[0] > start]
        for _, other in active:
            one, two = uses[here], uses[other]
            is_shared = not one.where.rank == two.where.rank == owner
            if (one.is_write or two.is_write) and one.where != two.where and is_shared:
                found.add((min(here, other), max(here, other)))
        if len(found) > MAX_PAIRS:
            return None
        active.append((stop, here))
    return np.array(sorted(found), np.int64).reshape(len(found), 2)


def _text(use: _Use) -> str:
    does = "writes" if use.is_write else "reads"
    return f"rank {use.where.rank}'s task {use.where.task} {does} {use.name!r}"


def _conflict_text(owner: int, one: _Use, two: _Use, when: str) -> str:
    return f"{_text(one)} of rank {owner}, {_text(two)} there{when}, and nothing orders the two"
