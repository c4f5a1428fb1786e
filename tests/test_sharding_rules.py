"""Operators computed in parts, as their sharding rules cut them, give what they give whole."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise, product

import numpy as np
import pytest

from ark_dist.core.dtype import DTYPES, DType
from ark_dist.core.op import OPS, Array, Attrs, AttrValue, Op, Specs
from ark_dist.core.shape import Box, Shape, box_shape, full_box
from ark_dist.core.sharding import Dim, Rule, local_boxes, rule_of
from ark_dist.core.view import Spec
from tests.operator_cases import (
    INDEX_INPUTS,
    TABLE_ROWS,
    attributes,
    input_dtypes,
    random_data,
    shaper,
)
from tests.test_attention import random_case

CASES = 22
COMBINE = {"sum": np.add, "max": np.maximum, "min": np.minimum}
# Views are no nodes; of the others, those without a rule are computed whole by every rank.
COMPUTED = sorted(name for name, op in OPS.items() if op.view is None and op.sharding is not None)
Rng = np.random.Generator


@dataclass(frozen=True)
class Case:
    """One application of an operator on data; floats are float64."""

    op: Op
    specs: Specs
    attrs: Attrs
    data: tuple[Array, ...]

    @property
    def out(self) -> Spec:
        return self.op.infer(self.specs, self.attrs)

    @property
    def rule(self) -> Rule:
        rule = rule_of(self.op, self.specs, self.out, self.attrs)
        assert rule is not None, (self.op.name, self.specs)
        return rule

    def part(self, parts: dict[str, tuple[int, int]]) -> tuple["Case", Box]:
        """What a rank computes that holds these parts of letters, and where it belongs."""
        boxes, box = local_boxes(self.rule, parts, self.specs, self.out)
        attrs = self.attrs
        if self.op.localize is not None:
            attrs = self.op.localize(self.specs, self.out, attrs, boxes, box)
        specs = tuple(
            replace(spec, shape=box_shape(b)) for spec, b in zip(self.specs, boxes, strict=True)
        )
        data = tuple(_cut(array, b) for array, b in zip(self.data, boxes, strict=True))
        return Case(self.op, specs, attrs, data), box

    def result(self) -> Array:
        """The reference's result, from what it says that it reads."""
        box = full_box(self.out.shape)
        boxes = self.op.in_boxes(self.specs, self.out, self.attrs, box)
        tiles = tuple(_cut(array, b) for array, b in zip(self.data, boxes, strict=True))
        with np.errstate(all="ignore"):
            return self.op.reference(tiles, self.attrs, box)


def _cut(array: Array, box: Box) -> Array:
    return array[tuple(slice(*interval) for interval in box)]


def _shared_case(op: Op, number: int, rng: Rng) -> Case:
    """A case as the shared tests of operators make them."""
    shapes, made = shaper(op)(rng, number)
    dtype = next(name for name in ("fp32", "int32", "bool") if name in op.dtypes)
    names = input_dtypes(op, dtype, len(shapes))
    is_special = number % 3 == 2
    data = []
    for position, (shape, name) in enumerate(zip(shapes, names, strict=False)):
        array = random_data(rng, shape, DTYPES[name], is_special=is_special, is_wide=False)
        if (op.name, position) in INDEX_INPUTS:
            array = rng.integers(0, TABLE_ROWS, shape, np.int32)
        data.append(array)
    return _case(op, data, attributes(op, made))


def _case(op: Op, data: list[Array], attrs: Attrs) -> Case:
    specs = tuple(Spec(a.shape, _dtype(a)) for a in data)
    wide = tuple(
        a.astype(np.float64) if s.dtype.is_float else a for a, s in zip(data, specs, strict=True)
    )
    return Case(op, specs, attrs, wide)


def _dtype(array: Array) -> DType:
    return next(d for d in DTYPES.values() if d.numpy == array.dtype)


def _attention_case(number: int, rng: Rng) -> Case:
    drawn = random_case(rng)
    b, t, h, g, s, d, w = drawn.sizes
    shapes: list[Shape] = [(b, t, h, d), (b, s, g, d), (b, s, g, w)]
    data: list[Array] = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    if drawn.length is not None:
        shape = (drawn.length,) if drawn.length else ()
        data.append(rng.integers(0, s, shape, np.int32, endpoint=True))
    made = {"causal": drawn.causal, "scale": drawn.scale}
    return _case(OPS["attention"], data, attributes(OPS["attention"], made))


