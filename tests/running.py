"""Run a graph on a device for a test."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import Array, AttrValue
from ark_dist.core.settings import read_settings
from ark_dist.core.shape import Shape
from ark_dist.core.target import Target
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import make_plan


def strided(
    builder: GraphBuilder, shape: Shape, dtype: str, rng: np.random.Generator
) -> tuple[Value, Value]:
    """A leaf, and a tensor of the wanted shape that looks at it: as it is, turned, or a part."""
    form = rng.choice(["plain", "turned", "part"])
    if form == "turned":
        perm = tuple(int(i) for i in rng.permutation(len(shape)))
        leaf = builder.tensor(tuple(shape[i] for i in np.argsort(perm)), dtype)
        return leaf, builder.apply("transpose", [leaf], {"perm": perm})
    if form == "part":
        axis = int(rng.integers(len(shape)))
        wide = tuple(n + 3 if i == axis else n for i, n in enumerate(shape))
        leaf = builder.tensor(wide, dtype)
        part: dict[str, AttrValue] = {"axis": axis, "start": 2, "length": shape[axis]}
        return leaf, builder.apply("narrow", [leaf], part)
    leaf = builder.tensor(shape, dtype)
    return leaf, leaf


@contextmanager
def launched(graph: Graph, target: Target, device: str) -> Iterator[Session]:
    """The graph's program, planned and running on "numpy" or "cpu"."""
    plan = make_plan(graph, target)
    runner = NumpyDevice(plan) if device == "numpy" else CpuDevice(plan, read_settings())
    session = Session(plan, runner, SessionOptions())
    session.compile(lambda path: None)
    session.launch()
    try:
        yield session
    finally:
        session.close()


def run_once(
    graph: Graph,
    target: Target,
    device: str,
    inputs: Mapping[Value, npt.ArrayLike],
    outputs: list[Value],
) -> list[Array]:
    """What one turn of the method "forward" makes of the inputs."""
    with launched(graph, target, device) as session:
        for value, array in inputs.items():
            session.write(value.view, array)  # type: ignore[arg-type]  # NumPy converts it
        session.run(1, "forward", {})
        assert session.wait() == 1
        return [session.read(value.view) for value in outputs]
