"""Check the groups and tasks of a method: what is fused, and what each tile touches."""

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from ark_dist.core.graph import EFFECT_KINDS, Buffer, Node
from ark_dist.core.likeness import likeness
from ark_dist.core.op import OPS, Attrs, Op, Specs, reads_in_place
from ark_dist.core.plan import Method, Plan
from ark_dist.core.shape import Box, Shape, box_size, boxes_overlap
from ark_dist.core.task import Group, Task
from ark_dist.core.view import Region, View

# Tiles that form no grid are compared pair by pair: more than this would take too long.
MAX_IRREGULAR_TILES = 4096
# Far above what the scheduler makes; these bound the time of a check.
MAX_GROUP_NODES = 64
MAX_GROUPS_PER_NODE = 64
MAX_MOVED_READS = 2**20

Ints = npt.NDArray[np.int64]


def group_problems(plan: Plan, method: Method) -> Iterator[str]:
    """Yield the broken rules of a method's groups; its nodes are in order."""
    problems = list(_membership_problems(method))
    yield from problems
    if problems:
        return
    uses = _uses(method)
    moved = sum(len(writers) for *_, writers in _moved_reads(method, uses))
    if moved > MAX_MOVED_READS:
        yield f"groups reach over {moved} writes; at most {MAX_MOVED_READS} can be checked"
        return
    for group in method.groups:
        where = f"group {group.id}"
        for problem in (
            *_effect_problems(plan.buffers, method, group),
            *_output_problems(method, group),
            *_inside_problems(plan.buffers, method, group, uses),
            *_in_place_problems(plan.buffers, method, group),
        ):
            yield f"{where}: {problem}"
    yield from _moved_read_problems(plan.buffers, method, uses)


def _membership_problems(method: Method) -> Iterator[str]:
    count = len(method.nodes)
    members: dict[int, int] = {}
    last_before = -1
    for position, group in enumerate(method.groups):
        where = f"group {position}"
        if group.id != position:
            yield f"{where}: its id is {group.id}"
        if not group.nodes or not all(0 <= n < count for n in group.nodes):
            yield f"{where}: nodes {group.nodes} are not some of {count}"
            return
        if len(group.nodes) > MAX_GROUP_NODES:
            yield f"{where}: {len(group.nodes)} nodes; at most {MAX_GROUP_NODES} work"
        if any(a >= b for a, b in zip(group.nodes, group.nodes[1:], strict=False)):
            yield f"{where}: nodes {group.nodes} do not increase"
        if group.nodes[-1] <= last_before:
            yield f"{where}: ends in node {group.nodes[-1]}, after one that ends in {last_before}"
        last_before = group.nodes[-1]
        for node in group.nodes:
            members[node] = members.get(node, 0) + 1
    for group in method.groups:
        if members[group.nodes[-1]] > 1:
            yield f"group {group.id}: its last node {group.nodes[-1]} is in another group too"
    for node in range(count):
        if node not in members:
            yield f"node {node} ({method.nodes[node].op}) is in no group"
        elif members[node] > MAX_GROUPS_PER_NODE:
            yield f"node {node} is in {members[node]} groups; at most {MAX_GROUPS_PER_NODE} work"


@dataclass(frozen=True, slots=True)
class _Uses:
    """Who writes and reads each buffer, by node, and the groups each node is in."""

    writers: Mapping[int, Sequence[int]]
    readers: Mapping[int, Sequence[int]]
    groups: Sequence[Sequence[int]]


def _uses(method: Method) -> _Uses:
    writers: dict[int, list[int]] = {}
    readers: dict[int, list[int]] = {}
    groups: list[list[int]] = [[] for _ in method.nodes]
    for node in method.nodes:
        for buffer in {view.buffer for view in node.writes}:
            writers.setdefault(buffer, []).append(node.id)
        for buffer in {view.buffer for view in (*node.inputs, *node.after)}:
            readers.setdefault(buffer, []).append(node.id)
    for group in method.groups:
        for n in group.nodes:
            groups[n].append(group.id)
    return _Uses(writers, readers, groups)


