"""Turn a box of a row-major tensor into the runs of bytes that hold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ark_dist.core.shape import Box, Shape, box_size

# Reading over a gap of up to a tenth of what is wanted costs less than another system call.
_GAP_PART = 10
# A run this short costs less than the call that reads it: rows within one page are read whole.
_SHORT_BYTES = 16
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Runs:
    """Where a box lies: runs of `size_bytes` each, the first one at `begin`.

    Attributes:
        loops: (count, distance in bytes) of the runs, the outermost loop first.
        is_dense: whether the innermost loop is read with the gaps between its runs.
    """

    begin: int
    size_bytes: int
    loops: tuple[tuple[int, int], ...]
    is_dense: bool

    def offsets(self) -> Iterator[int]:
        """Yield where each run begins, in row-major order."""
        return _walk(self.begin, self.loops)

    def rows(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield (begin, number of runs) of parts of the innermost loop, gaps included."""
        *outer, (count, distance) = self.loops
        step = max(1, max_bytes // distance)
        for begin in _walk(self.begin, tuple(outer)):
            for first in range(0, count, step):
                yield begin + first * distance, min(step, count - first)


def _walk(begin: int, loops: tuple[tuple[int, int], ...]) -> Iterator[int]:
    if not loops:
        yield begin
        return
    (count, distance), *inner = loops
    for offset in range(begin, begin + count * distance, distance):
        yield from _walk(offset, tuple(inner)) if inner else (offset,)


def find_runs(begin: int, shape: Shape, box: Box, itemsize: int) -> Runs:
    """Return the runs of a box, which must not be empty; the tensor starts at byte `begin`."""
    run, pitch = itemsize, itemsize
    is_open = True  # all dimensions so far are whole: they are one run
    loops: list[tuple[int, int]] = []
    for size, (start, stop) in zip(reversed(shape), reversed(box), strict=True):
        begin += start * pitch
        if is_open:
            run *= stop - start
        elif stop - start > 1:
            if loops and loops[-1][0] * loops[-1][1] == pitch:
                loops[-1] = (loops[-1][0] * (stop - start), loops[-1][1])
            else:
                loops.append((stop - start, pitch))
        is_open = is_open and stop - start == size
        pitch *= size
    loops.reverse()
    return Runs(begin, run, tuple(loops), bool(loops) and _is_dense(run, loops[-1][1]))


def _is_dense(run_bytes: int, distance: int) -> bool:
    is_near = (distance - run_bytes) * _GAP_PART <= run_bytes
    return is_near or (run_bytes < _SHORT_BYTES and distance <= _PAGE_BYTES)


def cut_box(box: Box, max_elems: int) -> Iterator[Box]:
    """Yield boxes of at most that many elements that make up a box, in row-major order."""
    count = box_size(box)
    if count <= max_elems:
        if count:
            yield box
        return
    axis = next(i for i, (start, stop) in enumerate(box) if stop - start > 1)
    start, stop = box[axis]
    step = max(1, max_elems * (stop - start) // count)
    for first in range(start, stop, step):
        part = (first, min(first + step, stop))
        yield from cut_box((*box[:axis], part, *box[axis + 1 :]), max_elems)


def check_box(call: str, name: str, box: Box, shape: Shape) -> None:
    """Raise ValueError where a box is no part of a tensor of this shape."""
    if len(box) != len(shape) or not all(
        0 <= start <= stop <= size for (start, stop), size in zip(box, shape, strict=True)
    ):
        raise ValueError(
            f"{call}: box {box} is no part of {name!r} of shape {shape}; "
            "give [start, stop) for each dimension"
        )


def inside(box: Box, outer: Box) -> tuple[slice, ...]:
    """Return the index of a box in an array that holds `outer`."""
    return tuple(
        slice(start - origin, stop - origin)
        for (start, stop), (origin, _) in zip(box, outer, strict=True)
    )


def is_whole(box: Box, shape: Shape) -> bool:
    """Whether a box covers the whole tensor."""
    return box_size(box) == prod(shape)
