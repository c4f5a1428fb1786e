"""Operators computed in parts, as their sharding rules cut them, give what they give whole."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise, product

import numpy as np
import pytest

from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import OPS, Array, Attrs, Op, Specs
from ark_dist.core.shape import Box, Shape, box_shape, full_box
from ark_dist.core.sharding import Rule, local_boxes, rule_of
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
# Operators that every rank computes whole: what they do depends on where elements are, or
# they only come to be when a rank's own graph is planned.
WHOLE = {
    *("command_scalar", "stop_when", "sample", "concat"),
    *("attention_part", "attention_merge", "matmul_part", "embedding_part"),
}
OWN = ("attention", "rope")
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


def _dtype(array: Array) -> object:
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
        given: Shape = [(), (1,), (batch,)][number // 2 % 3]  # type: ignore[assignment]
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
    rule, partial = case.rule, {}
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
    whole = np.zeros(case.out.shape, result.dtype)
    for box, results in partial.items():
        with np.errstate(all="ignore"):
            whole[tuple(slice(*i) for i in box)] = reduce(COMBINE[rule.reduce], results)
    return whole


def check(case: Case, letters: tuple[str, ...], grid: list[list[tuple[int, int]]]) -> bool:
    found = assemble(case, letters, grid)
    if found is None:
        return False
    wanted = case.result()
    where = f"{case.op.name} {[s.shape for s in case.specs]} {case.attrs} {letters} {grid}"
    if wanted.dtype.kind == "f":
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9, err_msg=where)
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
