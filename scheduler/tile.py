"""Cut each group into tasks that cover its output once."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from math import prod

from ark_dist.core.graph import Buffer, Node, frame_of
from ark_dist.core.likeness import likeness
from ark_dist.core.op import OPS
from ark_dist.core.shape import Box, box_size
from ark_dist.core.target import Cost, Target
from ark_dist.core.task import Group, Task
from ark_dist.core.view import Region, View

# Frames of operators that touch only a part of what they declare.
SPARSE_FRAMES = ("gather", "tile")

# Equal regions as one object: tiles share most of what they read.
_Regions = dict[Region, Region]


def tile(
    groups: Sequence[Group], nodes: Sequence[Node], buffers: Sequence[Buffer], target: Target
) -> tuple[Task, ...]:
    """Return the tasks of all groups, in group order; empty tensors have none.

    Of groups that differ in their buffers only, such as those of equal layers, the first one
    is cut and the others are copies.
    """
    tasks: list[Task] = []
    models: dict[Hashable, tuple[tuple[int, ...], Sequence[Task]]] = {}
    for group in groups:
        like = likeness(group, nodes, buffers)
        if like.form in models:
            theirs, model = models[like.form]
            renamed = dict(zip(theirs, like.buffers, strict=True))
            tasks += _copies(model, len(tasks), group, renamed)
        else:
            model = _tasks(group, len(tasks), nodes, buffers, target)
            models[like.form] = like.buffers, model
            tasks += model
    return tuple(tasks)


def _tasks(
    group: Group, first_id: int, nodes: Sequence[Node], buffers: Sequence[Buffer], target: Target
) -> list[Task]:
    anchor = anchor_node(group, nodes)
    if prod(anchor.output.shape) == 0:
        return []
    tiles = OPS[anchor.op].tiles
    boxes = tiles(anchor.input_specs, anchor.output.spec, anchor.attributes, target)
    known: _Regions = {}
    return [
        _task(number, group, box, nodes, buffers, known)
        for number, box in enumerate(boxes, first_id)
    ]


def _copies(
    model: Sequence[Task], first_id: int, group: Group, renamed: Mapping[int, int]
) -> Iterator[Task]:
    """Yield the tasks of a group that does what the model's does, with other buffers."""
    # By identity: to hash a region takes longer than to copy it.
    known: dict[int, Region] = {}

    def copied(regions: tuple[Region, ...]) -> Iterator[Region]:
        for region in regions:
            if id(region) not in known:
                known[id(region)] = Region(renamed[region.buffer], region.box)
            yield known[id(region)]

    for number, task in enumerate(model, first_id):
        reads, writes = tuple(copied(task.reads)), tuple(copied(task.writes))
        yield Task(number, group.id, task.box, reads, writes, task.cost, group.effect)


def anchor_node(group: Group, nodes: Sequence[Node]) -> Node:
    """The node whose operator decides the loop nest: matmul, else a row, else the last."""
    members = [nodes[n] for n in group.nodes]
    for name in ("matmul", "row", "reduce", "gather"):
        for node in members:
            if frame_of(node) == name:
                return node
    return members[-1]


def node_boxes(
    group: Group, nodes: Sequence[Node], box: Box
) -> list[tuple[Node, Box, tuple[Box, ...]]]:
    """For each node of the group in order: its output box and the boxes it reads."""
    wanted: dict[View, Box] = {nodes[group.nodes[-1]].output: box}
    result = []
    for node_id in reversed(group.nodes):
        node = nodes[node_id]
        op = OPS[node.op]
        out_box = wanted[node.output]
        boxes = op.in_boxes(node.input_specs, node.output.spec, node.attributes, out_box)
        for view, read in zip(node.inputs, boxes, strict=True):
            wanted.setdefault(view, read)
        result.append((node, out_box, boxes))
    return result[::-1]


def _task(
    task_id: int,
    group: Group,
    box: Box,
    nodes: Sequence[Node],
    buffers: Sequence[Buffer],
    known: _Regions,
) -> Task:
    reads: dict[Region, None] = {}
    made = {nodes[n].output for n in group.nodes[:-1]}
    ops = declared = 0
    for node, out_box, boxes in node_boxes(group, nodes, box):
        op = OPS[node.op]
        cost = op.cost(node.input_specs, node.output.spec, node.attributes, out_box)
        ops += cost.ops
        declared += cost.bytes
        for view, read in zip(node.inputs, boxes, strict=True):
            if view not in made and box_size(read):
                reads[view.region(read, buffers[view.buffer].shape)] = None
        reads.update(dict.fromkeys(_whole(node.after, buffers)))
    output = nodes[group.nodes[-1]].output
    write = output.region(box, buffers[output.buffer].shape)
    taken = _whole(nodes[group.nodes[-1]].takes, buffers)
    touched = sum(
        box_size(region.box) * buffers[region.buffer].dtype.itemsize for region in (*reads, write)
    )
    # Regions hold all that may be touched; where data decides, the operator knows how much is.
    is_sparse = any(frame_of(nodes[n]) in SPARSE_FRAMES for n in group.nodes)
    cost = Cost(declared if is_sparse else touched, ops)
    writes = (write, *dict.fromkeys(taken))
    shared_reads, shared_writes = (
        tuple(known.setdefault(r, r) for r in some) for some in (reads, writes)
    )
    return Task(task_id, group.id, box, shared_reads, shared_writes, cost, group.effect)


def _whole(views: Sequence[View], buffers: Sequence[Buffer]) -> list[Region]:
    """What views touch that are waited for, or taken over, as a whole; nothing if it is empty."""
    regions = (view.whole(buffers[view.buffer].shape) for view in views)
    return [region for region in regions if box_size(region.box)]
