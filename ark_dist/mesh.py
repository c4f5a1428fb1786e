"""Name the axes along which ranks share a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from ark_dist.context import world_size
from ark_dist.core.layout import MeshShape

REST = -1


@dataclass(frozen=True, slots=True, init=False)
class Mesh:
    """Ranks in a grid: `ark.Mesh({"pp": 2, "tp": 4})` is 2 groups of 4 ranks.

    Ranks are numbered row by row: neighbours differ on the last axis. One size may be -1, the
    rest of the world. On one rank every axis has size 1, so that a program for many ranks runs
    on one as well.

    Args:
        axes: names and sizes, slowest first; `ark.P` names them to say how tensors are cut.
            The axis "pp" is that of pipeline stages (`ark.stage`).

    Raises:
        TypeError: for names that are no strings, or sizes that are no integers.
        ValueError: for no axes, an empty name, a size below 1, or more than one -1.
    """

    axes: tuple[tuple[str, int], ...]

    def __init__(self, axes: Mapping[str, int]) -> None:
        """Check and store the axes."""
        if not isinstance(axes, Mapping):
            raise TypeError(
                f"Mesh: axes is {axes!r}; it must be a mapping of names to sizes, such as "
                '{"tp": 2}'
            )
        if not axes:
            raise ValueError('Mesh: there are no axes; name at least one, such as {"tp": 2}')
        object.__setattr__(self, "axes", tuple(_checked(axes.items())))
        if sum(size == REST for _, size in self.axes) > 1:
            raise ValueError(f"{self!r} has several sizes of -1; only one can be the rest")

    @property
    def shape(self) -> MeshShape:
        """Its sizes on the ranks of this program; ValueError if they do not fit."""
        return self.sized(world_size())

    def sized(self, world_size: int) -> MeshShape:
        """Its sizes on so many ranks: -1 is filled in, and all are 1 on one rank.

        Raises:
            ValueError: if there are too few ranks, too many, or a number that does not divide.
        """
        if world_size == 1:
            return MeshShape(tuple((name, 1) for name, _ in self.axes))
        known = prod(size for _, size in self.axes if size != REST)
        rest, left = divmod(world_size, known)
        is_open = any(size == REST for _, size in self.axes)
        if left or rest < 1 or not (is_open or rest == 1):
            wanted = f"a multiple of {known}" if is_open else f"{known}"
            raise ValueError(
                f"{self!r} needs {wanted} ranks, and there are {world_size}; start another number "
                "of ranks, or change a size"
            )
        return MeshShape(tuple((name, rest if n == REST else n) for name, n in self.axes))

    def __repr__(self) -> str:
        return f"Mesh({dict(self.axes)})"


def _checked(axes: Iterable[tuple[object, object]]) -> Iterator[tuple[str, int]]:
    for name, size in axes:
        if not isinstance(name, str):
            raise TypeError(f"Mesh: axis {name!r} must be a string")
        if not name:
            raise ValueError("Mesh: an axis has an empty name; give it one that P can use")
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"Mesh: axis {name!r} has size {size!r}; it must be an integer")
        if size < 1 and size != REST:
            raise ValueError(
                f"Mesh: axis {name!r} has size {size}; it must be 1 or more, or -1 for the rest"
            )
        yield name, size
