"""Add random operators that compute to a model; errors and values stay as small as they were."""

from math import prod

from ark_dist.core.builder import Value
from tests.random_pool import Pool

# Large enough that norms do not blow rounding errors of flat rows up.
EPS = 0.5
UNARY = (
    *("relu", "copy", "neg", "abs", "tanh", "sigmoid", "silu", "gelu", "exp", "sin", "cos"),
    *("sqrt", "log", "rsqrt"),
)
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")


def binary(pool: Pool, value: Value) -> Value:
    pair: list[Value | float] = [value, pool.partner(value)]
    if pool.chance(0.5):
        pair.reverse()
    op = pool.rng.choice(["add", "sub", "mul", "div", "maximum", "minimum"])
    if op in ("maximum", "minimum"):
        return pool.apply(op, pair)
    if op == "div":
        pair[1] = pool.apply("add", [pool.apply("abs", pair[1:]), 1.0])
    return pool.scaled(pool.apply(op, pair), 0.5)


def scalar(pool: Pool, value: Value) -> Value:
    op = pool.rng.choice(["add", "sub", "mul", "div", "maximum", "minimum", "pow"])
    if op == "mul":
        return pool.scaled(value, pool.rng.choice([0.5, -0.75]))
    if op == "pow":
        return pool.apply(op, [at_least_half(pool, value), 0.5])
    return pool.apply(op, [value, pool.rng.choice([2.0, -1.25] if op == "div" else [0.5, 0.0])])


def at_least_half(pool: Pool, value: Value) -> Value:
    return pool.apply("add", [pool.apply("abs", [value]), 0.5])


def unary(pool: Pool, value: Value) -> Value:
    """One that makes no error much larger than it was."""
    op = pool.rng.choice(UNARY)
    if op == "exp":
        value = pool.apply("minimum", [value, 0.0])
    elif op in ("sqrt", "log", "rsqrt"):
        value = at_least_half(pool, value)
    if op == "gelu":
        return pool.apply(op, [value], approximate=pool.rng.choice(["none", "tanh"]))
    return pool.apply(op, [value])


def choice(pool: Pool, value: Value) -> Value:
    """By comparing inputs or integers, which are exact, or where either choice is as good."""
    other = pool.partner(value)
    kind = pool.rng.randrange(4)
    if kind == 0:
        op = pool.rng.choice(["less", "less_equal"])
        return pool.apply("where", [pool.apply(op, [value, other]), value, other])
    decides = flag(pool, value)
    if kind == 1:
        return pool.apply("mul", [value, pool.apply("cast", [decides], dtype=pool.dtype)])
    pair: list[Value | float] = [value, other if kind == 2 else 0.25]
    if pool.chance(0.5):
        pair.reverse()
    return pool.apply("where", [decides, *pair])


def flag(pool: Pool, value: Value) -> Value:
    """A bool that broadcasts to a value, and is the same whatever has been rounded."""
    op = pool.rng.choice(COMPARISONS)
    if pool.integers and pool.chance(0.3):
        number = pool.apply("reduce_min", [pool.rng.choice(pool.integers)], axis=None)
        flag = pool.apply(op, [number, pool.rng.randint(-3, 9)])
        return pool.apply("reshape", [flag], shape=(1,))
    source = pool.leaf(pool.narrower(value.view.shape))
    other = pool.leaf(source.view.shape) if pool.chance(0.5) else 0.125
    flag = pool.apply(op, [source, other])
    if pool.chance(0.2):
        return pool.apply("not_equal", [flag, pool.apply("greater", [source, -0.25])])
    return flag


def matmul(pool: Pool, value: Value) -> Value | None:
    shape = value.view.shape
    if len(shape) < 2:
        return None
    turn, turn_other = pool.chance(0.3), pool.chance(0.3)
    k = shape[-2] if turn else shape[-1]
    n = pool.rng.choice([1, 3, 16, 65, 130])
    batch = shape[:-2] if pool.chance(0.5) else ()
    other = pool.leaf((*batch, n, k) if turn_other else (*batch, k, n))
    result = pool.apply(
        "matmul",
        [value, other],
        transpose_input=turn,
        transpose_other=turn_other,
        is_relu=pool.chance(0.3),
        splitk=pool.rng.choice([1, 1, 2, 3, 8]),
    )
    return pool.scaled(result, 1.0 / k)


