"""Make random models of all operators, whose values stay small enough to compare."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import Array, AttrValue
from ark_dist.core.shape import MAX_DIMS

Shape = tuple[int, ...]
# Large enough that norms do not blow rounding errors of flat rows up.
EPS = 0.5
MIN_NODES = 20
MOST_ELEMENTS = 1 << 14
# Of operators that read more than they write, or write more than they read.
MOST_READ = 1 << 12
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")


@dataclass
class RandomModel:
    """A model with everything a test needs to run it.

    `limits` has, for each int32 input, the number that all its elements are below.
    """

    builder: GraphBuilder
    inputs: list[Value] = field(default_factory=list)
    limits: dict[int, int] = field(default_factory=dict)
    states: list[Value] = field(default_factory=list)
    outputs: dict[str, list[Value]] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The frozen model."""
        return self.builder.freeze()


class _Maker:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.model = RandomModel(GraphBuilder(f"random_{seed}"))
        self.dtype = self.rng.choice(["fp32", "fp32", "fp16", "bf16"])
        self.pool: list[Value] = []
        self.integers: list[Value] = []
        self.makers: list[Callable[[Value], Value | None]] = [
            *(self.binary, self.binary, self.unary, self.unary, self.unary, self.scalar),
            *(self.choice, self.choice, self.softmax, self.norm, self.prologue, self.cumsum),
            *(self.matmul, self.matmul, self.attention, self.reduce, self.reduce, self.reduce),
            *(self.movement, self.movement, self.cut, self.split, self.concat, self.gather),
            *(self.lookup, self.windows, self.counter, self.state, self.append, self.overwrite),
        ]

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

    def apply(self, op: str, inputs: Sequence[Value | float], **attrs: AttrValue) -> Value:
        return self.builder.apply(op, inputs, attrs)

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
        fitting = [v for v in self.pool if v.view.spec == value.view.spec]
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

    def grow(self) -> None:
        """Add one random operator, or a few that belong together."""
        made = self.rng.choice(self.makers)(self.rng.choice(self.pool))
        if made is not None and prod(made.view.shape) <= MOST_ELEMENTS:
            self.pool.append(made)

    # Elementwise.

    def binary(self, value: Value) -> Value:
        pair: list[Value | float] = [value, self.partner(value)]
        if self.chance(0.5):
            pair.reverse()
        op = self.rng.choice(["add", "sub", "mul", "div", "maximum", "minimum"])
        if op in ("maximum", "minimum"):
            return self.apply(op, pair)
        if op == "div":
            pair[1] = self.apply("add", [self.apply("abs", pair[1:]), 1.0])
        return self.scaled(self.apply(op, pair), 0.5)

    def scalar(self, value: Value) -> Value:
        op = self.rng.choice(["add", "sub", "mul", "div", "maximum", "minimum", "pow"])
        if op == "mul":
            return self.scaled(value, self.rng.choice([0.5, -0.75]))
        if op == "pow":
            return self.apply(op, [self.at_least_half(value), 0.5])
        return self.apply(op, [value, self.rng.choice([2.0, -1.25] if op == "div" else [0.5, 0.0])])

    def at_least_half(self, value: Value) -> Value:
        return self.apply("add", [self.apply("abs", [value]), 0.5])

    def unary(self, value: Value) -> Value:
        """One that makes no error much larger than it was."""
        op = self.rng.choice(
            ["relu", "copy", "neg", "abs", "tanh", "sigmoid", "silu", "gelu", "exp", "exp"]
            + ["sin", "cos", "sqrt", "log", "rsqrt"]
        )
        if op == "exp":
            value = self.apply("minimum", [value, 0.0])
        elif op in ("sqrt", "log", "rsqrt"):
            value = self.at_least_half(value)
        attrs = {"approximate": self.rng.choice(["none", "tanh"])} if op == "gelu" else {}
        return self.apply(op, [value], **attrs)

    def choice(self, value: Value) -> Value:
        """By comparing inputs or integers, which are exact, or where either choice is as good."""
        other = self.partner(value)
        kind = self.rng.randrange(4)
        if kind == 0:
            op = self.rng.choice(["less", "less_equal"])
            return self.apply("where", [self.apply(op, [value, other]), value, other])
        flag = self.flag(value)
        if kind == 1:
            return self.apply("mul", [value, self.apply("cast", [flag], dtype=self.dtype)])
        pair: list[Value | float] = [value, other if kind == 2 else 0.25]
        if self.chance(0.5):
            pair.reverse()
        return self.apply("where", [flag, *pair])

    def flag(self, value: Value) -> Value:
        """A bool that broadcasts to a value, and is the same whatever has been rounded."""
        op = self.rng.choice(COMPARISONS)
        if self.integers and self.chance(0.3):
            number = self.apply("reduce_min", [self.rng.choice(self.integers)], axis=None)
            flag = self.apply(op, [number, self.rng.randint(-3, 9)])
            return self.apply("reshape", [flag], shape=(1,))
        source = self.leaf(self.narrower(value.view.shape))
        other = self.leaf(source.view.shape) if self.chance(0.5) else 0.125
        flag = self.apply(op, [source, other])
        if self.chance(0.2):
            return self.apply("not_equal", [flag, self.apply("greater", [source, -0.25])])
        return flag

    # Rows and matrices.

    def matmul(self, value: Value) -> Value | None:
        shape = value.view.shape
        if len(shape) < 2:
            return None
        turn, turn_other = self.chance(0.3), self.chance(0.3)
        k = shape[-2] if turn else shape[-1]
        n = self.rng.choice([1, 3, 16, 65, 130])
        batch = shape[:-2] if self.chance(0.5) else ()
        other = self.leaf((*batch, n, k) if turn_other else (*batch, k, n))
        result = self.apply(
            "matmul",
            [value, other],
            transpose_input=turn,
            transpose_other=turn_other,
            is_relu=self.chance(0.3),
            splitk=self.rng.choice([1, 1, 2, 3, 8]),
        )
        return self.scaled(result, 1.0 / k)

    def softmax(self, value: Value) -> Value:
        return self.apply("softmax", [value], axis=self.axis(value))

    def norm(self, value: Value, axis: int | None = None) -> Value:
        axis = self.axis(value) if axis is None else axis
        op = self.rng.choice(["layernorm", "rmsnorm"])
        most = 2 if op == "layernorm" else 1
        size = value.view.shape[axis]
        vectors = [self.leaf((size,)) for _ in range(self.rng.randint(0, most))]
        return self.apply(op, [value, *vectors], axis=axis, eps=EPS)

    def prologue(self, value: Value) -> Value:
        """A norm that some matmuls read."""
        result = self.norm(value, -1)
        if len(result.view.shape) < 2:
            return result
        k = result.view.shape[-1]
        count = self.rng.randint(1, 3)
        products = [
            self.apply("matmul", [result, self.leaf((k, 64 if count > 1 else 96))])
            for _ in range(count)
        ]
        gate, *others = [self.scaled(product, 1.0 / k) for product in products]
        for other in others:
            gate = self.apply("mul", [self.apply("silu", [gate]), other])
        return gate

    def reduce(self, value: Value) -> Value:
        op = self.rng.choice(["reduce_mean", "reduce_max", "reduce_min", "reduce_sum"])
        ndim = len(value.view.shape)
        axes = tuple(self.rng.sample(range(-ndim, 0), self.rng.randint(1, ndim)))
        axis = self.rng.choice([axes[0] if len(axes) == 1 else axes, axes, None])
        axes = tuple(range(ndim)) if axis is None else axes
        count = prod(value.view.shape[d] for d in axes)
        keep = len(axes) == ndim or self.chance(0.5)
        source = self.scaled(value, 1.0 / count) if op == "reduce_sum" else value
        return self.apply(op, [source], axis=axis, keepdims=keep)

    def cumsum(self, value: Value) -> Value:
        axis = self.axis(value)
        source = self.scaled(value, 1.0 / value.view.shape[axis])
        return self.apply("cumsum", [source], axis=axis)

    def attention(self, value: Value) -> Value | None:
        """Of rows to themselves, to inputs, or to a cache that they are appended to."""
        shape = value.view.shape
        rows, depth = prod(shape[:-1]), shape[-1]
        if rows > 65:
            return None
        heads = self.rng.choice([n for n in range(1, 4) if rows % n == 0])
        times, wide = rows // heads, {"causal": self.chance(0.6)}
        query = self.apply("reshape", [value], shape=(1, times, heads, depth))
        kind = self.rng.randrange(3)
        if kind == 0:
            result = self.apply("attention", [query, query, self.scaled(query, 0.5)], **wide)
        elif kind == 1:
            groups = self.rng.choice([1, heads])
            keys, width = self.rng.choice([1, 7, 64, 70]), self.rng.choice([1, 5, 16])
            key = self.leaf((1, keys, groups, depth))
            given = [key, self.leaf((1, keys, groups, width))]
            if self.chance(0.5):
                given.append(self.indices(self.rng.choice([(), (1,)]), keys + 1))
            result = self.apply("attention", [query, *given], **wide)
        else:
            room = self.rng.randint(0, 6)
            cache = self.new_state((1, times + room, heads, depth), value.view.dtype.name, 0.25)
            start = self.position(room)
            self.builder.apply("scatter", [cache, query, start], {"axis": 1}, output=cache)
            length = self.apply("add", [start, times])
            result = self.apply("attention", [query, cache, cache, length], **wide)
        return self.apply("reshape", [result], shape=(times, heads * result.view.shape[-1]))

    # Movement and views.

    def movement(self, value: Value) -> Value:
        shape = value.view.shape
        kind = self.rng.choice(["transpose", "reshape", "narrow", "broadcast_to"])
        if kind == "transpose":
            perm = list(range(len(shape)))
            self.rng.shuffle(perm)
            return self.apply("transpose", [value], perm=tuple(perm))
        if kind == "narrow":
            axis = self.axis(value)
            length = self.rng.randint(1, shape[axis])
            start = self.rng.randint(0, shape[axis] - length)
            return self.apply("narrow", [value], axis=axis, start=start, length=length)
        if kind == "broadcast_to" and len(shape) < MAX_DIMS // 2:
            wide = tuple(3 if size == 1 else size for size in shape)
            return self.apply("broadcast_to", [value], shape=(2, *wide))
        sizes = [d for d in range(1, prod(shape) + 1) if prod(shape) % d == 0]
        first = self.rng.choice(sizes)
        return self.apply("reshape", [value], shape=(first, prod(shape) // first))

    def cut(self, value: Value) -> Value:
        """Slices with steps, and at times one index of a dimension."""
        shape = value.view.shape
        steps = tuple(self.rng.choice([1, 1, 2, 3]) for _ in shape)
        starts = tuple(self.rng.randrange((size + 1) // 2) for size in shape)
        result = self.apply("slice", [value], starts=starts, stops=shape, steps=steps)
        rest = result.view.shape
        if len(rest) < 2 or self.chance(0.5):
            return result
        axis = self.axis(result, is_signed=False)
        one = self.apply("narrow", [result], axis=axis, start=-1, length=1)
        return self.apply("view", [one], shape=rest[:axis] + rest[axis + 1 :])

    def split(self, value: Value) -> Value:
        """Two parts: a gate and what passes it, if they have the same size."""
        axis = self.axis(value)
        size = value.view.shape[axis]
        if size == 1:
            return self.unary(value)
        first = self.rng.choice([size // 2, self.rng.randint(1, size - 1)])
        sizes: AttrValue = (first, size - first)
        if 2 * first >= size and self.chance(0.5):
            sizes = first
        a, b = (
            self.apply("split", [value], split_size=sizes, axis=axis, part=part)
            for part in range(2)
        )
        if a.view.shape == b.view.shape:
            return self.apply("mul", [self.apply("sigmoid", [a]), b])
        self.pool.append(self.unary(a))
        return b

    def concat(self, value: Value) -> Value | None:
        """Inputs, parts of the value, and what is computed from it."""
        axis = self.axis(value, is_signed=False)
        shape = value.view.shape
        if prod(shape) > MOST_READ:
            return None
        parts = [self.unary(value)]
        for _ in range(self.rng.randint(0, 3)):
            length = self.rng.randint(1, shape[axis])
            if self.chance(0.5):
                part = self.apply("narrow", [value], axis=axis, start=0, length=length)
                parts.append(self.unary(part) if self.chance(0.7) else part)
            else:
                parts.append(self.leaf((*shape[:axis], length, *shape[axis + 1 :])))
        self.rng.shuffle(parts)
        return self.apply("concat", parts, axis=axis)

    def gather(self, value: Value) -> Value | None:
        shape, axis = value.view.shape, self.axis(value, is_signed=False)
        if prod(shape) > MOST_READ:
            return None
        wanted = [self.rng.randint(1, size) if self.chance(0.3) else size for size in shape]
        wanted[axis] = self.rng.choice([1, 2, 4])
        index = self.indices(tuple(wanted), shape[axis])
        return self.apply("gather", [value, index], axis=axis)

    def lookup(self, value: Value) -> Value:
        """The rows of a table that are largest in an input: exact in every dtype."""
        source = self.leaf((self.rng.choice([1, 4, 7]), 9))
        index = self.apply("argmax", [source], axis=-1, keepdims=False)
        self.integers.append(index)
        return self.apply("embedding", [index, self.leaf((9, self.rng.choice([3, 33])))])

    def windows(self, value: Value) -> Value | None:
        """What a convolution multiplies."""
        if len(value.view.shape) not in (3, 4) or prod(value.view.shape) > MOST_READ:
            return None
        attrs = {}
        for side, size in zip(("height", "width"), value.view.shape[-2:], strict=True):
            numbers = {"kernel": min(self.rng.randint(1, 2), size), "stride": 2, "dilation": 1}
            numbers["pad"] = self.rng.randint(0, 1)
            attrs |= {f"{name}_{side}": number for name, number in numbers.items()}
        return self.apply("im2col", [value], **attrs)

    # State.

    def state(self, value: Value) -> Value:
        """A running average, read before or after it is written."""
        fitting = [s for s in self.model.states if s.view.spec == value.view.spec]
        if fitting and self.chance(0.7):
            state = self.rng.choice(fitting)
        else:
            init = self.rng.choice([0, 0.25])
            state = self.new_state(value.view.shape, value.view.dtype.name, init)
        before = self.apply("mul", [state, 0.5])
        self.builder.apply("add", [before, self.scaled(value, 0.5)], output=state)
        return self.apply("copy", [state]) if self.chance(0.5) else before

    def position(self, limit: int, rows: int = 1) -> Value:
        """Numbers from 0 to limit that go round, as they are before or after a step."""
        state = self.new_state((rows,), "int32", [self.rng.randint(0, limit) for _ in range(rows)])
        before = self.apply("copy", [state])
        next_one = self.apply("add", [state, 1])
        is_inside = self.apply("less", [state, limit])
        self.builder.apply("where", [is_inside, next_one, 0], output=state)
        return before if self.chance(0.5) else state

    def append(self, value: Value) -> Value | None:
        """A cache that the value is written into, where the model counts."""
        shape, axis = value.view.shape, self.axis(value, is_signed=False)
        if prod(shape) > MOST_READ:
            return None
        room = self.rng.randint(0, 5)
        wide = (*shape[:axis], shape[axis] + room, *shape[axis + 1 :])
        cache = self.new_state(wide, value.view.dtype.name, self.rng.choice([0, 0.25]))
        position = self.position(room, shape[0] if axis and self.chance(0.5) else 1)
        self.builder.apply("scatter", [cache, value, position], {"axis": axis}, output=cache)
        if self.chance(0.3):
            return cache
        start = self.rng.randint(0, room)
        return self.apply("narrow", [cache], axis=axis, start=start, length=shape[axis])

    def overwrite(self, value: Value) -> Value:
        """A copy of the value with a part replaced."""
        shape, axis = value.view.shape, self.axis(value, is_signed=False)
        length = self.rng.randint(1, shape[axis])
        part = self.leaf((*shape[:axis], length, *shape[axis + 1 :]))
        position = self.indices((), shape[axis] - length + 1)
        return self.apply("scatter", [value, part, position], axis=axis)

    def counter(self, value: Value) -> None:
        state = self.new_state((1,), "int32", self.rng.randint(-3, 3))
        result = self.builder.apply("add", [state, self.rng.randint(1, 5)], output=state)
        op = self.rng.choice(["mul", "maximum", "minimum", "sub"])
        number = self.apply(op, [result, 3])
        self.integers.append(self.apply(self.rng.choice(["neg", "abs", "relu"]), [number]))

    def method(self, name: str, nodes: int) -> None:
        self.builder.select_method(name)
        self.pool = [self.leaf(self.shape()) for _ in range(2)]
        self.integers = []
        before = len(self.builder._methods[name])
        for _ in range(200):
            self.grow()
            if len(self.builder._methods[name]) - before >= nodes:
                break
        kept = [*self.rng.sample(self.pool, min(4, len(self.pool))), *self.integers]
        for value in kept:
            self.builder.keep(value)
        self.model.outputs[name] = kept


def random_model(seed: int, methods: int | None = None) -> RandomModel:
    """A model of one or two methods with at least 20 nodes each."""
    maker = _Maker(seed)
    count = methods if methods is not None else maker.rng.choice([1, 1, 2])
    for number in range(count):
        maker.method("forward" if number == 0 else f"method_{number}", MIN_NODES)
    return maker.model


def fill(model: RandomModel, seed: int) -> dict[int, Array]:
    """Random data for each input buffer, in its dtype."""
    rng = np.random.default_rng(seed)
    data: dict[int, Array] = {}
    for value in model.inputs:
        view = value.view
        if view.buffer in model.limits:
            data[view.buffer] = rng.integers(0, model.limits[view.buffer], view.shape, np.int32)
        else:
            data[view.buffer] = rng.uniform(-1, 1, view.shape).astype(view.dtype.numpy)
    return data
