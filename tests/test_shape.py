"""Shapes are checked, broadcast and cut as NumPy would."""

import random
import re

import numpy as np
import pytest

from ark_dist.core.shape import (
    MAX_ELEMENTS,
    Dims,
    as_shape,
    box_shape,
    box_size,
    boxes_overlap,
    broadcast_shapes,
    full_box,
    normalize_axis,
    row_major_strides,
)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (Dims(32), (32,)),
        (Dims(), ()),
        (Dims(2, 3), (2, 3)),
        (Dims([2, 3]), (2, 3)),
        (Dims((4,)), (4,)),
        (Dims(np.int64(5), 6), (5, 6)),
        (Dims(Dims(7, 8)), (7, 8)),
        (Dims(0, 3), (0, 3)),
    ],
)
def test_dims_is_a_tuple_of_its_sizes(made: Dims, wanted: tuple[int, ...]) -> None:
    assert made == wanted and isinstance(made, tuple)


def test_dims_shows_how_it_is_written() -> None:
    assert repr(Dims(2, 3)) == "Dims(2, 3)"


def test_a_shape_may_be_an_integer_or_any_sequence() -> None:
    assert as_shape(3) == (3,)
    assert as_shape(n for n in (1, 2)) == (1, 2)
    assert all(type(size) is int for size in as_shape([np.int64(2), np.int32(3)]))


def test_a_shape_may_be_an_array() -> None:
    assert as_shape(np.array([2, 3])) == (2, 3)


@pytest.mark.parametrize(
    ("sizes", "error", "text"),
    [
        ("23", TypeError, "shape is '23'; it must be an integer or a sequence of integers"),
        (None, TypeError, "shape is None; it must be an integer or a sequence of integers"),
        (2.0, TypeError, "shape is 2.0; it must be an integer or a sequence of integers"),
        ((2, 3.5), TypeError, "shape is (2, 3.5); it must be an integer or a sequence of integers"),
        (
            (2, None),
            TypeError,
            "shape is (2, None); it must be an integer or a sequence of integers",
        ),
        ((2, -1), ValueError, "shape is (2, -1); sizes must be 0 or more"),
        ((1,) * 9, ValueError, "has 9 dimensions; at most 8 work"),
        ((2**30, 2**30), ValueError, "has more than 2**48 elements; cut the tensor"),
        ((0, 2**30, 2**30), ValueError, "has more than 2**48 elements; cut the tensor"),
    ],
)
def test_a_shape_that_cannot_be_says_what_is_wrong(
    sizes: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        as_shape(sizes)


def test_the_largest_shape_is_taken() -> None:
    assert as_shape((2**24, 2**24)) == (2**24, 2**24)
    assert MAX_ELEMENTS == 2**48


def test_strides_are_those_of_numpy() -> None:
    pick = random.Random(0)
    for _ in range(200):
        shape = tuple(pick.randint(1, 5) for _ in range(pick.randint(0, 5)))
        strides = np.empty(shape, np.int8).strides
        assert row_major_strides(shape) == strides, shape


def test_broadcasting_is_that_of_numpy() -> None:
    pick = random.Random(1)
    for _ in range(2000):
        shapes = [
            tuple(pick.choice([0, 1, 1, 2, 3]) for _ in range(pick.randint(0, 3)))
            for _ in range(pick.randint(1, 3))
        ]
        try:
            wanted = np.broadcast_shapes(*shapes)
        except ValueError:
            with pytest.raises(ValueError, match=r"add: shapes .* do not broadcast"):
                broadcast_shapes("add", *shapes)
        else:
            assert broadcast_shapes("add", *shapes) == wanted, shapes


def test_a_failed_broadcast_names_the_operator_and_both_shapes() -> None:
    text = "add: shapes (2, 3) and (4, 3) do not broadcast; sizes must be equal or 1"
    with pytest.raises(ValueError, match=re.escape(text)):
        broadcast_shapes("add", (2, 3), (4, 3))


def test_an_axis_counts_from_either_end() -> None:
    assert [normalize_axis("op", a, 3) for a in (-3, -1, 0, 2)] == [0, 2, 0, 2]
    assert normalize_axis("op", np.int32(-1), 2) == 1


@pytest.mark.parametrize(
    ("axis", "error", "text"),
    [
        (3, ValueError, "softmax: axis 3 is out of range for 3 dimensions; use -3 to 2"),
        (-4, ValueError, "softmax: axis -4 is out of range for 3 dimensions; use -3 to 2"),
        (1.0, TypeError, "softmax: axis is 1.0; it must be an integer"),
        (None, TypeError, "softmax: axis is None; it must be an integer"),
    ],
)
def test_a_bad_axis_names_the_operator_and_the_range(
    axis: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        normalize_axis("softmax", axis, 3)


def test_boxes_overlap_exactly_where_they_share_an_element() -> None:
    pick = random.Random(2)
    for _ in range(3000):
        ndim = pick.randint(0, 3)
        boxes = []
        for _ in range(2):
            edges = [sorted((pick.randint(0, 4), pick.randint(0, 4))) for _ in range(ndim)]
            boxes.append(tuple((a, b) for a, b in edges))
        grids = [np.zeros((4,) * ndim, bool) for _ in boxes]
        for grid, box in zip(grids, boxes, strict=True):
            grid[tuple(slice(a, b) for a, b in box)] = True
            assert box_size(box) == grid.sum()
        assert boxes_overlap(*boxes) == bool((grids[0] & grids[1]).any()), boxes


def test_a_full_box_covers_a_shape() -> None:
    assert full_box((2, 3)) == ((0, 2), (0, 3))
    assert box_shape(full_box((2, 3))) == (2, 3)
    assert box_size(()) == 1
