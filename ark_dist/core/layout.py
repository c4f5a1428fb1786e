"""Say how a tensor is cut over a mesh of ranks."""

from dataclasses import dataclass
from math import prod

from ark_dist.core.shape import Box


class P(tuple[str | None, ...]):
    """For each dimension of a tensor, the mesh axis that cuts it, or None.

    `P(None, "tp")` keeps dimension 0 whole and cuts dimension 1 over the axis "tp".
    """

    def __new__(cls, *axes: str | None) -> "P":
        """Store one axis name or None per dimension."""
        for axis in axes:
            if axis is not None and not isinstance(axis, str):
                raise TypeError(f"P: axis {axis!r} must be a mesh axis name or None")
        return super().__new__(cls, axes)

    def __repr__(self) -> str:
        return f"P({', '.join(map(repr, self))})"


@dataclass(frozen=True, slots=True)
class MeshShape:
    """Named axes of ranks, slowest first; rank order is row-major."""

    axes: tuple[tuple[str, int], ...]

    @property
    def world_size(self) -> int:
        """The number of ranks the mesh has."""
        return prod(size for _, size in self.axes)

    def coordinates(self, rank: int) -> dict[str, int]:
        """The rank's position on each axis."""
        result = {}
        for name, size in reversed(self.axes):
            result[name] = rank % size
            rank //= size
        return result


@dataclass(frozen=True, slots=True)
class Share:
    """What the ranks have of one buffer of the global graph.

    Attributes:
        buffer: its id in this rank's graph, -1 where the rank has nothing of it.
        parts: for every rank of the world the [start, stop) per dimension that it holds. A
            rank that holds nothing has an empty box. Parts may be uneven; those that overlap
            have equal values there.
    """

    buffer: int
    parts: tuple[Box, ...]

    def is_held_by(self, rank: int) -> bool:
        """Whether the rank has any element; of a tensor without dimensions, the one."""
        return all(start < stop for start, stop in self.parts[rank])


@dataclass(frozen=True, slots=True)
class Note:
    """One communication that partitioning put into a rank's graph.

    Attributes:
        node: the node that it is for.
        op: the communication operator.
        ranks: who takes part.
        bytes: what a rank gets by it, at most.
        reason: why, in words.
    """

    node: str
    op: str
    ranks: tuple[int, ...]
    bytes: int
    reason: str
