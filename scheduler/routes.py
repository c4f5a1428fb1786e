"""Find the communication that turns one layout of a tensor into another, and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from ark_dist.core.layout import MeshShape
from ark_dist.core.shape import Shape
from ark_dist.core.target import Topology
from ark_dist.scheduler.layouts import Cut, Cuts, Layout, disjoint


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a cost depends on: the global shape and the bytes of an element."""

    shape: Shape
    itemsize: int


@dataclass(frozen=True, slots=True)
class Move:
    """One communication.

    Attributes:
        op: the operator.
        axes: the mesh axes that it goes along.
        before: the layout of what it reads.
        after: the layout of what it makes.
        dim: the dimension that is gathered or scattered, else -1.
        reduce: how values are combined, else "".
        reason: what it is for.
    """

    op: str
    axes: tuple[str, ...]
    before: Layout
    after: Layout
    dim: int
    reduce: str
    reason: str


def route(source: Layout, target: Cuts, kept: frozenset[str] = frozenset()) -> tuple[Move, ...]:
    """The moves that bring a tensor to ranks as `target` says, or to more ranks than it says.

    What is cut after them is cut as in `target`; what `target` cuts besides may be sliced.
    Values along the axes `kept` stay partial.
    """
    moves: list[Move] = []
    for axis, reduce in source.partial:
        if axis not in kept:
            moves.append(_resolved(moves[-1].after if moves else source, target, axis, reduce))
    now = moves[-1].after if moves else source
    changed = {
        cut.axis: target_cut(target, cut.axis)
        for d, cut in enumerate(now.cuts)
        if cut is not None and not _has(cut, target[d])
    }
    if any(place is not None for place in changed.values()):
        return (*moves, _redistributed(now, changed))
    for axis in changed:
        moves.append(_gathered(moves[-1].after if moves else source, axis))
    return tuple(moves)


def _has(cut: Cut, wanted: Cut | None) -> bool:
    return wanted is not None and cut.contains(wanted)


def target_cut(cuts: Cuts, axis: str) -> tuple[int, Cut] | None:
    """The dimension that an axis cuts, and how."""
    return next(((d, c) for d, c in enumerate(cuts) if c is not None and c.axis == axis), None)


def _resolved(now: Layout, target: Cuts, axis: str, reduce: str) -> Move:
    """Combine what is partial: to all of it, or to the part that is wanted."""
    rest = tuple(pair for pair in now.partial if pair[0] != axis)
    reason = f"is partial over {axis!r}"
    place = target_cut(target, axis)
    if place is not None and now.cuts[place[0]] is None and _is_tiled(place[1]):
        d, cut = place
        after = Layout((*now.cuts[:d], cut, *now.cuts[d + 1 :]), rest)
        return Move("reduce_scatter", (axis,), now, after, d, reduce, reason)
    return Move("all_reduce", (axis,), now, replace(now, partial=rest), -1, reduce, reason)


def _is_tiled(cut: Cut) -> bool:
    """Whether the parts follow one another without gaps or overlap."""
    ends = [stop for _, stop in cut.bounds]
    starts = [start for start, _ in cut.bounds]
    return starts[0] == 0 and starts[1:] == ends[:-1]


def _gathered(now: Layout, axis: str) -> Move:
    d = now.axes[axis]
    after = replace(now, cuts=(*now.cuts[:d], None, *now.cuts[d + 1 :]))
    reason = f"is cut over {axis!r} and needed whole"
    return Move("all_gather", (axis,), now, after, d, "", reason)


def _redistributed(now: Layout, changed: Mapping[str, tuple[int, Cut] | None]) -> Move:
    cuts = [None if cut is not None and cut.axis in changed else cut for cut in now.cuts]
    for place in changed.values():
        if place is not None:
            assert cuts[place[0]] is None, "two axes would cut one dimension"
            cuts[place[0]] = place[1]
    axes = tuple(changed)
    reason = f"is cut in another way over {', '.join(map(repr, axes))}"
    return Move("redistribute", axes, now, Layout(tuple(cuts), now.partial), -1, "", reason)


@dataclass(frozen=True, slots=True)
class Network:
    """What communication costs, the same on all ranks."""

    mesh: MeshShape
    topology: Topology

    def size(self, axes: tuple[str, ...]) -> int:
        """How many ranks communicate along these axes."""
        sizes = dict(self.mesh.axes)
        return prod(sizes[axis] for axis in axes)

    def _link(self, axes: tuple[str, ...]) -> tuple[float, float]:
        """Rate and latency of the slowest link along these axes."""
        t = self.topology
        if _leaves_node(self.mesh, t.nodes, axes):
            return t.remote_bytes_per_s, t.remote_latency_s
        return t.local_bytes_per_s, t.local_latency_s

    def seconds(self, tensor: Tensor, moves: tuple[Move, ...]) -> float:
        """Predicted time of the moves, one after the other."""
        return sum(self._seconds(tensor, move) for move in moves)

    def _seconds(self, tensor: Tensor, move: Move) -> float:
        rate, latency = self._link(move.axes)
        count = self.size(move.axes)
        size = largest_bytes(tensor, move.after.cuts)
        if move.op == "all_reduce":
            # Direct: each rank reads all others' values. Else reduce_scatter, then all_gather.
            direct = latency + size * (count - 1) / rate
            return min(direct, 2 * (latency + size * (count - 1) / count / rate))
        if move.op == "reduce_scatter":
            return latency + size * (count - 1) / rate
        return latency + size * (count - 1) / count / rate

    def read_seconds(self, size_bytes: float) -> float:
        """Time to move bytes at the rate that ranks of a node exchange them."""
        return size_bytes / self.topology.local_bytes_per_s


@lru_cache(maxsize=256)
def _leaves_node(mesh: MeshShape, nodes: tuple[int, ...], axes: tuple[str, ...]) -> bool:
    """Whether some ranks that communicate along these axes are on several nodes."""
    found: dict[tuple[tuple[str, int], ...], set[int]] = {}
    for rank in range(mesh.world_size):
        place = mesh.coordinates(rank).items()
        rest = tuple((name, at) for name, at in place if name not in axes)
        found.setdefault(rest, set()).add(nodes[rank])
    return any(len(group) > 1 for group in found.values())


def largest_bytes(tensor: Tensor, cuts: Cuts) -> int:
    """Bytes of the largest part."""
    sizes = [
        size if cut is None else max(stop - start for start, stop in cut.bounds)
        for size, cut in zip(tensor.shape, cuts, strict=True)
    ]
    return prod(sizes) * tensor.itemsize


def gather_cuts(move: Move, size: int) -> tuple[int, ...]:
    """The positions that an all_gather or reduce_scatter cuts its dimension at."""
    cut = (move.before if move.op == "all_gather" else move.after).cuts[move.dim]
    assert cut is not None, "gathers and scatters have a cut dimension"
    return disjoint(cut.bounds, size)
