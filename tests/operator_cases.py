"""Make random cases for every registered operator, and say in float64 what each must give."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import DTYPES, DType
from ark_dist.core.op import OPS, Array, Attrs, AttrValue, Op
from ark_dist.core.shape import Shape

# Operators that have tests of their own: of whole programs, and of attention and its like.
SPECIAL = (
    *("command_scalar", "stop_when", "rope", "sample"),
    *("attention", "attention_part", "attention_merge", "matmul_part"),
    *("check_finite", "check_equal"),
)
# What takes several ranks.
COMMUNICATION = ("communication", "handshake")
TESTED = tuple(
    sorted(
        name for name, op in OPS.items() if name not in SPECIAL and op.effect not in COMMUNICATION
    )
)
SHAPES = 22  # cases of one operator and dtype: at least 20 is what was asked for
SIZES = (1, 1, 2, 3, 5, 7, 16, 17, 33, 64, 130)
FORMS = ("plain", "plain", "transposed", "narrowed", "broadcast", "reshaped")
TABLE_ROWS = 9
# Inputs of int32 that count TABLE_ROWS places, by operator and position.
INDEX_INPUTS = (("embedding", 0), ("gather", 1), ("scatter", 2))
MOST_PARTS = 12  # of a sum of ranks' parts

# Where floats leave the ranges of integers, and halves between numbers of a narrower float.
EDGES = (
    *(s * 2.0**b * f for b in (7, 8, 31, 32) for s in (-1, 1) for f in (1, 1 - 2.0**-24)),
    *(127.5, 255.5, -0.5, -128.5, -129.0, 65519.0, 65520.0, 2.0**-25, 2.0**-133),
    *(1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11),
)

Rng = np.random.Generator
Shaper = Callable[[Rng, int], tuple[tuple[Shape, ...], dict[str, AttrValue]]]


@dataclass(frozen=True, slots=True)
class Case:
    """One application of an operator, in a graph that holds many.

    Attributes:
        op, dtype: the operator's name, and that of the dtype it is tried with.
        attrs: its attributes.
        leaves: the tensors that the test writes.
        looks: for each input, how its leaf is looked at, in NumPy's words.
        is_special: whether floats include NaN, infinities and -0.
        output: the tensor to read.
        text: for messages.
    """

    op: str
    dtype: str
    attrs: dict[str, AttrValue]
    leaves: tuple[Value, ...]
    looks: tuple[Callable[[Array], Array], ...]
    is_special: bool
    output: Value
    text: str


def random_shape(rng: Rng, ndim: int, most: int = 6000) -> Shape:
    """A shape of a few thousand elements at most, with odd sizes."""
    while True:
        shape = tuple(int(rng.choice(SIZES)) for _ in range(ndim))
        if prod(shape) <= most:
            return shape


def _elementwise(count: int) -> Shaper:
    def shapes(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
        shape: Shape = random_shape(rng, number % 5)
        if number == 7:
            shape = (3, 0, 2)
        inputs = [shape]
        for _ in range(count - 1):
            cut = tuple(1 if rng.random() < 0.3 else n for n in shape)
            inputs.append(cut[int(rng.integers(0, len(cut) + 1)) :] if rng.random() < 0.4 else cut)
        order = rng.permutation(count)
        return tuple(inputs[i] for i in order), {}

    return shapes


def _rows(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape = random_shape(rng, 1 + number % 4)
    if number == 7:
        shape = (0, 5)
        return (shape,), {"axis": -1, "keepdims": True}
    axis = int(rng.integers(-len(shape), len(shape)))
    eps = float(rng.choice([1e-5, 0.5]))
    return (shape,), {"axis": axis, "keepdims": bool(rng.random() < 0.5), "eps": eps}


def _norm(vectors: int) -> Shaper:
    """Rows, with up to so many vectors along them."""

    def shapes(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
        (shape,), attrs = _rows(rng, number)
        axis = attrs["axis"]
        assert isinstance(axis, int)
        return (shape, *[(shape[axis],)] * int(rng.integers(0, vectors + 1))), attrs

    return shapes


def _reduction(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    """Rows along any dimensions, in any order, or along all."""
    (shape,), attrs = _rows(rng, number)
    dims = rng.permutation(len(shape))[: int(rng.integers(0, len(shape) + 1))]
    axes = tuple(int(d) - len(shape) * int(rng.random() < 0.5) for d in dims)
    axis = (attrs["axis"], axes, axes, None)[number % 4]
    return (shape,), {**attrs, "axis": attrs["axis"] if number == 7 else axis}


def _argmax(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    (shape,), attrs = _rows(rng, number)
    return (shape,), {**attrs, "axis": None if number % 4 == 3 and number != 7 else attrs["axis"]}


def _matmul(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    m, n = (int(rng.choice([1, 2, 3, 5, 6, 7, 13, 64, 75, 130])) for _ in range(2))
    k = int(rng.choice([1, 2, 5, 16, 65, 257]))
    if number == 7:
        k = 0
    if number == 8:
        m = 0
    turned, turned_other = bool(rng.random() < 0.3), bool(rng.random() < 0.3)
    batch: Shape = (2, 3)[: number % 3]
    a = (*batch, *((k, m) if turned else (m, k)))
    other_batch = tuple(1 if rng.random() < 0.3 else size for size in batch)
    other_batch = other_batch[int(rng.integers(0, len(batch) + 1)) :]
    b = (*other_batch, *((n, k) if turned_other else (k, n)))
    attrs = {"transpose_input": turned, "transpose_other": turned_other}
    return (a, b), {**attrs, "is_relu": bool(rng.random() < 0.4)}


def _embedding(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape: Shape = (0,) if number == 7 else random_shape(rng, number % 4, 60)
    width = int(rng.choice([1, 2, 17, 33, 130]))
    if number % 3:
        return (shape, (TABLE_ROWS, width)), {}
    height = (1, 4, TABLE_ROWS, 0)[number // 3 % 4]
    first = int(rng.integers(0, TABLE_ROWS - height + 1))
    return (shape, (height, width)), {"first_row": first, "rows": TABLE_ROWS}


def _reduce_parts(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    (shape,), _ = _elementwise(1)(rng, number)
    count = 1 + number % MOST_PARTS
    how = ("sum", "max", "min", "sum", "sum")[number % 5]
    scale = float(np.float32(1 / count)) if number % 2 else None
    return (shape,) * count, {"how": how, "scale": scale}


def _reshape(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape: Shape = (2, 0) if number == 7 else random_shape(rng, number % 5, 2000)
    count = prod(shape)
    sizes = [d for d in range(1, count + 1) if count % d == 0] or [0]
    first = int(rng.choice(sizes))
    options: list[tuple[int, ...]] = [(count,), (1, count, 1)]
    if count:
        options += [(first, -1), (first, count // first), (-1, 1, first)]
    return (shape,), {"shape": options[int(rng.integers(len(options)))]}


def _transpose(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape: Shape = (4, 0, 3) if number == 7 else random_shape(rng, number % 5)
    perm = tuple(int(i) - len(shape) * int(rng.random() < 0.3) for i in rng.permutation(len(shape)))
    return (shape,), {"perm": None if number % 4 == 1 else perm}


def _broadcast_to(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape = random_shape(rng, number % 4, 600)
    cut = tuple(1 if rng.random() < 0.5 else size for size in shape)
    wide = (0, *shape) if number == 7 else (int(rng.integers(1, 4)), *shape)
    return (cut,), {"shape": wide}


def _narrow(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape = random_shape(rng, 1 + number % 4)
    axis = int(rng.integers(-len(shape), len(shape)))
    length = 0 if number == 7 else int(rng.integers(1, shape[axis] + 1))
    start = int(rng.integers(0, shape[axis] - length + 1))
    if rng.random() < 0.3 and start:
        start -= shape[axis]
    return (shape,), {"axis": axis, "start": start, "length": length}


def _around(rng: Rng, number: int, axis_size: int) -> tuple[Shape, int]:
    """A shape with `axis_size` along a dimension, and that dimension, sometimes from the end."""
    shape = random_shape(rng, 1 + number % 4, 900)
    axis = int(rng.integers(len(shape)))
    if number == 7:
        shape = (0, 2, 3)
        axis = 1
    shape = (*shape[:axis], axis_size, *shape[axis + 1 :])
    return shape, axis - len(shape) * int(rng.random() < 0.3)


def _gather(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape, axis = _around(rng, number, TABLE_ROWS)
    index = [int(rng.integers(min(n, 1), n + 1)) if rng.random() < 0.4 else n for n in shape]
    index[axis] = int(rng.choice([0, 1, 3, 9, 40]))
    return (shape, tuple(index)), {"axis": axis}


def _scatter(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    count = int(rng.choice([0, 1, 1, 4, 17]))
    shape, axis = _around(rng, number, TABLE_ROWS - 1 + count)
    source = [count if d == axis % len(shape) else n for d, n in enumerate(shape)]
    positions: list[Shape] = [(), (1,)]
    positions += [(shape[0],)] * 3 if axis % len(shape) else []
    return (shape, tuple(source), positions[number % len(positions)]), {"axis": axis}


def _concat(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape, axis = _around(rng, number, 1)
    sizes = rng.integers(0, 40, 1 + number % 20).tolist()
    inputs = (
        tuple(size if d == axis % len(shape) else n for d, n in enumerate(shape)) for size in sizes
    )
    return tuple(inputs), {"axis": axis}


def _split(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    size = int(rng.integers(1, 9))
    sizes = rng.integers(0, 9, 5).tolist()
    split_size = size if number % 2 else tuple(sizes)
    count = int(rng.integers(1, 40)) if number % 2 else sum(sizes)
    shape, axis = _around(rng, number, count)
    parts = -(-count // size) if number % 2 else len(sizes)
    return (shape,), {"split_size": split_size, "axis": axis, "part": int(rng.integers(parts))}


def _sharding(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    size, parts = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    shape, axis = _around(rng, number, size * parts)
    return (shape,), {"dim_per_shard": size, "axis": axis, "part": int(rng.integers(parts))}


def _view(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    # Of any other tensor it depends on the memory whether there is a view.
    shape = random_shape(rng, number % 5, 2000)
    wide = tuple(n for size in shape for n in ((1, size) if rng.random() < 0.3 else (size,)))
    wide = wide[:8]
    free = int(rng.integers(len(wide))) if wide and number % 2 else -1
    return (shape,), {"shape": tuple(-1 if d == free else n for d, n in enumerate(wide))}


def _slice(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    shape = random_shape(rng, 1 + number % 4)
    count = int(rng.integers(len(shape) + 1))
    ends = [sorted(rng.integers(-n - 2, n + 3, 2).tolist()) for n in shape[:count]]
    starts, stops = (tuple(end[i] for end in ends) for i in (0, 1))
    steps = tuple(rng.choice([1, 1, 2, 3], count).tolist()) if number % 3 else None
    return (shape,), {"starts": starts, "stops": stops, "steps": steps}


def _im2col(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    attrs: dict[str, AttrValue] = {}
    sizes = []
    for side in ("height", "width"):
        kernel, dilation, pad = (int(rng.integers(*r)) for r in ((1, 4), (1, 4), (0, 3)))
        least = max(dilation * (kernel - 1) + 1 - 2 * pad, 0)
        sizes.append(least + int(rng.integers(0, 9)))
        stride = int(rng.integers(1, 4))
        numbers = {"kernel": kernel, "stride": stride, "pad": pad, "dilation": dilation}
        attrs |= {f"{name}_{side}": value for name, value in numbers.items()}
    batch: Shape = () if number % 3 == 0 else (int(rng.integers(1, 4)),)
    channels = 0 if number == 7 else int(rng.integers(1, 5))
    return ((*batch, channels, *sizes),), attrs


def _scale(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    inputs, _ = _elementwise(1)(rng, number)
    # Numbers of fp32, which the operator rounds to.
    return inputs, {"val": float(np.float32(rng.choice([0.0, 1.0, -0.5, rng.uniform(-9, 9)])))}


def _gelu(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    inputs, _ = _elementwise(1)(rng, number)
    return inputs, {"approximate": "tanh" if number % 2 else "none"}


def _cast(rng: Rng, number: int) -> tuple[tuple[Shape, ...], dict[str, AttrValue]]:
    inputs, _ = _elementwise(1)(rng, number)
    return inputs, {"dtype": tuple(DTYPES)[number % len(DTYPES)]}


# Operators whose shapes or attributes follow rules of their own; all others are elementwise
# or work on rows, which their frame tells.
SHAPERS: dict[str, Shaper] = {
    "matmul": _matmul,
    "embedding": _embedding,
    "reduce_parts": _reduce_parts,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_to": _broadcast_to,
    "narrow": _narrow,
    "cast": _cast,
    "scale": _scale,
    "gelu": _gelu,
    "layernorm": _norm(2),
    "rmsnorm": _norm(1),
    "cumsum": _rows,
    "argmax": _argmax,
    **dict.fromkeys(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min"), _reduction),
    "gather": _gather,
    "scatter": _scatter,
    "concat": _concat,
    "split": _split,
    "sharding": _sharding,
    "view": _view,
    "slice": _slice,
    "im2col": _im2col,
}
CASE_COUNTS = {"cast": 3 * len(DTYPES)}


def shaper(op: Op) -> Shaper:
    """How random shapes of an operator's inputs are made."""
    if op.name in SHAPERS:
        return SHAPERS[op.name]
    if op.kernel is not None and op.kernel.frame in ("row", "reduce"):
        return _rows
    return _elementwise(sum(argument.is_tensor for argument in op.arguments))


