"""Say how many bytes a message between ranks moves, from its operator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ark_dist.core.graph import Node
from ark_dist.core.groups import cuts_of, parts_of
from ark_dist.core.pieces import line_slices, pieces
from ark_dist.core.shape import box_size
from ark_dist.scheduler.communicate import LINE_BYTES


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a rank gives to others and gets from others, in one turn."""

    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class Member:
    """One rank's side of a message.

    Attributes:
        node: the communication operator.
        index: the rank's place among those that take part.
        count: how many take part.
        is_sliced: of a reduction: each rank combines a slice for all, instead of all for itself.
    """

    node: Node
    index: int
    count: int
    is_sliced: bool = False

    @property
    def others(self) -> int:
        """How many other ranks take part."""
        return self.count - 1

    @property
    def size_bytes(self) -> int:
        """Bytes of what goes in, or of what comes out where nothing goes in."""
        view = self.node.inputs[0] if self.node.inputs else self.node.output
        return prod(view.shape) * view.dtype.itemsize

    def share_bytes(self, size: int) -> int:
        """Bytes of this rank's rows of a whole of `size` positions along the axis."""
        axis = self.node.attributes["axis"]
        shape = self.node.output.shape
        assert isinstance(axis, int)
        cuts = cuts_of(self.node.attributes, size)
        rest = prod(n for d, n in enumerate(shape) if d != axis % len(shape))
        held = cuts[self.index + 1] - cuts[self.index]
        return held * rest * self.node.output.dtype.itemsize


def traffic(member: Member) -> Traffic:
    """What the rank sends and receives."""
    if member.count == 1 or member.node.op not in _TRAFFIC:
        return Traffic(0, 0)
    return _TRAFFIC[member.node.op](member)


def _all_reduce(member: Member) -> Traffic:
    size = member.size_bytes
    if not member.is_sliced:
        return Traffic(member.others * size, member.others * size)
    itemsize = member.node.output.dtype.itemsize
    slices = line_slices(size // itemsize, member.count, itemsize, LINE_BYTES)
    start, stop = slices[member.index]
    # Its slice of the others' parts, then the sum of its slice to them, and the other way round.
    moved = (stop - start) * itemsize * member.others + size - (stop - start) * itemsize
    return Traffic(moved, moved)


def _reduce_scatter(member: Member) -> Traffic:
    own = member.share_bytes(_axis_size(member.node.inputs[0].shape, member))
    return Traffic(member.size_bytes - own, member.others * own)


def _all_gather(member: Member) -> Traffic:
    own = member.size_bytes
    whole = prod(member.node.output.shape) * member.node.output.dtype.itemsize
    return Traffic(member.others * own, whole - own)


def _broadcast(member: Member) -> Traffic:
    attrs = member.node.attributes
    if attrs["root"] == attrs["rank"]:
        return Traffic(member.others * member.size_bytes, 0)
    return Traffic(0, member.size_bytes)


def _all_to_all(member: Member) -> Traffic:
    moved = member.size_bytes // member.count * member.others
    return Traffic(moved, moved)


def _redistribute(member: Member) -> Traffic:
    (source,), attrs = member.node.inputs, member.node.attributes
    held = parts_of(attrs["source"], len(source.shape), member.count)
    wanted = parts_of(attrs["target"], len(source.shape), member.count)
    mine = member.index
    got = [box_size(box) for k, box in pieces(held, wanted[mine]) if k != mine]
    given = [
        box_size(box)
        for j, part in enumerate(wanted)
        for k, box in pieces(held, part)
        if k == mine != j
    ]
    itemsize = source.dtype.itemsize
    return Traffic(sum(given) * itemsize, sum(got) * itemsize)


def _axis_size(shape: Sequence[int], member: Member) -> int:
    axis = member.node.attributes["axis"]
    assert isinstance(axis, int)
    return shape[axis]


_TRAFFIC: dict[str, Callable[[Member], Traffic]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "recv": lambda member: Traffic(0, member.size_bytes),
    "redistribute": _redistribute,
    "reduce_scatter": _reduce_scatter,
    "send": lambda member: Traffic(member.size_bytes, 0),
}
