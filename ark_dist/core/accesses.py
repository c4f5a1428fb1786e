"""List who touches each buffer of a planned method, in linear order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core.graph import Buffer
from ark_dist.core.plan import Method
from ark_dist.core.shape import Box, box_size

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Access:
    """What one group does to one buffer.

    Attributes:
        group: the group.
        is_write: whether it writes.
        tasks: ids of its tasks that touch the buffer, one entry per region.
        boxes: the regions.
        cover: the box that the regions of a write fill entirely, or None.
    """

    group: int
    is_write: bool
    tasks: tuple[int, ...]
    boxes: tuple[Box, ...]
    cover: Box | None

    def corners(self) -> Ints:
        """The boxes as (entries, dimensions, 2)."""
        return np.array(self.boxes, np.int64).reshape(len(self.boxes), len(self.boxes[0]), 2)

    def is_inside(self, box: Box) -> bool:
        """Whether every region lies in the box."""
        return all(
            low <= start and stop <= high
            for region in set(self.boxes)
            for (start, stop), (low, high) in zip(region, box, strict=True)
        )


def accesses(method: Method, buffers: Sequence[Buffer]) -> Mapping[int, Sequence[Access]]:
    """Who touches each buffer that the method writes; a group's reads come before its writes."""
    written = {region.buffer for task in method.tasks for region in task.writes}
    found: dict[tuple[int, int, bool], list[tuple[int, Box]]] = {}
    for task in method.tasks:
        for is_write, regions in ((False, task.reads), (True, task.writes)):
            for region in regions:
                if region.buffer in written:
                    key = (region.buffer, task.group, is_write)
                    found.setdefault(key, []).append((task.id, region.box))
    result: dict[int, list[Access]] = {}
    for key in sorted(found):
        buffer, group, is_write = key
        tasks, boxes = zip(*found[key], strict=True)
        cover = _cover(method, buffers[buffer], group) if is_write else None
        result.setdefault(buffer, []).append(Access(group, is_write, tasks, boxes, cover))
    return result


def _cover(method: Method, buffer: Buffer, group: int) -> Box | None:
    """The box that the group's output fills: the region of a view may be wider than the view."""
    last = method.nodes[method.groups[group].nodes[-1]]
    view = next(view for view in last.writes if view.buffer == buffer.id)
    box = view.whole(buffer.shape).box
    count = 1
    for size in view.shape:
        count *= size
    return box if box_size(box) == count else None