def _rope_case(number: int, rng: Rng) -> Case:
    batch, times, heads, depth = (int(rng.integers(1, 5)) for _ in range(4))
    width = 2 * int(rng.integers(0, depth + 1))
    shape: Shape = (batch, times, heads, 2 * depth)
    table: Shape = (9, width)
    position: list[Array] = []
    if number % 2:
        given: Shape = [(), (1,), (batch,)][number // 2 % 3]
        position = [rng.integers(0, 9 - times + 1, given, np.int32)]
    else:
        cut = tuple(1 if rng.random() < 0.4 else n for n in shape[:-1])
        table = (*cut[int(rng.integers(0, 4)) :], width)
    data = [rng.normal(size=n).astype(np.float32) for n in (shape, table)]
    made = {"interleaved": bool(number % 3)}
    return _case(OPS["rope"], [*data, *position], attributes(OPS["rope"], made))


def cases(name: str) -> Iterator[Case]:
    """All cases of an operator, the same ones each time."""
    rng = np.random.default_rng([7, *name.encode()])
    for number in range(CASES):
        if name == "attention":
            yield _attention_case(number, rng)
        elif name == "rope":
            yield _rope_case(number, rng)
        else:
            yield _shared_case(OPS[name], number, rng)


def cuts(size: int, rng: Rng) -> Iterator[list[tuple[int, int]]]:
    """Ways to cut a dimension into 2 and 3 uneven parts, some of them empty."""
    for count in (2, 3):
        inner = np.sort(rng.integers(0, size + 1, count - 1)).tolist()
        yield list(pairwise([0, *inner, size]))
    yield [(0, 0), (0, size), (size, size)]


def sizes_of(case: Case) -> dict[str, int]:
    """The size of each letter."""
    rows = zip((*case.rule.inputs, case.rule.output), (*case.specs, case.out), strict=True)
    pairs = ((d, n) for dims, spec in rows for d, n in zip(dims, spec.shape, strict=True))
    return {dim.letter: size for dim, size in pairs if dim.ratio == 1}


def assemble(
    case: Case, letters: tuple[str, ...], grid: list[list[tuple[int, int]]]
) -> Array | None:
    """The whole result from those of all parts; None where the operator takes no empty part."""
    partial: dict[Box, list[Array]] = {}
    for intervals in product(*grid):
        part, box = case.part(dict(zip(letters, intervals, strict=True)))
        try:
            assert part.out.shape == box_shape(box)
            result = part.result()
        except ValueError:
            assert any(start == stop for start, stop in intervals)
            return None
        assert result.shape == box_shape(box)
        partial.setdefault(box, []).append(result)
    whole: Array | None = None
    for box, results in partial.items():
        with np.errstate(all="ignore"):
            total = reduce(COMBINE[case.rule.reduce], results)
        whole = np.zeros(case.out.shape, total.dtype) if whole is None else whole
        whole[tuple(slice(*i) for i in box)] = total
    return whole


def check(case: Case, letters: tuple[str, ...], grid: list[list[tuple[int, int]]]) -> bool:
    found = assemble(case, letters, grid)
    if found is None:
        return False
    wanted = case.result()
    where = f"{case.op.name} {[s.shape for s in case.specs]} {case.attrs} {letters} {grid}"
    if wanted.dtype.kind == "f":
        pair = found.astype(np.float64), wanted.astype(np.float64)
        np.testing.assert_allclose(*pair, rtol=1e-9, atol=1e-9, err_msg=where)
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=where)
    return True


@pytest.mark.parametrize("name", COMPUTED)
def test_parts_along_any_letter_make_the_whole(name: str) -> None:
    rng = np.random.default_rng([8, *name.encode()])
    checked = 0
    for case in cases(name):
        sizes = sizes_of(case)
        for letter in case.rule.letters:
            for parts in cuts(sizes[letter], rng):
                checked += check(case, (letter,), [parts])
    assert checked >= CASES


