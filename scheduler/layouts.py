"""Map cuts of a buffer to cuts of its views, and views of a buffer to views of a part of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import prod

from ark_dist.core.shape import Box, Shape, box_shape, row_major_strides
from ark_dist.core.view import View

Interval = tuple[int, int]
Coordinates = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Cut:
    """One dimension cut over a mesh axis: the [start, stop) of each coordinate, in order."""

    axis: str
    bounds: tuple[Interval, ...]

    def contains(self, other: "Cut") -> bool:
        """Whether each coordinate has all that `other` gives it."""
        return self.axis == other.axis and all(
            start >= stop or (low <= start and stop <= high)
            for (low, high), (start, stop) in zip(self.bounds, other.bounds, strict=True)
        )


Cuts = tuple[Cut | None, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor lies on ranks.

    Attributes:
        cuts: for each dimension the cut, or None.
        partial: axes along which the ranks' values have to be combined, with "sum", "max" or
            "min".
    """

    cuts: Cuts
    partial: tuple[tuple[str, str], ...] = ()

    @property
    def axes(self) -> dict[str, int]:
        """The dimension that each axis cuts."""
        return {cut.axis: d for d, cut in enumerate(self.cuts) if cut is not None}


def whole(shape: Shape) -> Cuts:
    """No cuts."""
    return (None,) * len(shape)


def even(units: int, count: int) -> tuple[Interval, ...]:
    """Cut `units` positions as evenly as can be; the first parts have one more."""
    size, more = divmod(units, count)
    starts = [size * i + min(i, more) for i in range(count + 1)]
    return tuple(pairwise(starts))


def disjoint(bounds: tuple[Interval, ...], size: int) -> tuple[int, ...]:
    """Positions that cut [0, size) so that each part lies inside its interval."""
    cuts = [0]
    for start, stop in bounds:
        assert start <= cuts[-1] or start >= stop, f"{bounds} has a gap"
        cuts.append(max(cuts[-1], stop if start < stop else 0))
    assert cuts[-1] == size, f"{bounds} does not cover {size}"
    return tuple(cuts)


