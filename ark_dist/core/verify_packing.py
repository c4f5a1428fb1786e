"""Check that packed weights can be packed, and are read only where a kernel finds its way."""

from collections.abc import Iterator, Sequence

from ark_dist.core.graph import Buffer, Node
from ark_dist.core.op import OPS
from ark_dist.core.packing import PANEL_WIDTH, group_elems, packing_problem
from ark_dist.core.shape import Box, box_shape, full_box
from ark_dist.core.view import View


def packing_problems(buffer: Buffer) -> Iterator[str]:
    """Yield why a packed buffer is none."""
    problem = packing_problem(buffer.packing, buffer.shape, buffer.dtype)
    if problem is not None:
        yield f"{problem}; it is {buffer.dtype}{list(buffer.shape)}"
    elif buffer.kind != "weight" or buffer.initial is not None or buffer.slots != 1:
        yield f"packing {buffer.packing!r} is for weights; it is {buffer.kind}, or has initial data"
    elif buffer.export:
        yield f"packing {buffer.packing!r} is not for what other ranks reach"


def packed_read_problems(buffers: Sequence[Buffer], node: Node) -> Iterator[str]:
    """Yield the inputs of a node that are packed, but not so that its kernel can read them."""
    kernel = OPS[node.op].kernel
    accepted: tuple[str, ...] = ()
    if kernel is not None and kernel.packings is not None:
        accepted = kernel.packings(node.attributes)
    for position, view in enumerate(node.inputs):
        buffer = buffers[view.buffer]
        if not buffer.packing:
            continue
        if buffer.packing not in accepted[position : position + 1]:
            yield f"reads {buffer.name!r}, which is packed as {buffer.packing!r}"
        elif kernel is not None and kernel.frame != "matmul":
            if view.offset or view.shape != buffer.shape or not view.is_contiguous:
                yield f"reads a part of {buffer.name!r}, which is packed as {buffer.packing!r}"
        else:
            problem = _cut_problem(buffer, view)
            if problem is not None:
                yield f"reads packed {buffer.name!r} where {problem}"


def _cut_problem(buffer: Buffer, view: View) -> str | None:
    """What is wrong with where a view's matrices lie, as boxes of the buffer."""
    if 0 in view.shape:
        return "there is nothing"
    inner = -2 if buffer.packing == "panels" else -1
    columns = -3 - inner
    lead = view.shape[:-2]
    first = _matrix_box(buffer, view, (0,) * len(lead))
    batch = (1,) * (len(buffer.shape) - 2)
    if box_shape(first) != (*batch, *view.shape[-2:]) or not _has_rows(buffer, view):
        return f"{view.shape} in steps of {view.strides} are no parts of its matrices"
    boxes, moved = [first], 0
    for dim, size in enumerate(lead):
        second, last = (
            _matrix_box(buffer, view, tuple(at * (d == dim) for d in range(len(lead))))
            for at in (min(1, size - 1), size - 1)
        )
        boxes += [second, last]
        moved += last[inner][0] - first[inner][0]
        if second[inner] != first[inner] and last[:-2] != first[:-2]:
            return f"dimension {dim} goes along K and from matrix to matrix"
    boxes.append(_matrix_box(buffer, view, tuple(size - 1 for size in lead)))
    if boxes[-1][inner][0] != first[inner][0] + moved:
        return f"{view.shape} goes along K beyond a matrix"
    for box in boxes:
        if box_shape(box) != box_shape(first) or box[columns] != first[columns]:
            return f"{view.shape} in steps of {view.strides} are no parts of its matrices"
        if not _is_grouped(box[inner], buffer, inner):
            return f"{box[inner]} of K cuts a group of {group_elems(buffer.dtype)}"
    if first[columns][0] % PANEL_WIDTH:
        return f"column {first[columns][0]} is not the first of a panel of {PANEL_WIDTH}"
    return None


def _is_grouped(interval: tuple[int, int], buffer: Buffer, inner: int) -> bool:
    """Whether a part of K begins and ends with a group, or ends with K."""
    group = group_elems(buffer.dtype)
    start, stop = interval
    return start % group == 0 and (stop % group == 0 or stop == buffer.shape[inner])


def _has_rows(buffer: Buffer, view: View) -> bool:
    """Whether a row of the view's matrices is a part of a row of the buffer, from end to end."""
    row = tuple((0, 1) for _ in view.shape[:-1])
    box = view.region((*row, (0, view.shape[-1])), buffer.shape).box
    return box_shape(box) == (*(1,) * (len(buffer.shape) - 1), view.shape[-1])


def _matrix_box(buffer: Buffer, view: View, at: tuple[int, ...]) -> Box:
    """Where the matrix at an index of the leading dimensions lies."""
    lead = tuple((index, index + 1) for index in at)
    return view.region((*lead, *full_box(view.shape[-2:])), buffer.shape).box
