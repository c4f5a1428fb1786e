"""Say which groups of nodes differ in nothing but the buffers they work on."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ark_dist.core.graph import Buffer, Node
from ark_dist.core.task import Group
from ark_dist.core.view import View


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a group does, and with which buffers.

    Groups with equal `form` have the same tiles and touch the same boxes: of buffer
    `buffers[i]` where the other group has its own `buffers[i]`.
    """

    form: Hashable
    buffers: tuple[int, ...]


def likeness(group: Group, nodes: Sequence[Node], buffers: Sequence[Buffer]) -> Likeness:
    """Take apart all that operators' rules and regions depend on, and the buffers' ids."""
    numbers: dict[int, int] = {}

    def look(view: View) -> tuple[object, ...]:
        number = numbers.setdefault(view.buffer, len(numbers))
        return number, view.dtype, view.offset, view.shape, view.strides

    rows = []
    for node in (nodes[n] for n in group.nodes):
        views = (tuple(map(look, some)) for some in (node.inputs, node.writes, node.after))
        # As text, since 1, 1.0 and True are equal.
        rows.append((node.op, repr(node.attrs), *views))
    used = tuple((buffers[b].shape, buffers[b].dtype) for b in numbers)
    return Likeness((tuple(rows), used), tuple(numbers))