def _effect_problems(buffers: Sequence[Buffer], method: Method, group: Group) -> Iterator[str]:
    node = method.nodes[group.nodes[-1]]
    effect = OPS[node.op].effect
    is_seen = effect == "command" or buffers[node.output.buffer].kind in EFFECT_KINDS
    wanted = "stop" if effect == "stop" else "effect" if is_seen else "none"
    if group.effect != wanted:
        yield f"effect is {group.effect!r}; it must be {wanted!r}"


def _output_problems(method: Method, group: Group) -> Iterator[str]:
    """Yield if two elements of the group's output share memory."""
    view = method.nodes[group.nodes[-1]].output
    reach = 0
    for stride, size in sorted(
        (stride, size) for stride, size in zip(view.strides, view.shape, strict=True) if size > 1
    ):
        if stride <= reach:
            yield f"elements of its output share memory (strides {view.strides})"
            return
        reach += (size - 1) * stride


def _inside_problems(
    buffers: Sequence[Buffer], method: Method, group: Group, uses: _Uses
) -> Iterator[str]:
    """Yield where a result that stays inside the group is needed outside of it."""
    for n in group.nodes[:-1]:
        node = method.nodes[n]
        buffer = buffers[node.output.buffer]
        what = f"{buffer.name!r}, which node {n} leaves inside the group,"
        if buffer.kind != "activation" or OPS[node.op].effect != "none":
            yield f"{what} is an effect; only a group's last node may have one"
        if len(uses.writers[buffer.id]) > 1:
            yield f"{what} is written by several nodes"
        for reader in uses.readers.get(buffer.id, ()):
            views = method.nodes[reader].inputs
            if any(v.buffer == buffer.id for v in method.nodes[reader].after):
                yield f"{what} has to be in memory before node {reader} runs"
            elif any(v.buffer == buffer.id and v != node.output for v in views):
                yield f"{what} is read by node {reader} through another view"
            elif any(n not in method.groups[g].nodes for g in uses.groups[reader]):
                yield f"{what} is read by node {reader} outside of it"


def _moved_reads(method: Method, uses: _Uses) -> Iterator[tuple[int, int, View, Sequence[int]]]:
    """Yield group, node and view of reads that fusing delays, and the writers in between."""
    for group in method.groups:
        for n in group.nodes[:-1]:
            for view in method.nodes[n].inputs:
                writers = uses.writers.get(view.buffer, ())
                between = writers[bisect_right(writers, n) : bisect_left(writers, group.nodes[-1])]
                if between:
                    yield group.id, n, view, between


def _moved_read_problems(buffers: Sequence[Buffer], method: Method, uses: _Uses) -> Iterator[str]:
    """Yield reads that a group does after a write they came before in build order."""
    for group, n, view, between in _moved_reads(method, uses):
        buffer = buffers[view.buffer]
        box = view.whole(buffer.shape).box
        for writer in between:
            targets = [v for v in method.nodes[writer].writes if v.buffer == view.buffer]
            if any(boxes_overlap(box, v.whole(buffer.shape).box) for v in targets):
                yield (
                    f"group {group}: node {n} would read {buffer.name!r} after node {writer} "
                    "wrote it; it was built before"
                )


def _in_place_problems(buffers: Sequence[Buffer], method: Method, group: Group) -> Iterator[str]:
    """Yield reads of the output's memory other than of the very element that is written."""
    target = method.nodes[group.nodes[-1]].output
    shape = buffers[target.buffer].shape
    for n in group.nodes:
        op = OPS[method.nodes[n].op]
        for position, view in enumerate(method.nodes[n].inputs):
            if view.buffer != target.buffer or (view == target and reads_in_place(op, position)):
                continue
            if boxes_overlap(view.whole(shape).box, target.whole(shape).box):
                yield f"node {n} reads {buffers[view.buffer].name!r}, which the group writes"


