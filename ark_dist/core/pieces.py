"""Cut boxes into pieces: rows of a dimension, and what of a part others hold."""

from collections.abc import Sequence
from itertools import pairwise

from ark_dist.core.shape import Box, Shape, box_size


def rows(shape: Shape, axis: int, start: int, stop: int) -> Box:
    """The part of a shape between two places of one dimension."""
    return tuple((start, stop) if d == axis else (0, size) for d, size in enumerate(shape))


def resized(shape: Shape, axis: int, size: int) -> Shape:
    """A shape with another size in one dimension."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def shifted(box: Box, origin: Box) -> Box:
    """A box in coordinates that start where another one does."""
    return tuple((a - o, b - o) for (a, b), (o, _) in zip(box, origin, strict=True))


def line_slices(count: int, parts: int, itemsize: int, line_bytes: int) -> list[tuple[int, int]]:
    """Cut a row of elements into slices that start on cache lines, as even as that allows."""
    per_line = line_bytes // itemsize
    lines = -(-count // per_line)
    starts = [min(count, lines * k // parts * per_line) for k in range(parts)]
    return list(pairwise([*starts, count]))


def pieces(held: Sequence[Box], wanted: Box) -> list[tuple[int, Box]]:
    """Cover a box by what members hold, as (member, box); of equal parts the lowest one's."""
    rest = [wanted] if box_size(wanted) else []
    found = []
    for member, box in enumerate(held):
        left: list[Box] = []
        for hole in rest:
            common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(hole, box, strict=True))
            if any(a >= b for a, b in common):
                left.append(hole)
                continue
            found.append((member, common))
            left += _without(hole, common)
        rest = left
    assert not rest, f"nobody holds {rest}"
    return found


def _without(box: Box, hole: Box) -> list[Box]:
    """Boxes that are together `box` less `hole`, which lies inside it."""
    result = []
    for dim, ((start, stop), (low, high)) in enumerate(zip(box, hole, strict=True)):
        for part in ((start, low), (high, stop)):
            if part[0] < part[1]:
                result.append((*hole[:dim], part, *box[dim + 1 :]))
    return result
