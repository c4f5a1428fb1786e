"""Weights in panels: where elements are, and through which views kernels find them."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.dtype import BF16, FP16, FP32, DType
from ark_dist.core.graph import Buffer, Node
from ark_dist.core.op import Array
from ark_dist.core.packing import (
    PACKINGS,
    PANEL_WIDTH,
    group_elems,
    pack,
    pack_box,
    packed_shape,
    packed_strides,
    packed_view,
    unpack,
    unpack_box,
)
from ark_dist.core.shape import Shape, full_box, row_major_strides
from ark_dist.core.verify_graph import view_problem
from ark_dist.core.verify_packing import packed_read_problems
from ark_dist.core.view import View

TURNED = {"transpose_input": False, "transpose_other": True, "is_relu": False}
PLAIN = {**TURNED, "transpose_other": False}


def random_bits(rng: np.random.Generator, shape: Shape, dtype: DType) -> Array:
    """Any bits: with them come NaNs of every payload."""
    data = rng.integers(0, 256, prod(shape) * dtype.itemsize, np.uint8)
    return data.view(dtype.numpy).reshape(shape)


def bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def random_case(seed: int) -> tuple[np.random.Generator, str, DType, Shape]:
    rng = np.random.default_rng(seed)
    batch = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 3)))
    sizes = tuple(int(n) for n in rng.choice([1, 2, 3, 7, 15, 16, 17, 32, 33, 50], 2))
    dtype = (FP32, FP16, BF16)[rng.integers(3)]
    return rng, PACKINGS[rng.integers(2)], dtype, (*batch, *sizes)


@pytest.mark.parametrize("seed", range(40))
def test_every_element_is_where_the_formula_says(seed: int) -> None:
    rng, packing, dtype, shape = random_case(seed)
    value = random_bits(rng, shape, dtype)
    *batch, inner, columns = shape if packing == "panels" else (*shape[:-2], shape[-1], shape[-2])
    group = 4 // dtype.itemsize
    inner_padded, columns_padded = -(-inner // group) * group, -(-columns // 16) * 16
    out = random_bits(rng, packed_shape(packing, shape, dtype), dtype)
    assert out.size == prod(batch) * inner_padded * columns_padded
    pack(packing, value, out)
    b, k, n = np.indices((prod(batch), inner, columns))
    panel = b * (columns_padded // 16) + n // 16
    place = (panel * (inner_padded // group) + k // group) * 16 * group
    place += n % 16 * group + k % group
    logical = value if packing == "panels" else value.swapaxes(-1, -2)
    expected = np.zeros(out.size, f"u{dtype.itemsize}")
    expected[place] = bits(logical).reshape(b.shape)
    np.testing.assert_array_equal(bits(out).reshape(-1), expected)
    steps = packed_strides(packing, shape, dtype)
    assert steps[-2:] == (16, inner_padded)
    assert steps[:-2] == tuple(
        step * inner_padded * columns_padded for step in row_major_strides(tuple(batch))
    )


@pytest.mark.parametrize("seed", range(40))
def test_tensors_and_boxes_come_back_bit_by_bit(seed: int) -> None:
    rng, packing, dtype, shape = random_case(seed)
    value = random_bits(rng, shape, dtype)
    # As a rank's part of a larger tensor is given: with strides of that.
    given = np.repeat(value, 2, axis=-1)[..., ::2]
    packed = random_bits(rng, packed_shape(packing, shape, dtype), dtype)
    pack(packing, given, packed)
    np.testing.assert_array_equal(bits(unpack(packing, packed, shape)), bits(value))
    for _ in range(5):
        ends = [sorted(rng.integers(0, size + 1, 2).tolist()) for size in shape]
        box = tuple((int(a), int(b)) for a, b in ends)
        place = tuple(slice(a, b) for a, b in box)
        np.testing.assert_array_equal(bits(unpack_box(packing, packed, box)), bits(value[place]))
        value[place] = random_bits(rng, value[place].shape, dtype)
        pack_box(packing, value[place], packed, box)
        whole = np.empty_like(packed)
        pack(packing, value, whole)
        np.testing.assert_array_equal(bits(packed), bits(whole), err_msg=f"{seed=} {box=}")


def random_view(rng: np.random.Generator, dtype: DType, shape: Shape) -> View:
    """A view such as matmuls see, most often with small faults."""
    steps = row_major_strides(shape)
    starts, sizes = [], []
    for size in shape:
        start = int(rng.choice([0, 0, 1, 2, 16, 32])) % size
        starts.append(start)
        sizes.append(int(rng.choice([size - start, int(rng.integers(1, size - start + 1))])))
    offset = sum(start * step for start, step in zip(starts, steps, strict=True))
    own = list(zip(sizes, steps, strict=True))
    if rng.random() < 0.3:
        own.insert(int(rng.integers(len(own))), (int(rng.integers(1, 4)), 0))
    if rng.random() < 0.5:
        part = int(rng.integers(1, 9))
        count = int(rng.integers(1, 5))
        which = int(rng.choice([-1, -2]))
        size, step = own[which]
        own[which] = (max(size // count, 1), step)
        own.insert(0, (count, step * part))
    if rng.random() < 0.1:
        own[-1], own[-2] = own[-2], own[-1]
    return View(0, dtype, offset, tuple(s for s, _ in own), tuple(s for _, s in own))


def test_views_are_read_in_panels_where_verify_allows_it_and_nowhere_else() -> None:
    taken = 0
    for seed in range(3000):
        rng, packing, dtype, shape = random_case(seed)
        view = random_view(rng, dtype, shape)
        buffer = Buffer(0, "w", shape, dtype, "weight", None, packing=packing)
        if len(view.shape) > 8 or view_problem((buffer,), view) is not None:
            continue
        attrs = tuple(sorted((TURNED if packing == "panels_t" else PLAIN).items()))
        node = Node(0, "matmul_part", "y", (replace(view, buffer=1), view), view, attrs)
        other = Buffer(1, "x", shape, dtype, "input", None)
        problems = list(packed_read_problems((buffer, other), node))
        stored = packed_view(packing, shape, view)
        assert (stored is None) == bool(problems), f"{seed=} {packing} {shape} {view} {problems}"
        if stored is not None:
            taken += 1
            assert_same_elements(packing, shape, view, stored, f"{seed=}")
    assert taken > 300


def assert_same_elements(
    packing: str, shape: Shape, view: View, stored: View, message: str
) -> None:
    """Read both as a kernel does: strides between groups and panels, then within."""
    numbers = np.arange(1, prod(shape) + 1).astype(np.int64).reshape(shape)
    group = group_elems(view.dtype)
    small = np.dtype(f"u{view.dtype.itemsize}")
    packed = np.zeros(packed_shape(packing, shape, view.dtype), small)
    pack(packing, numbers.astype(small), packed)
    flat = packed.reshape(-1)
    index = np.indices(view.shape)
    plain = view.offset + sum(i * s for i, s in zip(index, view.strides, strict=True))
    inner, width = (-2, -1) if packing == "panels" else (-1, -2)
    k, n = index[inner], index[width]
    lead = sum(i * s for i, s in zip(index[:-2], stored.strides[:-2], strict=True))
    place = stored.offset + lead + k // group * group * stored.strides[inner] + k % group
    place += n // PANEL_WIDTH * PANEL_WIDTH * stored.strides[width] + n % PANEL_WIDTH * group
    np.testing.assert_array_equal(
        flat[place], numbers.reshape(-1)[plain].astype(small), err_msg=message
    )


def read_problems(op: str, shape: Shape, view: View, packing: str) -> str:
    buffers = (
        Buffer(0, "x", (4, 4), view.dtype, "input", None),
        Buffer(1, "w", shape, view.dtype, "weight", None, packing=packing),
    )
    x = View(0, view.dtype, 0, (4, 4), (4, 1))
    attrs = {"embedding": {"first_row": 0, "rows": None}}.get(
        op, TURNED if packing == "panels_t" else PLAIN
    )
    node = Node(0, op, "y", (x, replace(view, buffer=1)), x, tuple(sorted(attrs.items())))
    return "; ".join(packed_read_problems(buffers, node))


@pytest.mark.parametrize(
    ("op", "view", "packing", "message"),
    [
        ("matmul", View(1, FP32, 0, (48, 64), (64, 1)), "panels", ""),
        ("matmul", View(1, FP32, 8, (48, 16), (64, 1)), "panels", "column 8 is not the first"),
        ("matmul", View(1, BF16, 64, (47, 64), (64, 1)), "panels", "of K cuts a group of 2"),
        ("matmul", View(1, BF16, 0, (47, 64), (64, 1)), "panels", "of K cuts a group of 2"),
        ("matmul_part", View(1, BF16, 0, (4, 12, 64), (768, 64, 1)), "panels", ""),
        ("matmul_part", View(1, BF16, 0, (3, 11, 64), (704, 64, 1)), "panels", "cuts a group of 2"),
        ("matmul_part", View(1, FP32, 0, (2, 48, 16), (16, 64, 1)), "panels", "no parts"),
        ("embedding", View(1, FP32, 0, (48, 64), (64, 1)), "panels_t", ""),
        ("embedding", View(1, FP32, 1024, (16, 64), (64, 1)), "panels_t", "reads a part of 'w'"),
        ("embedding", View(1, FP32, 0, (48, 64), (64, 1)), "panels", "packed as 'panels'"),
        ("add", View(1, FP32, 0, (48, 64), (64, 1)), "panels", "packed as 'panels'"),
        ("matmul", View(1, FP32, 0, (0, 64), (64, 1)), "panels", "there is nothing"),
    ],
)
def test_each_place_that_a_kernel_does_not_find_is_told(
    op: str, view: View, packing: str, message: str
) -> None:
    found = read_problems(op, (48, 64), view, packing)
    assert message in found
    assert bool(found) == bool(message)


def test_parts_of_k_stay_in_their_matrix() -> None:
    view = View(1, FP32, 0, (3, 24, 64), (24 * 64, 64, 1))
    assert "goes along K and from matrix to matrix" in read_problems(
        "matmul_part", (2, 48, 64), view, "panels"
    )
    view = View(1, FP32, 0, (2, 2, 20, 64), (24 * 64, 24 * 64, 64, 1))
    assert "beyond a matrix" in read_problems("matmul_part", (2, 48, 64), view, "panels")


def test_a_whole_box_is_all_of_a_buffer_in_any_shape() -> None:
    view = View(0, FP16, 0, (6,), (1,))
    assert view.box_in((2, 3)) == full_box((2, 3))
    assert View(0, FP16, 1, (2, 2), (3, 1)).box_in((2, 3)) == ((0, 2), (1, 3))
    assert View(0, FP16, 1, (2, 2), (1, 3)).box_in((2, 4)) is None
    assert View(0, FP16, 1, (3,), (1,)).box_in((2, 3)) is None