@pytest.mark.parametrize("name", COMPUTED)
def test_parts_along_all_letters_at_once_make_the_whole(name: str) -> None:
    """As on a mesh: a product of cuts, at most three letters of them."""
    rng = np.random.default_rng([9, *name.encode()])
    for case in cases(name):
        sizes = sizes_of(case)
        letters = tuple(rng.permutation(list(case.rule.letters))[:3].tolist())
        grid = [next(cuts(sizes[letter], rng)) for letter in letters]
        check(case, letters, grid)


def spec(*shape: int, dtype: str = "fp32") -> Spec:
    return Spec(shape, DTYPES[dtype])


# Dimensions that may be cut, "+", and that are whole, ".", read by hand: the tests above don't show
# what could be cut and is not. Then how many letters are contracted.
DIMS: dict[str, tuple[list[Spec], dict[str, AttrValue], str, int]] = {
    "add": ([spec(4, 1, 3), spec(5, 3)], {}, "+.+,++->+++", 0),
    "softmax": ([spec(4, 5, 6)], {"axis": 1}, "+.+->+.+", 0),
    "layernorm": ([spec(4, 6), spec(6), spec(6)], {}, "+.,.,.->+.", 0),
    "cumsum": ([spec(4, 6)], {"axis": 0}, ".+->.+", 0),
    "reduce_sum": ([spec(4, 5, 6)], {"axis": (0, 2), "keepdims": True}, "+++->.+.", 2),
    "reduce_max": ([spec(4, 5)], {"axis": 1, "keepdims": False}, "++->+", 1),
    "reduce_mean": ([spec(4, 5)], {"axis": 1, "keepdims": False}, "+.->+", 0),
    "argmax": ([spec(4, 5)], {"axis": -1, "keepdims": False}, "+.->+", 0),
    "embedding": ([spec(2, 1, dtype="int32"), spec(9, 4)], {}, "+.,++->+.+", 1),
    "gather": ([spec(4, 5, 6), spec(4, 9, 2, dtype="int32")], {"axis": 1}, "+..,++.->++.", 0),
    "scatter": ([spec(4, 5), spec(4, 1), spec(4, dtype="int32")], {"axis": 1}, "+.,+.,+->+.", 0),
    "rope": ([spec(2, 3, 4, 8), spec(3, 1, 8)], {}, "+++.,+..->+++.", 0),
}


@pytest.mark.parametrize("name", DIMS)
def test_dimensions_that_may_be_cut_are_these(name: str) -> None:
    specs, given, wanted, contracted = DIMS[name]
    op = OPS[name]
    attrs = attributes(op, given)
    rule = rule_of(op, tuple(specs), op.infer(tuple(specs), attrs), attrs)
    assert rule is not None
    terms = ["".join("+."[dim.is_whole] for dim in dims) for dims in (*rule.inputs, rule.output)]
    assert f"{','.join(terms[:-1])}->{terms[-1]}" == wanted
    assert len(rule.contracted) == contracted
    assert rule.reduce == ("max" if name == "reduce_max" else "sum")


@pytest.mark.parametrize("turned", [False, True])
def test_k_of_a_matmul_is_contracted_but_not_before_relu(turned: bool) -> None:
    op = OPS["matmul"]
    specs = (spec(7, 1, 2, 3), spec(5, 4, 3) if turned else spec(5, 3, 4))
    attrs = attributes(op, {"transpose_other": turned})
    rule = rule_of(op, specs, op.infer(specs, attrs), attrs)
    assert rule is not None and rule.contracted == ("k",)
    assert len(rule.letters) == 5
    attrs = {**attrs, "is_relu": True}
    rule = rule_of(op, specs, op.infer(specs, attrs), attrs)
    assert rule is not None and rule.contracted == ()


def attention_of(heads: int, groups: int) -> tuple[Specs, Spec, Attrs]:
    specs = (spec(2, 5, heads, 8), spec(2, 9, groups, 8), spec(2, 9, groups, 6))
    attrs = attributes(OPS["attention"], {})
    return specs, OPS["attention"].infer(specs, attrs), attrs


def test_nine_heads_of_three_keys_on_two_ranks_share_the_middle_key() -> None:
    op, (specs, out, attrs) = OPS["attention"], attention_of(9, 3)
    rule = rule_of(op, specs, out, attrs)
    assert rule is not None and op.localize is not None
    found = []
    for heads in ((0, 5), (5, 9)):
        boxes, box = local_boxes(rule, {"h": heads}, specs, out)
        local = op.localize(specs, out, attrs, boxes, box)
        found.append((boxes[0][2], boxes[1][2], boxes[2][2], box[2]))
        assert local == {**attrs, "heads_per_key": 3, "first_head": heads[0] % 3}
    assert found == [((0, 5), (0, 2), (0, 2), (0, 5)), ((5, 9), (1, 3), (1, 3), (5, 9))]


