"""What a worker executes: one tile of one fused group of nodes."""

from dataclasses import dataclass

from ark_dist.core.shape import Box
from ark_dist.core.target import Cost
from ark_dist.core.view import Region

EFFECTS = ("none", "effect", "stop")


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that run as one, tile by tile; only the last one's output reaches memory.

    Attributes:
        id: its position in the method's group list.
        nodes: node ids in the order they run within a task; the last is the output's.
        effect: "none", "effect" (writes state or what the host can read) or "stop".
    """

    id: int
    nodes: tuple[int, ...]
    effect: str


@dataclass(frozen=True, slots=True)
class Task:
    """One tile of a group.

    Attributes:
        id: its position in the method's one linear order.
        group: the group it is a tile of.
        box: the tile, in coordinates of the group's output view.
        reads, writes: the parts of buffers it touches.
        cost: what it moves and computes.
        effect: the group's.
    """

    id: int
    group: int
    box: Box
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    cost: Cost
    effect: str