def part(cuts: Cuts, shape: Shape, at: Coordinates) -> Box:
    """What the rank at these coordinates has of a tensor."""
    return tuple(
        (0, size) if cut is None else cut.bounds[at[cut.axis]]
        for cut, size in zip(cuts, shape, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Window:
    """How a view is cut where its buffer is.

    Attributes:
        cuts: for each dimension of the view.
        holders: axes along which only some coordinates have any of the view, and which.
    """

    cuts: Cuts
    holders: tuple[tuple[str, tuple[bool, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Segment:
    """Dimensions of a buffer that count as one: of them only the first may be cut."""

    first: int
    length: int
    inner: int
    step: int

    def digit(self, value: int) -> int:
        # Where nothing is outside of it, what is too large shows as too large.
        return value // self.step if self.first == 0 else value // self.step % self.length


@dataclass(frozen=True, slots=True)
class _Outer:
    """The view dimension that walks a segment in the largest steps.

    Cell i of the segment is `step` * i + `offset` and `rest` positions more; index 0 of the
    view is cell `skipped`.
    """

    dim: int
    step: int
    skipped: int
    offset: int
    rest: int

    def cells(self, interval: Interval, inner: int) -> Interval | None:
        """The cells inside an interval of the buffer's dimension; None if one lies across."""
        found = []
        for position in interval:
            edge = position * inner
            begun = -(-(edge - self.offset) // self.step)
            if begun != (edge - 1 - self.offset - self.rest) // self.step + 1:
                return None
            found.append(begun)
        return found[0], max(found)


def _segments(shape: Shape, cuts: Cuts) -> list[_Segment]:
    firsts = [0, *(d for d, cut in enumerate(cuts) if cut is not None and d > 0)]
    return [
        _Segment(first, prod(shape[first:end]), prod(shape[first + 1 : end]), prod(shape[end:]))
        for first, end in zip(firsts, [*firsts[1:], len(shape)], strict=True)
    ]


def _digits(view: View, segment: _Segment) -> tuple[int, list[int]] | None:
    """Offset and strides inside a segment; None if the view carries out of it."""
    offset = segment.digit(view.offset)
    digits = [
        segment.digit(step) if size > 1 else 0
        for size, step in zip(view.shape, view.strides, strict=True)
    ]
    reach = offset + sum((n - 1) * d for n, d in zip(view.shape, digits, strict=True))
    return (offset, digits) if reach < segment.length else None


def _outer(view: View, offset: int, digits: list[int]) -> _Outer | None:
    """The outermost dimension of a segment; None if others reach across its steps."""
    step = max(digits)
    dim = digits.index(step)
    rest = sum((n - 1) * d for n, d in zip(view.shape, digits, strict=True))
    rest -= (view.shape[dim] - 1) * step
    skipped, inside = divmod(offset, step)
    return _Outer(dim, step, skipped, inside, rest) if inside + rest < step else None


@lru_cache(maxsize=1 << 14)
def window(view: View, shape: Shape, cuts: Cuts) -> Window | None:
    """How a view of a buffer is cut where the buffer is; None where that can't be said.

    A buffer's dimensions are taken together into segments that begin at each cut. A cut of
    the buffer is one of the view's dimension that walks the segment in the largest steps, if
    no step lies across it.
    """
    found: list[Cut | None] = [None] * len(view.shape)
    holders = []
    if not any(cuts) or 0 in view.shape or 0 in shape:
        return Window(tuple(found), ())
    for segment in _segments(shape, cuts):
        places = _digits(view, segment)
        if places is None:
            return None
        cut = cuts[segment.first]
        if cut is None:
            continue
        offset, digits = places
        if not any(digits):
            at = offset // segment.inner
            holders.append((cut.axis, tuple(a <= at < b for a, b in cut.bounds)))
            continue
        outer = _outer(view, offset, digits)
        if outer is None or found[outer.dim] is not None:
            return None
        bounds = []
        for interval in cut.bounds:
            cells = outer.cells(interval, segment.inner)
            if cells is None:
                return None
            size = view.shape[outer.dim]
            start, stop = (min(max(cell - outer.skipped, 0), size) for cell in cells)
            bounds.append((start, stop))
        found[outer.dim] = Cut(cut.axis, tuple(bounds))
    return Window(tuple(found), tuple(holders))


def local_view(view: View, shape: Shape, cuts: Cuts, at: Coordinates, buffer: int) -> View:
    """What the rank at these coordinates sees of a view, as a view of its part of the buffer.

    The view has a window, and the rank has some of it.
    """
    seen = window(view, shape, cuts)
    assert seen is not None, "the view can't be cut"
    box = part(seen.cuts, view.shape, at)
    sizes = box_shape(part(cuts, shape, at))
    segments = _segments(shape, cuts)
    firsts = [segment.first for segment in segments]
    ends = [*firsts[1:], len(shape)]
    offset, strides = 0, [0] * len(view.shape)
    for segment, end in zip(segments, ends, strict=True):
        places = _digits(view, segment)
        assert places is not None, "the view can't be cut"
        cut, step = cuts[segment.first] if shape else None, prod(sizes[end:])
        digits = places[1]
        start = places[0] + sum(a * d for (a, _), d in zip(box, digits, strict=True))
        if cut is not None:
            start -= cut.bounds[at[cut.axis]][0] * segment.inner
        offset += start * step
        strides = [total + digit * step for total, digit in zip(strides, digits, strict=True)]
    found = View(buffer, view.dtype, offset, box_shape(box), tuple(strides))
    # What one node writes and another reads has to be the same view to fuse them, and steps along
    # dimensions of size 1 say nothing.
    return replace(found, strides=row_major_strides(found.shape)) if found.is_contiguous else found


def narrowed(view: View, held: Box, wanted: Box) -> View:
    """The part `wanted` of a view that shows `held`."""
    offset = view.offset
    for (start, _), (first, _), step in zip(wanted, held, view.strides, strict=True):
        offset += (start - first) * step
    return View(view.buffer, view.dtype, offset, box_shape(wanted), view.strides)


@lru_cache(maxsize=1 << 14)
def traced(view: View, shape: Shape) -> tuple[int | None, ...]:
    """For each dimension of a view the buffer's dimension that is cut where it is cut.

    None where there is no such dimension, or the view has a part of it only.
    """
    found: list[int | None] = [None] * len(view.shape)
    if 0 in view.shape or 0 in shape:
        return tuple(found)
    for d, size in enumerate(shape):
        if size == 1:
            continue
        mark = Cut("", ((0, size),))
        cuts = tuple(mark if i == d else None for i in range(len(shape)))
        segments = _segments(shape, cuts)
        places = [_digits(view, segment) for segment in segments]
        if None in places:
            continue
        last = places[-1]
        assert last is not None, "looked at above"
        outer = _outer(view, *last) if any(last[1]) else None
        if outer is None or outer.skipped or outer.offset:
            continue
        if outer.step * view.shape[outer.dim] == segments[-1].length:
            found[outer.dim] = d
    return tuple(found)