def task_problems(plan: Plan, method: Method) -> Iterator[str]:
    """Yield the broken rules of a method's tasks; its groups are in order."""
    members: list[list[Task]] = [[] for _ in method.groups]
    before = 0
    for position, task in enumerate(method.tasks):
        if task.id != position:
            yield f"task {position}: its id is {task.id}"
            return
        if not before <= task.group < len(method.groups):
            yield f"task {position}: group {task.group} is not {before} to {len(method.groups) - 1}"
            return
        before = task.group
        members[task.group].append(task)
    proven: dict[Hashable, tuple[tuple[int, ...], Sequence[Task]]] = {}
    for group, tasks in zip(method.groups, members, strict=True):
        like = likeness(group, method.nodes, plan.buffers)
        if like.form in proven:
            theirs, model = proven[like.form]
            renamed = dict(zip(theirs, like.buffers, strict=True))
            if _are_copies(tasks, group, model, renamed):
                continue
        problems = list(_tile_problems(plan.buffers, method, group, tasks))
        yield from problems
        if not problems:
            proven.setdefault(like.form, (like.buffers, tasks))


def _are_copies(
    tasks: Sequence[Task], group: Group, model: Sequence[Task], renamed: Mapping[int, int]
) -> bool:
    """Whether the tasks of a group are those of one that is like it, with its own buffers."""

    def match(regions: Sequence[Region], others: Sequence[Region]) -> bool:
        return len(regions) == len(others) and all(
            mine.buffer == renamed.get(other.buffer) and mine.box == other.box
            for mine, other in zip(regions, others, strict=True)
        )

    return len(tasks) == len(model) and all(
        task.effect == group.effect
        and task.box == other.box
        and task.cost == other.cost
        and match(task.reads, other.reads)
        and match(task.writes, other.writes)
        for task, other in zip(tasks, model, strict=True)
    )


def _tile_problems(
    buffers: Sequence[Buffer], method: Method, group: Group, tasks: Sequence[Task]
) -> Iterator[str]:
    shape = method.nodes[group.nodes[-1]].output.shape
    problem = _cover_problem(shape, [task.box for task in tasks])
    if problem is not None:
        yield f"group {group.id}: {problem}"
        return
    footprint = _Footprint(buffers, method, group)
    for task in tasks:
        found = _task_problem(buffers, group, footprint, task)
        if found is not None:
            yield f"task {task.id}: {found}"


def _cover_problem(shape: Shape, boxes: Sequence[Box]) -> str | None:
    """Say how boxes fail to cover a shape once."""
    for box in boxes:
        if len(box) != len(shape) or not all(
            0 <= start < stop <= size for (start, stop), size in zip(box, shape, strict=True)
        ):
            return f"tile {box} is not inside the output {shape}"
    total = sum(box_size(box) for box in boxes)
    if total != prod(shape):
        return f"the tiles have {total} elements, the output {shape} has {prod(shape)}"
    if len(boxes) < 2:
        return None
    corners = np.array(boxes, np.int64).reshape(len(boxes), len(shape), 2)
    if _is_grid(corners):
        return None
    if len(boxes) > MAX_IRREGULAR_TILES:
        return f"{len(boxes)} tiles form no grid; at most {MAX_IRREGULAR_TILES} may"
    for index in range(len(boxes) - 1):
        rest = corners[index + 1 :]
        hits = (corners[index, :, 0] < rest[:, :, 1]) & (rest[:, :, 0] < corners[index, :, 1])
        if hits.all(axis=1).any():
            other = index + 1 + int(hits.all(axis=1).argmax())
            return f"tiles {boxes[index]} and {boxes[other]} overlap"
    return None