def input_dtypes(op: Op, dtype: str, count: int | None = None) -> tuple[str, ...]:
    """The dtypes of an operator's inputs, `count` if it takes any number, tried with `dtype`."""
    if any(argument.is_list for argument in op.arguments):
        return (dtype,) * (2 if count is None else count)
    return tuple(argument.dtype or dtype for argument in op.arguments if argument.is_tensor)


def attributes(op: Op, made: Attrs) -> dict[str, AttrValue]:
    """The attributes an operator takes: those that were made, defaults for the rest."""
    attrs: dict[str, AttrValue] = {}
    for argument in op.arguments:
        if argument.is_tensor or argument.is_list or argument.name == "deps":
            continue
        if argument.name in made:
            attrs[argument.name] = made[argument.name]
        elif argument.default is not None:
            attrs[argument.name] = ast.literal_eval(argument.default)
    if op.parts is not None:
        attrs["part"] = made["part"]
    return attrs


def add_case(builder: GraphBuilder, op: Op, dtype: str, number: int, rng: Rng) -> Case:
    """Add one random application of an operator to the graph."""
    shapes, made = shaper(op)(rng, number)
    attrs = attributes(op, made)
    if op.name == "reduce_parts" and not DTYPES[dtype].is_float:
        attrs["scale"] = None
    is_special = number % 3 == 2
    leaves, looks, values, texts = [], [], [], []
    # Optional tensors may be left out.
    for shape, name in zip(shapes, input_dtypes(op, dtype, len(shapes)), strict=False):
        form = str(rng.choice(FORMS))
        leaf, value, look = _input(builder, shape, name, form, rng)
        leaves.append(leaf)
        values.append(value)
        looks.append(look)
        texts.append(f"{name}{list(shape)} {form}")
    result = builder.apply(op.name, values, attrs)
    if op.view is not None:
        result = builder.apply("copy", [result])
    text = f"{op.name}({', '.join(texts)}) {attrs}{' special' if is_special else ''}"
    return Case(op.name, dtype, attrs, tuple(leaves), tuple(looks), is_special, result, text)


