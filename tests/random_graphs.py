"""Make random models and compute what they must give, in float64, node by node."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import numpy as np

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.data import as_array
from ark_dist.core.graph import Graph
from ark_dist.core.op import OPS, Array, AttrValue
from ark_dist.core.shape import full_box
from ark_dist.core.view import View

MATMUL: dict[str, AttrValue] = {
    "transpose_input": False,
    "transpose_other": False,
    "is_relu": False,
}
# Large enough that layernorm does not blow rounding errors of flat rows up.
EPS = 0.5
MIN_NODES = 12


@dataclass
class RandomModel:
    """A model with everything a test needs to run it."""

    builder: GraphBuilder
    inputs: list[Value] = field(default_factory=list)
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
        self.flags: list[Value] = []

    @property
    def builder(self) -> GraphBuilder:
        return self.model.builder

    def shape(self, most: int = 3) -> tuple[int, ...]:
        sizes = [1, 2, 3, 5, 8, 13, 32, 65]
        return tuple(self.rng.choice(sizes) for _ in range(self.rng.randint(1, most)))

    def apply(self, op: str, inputs: list[Value | float], **attrs: AttrValue) -> Value:
        return self.builder.apply(op, inputs, attrs)

    def leaf(self, shape: tuple[int, ...]) -> Value:
        make = self.rng.choice([self.builder.tensor, self.builder.parameter])
        value = make(shape, self.dtype)
        self.model.inputs.append(value)
        return value

    def partner(self, value: Value) -> Value:
        """Another value that broadcasts with this one."""
        shape = value.view.shape
        fitting = [
            v for v in self.pool if v.view.shape == shape and v.view.dtype == value.view.dtype
        ]
        if fitting and self.rng.random() < 0.6:
            return self.rng.choice(fitting)
        cut = tuple(1 if self.rng.random() < 0.3 else size for size in shape)
        return self.leaf(cut[self.rng.randint(0, len(cut) - 1) :] if cut else cut)

    def scaled(self, value: Value, factor: float) -> Value:
        return self.apply("mul", [value, factor])

    def grow(self) -> None:
        """Add one random operator."""
        value = self.rng.choice(self.pool)
        makers: list[Callable[[Value], Value | None]] = [
            self.binary,
            self.binary,
            self.scalar,
            self.unary,
            self.matmul,
            self.row,
            self.reduce,
            self.movement,
            self.movement,
            self.state,
            self.counter,
            self.lookup,
        ]
        made = self.rng.choice(makers)(value)
        if made is not None and prod(made.view.shape) <= 1 << 14:
            self.pool.append(made)

    def binary(self, value: Value) -> Value:
        op = self.rng.choice(["add", "sub", "mul"])
        pair: list[Value | float] = [value, self.partner(value)]
        if self.rng.random() < 0.5:
            pair.reverse()
        return self.scaled(self.apply(op, pair), 0.5)

    def scalar(self, value: Value) -> Value:
        op = self.rng.choice(["add", "sub", "mul", "div"])
        return self.apply(op, [value, self.rng.choice([0.5, -1.25, 2.0])])

    def unary(self, value: Value) -> Value:
        return self.apply(self.rng.choice(["relu", "copy"]), [value])

    def matmul(self, value: Value) -> Value | None:
        shape = value.view.shape
        if len(shape) < 2:
            return None
        turn, turn_other = self.rng.random() < 0.3, self.rng.random() < 0.3
        k = shape[-2] if turn else shape[-1]
        n = self.rng.choice([1, 3, 16, 65, 130])
        batch = shape[:-2] if self.rng.random() < 0.5 else ()
        other = self.leaf((*batch, n, k) if turn_other else (*batch, k, n))
        result = self.apply(
            "matmul",
            [value, other],
            transpose_input=turn,
            transpose_other=turn_other,
            is_relu=self.rng.random() < 0.3,
        )
        return self.scaled(result, 1.0 / k)

    def row(self, value: Value) -> Value:
        axis = self.rng.randrange(-len(value.view.shape), len(value.view.shape))
        if self.rng.random() < 0.5:
            return self.apply("softmax", [value], axis=axis)
        result = self.apply("layernorm", [value], axis=-1, eps=EPS)
        if len(result.view.shape) >= 2 and self.rng.random() < 0.7:
            other = self.leaf((result.view.shape[-1], self.rng.choice([64, 96])))
            return self.scaled(self.apply("matmul", [result, other], **MATMUL), 0.25)
        return result

    def reduce(self, value: Value) -> Value:
        op = self.rng.choice(["reduce_mean", "reduce_max", "reduce_sum"])
        axis = self.rng.randrange(-len(value.view.shape), len(value.view.shape))
        size = value.view.shape[axis]
        keep = len(value.view.shape) == 1 or self.rng.random() < 0.5
        result = self.apply(op, [value], axis=axis, keepdims=keep)
        return self.scaled(result, 1.0 / size) if op == "reduce_sum" else result

    def movement(self, value: Value) -> Value:
        shape = value.view.shape
        kind = self.rng.choice(["transpose", "reshape", "narrow", "broadcast_to"])
        if kind == "transpose":
            perm = list(range(len(shape)))
            self.rng.shuffle(perm)
            return self.apply("transpose", [value], perm=tuple(perm))
        if kind == "narrow":
            axis = self.rng.randrange(len(shape))
            length = self.rng.randint(1, shape[axis])
            start = self.rng.randint(0, shape[axis] - length)
            return self.apply("narrow", [value], axis=axis, start=start, length=length)
        if kind == "broadcast_to" and len(shape) < 4:
            wide = tuple(3 if size == 1 else size for size in shape)
            return self.apply("broadcast_to", [value], shape=(2, *wide))
        sizes = [d for d in range(1, prod(shape) + 1) if prod(shape) % d == 0]
        first = self.rng.choice(sizes)
        return self.apply("reshape", [value], shape=(first, prod(shape) // first))

    def state(self, value: Value) -> Value:
        """A running average, read before or after it is written."""
        fitting = [s for s in self.model.states if s.view.spec == value.view.spec]
        if fitting and self.rng.random() < 0.7:
            state = self.rng.choice(fitting)
        else:
            state = self.builder.state(
                value.view.shape, value.view.dtype, init=self.rng.choice([0, 0.25])
            )
            self.model.states.append(state)
        before = self.apply("mul", [state, 0.5])
        self.builder.apply("add", [before, self.scaled(value, 0.5)], output=state)
        return self.apply("copy", [state]) if self.rng.random() < 0.5 else before

    def counter(self, value: Value) -> None:
        state = self.builder.state((1,), "int32", init=self.rng.randint(-3, 3))
        self.model.states.append(state)
        result = self.builder.apply("add", [state, self.rng.randint(1, 5)], output=state)
        self.integers.append(self.apply("mul", [result, 3]))

    def lookup(self, value: Value) -> Value:
        """The rows of a table that are largest in an input: exact in every dtype."""
        source = self.leaf((self.rng.choice([1, 4, 7]), 9))
        index = self.apply("argmax", [source], axis=-1, keepdims=False)
        self.integers.append(index)
        return self.apply("embedding", [index, self.leaf((9, self.rng.choice([3, 33])))])

    def method(self, name: str, nodes: int) -> None:
        self.builder.select_method(name)
        self.pool = [self.leaf(self.shape()) for _ in range(2)]
        self.integers = []
        before = len(self.builder._methods[name])
        for _ in range(200):
            self.grow()
            if len(self.builder._methods[name]) - before >= nodes:
                break
        kept = [*self.rng.sample(self.pool, min(3, len(self.pool))), *self.integers]
        for value in kept:
            self.builder.keep(value)
        self.model.outputs[name] = kept


def random_model(seed: int, methods: int | None = None) -> RandomModel:
    """A model of one or two methods with at least 12 nodes each."""
    maker = _Maker(seed)
    count = methods if methods is not None else maker.rng.choice([1, 1, 2])
    for number in range(count):
        maker.method("forward" if number == 0 else f"method_{number}", MIN_NODES)
    return maker.model


def fill(model: RandomModel, seed: int) -> dict[int, Array]:
    """Random data for each input buffer, in its dtype."""
    rng = np.random.default_rng(seed)
    data = {}
    for value in model.inputs:
        array = rng.uniform(-1, 1, value.view.shape)
        data[value.view.buffer] = array.astype(value.view.dtype.numpy)
    return data


class Oracle:
    """Computes a graph's methods node by node in float64; knows nothing of plans."""

    def __init__(self, graph: Graph, data: dict[int, Array]) -> None:
        """Start from the inputs and the states' first values."""
        self.graph = graph
        self.memory: dict[int, Array] = {}
        for buffer in graph.buffers:
            if buffer.id in data:
                value = data[buffer.id]
            elif buffer.initial is not None:
                value = as_array(buffer.initial, buffer.dtype, buffer.shape)
            else:
                value = np.zeros(buffer.shape, buffer.dtype.numpy)
            is_float = buffer.dtype.is_float
            self.memory[buffer.id] = value.astype(np.float64) if is_float else value.copy()

    def run(self, method: str, iterations: int) -> None:
        """Run a method; states carry over."""
        nodes = next(m for m in self.graph.methods if m.name == method).nodes
        for _ in range(iterations):
            for node in nodes:
                tiles = tuple(np.array(self.view(v)) for v in node.inputs)
                box = full_box(node.output.shape)
                value = OPS[node.op].reference(tiles, node.attributes, box)
                self.view(node.output)[...] = value

    def view(self, view: View) -> Array:
        """What a view holds."""
        flat = self.memory[view.buffer].reshape(-1)
        if 0 in view.shape:
            return np.empty(view.shape, flat.dtype)
        strides = tuple(s * flat.itemsize for s in view.strides)
        return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)


EPSILON = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}


def tolerance(dtype: str, largest: float) -> float:
    """Allowed absolute error after a few dozen operations.

    Each operation rounds by half an epsilon of its result; results here stay within a small
    factor of 1, errors add up over the chain, and reductions of up to 130 terms add their own.
    """
    return 40 * EPSILON.get(dtype, 0.0) * max(1.0, largest)
