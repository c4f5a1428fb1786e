"""Make random models of all operators, whose values stay small enough to compare."""

from collections.abc import Callable
from math import prod

import numpy as np

from ark_dist.core.builder import Value
from ark_dist.core.op import Array
from tests import random_moves as moves
from tests import random_operators as operators
from tests.random_pool import Pool, RandomModel

MIN_NODES = 20
MOST_ELEMENTS = 1 << 14
Maker = Callable[[Pool, Value], Value | None]
# And how likely they are, relative to one another.
MAKERS: dict[Maker, int] = {
    operators.binary: 2,
    operators.unary: 3,
    operators.scalar: 1,
    operators.choice: 2,
    operators.softmax: 1,
    operators.norm: 1,
    operators.prologue: 1,
    operators.cumsum: 1,
    operators.matmul: 2,
    operators.attention: 1,
    operators.reduce: 3,
    moves.movement: 2,
    moves.cut: 1,
    moves.split: 1,
    moves.concat: 1,
    moves.gather: 1,
    moves.lookup: 1,
    moves.windows: 1,
    moves.counter: 1,
    moves.state: 1,
    moves.append: 1,
    moves.overwrite: 1,
}


def _grow(pool: Pool) -> None:
    """Add one random operator, or a few that belong together."""
    [make] = pool.rng.choices(list(MAKERS), list(MAKERS.values()))
    made = make(pool, pool.rng.choice(pool.values))
    if made is not None and prod(made.view.shape) <= MOST_ELEMENTS:
        pool.values.append(made)


def _add_method(pool: Pool, name: str, nodes: int) -> None:
    pool.builder.select_method(name)
    pool.values = [pool.leaf(pool.shape()) for _ in range(2)]
    pool.integers = []
    before = len(pool.builder._methods[name])
    for _ in range(200):
        _grow(pool)
        if len(pool.builder._methods[name]) - before >= nodes:
            break
    kept = [*pool.rng.sample(pool.values, min(4, len(pool.values))), *pool.integers]
    for value in kept:
        pool.builder.keep(value)
    pool.model.outputs[name] = kept


def random_model(seed: int, methods: int | None = None) -> RandomModel:
    """A model of one or two methods with at least 20 nodes each."""
    pool = Pool(seed)
    count = methods if methods is not None else pool.rng.choice([1, 1, 2])
    for number in range(count):
        _add_method(pool, "forward" if number == 0 else f"method_{number}", MIN_NODES)
    return pool.model


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
