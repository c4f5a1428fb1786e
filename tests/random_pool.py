"""Hold the tensors of a random model while it grows, and make new ones."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue

Shape = tuple[int, ...]


@dataclass
class RandomModel:
    """A model with everything a test needs to run it.

    `limits` has, for each int32 input, the number that all its elements are below; `uses` counts
    operators.
    """

    builder: GraphBuilder
    inputs: list[Value] = field(default_factory=list)
    limits: dict[int, int] = field(default_factory=dict)
    states: list[Value] = field(default_factory=list)
    outputs: dict[str, list[Value]] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    @property
    def graph(self) -> Graph:
        """The frozen model."""
        return self.builder.freeze()


class Pool:
    """What new operators may read, and the choices that make one model differ from another."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.model = RandomModel(GraphBuilder(f"random_{seed}"))
        self.dtype = self.rng.choice(["fp32", "fp32", "fp16", "bf16"])
        self.values: list[Value] = []
        self.integers: list[Value] = []

    @property
    def builder(self) -> GraphBuilder:
        return self.model.builder

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def axis(self, value: Value, *, is_signed: bool = True) -> int:
        count = len(value.view.shape)
        return self.rng.randrange(-count if is_signed else 0, count)

    def shape(self, most: int = 3) -> Shape:
        sizes = [1, 2, 3, 5, 8, 13, 32, 65]
        return tuple(self.rng.choice(sizes) for _ in range(self.rng.randint(1, most)))

    def apply(
        self,
        op: str,
        inputs: Sequence[Value | float],
        *,
        output: Value | None = None,
        **attrs: AttrValue,
    ) -> Value:
        return self.apply_with(op, inputs, attrs, output)

    def apply_with(
        self,
        op: str,
        inputs: Sequence[Value | float],
        attrs: Mapping[str, AttrValue],
        output: Value | None = None,
    ) -> Value:
        self.model.uses[op] += 1
        return self.builder.apply(op, inputs, attrs, output=output)

    def leaf(self, shape: Shape) -> Value:
        make = self.rng.choice([self.builder.tensor, self.builder.parameter])
        value = make(shape, self.dtype)
        self.model.inputs.append(value)
        return value

    def indices(self, shape: Shape, limit: int) -> Value:
        """Numbers from 0 to limit - 1 that the host writes."""
        value = self.builder.tensor(shape, "int32")
        self.model.inputs.append(value)
        self.model.limits[value.view.buffer] = limit
        return value

    def new_state(self, shape: Shape, dtype: str, init: object) -> Value:
        value = self.builder.state(shape, dtype, init=init)
        self.model.states.append(value)
        return value

    def partner(self, value: Value) -> Value:
        """Another value that broadcasts with this one."""
        fitting = [v for v in self.values if v.view.spec == value.view.spec]
        if fitting and self.chance(0.6):
            return self.rng.choice(fitting)
        return self.leaf(self.narrower(value.view.shape))

    def narrower(self, shape: Shape) -> Shape:
        """A shape that broadcasts to this one."""
        cut = tuple(1 if self.chance(0.3) else size for size in shape)
        return cut[self.rng.randint(0, len(cut) - 1) :] if cut else cut

    def scaled(self, value: Value, factor: float) -> Value:
        if self.chance(0.5):
            return self.apply("scale", [value], val=factor)
        return self.apply("mul", [value, factor])

    def position(self, limit: int, rows: int = 1) -> Value:
        """Numbers from 0 to limit that go round, as they are before or after a step."""
        state = self.new_state((rows,), "int32", [self.rng.randint(0, limit) for _ in range(rows)])
        before = self.apply("copy", [state])
        next_one = self.apply("add", [state, 1])
        is_inside = self.apply("less", [state, limit])
        self.apply("where", [is_inside, next_one, 0], output=state)
        return before if self.chance(0.5) else state
