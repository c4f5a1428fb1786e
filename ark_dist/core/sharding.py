"""Turn the sharding rule of an operator into the parts of its tensors that a rank has."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase

from ark_dist.core.op import Attrs, Op, Specs
from ark_dist.core.shape import Box, Shape
from ark_dist.core.view import Spec

REDUCTIONS = ("sum", "max", "min")
_DOTS = "..."
_DIM = re.compile(r"([A-Za-z])(?:/([0-9]+))?")
_TERM = re.compile(r"(?:\.\.\.)?(?:[A-Za-z](?:/[0-9]+)?)*")

Interval = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a tensor in a rule.

    Attributes:
        letter: dimensions with the same letter are cut at the same places.
        is_whole: whether every rank has all of it; its letter is an upper case one.
        ratio: how many positions of the letter share one of this dimension.
    """

    letter: str
    is_whole: bool
    ratio: int = 1

    def part(self, size: int, parts: Mapping[str, Interval]) -> Interval:
        """What a rank has of this dimension, of which there are `size` positions."""
        if self.is_whole or self.letter not in parts:
            return 0, size
        start, stop = parts[self.letter]
        first = start // self.ratio
        return first, -(-stop // self.ratio) if start < stop else first


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operator's tensors are cut together, a letter for each dimension.

    Attributes:
        inputs: the dimensions of each input.
        output: those of the output.
        reduce: "sum", "max" or "min": how results of ranks are combined where a letter of
            `contracted` is cut.
    """

    inputs: tuple[tuple[Dim, ...], ...]
    output: tuple[Dim, ...]
    reduce: str

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters that may be cut: those of the output first, then `contracted`."""
        dims = (*self.output, *(dim for dims in self.inputs for dim in dims))
        return tuple(dict.fromkeys(dim.letter for dim in dims if not dim.is_whole))

    @property
    def contracted(self) -> tuple[str, ...]:
        """The letters that only inputs have: where one is cut, each rank has a partial result."""
        kept = {dim.letter for dim in self.output}
        return tuple(letter for letter in self.letters if letter not in kept)


def rule_of(op: Op, specs: Specs, out: Spec, attrs: Attrs) -> Rule | None:
    """Parse the rule of one application of an operator; None if it can't be cut.

    "ab,bc->ac" has a letter for each dimension, and commas between inputs. A letter is cut at
    the same places wherever it stands; an upper case one is not cut. What only inputs have is
    contracted: results are partial, and are summed, or combined as a suffix "@max" or "@min"
    says. A term may begin with "...": dimensions that broadcast, counted from the last of
    them; sizes of 1 are whole. "..." alone is an elementwise operator. "h/3" has one position
    for each three of h, begun ones included: such parts may overlap.

    Raises ValueError, with operator and rule, if the rule can't be read or doesn't fit.
    """
    text = op.sharding(specs, out, attrs) if callable(op.sharding) else op.sharding
    if text is None:
        return None
    if text == _DOTS:
        text = ",".join([_DOTS] * len(specs)) + "->" + _DOTS
    return _Parser(op.name, text).rule(tuple(spec.shape for spec in specs), out.shape)


def local_boxes(
    rule: Rule, parts: Mapping[str, Interval], specs: Specs, out: Spec
) -> tuple[tuple[Box, ...], Box]:
    """What a rank has of each input, and of the output, that holds `parts` of some letters.

    Raises ValueError for a letter that the rule does not cut.
    """
    unknown = sorted(set(parts) - set(rule.letters))
    if unknown:
        raise ValueError(
            f"letters {', '.join(unknown)} are not cut by the rule; it cuts "
            f"{', '.join(rule.letters) or 'none'}"
        )
    boxes = tuple(
        _box(dims, parts, spec.shape) for dims, spec in zip(rule.inputs, specs, strict=True)
    )
    return boxes, _box(rule.output, parts, out.shape)


def _box(dims: tuple[Dim, ...], parts: Mapping[str, Interval], shape: Shape) -> Box:
    return tuple(dim.part(size, parts) for dim, size in zip(dims, shape, strict=True))


class _Parser:
    """The rule of one operator, as text."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        rest, at, self._reduce = text.partition("@")
        given, arrow, self._output = rest.partition("->")
        self._inputs = given.split(",")
        if not arrow or not all(map(_TERM.fullmatch, (*self._inputs, self._output))):
            raise self._error('it must be like "...ab,bc->...ac" or "ab->b@max"')
        if at and self._reduce not in REDUCTIONS:
            raise self._error(f"{self._reduce!r} must be one of {', '.join(REDUCTIONS)}")
        self._free = [c for c in ascii_lowercase if c not in text and c.upper() not in text]

    def rule(self, shapes: tuple[Shape, ...], out: Shape) -> Rule:
        """The rule for tensors of these shapes."""
        terms = self._inputs if shapes or self._inputs != [""] else []
        if len(terms) != len(shapes):
            raise self._error(f"it has {len(terms)} inputs, there are {len(shapes)}")
        inputs = tuple(self._dims(*pair) for pair in zip(terms, shapes, strict=True))
        rule = Rule(inputs, self._dims(self._output, out), self._reduce or "sum")
        self._check_sizes(rule, shapes, out)
        self._check_letters(rule)
        return rule

    def _dims(self, term: str, shape: Shape) -> tuple[Dim, ...]:
        named = [Dim(c, c.isupper(), int(n or 1)) for c, n in _DIM.findall(term)]
        count = len(shape) - len(named)
        if count < 0 or (count and not term.startswith(_DOTS)):
            raise self._error(f"{term!r} does not fit shape {shape}")
        # From the last on, so that the same letters meet.
        batch = zip(reversed(self._free[:count]), shape[:count], strict=True)
        return (*(Dim(c.upper() if n == 1 else c, n == 1) for c, n in batch), *named)

    def _check_sizes(self, rule: Rule, shapes: tuple[Shape, ...], out: Shape) -> None:
        """Refuse a letter that has several sizes."""
        found = [
            (dim, size)
            for dims, shape in zip((*rule.inputs, rule.output), (*shapes, out), strict=True)
            for dim, size in zip(dims, shape, strict=True)
        ]
        sizes = {dim.letter: size for dim, size in found if dim.ratio == 1}
        for dim, size in found:
            if dim.letter not in sizes or dim.ratio < 1 or (dim.is_whole and dim.ratio != 1):
                raise self._error(f"{dim.letter}/{dim.ratio} is not a part of a letter that is cut")
            wanted = -(-sizes[dim.letter] // dim.ratio)
            if size != wanted:
                raise self._error(
                    f"{dim.letter} is {size} and {wanted} in {', '.join(map(str, shapes))} -> {out}"
                )

    def _check_letters(self, rule: Rule) -> None:
        """Refuse results that no part of an input decides."""
        given = {dim.letter for dims in rule.inputs for dim in dims}
        for dim in rule.output:
            if not dim.is_whole and (dim.letter not in given or dim.ratio != 1):
                raise self._error(f"{dim.letter} of the output must be a letter of an input")

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"{self._name}: sharding rule {self._text!r}: {problem}")
