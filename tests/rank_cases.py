"""Programs in which ranks communicate, and what they give."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.groups import flat_parts
from ark_dist.core.op import AttrValue
from ark_dist.core.plan import Plan
from ark_dist.core.target import cpu_target, topology_of, wide_target
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import eager
from tests.rank_world import RankWorld

Build = Callable[[GraphBuilder, Value], Value]
Numbers = npt.NDArray[Any]
SHAPE = (12, 5)
TURNS = 3


def plans_of(
    build: Callable[[int], Graph],
    size: int,
    *,
    workers: int = 2,
    is_wide: bool = False,
    transport: str = "auto",
    depth: int = 1,
) -> list[Plan]:
    """Plan each rank's graph; all ranks share a node."""
    target = wide_target(workers, kind="cuda") if is_wide else cpu_target(workers)
    options = PlanOptions(transport=transport, depth=depth)
    topology = topology_of((0,) * size)
    # Small tensors in several tiles.
    return [
        make_plan(build(rank), eager(target), options, rank=rank, topology=topology)
        for rank in range(size)
    ]


def counting(
    build: Build, rank: int, size: int, *, dtype: str = "fp32", shape: tuple[int, ...] = SHAPE
) -> tuple[Graph, Value]:
    """Let x count up each turn; the result is kept in a state that has all turns' sum."""
    builder = GraphBuilder("ranks", rank=rank, world_size=size)
    start = builder.state(shape, dtype, name="x", init=first_of(rank, shape))
    grown = builder.apply("add", [start, 1], output=start)
    made = build(builder, builder.apply("mul", [grown, 2]))
    total = builder.state(made.view.shape, dtype, name="total")
    builder.apply("add", [total, made], output=total)
    return builder.freeze(), total


def first_of(rank: int, shape: tuple[int, ...] = SHAPE) -> Numbers:
    """What a rank's x is before it counts."""
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 7 + 10 * rank).astype(np.float32)


def values(rank: int, shape: tuple[int, ...] = SHAPE) -> Numbers:
    """What a rank gives over all turns together."""
    turns = sum(range(1, TURNS + 1))
    return (2 * (TURNS * first_of(rank, shape) + turns)).astype(np.float64)


def totals(
    build: Build,
    size: int,
    *,
    seed: int = 0,
    dtype: str = "fp32",
    shape: tuple[int, ...] = SHAPE,
    workers: int = 2,
    is_wide: bool = False,
) -> list[Numbers]:
    """Run all ranks a few turns in a random order, return everybody's sum of results."""
    made = [counting(build, rank, size, dtype=dtype, shape=shape) for rank in range(size)]
    plans = plans_of(lambda rank: made[rank][0], size, workers=workers, is_wide=is_wide)
    world = RankWorld(plans, seed)
    assert world.run(TURNS - 1) == [TURNS - 1] * size
    assert world.run(1) == [1] * size
    return [world.read(rank, total.view) for rank, (_, total) in enumerate(made)]


# Programs.


def ring(builder: GraphBuilder, x: Value) -> Value:
    """Give x to the next rank."""
    rank, size = builder.rank, builder.world_size
    if size == 1:
        return builder.apply("copy", [x])
    token = builder.apply("send", [x], {"dst": (rank + 1) % size})
    attrs: dict[str, AttrValue] = {
        "src": (rank - 1) % size,
        "shape": x.view.shape,
        "dtype": x.view.dtype.name,
    }
    got = builder.apply("recv", [], attrs)
    return builder.apply("copy", [got], deps=[builder.apply("send_done", [token])])


def unfinished_ring(builder: GraphBuilder, x: Value) -> Value:
    """The same without waiting until the neighbour has it."""
    rank, size = builder.rank, builder.world_size
    if size == 1:
        return builder.apply("copy", [x])
    builder.apply("send", [x], {"dst": (rank + 1) % size, "tag": 3})
    attrs: dict[str, AttrValue] = {
        "src": (rank - 1) % size,
        "tag": 3,
        "shape": x.view.shape,
        "dtype": "fp32",
    }
    return builder.apply("recv", [], attrs)


def chain(builder: GraphBuilder, x: Value) -> Value:
    """Several collectives, one after the other."""
    for _ in range(4):
        x = builder.apply("all_reduce", [builder.apply("mul", [x, 0.5])])
        x = builder.apply("all_gather", [x], {"axis": 0})
        x = builder.apply("reduce_scatter", [x], {"axis": 0})
        x = builder.apply("mul", [x, 0.25])
    return x


def in_place(builder: GraphBuilder, x: Value) -> Value:
    """The result goes where the source was."""
    spare = builder.state(x.view.shape, "fp32", name="spare")
    builder.apply("copy", [x], output=spare)
    return builder.apply("all_reduce", [spare], output=spare)


def moved_part(builder: GraphBuilder, x: Value) -> Value:
    """All rows go from an even to an uneven cut; the lowest rank has nothing afterwards."""
    rank, size = builder.rank, builder.world_size
    rows, columns = x.view.shape
    cuts = [rows * size * max(k - 1, 0) // max(size - 1, 1) for k in range(size)] + [rows * size]
    source = flat_parts([((rows * k, rows * (k + 1)), (0, columns)) for k in range(size)])
    target = flat_parts([((cuts[k], cuts[k + 1]), (0, columns)) for k in range(size)])
    attrs: dict[str, AttrValue] = {"source": source, "target": target, "ranks": ()}
    moved = builder.apply("redistribute", [x], attrs)
    whole = builder.apply("all_gather", [moved], {"axis": 0, "cuts": tuple(cuts)})
    mine: dict[str, AttrValue] = {"axis": 0, "start": rows * rank, "length": rows}
    return builder.apply("copy", [builder.apply("narrow", [whole], mine)])


CASES: dict[str, Build] = {
    "all_reduce": lambda b, x: b.apply("all_reduce", [x]),
    "max": lambda b, x: b.apply("all_reduce", [x], {"reduce": "max"}),
    "all_gather": lambda b, x: b.apply("all_gather", [x], {"axis": 1}),
    "reduce_scatter": lambda b, x: b.apply("reduce_scatter", [x]),
    "broadcast": lambda b, x: b.apply("broadcast", [x], {"root": b.world_size - 1}),
    "all_to_all": lambda b, x: b.apply("all_to_all", [x]),
    "barrier": lambda b, x: b.apply("copy", [x], deps=[b.apply("barrier", [x])]),
    "ring": ring,
    "unfinished_ring": unfinished_ring,
    "chain": chain,
    "in_place": in_place,
    "moved_part": moved_part,
}