def softmax(pool: Pool, value: Value) -> Value:
    return pool.apply("softmax", [value], axis=pool.axis(value))


def norm(pool: Pool, value: Value, axis: int | None = None) -> Value:
    axis = pool.axis(value) if axis is None else axis
    op = pool.rng.choice(["layernorm", "rmsnorm"])
    most = 2 if op == "layernorm" else 1
    size = value.view.shape[axis]
    vectors = [pool.leaf((size,)) for _ in range(pool.rng.randint(0, most))]
    return pool.apply(op, [value, *vectors], axis=axis, eps=EPS)


def prologue(pool: Pool, value: Value) -> Value:
    """A norm that some matmuls read."""
    result = norm(pool, value, -1)
    if len(result.view.shape) < 2:
        return result
    k = result.view.shape[-1]
    count = pool.rng.randint(1, 3)
    products = [
        pool.apply("matmul", [result, pool.leaf((k, 64 if count > 1 else 96))])
        for _ in range(count)
    ]
    gate, *others = [pool.scaled(product, 1.0 / k) for product in products]
    for other in others:
        gate = pool.apply("mul", [pool.apply("silu", [gate]), other])
    return gate


def reduce(pool: Pool, value: Value) -> Value:
    op = pool.rng.choice(["reduce_mean", "reduce_max", "reduce_min", "reduce_sum"])
    ndim = len(value.view.shape)
    axes = tuple(pool.rng.sample(range(-ndim, 0), pool.rng.randint(1, ndim)))
    axis = pool.rng.choice([axes[0] if len(axes) == 1 else axes, axes, None])
    axes = tuple(range(ndim)) if axis is None else axes
    count = prod(value.view.shape[d] for d in axes)
    keep = len(axes) == ndim or pool.chance(0.5)
    source = pool.scaled(value, 1.0 / count) if op == "reduce_sum" else value
    return pool.apply(op, [source], axis=axis, keepdims=keep)


def cumsum(pool: Pool, value: Value) -> Value:
    axis = pool.axis(value)
    source = pool.scaled(value, 1.0 / value.view.shape[axis])
    return pool.apply("cumsum", [source], axis=axis)


def attention(pool: Pool, value: Value) -> Value | None:
    """Of rows to themselves, to inputs, or to a cache that they are appended to."""
    shape = value.view.shape
    rows, depth = prod(shape[:-1]), shape[-1]
    if rows > 65:
        return None
    heads = pool.rng.choice([n for n in range(1, 4) if rows % n == 0])
    times, is_causal = rows // heads, pool.chance(0.6)
    query = pool.apply("reshape", [value], shape=(1, times, heads, depth))
    kind = pool.rng.randrange(3)
    if kind == 0:
        result = pool.apply("attention", [query, query, pool.scaled(query, 0.5)], causal=is_causal)
    elif kind == 1:
        groups = pool.rng.choice([1, heads])
        keys, width = pool.rng.choice([1, 7, 64, 70]), pool.rng.choice([1, 5, 16])
        key = pool.leaf((1, keys, groups, depth))
        given = [key, pool.leaf((1, keys, groups, width))]
        if pool.chance(0.5):
            given.append(pool.indices(pool.rng.choice([(), (1,)]), keys + 1))
        result = pool.apply("attention", [query, *given], causal=is_causal)
    else:
        room = pool.rng.randint(0, 6)
        cache = pool.new_state((1, times + room, heads, depth), value.view.dtype.name, 0.25)
        start = pool.position(room)
        pool.apply("scatter", [cache, query, start], axis=1, output=cache)
        length = pool.apply("add", [start, times])
        result = pool.apply("attention", [query, cache, cache, length], causal=is_causal)
    return pool.apply("reshape", [result], shape=(times, heads * result.view.shape[-1]))