def _input(
    builder: GraphBuilder, shape: Shape, dtype: str, form: str, rng: Rng
) -> tuple[Value, Value, Callable[[Array], Array]]:
    """A leaf, the tensor of the wanted shape that looks at it, and the same look in NumPy."""
    if form == "transposed" and len(shape) > 1:
        perm = tuple(int(i) for i in rng.permutation(len(shape)))
        leaf = builder.tensor(tuple(shape[i] for i in np.argsort(perm)), dtype)
        return (
            leaf,
            builder.apply("transpose", [leaf], {"perm": perm}),
            lambda a: a.transpose(perm),
        )
    if form == "narrowed" and shape:
        axis, start = int(rng.integers(len(shape))), int(rng.integers(0, 3))
        wide = tuple(n + 3 if i == axis else n for i, n in enumerate(shape))
        leaf, length = builder.tensor(wide, dtype), shape[axis]
        attrs: dict[str, AttrValue] = {"axis": axis, "start": start, "length": length}
        part = (*(slice(None),) * axis, slice(start, start + length))
        return leaf, builder.apply("narrow", [leaf], attrs), lambda a: a[part]
    if form == "broadcast" and shape:
        cut = tuple(1 if rng.random() < 0.6 else n for n in shape)[int(rng.integers(0, 2)) :]
        leaf = builder.tensor(cut, dtype)
        return (
            leaf,
            builder.apply("broadcast_to", [leaf], {"shape": shape}),
            lambda a: np.broadcast_to(a, shape),
        )
    if form == "reshaped":
        leaf = builder.tensor((prod(shape),), dtype)
        value = builder.apply("reshape", [leaf], {"shape": shape})
        return leaf, value, lambda a: a.reshape(shape)
    leaf = builder.tensor(shape, dtype)
    return leaf, leaf, lambda a: a


