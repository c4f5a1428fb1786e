"""Run a graph of global shapes on all ranks of a mesh, with real plans, and read it as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape
from ark_dist.core.op import Array
from ark_dist.core.settings import read_settings
from ark_dist.core.shape import row_major_strides
from ark_dist.core.target import Target, topology_of
from ark_dist.core.view import View
from ark_dist.launch.open import open_session
from ark_dist.scheduler.partition import RankGraph, partition
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.rank_threads import on_ranks
from tests.rank_world import RankWorld

Scalars = Mapping[str, float]
# Method, iterations.
Runs = Sequence[tuple[str, int]]


def whole_view(graph: Graph, buffer: int) -> View:
    """All of a buffer."""
    found = graph.buffers[buffer]
    return View(buffer, found.dtype, 0, found.shape, row_major_strides(found.shape))


def on_machines(
    graph: Graph,
    axes: Mapping[str, int],
    target: Target,
    data: Mapping[int, Array],
    runs: Runs,
    options: PlanOptions,
    seed: int,
) -> dict[int, Array]:
    """Step all ranks in a random order; return states and outputs of the global graph."""
    mesh = MeshShape(tuple(axes.items()))
    topology = topology_of((0,) * mesh.world_size)
    parts = [partition(graph, mesh, rank, topology) for rank in range(mesh.world_size)]
    plans = [
        make_plan(part.graph, target, options, rank=rank, topology=topology)
        for rank, part in enumerate(parts)
    ]
    world = RankWorld(plans, seed)
    for buffer, array in data.items():
        for rank, part in enumerate(parts):
            share = part.shares[buffer]
            if share.is_held_by(rank):
                box = tuple(slice(a, b) for a, b in share.parts[rank])
                world.write(rank, whole_view(part.graph, share.buffer), array[box])
    for method, iterations in runs:
        assert world.run(iterations, method) == [iterations] * mesh.world_size
    return {
        b.id: _gathered(graph, parts, world, b.id)
        for b in graph.buffers
        if b.kind in ("state", "output")
    }


def _gathered(graph: Graph, parts: Sequence[RankGraph], world: RankWorld, buffer: int) -> Array:
    whole = np.zeros(graph.buffers[buffer].shape, graph.buffers[buffer].dtype.numpy)
    for rank, part in reversed(list(enumerate(parts))):
        share = part.shares[buffer]
        if share.is_held_by(rank):
            box = tuple(slice(a, b) for a, b in share.parts[rank])
            whole[box] = world.read(rank, whole_view(part.graph, share.buffer))
    return whole


def on_kernels(
    graph: Graph,
    axes: Mapping[str, int],
    workers: int,
    data: Mapping[int, Array],
    runs: Runs,
    options: PlanOptions | None = None,
) -> dict[int, Array]:
    """Run all ranks' CPU kernels, in threads of this process; as `on_machines`."""
    mesh = MeshShape(tuple(axes.items()))
    if mesh.world_size == 1:
        buffers = tuple(replace(b, shard=None) for b in graph.buffers)
        graph = replace(graph, buffers=buffers)

    def work(communicator: object) -> dict[int, Array]:
        opened = open_session(
            graph,
            device="cpu",
            settings=read_settings(),
            worker_count=workers,
            options=options,
            communicator=communicator,  # type: ignore[arg-type]  # on_ranks gives one
            mesh=mesh,
        )
        session, shares = opened.session, opened.shares
        session.compile(lambda path: None)
        for buffer, array in data.items():
            view = whole_view(graph, buffer)
            (session if shares is None else shares).write(view, array)
        session.launch()
        for method, iterations in runs:
            session.run(iterations, method, {})
            assert session.wait() == iterations
        found = {
            b.id: (session if shares is None else shares).read(whole_view(graph, b.id))
            for b in graph.buffers
            if b.kind in ("state", "output")
        }
        session.stop()
        session.close()
        return found

    results = on_ranks(mesh.world_size, work)
    for other in results[1:]:
        for buffer, value in results[0].items():
            assert other[buffer].tobytes() == value.tobytes(), graph.buffers[buffer]
    return results[0]