def test_whole_groups_of_heads_keep_their_attributes() -> None:
    op, (specs, out, attrs) = OPS["attention"], attention_of(8, 4)
    rule = rule_of(op, specs, out, attrs)
    assert rule is not None and op.localize is not None
    boxes, box = local_boxes(rule, {"h": (2, 6)}, specs, out)
    assert boxes[1][2] == (1, 3)
    assert op.localize(specs, out, attrs, boxes, box) == attrs


def parsed(text: str, shapes: list[Shape], out: Shape) -> Rule:
    op = replace(OPS["add"], sharding=text)
    rule = rule_of(op, tuple(spec(*shape) for shape in shapes), spec(*out), {})
    assert rule is not None
    return rule


def test_a_rule_is_read_as_it_is_written() -> None:
    rule = parsed("...aB,h/3->...ah@min", [(1, 4, 2, 7), (3,)], (4, 2, 8))
    batch = rule.output[0].letter
    assert rule.reduce == "min"
    assert rule.inputs[0][1:] == (Dim(batch, False), Dim("a", False), Dim("B", True))
    assert rule.inputs[0][0].is_whole
    assert rule.inputs[1] == (Dim("h", False, 3),)
    assert rule.letters == (batch, "a", "h")
    assert rule.contracted == ()


def test_parts_that_are_begun_are_held_and_empty_ones_are_empty() -> None:
    part = Dim("h", False, 3).part
    wanted = {(0, 5): (0, 2), (5, 9): (1, 3), (3, 6): (1, 2), (4, 4): (1, 1), (9, 9): (3, 3)}
    assert {given: part(3, {"h": given}) for given in wanted} == wanted
    assert part(3, {}) == (0, 3)
    assert Dim("H", True).part(3, {}) == (0, 3)


def test_an_operator_without_a_rule_has_none() -> None:
    op = OPS["sample"]
    specs = (spec(2, 9), *[spec(dtype="int32")] * 5)
    assert rule_of(op, specs, spec(2, dtype="int32"), {}) is None


@pytest.mark.parametrize(
    ("text", "shapes", "out", "problem"),
    [
        ("ab", [(2, 3)], (2,), r"it must be like"),
        ("a-b->a", [(2, 3)], (2,), r"it must be like"),
        ("a...->a", [(2, 3)], (2,), r"it must be like"),
        ("ab->a@mean", [(2, 3)], (2,), r"'mean' must be one of sum, max, min"),
        ("ab,b->a", [(2, 3)], (2,), r"it has 2 inputs, there are 1"),
        ("abc->a", [(2, 3)], (2,), r"'abc' does not fit shape \(2, 3\)"),
        ("a->a", [(2, 3)], (2,), r"'a' does not fit shape \(2, 3\)"),
        ("ab,b->a", [(2, 3), (4,)], (2,), r"b is 3 and 4 in \(2, 3\), \(4,\) -> \(2,\)"),
        ("a,a/2->a", [(5,), (2,)], (5,), r"a is 2 and 3 in"),
        ("a/2->A", [(5,)], (5,), r"a/2 is not a part of a letter that is cut"),
        ("a,a/0->a", [(5,), (5,)], (5,), r"a/0 is not a part"),
        ("A->a", [(5,)], (5,), r"a of the output must be a letter of an input"),
    ],
)
def test_a_rule_that_does_not_fit_names_operator_and_text(
    text: str, shapes: list[Shape], out: Shape, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parsed(text, shapes, out)
    assert str(caught.value).startswith(f"add: sharding rule {text!r}: ")


def test_a_letter_that_is_not_cut_is_refused() -> None:
    rule = parsed("aB->aB", [(2, 3)], (2, 3))
    with pytest.raises(ValueError, match=r"letters B, q are not cut by the rule; it cuts a"):
        local_boxes(rule, {"B": (0, 1), "q": (0, 1)}, (spec(2, 3),), spec(2, 3))