def fill_leaf(case: Case, position: int, rng: Rng) -> Array:
    """Random data for one leaf of a case."""
    view = case.leaves[position].view
    if (case.op, position) in INDEX_INPUTS:
        return rng.integers(0, TABLE_ROWS, view.shape, np.int32)
    return random_data(
        rng, view.shape, view.dtype, is_special=case.is_special, is_wide=case.op == "cast"
    )


def random_data(rng: Rng, shape: Shape, dtype: DType, *, is_special: bool, is_wide: bool) -> Array:
    """Integers over their whole range; floats around 0, if `is_wide` also far from it."""
    if dtype.is_float:
        value = rng.uniform(-2, 2, shape)
        if is_wide:
            value = np.where(
                rng.random(shape) < 0.5, value, value * 2.0 ** rng.integers(0, 40, shape)
            )
        if is_special:
            chosen: Sequence[float] = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0)
            chosen = (*chosen, *EDGES) if is_wide else chosen
            value = np.where(
                rng.random(shape) < (0.5 if is_wide else 0.15), rng.choice(chosen, shape), value
            )
        with np.errstate(over="ignore"):
            return np.asarray(value).astype(dtype.numpy)
    if dtype.kind == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    low, high = dtype.limits
    if rng.random() < 0.4:
        low, high = max(low, -3), 3
    return np.asarray(rng.integers(low, high, shape, np.int64, endpoint=True)).astype(dtype.numpy)
