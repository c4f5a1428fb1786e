"""Cuts of a buffer and of its views fit: checked element by element on random views."""

import random
from math import prod

import numpy as np

from ark_dist.core.dtype import FP32
from ark_dist.core.shape import Shape, row_major_strides
from ark_dist.core.view import View
from ark_dist.scheduler.layouts import Cut, Cuts, disjoint, even, local_view, part, traced, window

COUNT = 3


def elements(view: View, memory: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> object:
    """What a view of a contiguous array shows."""
    flat = np.ascontiguousarray(memory).reshape(-1)
    strides = tuple(step * flat.itemsize for step in view.strides)
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)


def whole(shape: Shape) -> View:
    return View(0, FP32, 0, shape, row_major_strides(shape))


def changed(rng: random.Random, view: View) -> View:
    """The view after a random transpose, narrow, step, split of a dimension, or broadcast."""
    shape, strides = list(view.shape), list(view.strides)
    d = rng.randrange(len(shape))
    kind, offset = rng.randrange(5), view.offset
    if kind == 0:
        order = rng.sample(range(len(shape)), len(shape))
        shape, strides = [shape[i] for i in order], [strides[i] for i in order]
    elif kind == 1:
        start = rng.randrange(shape[d])
        offset += start * strides[d]
        shape[d] = rng.randint(1, shape[d] - start)
    elif kind == 2:
        shape[d], strides[d] = -(-shape[d] // 2), strides[d] * 2
    elif kind == 3 and len(shape) < 6:
        inner = rng.choice([n for n in range(1, shape[d] + 1) if shape[d] % n == 0])
        shape[d : d + 1] = [shape[d] // inner, inner]
        strides[d : d + 1] = [strides[d] * inner, strides[d]]
    elif len(shape) < 6:
        shape.insert(d, 2)
        strides.insert(d, 0)
    return View(0, FP32, offset, tuple(shape), tuple(strides))


def random_cuts(rng: random.Random, shape: Shape) -> Cuts:
    """One or two dimensions cut, not always at good places, at times with overlap."""
    cuts: list[Cut | None] = [None] * len(shape)
    for axis in ("a", "b"):
        d, unit = rng.randrange(len(shape)), rng.choice([1, 1, 2])
        if cuts[d] is None and shape[d] % unit == 0:
            bounds = [(a * unit, b * unit) for a, b in even(shape[d] // unit, COUNT)]
            if rng.random() < 0.2:
                bounds = [(max(a - 1, 0), b) for a, b in bounds]
            cuts[d] = Cut(axis, tuple(bounds))
        if rng.random() < 0.5:
            break
    return tuple(cuts)


def test_a_cut_view_shows_the_same_elements_of_a_part_as_of_the_whole() -> None:
    rng, shown = random.Random(0), 0
    for case in range(1500):
        shape = tuple(rng.choice([1, 2, 3, 4, 6, 7]) for _ in range(rng.randint(1, 4)))
        view = whole(shape)
        for _ in range(rng.randint(0, 4)):
            view = changed(rng, view)
        cuts = random_cuts(rng, shape)
        seen = window(view, shape, cuts)
        if seen is None:
            continue
        memory = np.arange(prod(shape), dtype=np.int64).reshape(shape)
        covered = np.zeros(view.shape, int)
        for a, b in np.ndindex(COUNT, COUNT):
            at = {"a": a, "b": b}
            mine = memory[tuple(slice(*i) for i in part(cuts, shape, at))]
            place = tuple(slice(*i) for i in part(seen.cuts, view.shape, at))
            is_holder = all(has[at[axis]] for axis, has in seen.holders)
            if not covered[place].size or not is_holder:
                continue
            local = local_view(view, shape, cuts, at, 0)
            want = np.asarray(elements(view, memory))[place]
            np.testing.assert_array_equal(elements(local, mine), want, err_msg=f"case {case}")
            covered[place] += 1
            shown += 1
        assert covered.all(), f"case {case}: {view} of {shape} cut {cuts}"
    assert shown > 1500, shown


def test_a_whole_part_is_the_same_view_however_it_was_found() -> None:
    for shape in ((1, 1, 12), (4, 1, 12), (1, 6), (1, 5, 1)):
        for axis, size in enumerate(shape):
            cuts = tuple(Cut("a", even(size, 2)) if d == axis else None for d in range(len(shape)))
            mine = tuple(b - a for a, b in part(cuts, shape, {"a": 0}))
            local = local_view(whole(shape), shape, cuts, {"a": 0}, 0)
            assert local == whole(mine)


def test_a_traced_dimension_is_cut_where_the_buffer_is() -> None:
    rng, found = random.Random(1), 0
    for _ in range(800):
        shape = tuple(rng.choice([2, 3, 4, 6, 12]) for _ in range(rng.randint(1, 3)))
        view = whole(shape)
        for _ in range(rng.randint(0, 3)):
            view = changed(rng, view)
        for j, d in enumerate(traced(view, shape)):
            if d is None:
                continue
            units = np.gcd(shape[d], view.shape[j])
            cut, want = (
                Cut("a", tuple((a * n // units, b * n // units) for a, b in even(units, COUNT)))
                for n in (shape[d], view.shape[j])
            )
            seen = window(view, shape, tuple(cut if i == d else None for i in range(len(shape))))
            assert seen is not None and seen.cuts[j] == want, (view, shape)
            found += 1
    assert found > 800, found


def test_heads_are_cut_as_whole_units_of_a_flat_dimension() -> None:
    heads = View(0, FP32, 0, (1, 5, 9, 64), (5 * 576, 576, 64, 1))
    assert traced(heads, (1, 5, 576)) == (None, 1, 2, None)
    cut = Cut("tp", ((0, 320), (320, 576)))
    seen = window(heads, (1, 5, 576), (None, None, cut))
    assert seen is not None
    assert seen.cuts[2] == Cut("tp", ((0, 5), (5, 9)))


def test_a_view_that_a_cut_goes_through_has_no_window() -> None:
    heads = View(0, FP32, 0, (5, 9, 64), (576, 64, 1))
    assert window(heads, (5, 576), (None, Cut("tp", ((0, 288), (288, 576))))) is None


def test_a_view_that_carries_over_a_cut_has_no_window() -> None:
    flat = View(0, FP32, 0, (30,), (1,))
    assert window(flat, (5, 6), (None, Cut("tp", ((0, 3), (3, 6))))) is None


def test_overlapping_parts_become_disjoint_ones() -> None:
    assert disjoint(((0, 2), (1, 3), (3, 3)), 3) == (0, 2, 3, 3)


def test_parts_are_as_even_as_can_be() -> None:
    assert even(9, 2) == ((0, 5), (5, 9))
    assert even(3, 4) == ((0, 1), (1, 2), (2, 3), (3, 3))
