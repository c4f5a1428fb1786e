"""Say how a tensor is cut over a mesh of ranks."""

from dataclasses import dataclass
from math import prod

Interval = tuple[int, int]


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
class Layout:
    """Which part of a tensor each rank holds.

    Attributes:
        parts: for each rank, one [start, stop) per dimension. Parts may be uneven;
            parts of parameters and of values that every holder computes alike may overlap.
        partial: whether the ranks' values have to be summed to give the tensor's value.
    """

    parts: tuple[tuple[Interval, ...], ...]
    partial: bool = False
