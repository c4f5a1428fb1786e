"""Operators that move data: what they share memory with, and what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.dtype import DTYPES
from ark_dist.core.errors import TaskError
from ark_dist.core.shape import MAX_DIMS
from ark_dist.core.verify_graph import graph_problems
from tests.movement_models import (
    MACHINES,
    Refused,
    Rng,
    check_refused,
    compute,
    fresh,
    random,
    read,
    running,
    turn,
)


@pytest.fixture
def rng() -> Rng:
    return fresh()


# Putting together and cutting.


def test_what_is_put_together_is_written_by_those_who_compute_it(rng: Rng) -> None:
    model = ark.Model()
    x, y = model.tensor((3, 4), name="x"), model.tensor((3, 2), name="y")
    joined = model.concat([model.relu(x), y, x * y[:, :1]], axis=-1)
    result = model.keep(joined) * 2
    nodes = model.freeze().methods[0].nodes
    # relu and mul each end in a copy into the result: no group is a copy alone but y's.
    assert [n.op for n in nodes] == ["relu", "mul", "copy", "copy", "copy", "mul"]
    with running(model, ("numpy", 1)) as session:
        groups = session.plan.methods[0].groups
        assert [tuple(nodes[n].op for n in g.nodes) for g in groups] == [
            ("relu", "copy"),
            ("copy",),
            ("mul", "copy"),
            ("mul",),
        ]
        a, b = random(rng, (3, 4)), random(rng, (3, 2))
        turn(session, [(x, a), (y, b)])
        want = np.concatenate([np.maximum(a, 0), b, np.multiply(a, b[:, :1])], axis=1)
        assert np.array_equal(read(session, joined), want)
        assert np.array_equal(read(session, result), want * 2)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_state_can_be_shifted_by_putting_it_together_from_its_parts(
    machine: tuple[str, int], rng: Rng
) -> None:
    """What is read must not have been overwritten by the piece before."""
    model = ark.Model()
    first = random(rng, (7, 5))
    state = model.state((7, 5), init=first)
    assert model.concat([state[2:], state[:2]], output=state) is state
    seen = model.keep(model.copy(state))
    with running(model, machine) as session:
        turn(session, [], 3)
        assert np.array_equal(read(session, state), np.roll(first, -6, axis=0))
        assert np.array_equal(read(session, seen), np.roll(first, -6, axis=0))


@pytest.mark.parametrize("machine", MACHINES)
def test_many_parts_are_put_together_in_every_turn(machine: tuple[str, int], rng: Rng) -> None:
    model = ark.Model()
    count = model.state(1, "int32")
    x = model.tensor((4, 40), "int32")
    parts = [part + count for part in model.sharding(x, 1, 1)]
    joined = model.concat([*parts, model.zeros((4, 0), "int32")], axis=1)
    total = model.state((4, 40), "int32")
    model.assign(total, total + joined)
    model.assign(count, count + 1)
    data = random(rng, (4, 40), "int32")
    with running(model, machine) as session:
        turn(session, [(x, data)], 4)
        assert np.array_equal(read(session, total), 4 * data + 6)


def test_parts_look_at_the_memory_of_what_was_cut() -> None:
    x = ark.tensor((7, 6), name="x")
    parts = x.split(3)
    assert [p.shape for p in parts] == [(3, 6), (3, 6), (1, 6)]
    assert [p.shape for p in ark.split(x, (0, 4, 2), axis=-1)] == [(7, 0), (7, 4), (7, 2)]
    assert [p.shape for p in ark.sharding(x, 1, 2)] == [(7, 2)] * 3
    assert [p.shape for p in x.model.split(x, np.int64(9), axis=1)] == [(7, 6)]
    assert [p.shape for p in ark.tensor((0, 2)).split(4)] == [(0, 2)]
    assert {p.name for p in parts} == {"x"}
    assert x.model.freeze().methods[0].nodes == ()
    model = ark.Model()
    with pytest.raises(ValueError, match="belongs to model"):
        model.split(x, 3)


def test_a_tensor_put_together_from_its_parts_is_itself(rng: Rng) -> None:
    x = ark.tensor((5, 6, 3), "bf16")
    data = random(rng, (5, 6, 3), "bf16")
    for axis in range(3):
        joined = ark.concat(x.split(2, axis), axis)
        assert np.array_equal(compute(joined, (x, data)), data)


def test_empty_parts_are_put_together_too(rng: Rng) -> None:
    model = ark.Model()
    x, y = model.tensor((0, 3)), model.tensor((2, 3))
    empty = model.keep(model.concat([x, x], axis=0))
    one = model.keep(model.concat([y], axis=0, name="one"))
    some = model.keep(model.concat([x, y, x], axis=-2, name="some"))
    assert (one.name, some.name) == ("one", "some")
    data = random(rng, (2, 3))
    with running(model, ("cpu", 2)) as session:
        turn(session, [(y, data)])
        assert read(session, empty).shape == (0, 3)
        assert np.array_equal(read(session, one), data)
        assert np.array_equal(read(session, some), data)


def test_a_plan_can_not_run_an_operator_that_is_only_pieces() -> None:
    model = ark.Model()
    model.relu(model.tensor((2, 3)))
    graph = model.freeze()
    node = replace(graph.methods[0].nodes[0], op="concat", attrs=(("axis", 0),))
    broken = replace(graph, methods=(replace(graph.methods[0], nodes=(node,)),))
    assert list(graph_problems(broken)) == [
        "method 'forward', node 0 (concat 'relu'): the operator is unknown"
    ]


def test_list_arguments_are_explained() -> None:
    x, y = ark.tensor((2, 3)), ark.tensor((2, 3), "fp16")
    for tensors, error, text in (
        ([], ValueError, "concat: tensors is empty; give at least one tensor"),
        (x, TypeError, r"concat: tensors is a Tensor; it must be a sequence of tensors, such as"),
        (3, TypeError, "concat: tensors is a int; it must be a sequence"),
        ([x, 1], TypeError, r"concat: tensors\[1\] is a int; wanted a tensor"),
        ([x, y], TypeError, "concat: dtypes differ, fp32 and fp16; cast one"),
        ([x, x[:, 1:]], ValueError, r"concat: tensor 0 is \(2, 3\), tensor 1 is \(2, 2\); all si"),
        ([x, x[0]], ValueError, r"concat: tensor 0 is \(2, 3\), tensor 1 is \(3,\); all sizes"),
    ):
        with pytest.raises(error, match=f"^{text}"):
            ark.concat(tensors)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="concat: axis 2 is out of range for 2 dimensions"):
        ark.concat([x], axis=2)
    with pytest.raises(ValueError, match="concat: the list of tensors is empty"):
        x.value.builder.apply("concat", [], {"axis": 0})
    with pytest.raises(TypeError, match="identity: deps is a tensor; it must be a sequence"):
        ark.identity(x, deps=x)  # type: ignore[arg-type]  # on purpose
    assert x.model.freeze().methods[0].nodes == ()


def test_cuts_that_do_not_fit_are_explained() -> None:
    x = ark.tensor((7, 6))
    refused: Refused = (
        (lambda: x.split(0), ValueError, "split: split_size is 0; it must be 1 or more"),
        (lambda: x.split([3, 3]), ValueError, r"split: parts \(3, 3\) have 6 elements, dimension"),
        (lambda: x.split([8, -1]), ValueError, r"split: parts \(8, -1\) have 7 elements"),
        (lambda: x.split([]), ValueError, r"split: parts \(\) have 0 elements"),
        (lambda: x.split(1.5), TypeError, "split: split_size is 1.5; it must be an integ"),  # type: ignore[arg-type]
        (lambda: x.split(1, 2), ValueError, "split: axis 2 is out of range"),
        (lambda: x.sharding(0, 2), ValueError, "sharding: dim_per_shard is 2; it must divide dim"),
        (lambda: x.sharding(0, 0), ValueError, "sharding: dim_per_shard is 0"),
        (lambda: ark.split([x], 1), TypeError, "split: found list, wanted a tensor"),  # type: ignore[arg-type]
    )
    check_refused(refused)


# Views.


def test_a_view_never_copies() -> None:
    x = ark.tensor((4, 6), name="x")
    assert x.view(2, -1, 3).shape == (2, 4, 3)
    assert ark.view(x[1:3], (12,)).shape == (12,)
    assert x.T.view((3, 2, 4)).shape == (3, 2, 4)
    assert ark.zeros((2, 6)).view(3, 2, 2).shape == (3, 2, 2)
    refused: Refused = (
        (
            lambda: x.T.view(24),
            ValueError,
            r"view: the memory of \(6, 4\), with strides \(1, 6\), can't be s",
        ),
        (
            lambda: x[:, 1:].view(-1),
            ValueError,
            r"view: the memory of \(4, 5\).*as \(20,\); use reshape, whi",
        ),
        (lambda: x.view(5, 5), ValueError, r"view: \(4, 6\) has 24 elements, \(5, 5\) has 25"),
        (lambda: x.view(-1, -1), ValueError, r"view: shape \(-1, -1\) may have one -1"),
    )
    check_refused(refused)
    assert x.model.freeze().methods[0].nodes == ()


def test_slices_follow_the_rules_of_python(rng: Rng) -> None:
    for _ in range(200):
        size = int(rng.integers(0, 9))
        start, stop = (int(n) for n in rng.integers(-12, 12, 2))
        step = int(rng.choice([1, 2, 3, 7, 2**40, 2**70]))
        x = ark.Model().tensor((2, size))
        want = range(size)[start:stop:step]
        for part in (x.slice([0, start], [2, stop], [1, step]), x[:, start:stop:step]):
            view = part.value.view
            assert view.shape == (2, len(want))
            assert max(view.strides) <= max(size, 1) * 2
            if want:
                found = [view.offset + i * view.strides[1] for i in range(len(want))]
                assert found == list(want)


def test_slices_that_do_not_fit_are_explained() -> None:
    x = ark.tensor((7, 6))
    for starts, stops, steps, text in (
        ([0], [1, 2], None, r"slice: found 1 starts, 2 stops and 1 steps; each must have one num"),
        ([0], [1], [1, 1], "slice: found 1 starts, 1 stops and 2 steps"),
        ([0] * 3, [1] * 3, None, r"slice: found 3 starts.*dimension of \(7, 6\), or of its first"),
        ([0], [1], [0], r"slice: steps are \(0,\); they must be 1 or more"),
        ([0], [1], [-1], r"slice: steps are \(-1,\)"),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            x.slice(starts, stops, steps)


def test_rows_of_a_tensor_can_be_walked() -> None:
    x = ark.tensor((3, 2))
    rows = list(x)
    assert [row.shape for row in rows] == [(2,)] * 3
    assert list(ark.tensor((0, 2))) == []
    with pytest.raises(TypeError, match="has no dimensions"):
        list(ark.tensor(()))
    with pytest.raises(TypeError, match="can't be indexed with a Tensor; use integers"):
        x[x]
    with pytest.raises(TypeError, match="can't be indexed with a ndarray"):
        x[np.array([0, 1])]
    assert x[np.array(1)].shape == (2,)


def test_dimensions_can_be_reordered_in_every_way(rng: Rng) -> None:
    shape = (2, 1, 3, 2, 1, 2, 3, 2)
    assert len(shape) == MAX_DIMS
    x = ark.tensor(shape)
    data = random(rng, shape)
    perms = [tuple(int(i) for i in rng.permutation(MAX_DIMS)) for _ in range(20)]
    results = [ark.keep(ark.copy(x.transpose(perm))) for perm in perms]
    with running(x.model, ("cpu", 2)) as session:
        turn(session, [(x, data)])
        for perm, result in zip(perms, results, strict=True):
            assert np.array_equal(read(session, result), data.transpose(perm))


def test_eight_dimensions_can_be_gathered_scattered_and_put_together(rng: Rng) -> None:
    shape = (2, 1, 3, 2, 1, 2, 3, 2)
    x = ark.tensor(shape)
    index = ark.tensor((2, 1, 3, 5, 1, 2, 3, 1), "int32")
    at = ark.tensor(2, "int32")
    taken = ark.keep(ark.gather(x, index, axis=3))
    put = ark.keep(ark.scatter(x, x[..., :1, :], at, axis=6))
    joined = ark.keep(ark.concat([x, x[:, :, :1]], axis=2))
    data = random(rng, shape)
    chosen, places = (rng.integers(0, n, s, np.int32) for n, s in ((2, index.shape), (3, 2)))
    with running(x.model, ("cpu", 2)) as session:
        turn(session, [(x, data), (index, chosen), (at, places)])
        want = np.take_along_axis(data[..., :1], chosen, axis=3)
        assert np.array_equal(read(session, taken), want)
        want = data.copy()
        for b in range(2):
            want[b, ..., places[b] : places[b] + 1, :] = data[b, ..., :1, :]
        assert np.array_equal(read(session, put), want)
        assert np.array_equal(read(session, joined), np.concatenate([data, data[:, :, :1]], 2))


# Looking up.


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("bad", [-1, 6, 2**31 - 1, -(2**31)])
def test_an_index_outside_a_dimension_names_itself(machine: tuple[str, int], bad: int) -> None:
    model = ark.Model()
    x, index = model.tensor((3, 6)), model.tensor((3, 2), "int32")
    model.gather(x, index, 1, name="taken")
    data = np.zeros((3, 2), np.int32)
    data[1, 1] = bad
    text = rf"\(gather 'taken'\) of method 'forward', iteration 0: index {bad} is outside a dim"
    with (
        running(model, machine) as session,
        pytest.raises(TaskError, match=text + "ension of size 6"),
    ):
        turn(session, [(index, data)])


def test_gather_refuses_what_it_can_not_use() -> None:
    x, index = ark.tensor((3, 6)), ark.tensor((3, 2), "int32")
    refused: Refused = (
        (lambda: ark.gather(x, x, 1), TypeError, "gather: indices are fp32; cast them to int32"),
        (lambda: ark.gather(x, index[0], 1), ValueError, r"gather: index is \(2,\), input is \(3"),
        (lambda: ark.gather(x[:2], index, 1), ValueError, r"gather: index is \(3, 2\), input is"),
        (lambda: ark.gather(x, index, 2), ValueError, "gather: axis 2 is out of range"),
        (lambda: ark.gather(x, 1, 0), TypeError, "gather: index is 1; it must be a tensor"),  # type: ignore[arg-type]
    )
    check_refused(refused)


# Windows.


@pytest.mark.parametrize("machine", MACHINES)
def test_a_convolution_is_a_product_with_the_windows(machine: tuple[str, int], rng: Rng) -> None:
    model = ark.Model()
    x, weight = model.tensor((2, 3, 9, 8)), model.tensor((4, 3, 3, 2))
    columns = model.im2col(x, 3, 2, stride_height=2, pad_height=1, pad_width=1, dilation_width=2)
    result = model.keep(model.matmul(weight.view(4, 18), columns).view(2, 4, 5, 8))
    data, taps = random(rng, x.shape), random(rng, weight.shape)
    padded = np.pad(data.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    want = np.zeros((2, 4, 5, 8))
    for i in range(3):
        for j in range(2):
            part = padded[:, :, i : i + 9 : 2, 2 * j : 2 * j + 8]
            want += np.einsum("mc,nchw->nmhw", taps[:, :, i, j].astype(np.float64), part)
    with running(model, machine) as session:
        turn(session, [(x, data), (weight, taps)])
        # Whole numbers below 2**24: fp32 has them exactly.
        assert np.array_equal(read(session, result), want)


def test_windows_that_do_not_fit_are_explained() -> None:
    x = ark.tensor((2, 5, 6))
    good = {"kernel_height": 2, "kernel_width": 2}
    for change, text in (
        (
            {"kernel_height": 0},
            "im2col: along the height, kernel is 0, stride 1, dilation 1 and pa",
        ),
        ({"stride_width": 0}, "im2col: along the width, kernel is 2, stride 0"),
        ({"dilation_width": -1}, "im2col: along the width, kernel is 2, stride 1, dilation -1"),
        ({"pad_height": -1}, "im2col: along the height, .* pad -1; they must be 1 or more, pad 0"),
        ({"kernel_height": 6}, r"im2col: the window reaches over 6 elements of the height, the in"),
        ({"dilation_width": 6}, r"im2col: the window reaches over 7 .* has 6 and 0 of padding"),
    ):
        with pytest.raises(ValueError, match=f"^{text}"):
            ark.im2col(x, **{**good, **change})  # type: ignore[arg-type]  # integers all
    with pytest.raises(ValueError, match=r"im2col: input is \(5, 6\); it must be \(N, C, H, W\)"):
        ark.im2col(x[0], 2, 2)


# Constants.


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_constants_have_one_value_everywhere(dtype: str) -> None:
    results: list[tuple[Callable[..., ark.Tensor], tuple[Any, ...], int]] = [
        (ark.zeros, ((2, 3), dtype), 0),
        (ark.ones, ((2, 3), dtype), 1),
        (ark.full, ((2, 3), 1, dtype), 1),
    ]
    for make, arguments, value in results:
        found = compute(ark.copy(make(*arguments)))
        assert np.array_equal(found, np.full((2, 3), value, DTYPES[dtype].numpy))
        assert found.dtype == DTYPES[dtype].numpy


def test_constants_take_one_element_and_other_sizes_share_it() -> None:
    model = ark.Model()
    model.add(model.zeros(2**40), model.zeros((5, 2**40), name="more"))
    assert [b.shape for b in model.freeze().buffers if b.kind == "constant"] == [(1,)]
    assert model.zeros(3).dtype is ark.FP32
    assert model.ones(()).shape == ()
    assert model.full((0, 2), -3, "int8").shape == (0, 2)


def test_values_that_are_no_constants_are_explained() -> None:
    with pytest.raises(TypeError, match=r"full: value is \[1, 2\]; it must be a number, or use co"):
        ark.full(2, [1, 2])  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="full: value is 'x'; it must be a number"):
        ark.full(2, "x")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="constant: a value does not fit uint8"):
        ark.full(2, -1, "uint8")
    with pytest.raises(ValueError, match=r"shape is \(-1,\); sizes must be 0 or more"):
        ark.zeros(-1)
