"""Add random operators that move data, or keep it in states, to a model."""

from math import prod

from ark_dist.core.builder import Value
from ark_dist.core.op import AttrValue
from ark_dist.core.shape import MAX_DIMS
from tests.random_operators import unary
from tests.random_pool import Pool

# Of operators that read more than they write, or write more than they read.
MOST_READ = 1 << 12


def movement(pool: Pool, value: Value) -> Value:
    shape = value.view.shape
    kind = pool.rng.choice(["transpose", "reshape", "narrow", "broadcast_to"])
    if kind == "transpose":
        perm = list(range(len(shape)))
        pool.rng.shuffle(perm)
        return pool.apply("transpose", [value], perm=tuple(perm))
    if kind == "narrow":
        axis = pool.axis(value)
        length = pool.rng.randint(1, shape[axis])
        start = pool.rng.randint(0, shape[axis] - length)
        return pool.apply("narrow", [value], axis=axis, start=start, length=length)
    if kind == "broadcast_to" and len(shape) < MAX_DIMS // 2:
        wide = tuple(3 if size == 1 else size for size in shape)
        return pool.apply("broadcast_to", [value], shape=(2, *wide))
    sizes = [d for d in range(1, prod(shape) + 1) if prod(shape) % d == 0]
    first = pool.rng.choice(sizes)
    return pool.apply("reshape", [value], shape=(first, prod(shape) // first))


def cut(pool: Pool, value: Value) -> Value:
    """Slices with steps, and at times one index of a dimension."""
    shape = value.view.shape
    steps = tuple(pool.rng.choice([1, 1, 2, 3]) for _ in shape)
    starts = tuple(pool.rng.randrange((size + 1) // 2) for size in shape)
    result = pool.apply("slice", [value], starts=starts, stops=shape, steps=steps)
    rest = result.view.shape
    if len(rest) < 2 or pool.chance(0.5):
        return result
    axis = pool.axis(result, is_signed=False)
    one = pool.apply("narrow", [result], axis=axis, start=-1, length=1)
    return pool.apply("view", [one], shape=rest[:axis] + rest[axis + 1 :])


def split(pool: Pool, value: Value) -> Value:
    """Two parts: a gate and what passes it, if they have the same size."""
    axis = pool.axis(value)
    size = value.view.shape[axis]
    if size == 1:
        return unary(pool, value)
    first = pool.rng.choice([size // 2, pool.rng.randint(1, size - 1)])
    sizes: AttrValue = (first, size - first)
    if 2 * first >= size and pool.chance(0.5):
        sizes = first
    a, b = (
        pool.apply("split", [value], split_size=sizes, axis=axis, part=part) for part in range(2)
    )
    if a.view.shape == b.view.shape:
        return pool.apply("mul", [pool.apply("sigmoid", [a]), b])
    pool.values.append(unary(pool, a))
    return b


def concat(pool: Pool, value: Value) -> Value | None:
    """Inputs, parts of the value, and what is computed from it."""
    axis = pool.axis(value, is_signed=False)
    shape = value.view.shape
    if prod(shape) > MOST_READ:
        return None
    parts = [unary(pool, value)]
    for _ in range(pool.rng.randint(0, 3)):
        length = pool.rng.randint(1, shape[axis])
        if pool.chance(0.5):
            part = pool.apply("narrow", [value], axis=axis, start=0, length=length)
            parts.append(unary(pool, part) if pool.chance(0.7) else part)
        else:
            parts.append(pool.leaf((*shape[:axis], length, *shape[axis + 1 :])))
    pool.rng.shuffle(parts)
    return pool.apply("concat", parts, axis=axis)


def gather(pool: Pool, value: Value) -> Value | None:
    shape, axis = value.view.shape, pool.axis(value, is_signed=False)
    if prod(shape) > MOST_READ:
        return None
    wanted = [pool.rng.randint(1, size) if pool.chance(0.3) else size for size in shape]
    wanted[axis] = pool.rng.choice([1, 2, 4])
    index = pool.indices(tuple(wanted), shape[axis])
    return pool.apply("gather", [value, index], axis=axis)


def lookup(pool: Pool, value: Value) -> Value:
    """The rows of a table that are largest in an input: exact in every dtype."""
    source = pool.leaf((pool.rng.choice([1, 4, 7]), 9))
    index = pool.apply("argmax", [source], axis=-1, keepdims=False)
    pool.integers.append(index)
    return pool.apply("embedding", [index, pool.leaf((9, pool.rng.choice([3, 33])))])


def windows(pool: Pool, value: Value) -> Value | None:
    """What a convolution multiplies."""
    if len(value.view.shape) not in (3, 4) or prod(value.view.shape) > MOST_READ:
        return None
    attrs: dict[str, AttrValue] = {}
    for side, size in zip(("height", "width"), value.view.shape[-2:], strict=True):
        numbers = {"kernel": min(pool.rng.randint(1, 2), size), "stride": 2, "dilation": 1}
        numbers["pad"] = pool.rng.randint(0, 1)
        attrs |= {f"{name}_{side}": number for name, number in numbers.items()}
    return pool.apply_with("im2col", [value], attrs)


def state(pool: Pool, value: Value) -> Value:
    """A running average, read before or after it is written."""
    fitting = [s for s in pool.model.states if s.view.spec == value.view.spec]
    if fitting and pool.chance(0.7):
        state = pool.rng.choice(fitting)
    else:
        init = pool.rng.choice([0, 0.25])
        state = pool.new_state(value.view.shape, value.view.dtype.name, init)
    before = pool.apply("mul", [state, 0.5])
    pool.apply("add", [before, pool.scaled(value, 0.5)], output=state)
    return pool.apply("copy", [state]) if pool.chance(0.5) else before


def append(pool: Pool, value: Value) -> Value | None:
    """A cache that the value is written into, where the model counts."""
    shape, axis = value.view.shape, pool.axis(value, is_signed=False)
    if prod(shape) > MOST_READ:
        return None
    room = pool.rng.randint(0, 5)
    wide = (*shape[:axis], shape[axis] + room, *shape[axis + 1 :])
    cache = pool.new_state(wide, value.view.dtype.name, pool.rng.choice([0, 0.25]))
    position = pool.position(room, shape[0] if axis and pool.chance(0.5) else 1)
    pool.apply("scatter", [cache, value, position], axis=axis, output=cache)
    if pool.chance(0.3):
        return cache
    start = pool.rng.randint(0, room)
    return pool.apply("narrow", [cache], axis=axis, start=start, length=shape[axis])


def overwrite(pool: Pool, value: Value) -> Value:
    """A copy of the value with a part replaced."""
    shape, axis = value.view.shape, pool.axis(value, is_signed=False)
    length = pool.rng.randint(1, shape[axis])
    part = pool.leaf((*shape[:axis], length, *shape[axis + 1 :]))
    position = pool.indices((), shape[axis] - length + 1)
    return pool.apply("scatter", [value, part, position], axis=axis)


def counter(pool: Pool, value: Value) -> None:
    state = pool.new_state((1,), "int32", pool.rng.randint(-3, 3))
    result = pool.apply("add", [state, pool.rng.randint(1, 5)], output=state)
    op = pool.rng.choice(["mul", "maximum", "minimum", "sub"])
    number = pool.apply(op, [result, 3])
    pool.integers.append(pool.apply(pool.rng.choice(["neg", "abs", "relu"]), [number]))