def _is_grid(corners: Ints) -> bool:
    """Whether the boxes are distinct cells of the grid that their edges make."""
    cells = []
    for dim in range(corners.shape[1]):
        edges = np.unique(corners[:, dim, :])
        start, stop = (np.searchsorted(edges, corners[:, dim, side]) for side in (0, 1))
        if (stop != start + 1).any():
            return False
        cells.append(start)
    return len(set(zip(*(c.tolist() for c in cells), strict=True))) == len(corners)


@dataclass(frozen=True, slots=True)
class _Member:
    """One node of a group with what its operator's rules take."""

    node: Node
    op: Op
    specs: Specs
    attrs: Attrs


class _Footprint:
    """What a tile of one group reads and writes, from the operators' own rules."""

    def __init__(self, buffers: Sequence[Buffer], method: Method, group: Group) -> None:
        nodes = [method.nodes[n] for n in group.nodes]
        self._buffers = buffers
        self._members = [_Member(n, OPS[n.op], n.input_specs, n.attributes) for n in nodes]
        self._made = {node.output for node in nodes[:-1]}
        self._output = nodes[-1].output
        self._after = [
            view.whole(buffers[view.buffer].shape) for node in nodes for view in node.after
        ]
        taken = (view.whole(buffers[view.buffer].shape) for view in nodes[-1].takes)
        self._taken = tuple(dict.fromkeys(region for region in taken if box_size(region.box)))

    def of(self, box: Box) -> tuple[set[Region], tuple[Region, ...]]:
        """The regions read for this tile of the output, and those written or taken over.

        Raises ValueError where the group's nodes do not fit together.
        """
        wanted: dict[View, Box] = {self._output: box}
        reads = set(self._after)
        for member in reversed(self._members):
            node = member.node
            if node.output not in wanted:
                raise ValueError(f"nothing in the group uses node {node.id} ({node.op})")
            boxes = member.op.in_boxes(
                member.specs, node.output.spec, member.attrs, wanted[node.output]
            )
            for view, part in zip(node.inputs, boxes, strict=True):
                if view == self._output and part != box:
                    raise ValueError(f"node {node.id} reads what other tiles of its group write")
                if view not in self._made:
                    # A buffer without dimensions has no empty region to stand for no element.
                    reads |= {self._region(view, part)} if box_size(part) else set()
                elif wanted.setdefault(view, part) != part:
                    raise ValueError(
                        f"node {node.id} needs another part of a result than its group makes"
                    )
        return reads, (self._region(self._output, box), *self._taken)

    def _region(self, view: View, box: Box) -> Region:
        return view.region(box, self._buffers[view.buffer].shape)


def _task_problem(
    buffers: Sequence[Buffer], group: Group, footprint: _Footprint, task: Task
) -> str | None:
    if task.effect != group.effect:
        return f"effect is {task.effect!r}, its group's is {group.effect!r}"
    if task.cost.bytes < 0 or task.cost.ops < 0:
        return f"cost {task.cost} is negative"
    for region in (*task.reads, *task.writes):
        if not _is_inside(region, buffers):
            return f"region {region} is not inside its buffer"
    try:
        reads, writes = footprint.of(task.box)
    except Exception as error:  # operators may do anything with the attributes of a plan file
        return f"what it touches can't be told: {type(error).__name__}: {error}"
    if task.writes != writes:
        return f"writes {task.writes}; it must be {writes}"
    for region in reads.difference(task.reads):
        if box_size(region.box) and not any(_contains(given, region) for given in task.reads):
            return f"reads {task.reads}; they leave out {region}"
    return None


def _is_inside(region: Region, buffers: Sequence[Buffer]) -> bool:
    if not 0 <= region.buffer < len(buffers):
        return False
    shape = buffers[region.buffer].shape
    return len(region.box) == len(shape) and all(
        0 <= start <= stop <= size for (start, stop), size in zip(region.box, shape, strict=True)
    )


def _contains(outer: Region, inner: Region) -> bool:
    return outer.buffer == inner.buffer and all(
        a <= c and d <= b for (a, b), (c, d) in zip(outer.box, inner.box, strict=True)
    )
