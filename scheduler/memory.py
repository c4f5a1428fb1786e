"""Place buffers in arenas; activations share memory when their lifetimes do not meet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ark_dist.core.graph import Buffer
from ark_dist.core.plan import ALIGNMENT_BYTES, ARENAS, Place, arena_of
from ark_dist.core.task import Task


@dataclass(frozen=True, slots=True)
class Lifetime:
    """From the first to the last group that touches a buffer, both included."""

    buffer: int
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Offsets of some buffers and the size that holds them."""

    offsets: dict[int, int]
    size_bytes: int


def aligned(size_bytes: int) -> int:
    """Round up to the alignment of arenas."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def lifetimes(tasks: Sequence[Task], buffers: Sequence[Buffer]) -> dict[str, tuple[Lifetime, ...]]:
    """Lifetimes of the activations that tasks touch, by arena, in order of their first group."""
    spans: dict[int, tuple[int, int]] = {}
    for task in tasks:
        for region in (*task.reads, *task.writes):
            if buffers[region.buffer].kind == "activation":
                first, last = spans.get(region.buffer, (task.group, task.group))
                spans[region.buffer] = (min(first, task.group), max(last, task.group))
    lives = sorted(
        (
            Lifetime(buffer, aligned(buffers[buffer].size_bytes), first, last)
            for buffer, (first, last) in spans.items()
        ),
        key=lambda life: (life.first, life.buffer),
    )
    return {
        arena: tuple(life for life in lives if arena_of(buffers[life.buffer]) == arena)
        for arena in ("activations", "symmetric")
    }


def place_activations(lives: Sequence[Lifetime]) -> Placement:
    """Try several orders of placing and keep the smallest result."""
    orders: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
        lambda life: (-life.size_bytes, life.first),
        lambda life: (life.first, -life.size_bytes),
        lambda life: (-(life.last - life.first + 1) * life.size_bytes, life.first),
        lambda life: (-(life.last - life.first), -life.size_bytes),
        lambda life: (-life.last, -life.size_bytes),
    )
    floor = peak_bytes(lives)
    best: Placement | None = None
    for order in orders:
        for is_best_fit in (False, True):
            found = _place_in_order(sorted(lives, key=order), is_best_fit)
            if best is None or found.size_bytes < best.size_bytes:
                best = found
            if best.size_bytes == floor:
                return best
    assert best is not None
    return best


def peak_bytes(lives: Sequence[Lifetime]) -> int:
    """The most bytes alive at once: no placement needs less."""
    change: dict[int, int] = {}
    for life in lives:
        change[life.first] = change.get(life.first, 0) + life.size_bytes
        change[life.last + 1] = change.get(life.last + 1, 0) - life.size_bytes
    now = peak = 0
    for moment in sorted(change):
        now += change[moment]
        peak = max(peak, now)
    return peak


def _place_in_order(lives: Sequence[Lifetime], is_best_fit: bool) -> Placement:
    first, last, sizes = (
        np.array([getattr(life, name) for life in lives], np.int64)
        for name in ("first", "last", "size_bytes")
    )
    starts = np.zeros(len(lives), np.int64)
    for i, life in enumerate(lives):
        meets = np.flatnonzero((first[:i] <= life.last) & (last[:i] >= life.first))
        stops = starts[meets] + sizes[meets]
        busy = sorted(zip(starts[meets].tolist(), stops.tolist(), strict=True))
        starts[i] = _fit(busy, life.size_bytes, is_best_fit)
    offsets = {life.buffer: start for life, start in zip(lives, starts.tolist(), strict=True)}
    return Placement(offsets, int((starts + sizes).max(initial=0)))


def _fit(busy: Sequence[tuple[int, int]], size: int, is_best_fit: bool) -> int:
    """The lowest gap that holds `size` bytes, or the tightest one."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in busy:
        gap = start - end
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, end)
            if not is_best_fit:
                break
        end = max(end, stop)
    return best[1] if best is not None else end


def place(
    buffers: Sequence[Buffer], drafts: Sequence[Mapping[str, Placement]]
) -> tuple[tuple[Place, ...], tuple[int, ...]]:
    """Return a place per buffer and the size of each arena.

    `drafts` has, per method, a placement of the activations of each arena; methods never run
    at once, so they share it. What outlives an iteration comes first. Buffers that only live
    inside fused groups take no memory, those of other ranks none here.
    """
    sizes = dict.fromkeys(ARENAS, 0)
    offsets: dict[int, int] = {}
    for buffer in buffers:
        if buffer.kind not in ("activation", "peer"):
            arena = arena_of(buffer)
            offsets[buffer.id] = sizes[arena]
            sizes[arena] += aligned(buffer.size_bytes)
    starts = dict(sizes)
    for placements in drafts:
        for arena, placement in placements.items():
            start = starts[arena]
            offsets.update((b, start + offset) for b, offset in placement.offsets.items())
            sizes[arena] = max(sizes[arena], start + placement.size_bytes)
    places = tuple(Place(arena_of(b), offsets.get(b.id, 0)) for b in buffers)
    return places, tuple(sizes[name] for name in ARENAS)
