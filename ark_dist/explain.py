"""Plan a program for any number of ranks in this process, and say what each rank would do."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from ark_dist import world
from ark_dist.context import drop_model
from ark_dist.core.errors import DeviceNotFoundError, PlanMismatchError
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape
from ark_dist.core.message import calls, disagreement
from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_settings
from ark_dist.core.target import Target, Topology, topology_of, wide_target
from ark_dist.launch.devices.cupy_gpu import GpuPart
from ark_dist.launch.open import find_device, target_for
from ark_dist.mesh import Mesh
from ark_dist.plan_report import Report, report, uncut
from ark_dist.scheduler.partition import RankGraph, partition
from ark_dist.scheduler.plan import PlanOptions, make_plan


@dataclass(frozen=True, slots=True)
class Request:
    """What an Executor was made for.

    Attributes:
        graph: the model's.
        device, workers, gpu, options: as the Executor was given them.
        mesh: how ranks share the graph; None if each has its own.
    """

    graph: Graph
    device: str
    workers: int | None
    gpu: GpuPart
    options: PlanOptions | None
    mesh: Mesh | None


class Planned(BaseException):
    """Ends a program at its first Executor, where it is planned only; no error of ours or theirs.

    Not an Exception, so that programs which handle those let it pass.
    """

    def __init__(self, request: Request) -> None:
        super().__init__("the program is planned only")
        self.request = request


@dataclass(frozen=True, slots=True)
class Question:
    """What `ark-dist explain` was asked.

    Attributes:
        script: the program.
        arguments: its arguments.
        world_size: for how many ranks.
        mesh: how they share the model, instead of what the program says; None leaves it.
        ranks: those to explain; empty is all.
        ranks_per_node: how many ranks share a node; 0 is all.
    """

    script: Path
    arguments: tuple[str, ...] = ()
    world_size: int = 1
    mesh: Mesh | None = None
    ranks: tuple[int, ...] = ()
    ranks_per_node: int = 0


def explain_script(question: Question) -> list[Report]:
    """Run a program up to its first Executor, and report on what ranks would do from there.

    With a mesh it is run once, else once for each rank, one after the other in this process. What
    it prints goes to stderr.

    Raises:
        ValueError: it makes no Executor, or the mesh doesn't fit.
        PlanMismatchError: the ranks' own models do not fit together.
    """
    size = question.world_size
    ranks = question.ranks or tuple(range(size))
    per_node = question.ranks_per_node or size
    topology = topology_of(tuple(rank // per_node for rank in range(size)))
    first = requested(question, ranks[0])
    mesh = question.mesh or first.mesh
    if mesh is not None or size == 1:
        requests = dict.fromkeys(ranks, first)
    else:
        requests = {ranks[0]: first} | {r: requested(question, r) for r in ranks[1:]}
        _check_agreement({rank: request.graph for rank, request in requests.items()}, size)
    shape = None if mesh is None else mesh.sized(size)
    return [_planned(request, shape, rank, topology) for rank, request in requests.items()]


def requested(question: Question, rank: int) -> Request:
    """Run a program as one rank, and return what its first Executor is asked for."""
    return copy_context().run(_requested, question, rank)


def _requested(question: Question, rank: int) -> Request:
    drop_model()
    script, how = question.script, "ended"
    try:
        with (
            world.plan_as(rank, question.world_size),
            _as_main(script, question.arguments),
            redirect_stdout(sys.stderr),
        ):
            runpy.run_path(str(script), run_name="__main__")
    except Planned as planned:
        return planned.request
    except SystemExit as error:
        how = f"ended with exit code {error.code}"
    raise ValueError(
        f"{script} {how} as rank {rank} of {question.world_size} and made no Executor and "
        "launched no Runtime; name a program that does"
    )


@contextmanager
def _as_main(script: Path, arguments: Iterable[str]) -> Iterator[None]:
    """Let a program find its arguments and the modules beside it, anew for each run."""
    folder, argv, path = script.resolve().parent, sys.argv, sys.path
    before = {*sys.modules}
    sys.argv, sys.path = [str(script), *arguments], [str(folder), *path]
    try:
        yield
    finally:
        sys.argv, sys.path = argv, path
        for name in {*sys.modules} - before:
            # Another rank's run must not find what this one's modules remember.
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).resolve().parent.is_relative_to(folder):
                del sys.modules[name]


def explain_plan(
    plan: Plan, request: Request, mesh: MeshShape | None, topology: Topology
) -> Report:
    """Report on a plan that was made from a request."""
    own = _cut(request.graph, mesh, plan.rank, topology)
    return report(request.graph, own, plan, mesh, topology)


def _planned(request: Request, mesh: MeshShape | None, rank: int, topology: Topology) -> Report:
    own = _cut(request.graph, mesh, rank, topology)
    target = _target(request, rank, topology)
    plan = make_plan(own.graph, target, request.options, rank=rank, topology=topology)
    return report(request.graph, own, plan, mesh, topology)


def _cut(graph: Graph, mesh: MeshShape | None, rank: int, topology: Topology) -> RankGraph:
    if mesh is None or topology.size == 1:
        return uncut(graph, rank, topology.size)
    return partition(graph, mesh, rank, topology)


def _target(request: Request, rank: int, topology: Topology) -> Target:
    settings = read_settings()
    is_alone = topology.size == 1
    device = find_device(request.device, settings, request.gpu.gpu_id, is_alone=is_alone)
    here = topology.nodes.count(topology.nodes[rank])
    try:
        return target_for(device, settings, request.workers, request.gpu, here)
    except DeviceNotFoundError:
        # A plan for a GPU needs none; this one is for the GPU that costs are known of.
        workers = request.workers or settings.worker_count
        return wide_target(workers, kind="cuda") if workers else wide_target(kind="cuda")


def _check_agreement(graphs: Mapping[int, Graph], world_size: int) -> None:
    """Raise PlanMismatchError if all ranks are there and their messages don't fit together."""
    if len(graphs) == world_size:
        made = {rank: calls(graph, rank, world_size) for rank, graph in graphs.items()}
        problem = disagreement(made)
        if problem is not None:
            raise PlanMismatchError(problem)


def mesh_of(text: str) -> Mesh:
    """Read a mesh as people write it, such as `pp=2,tp=4`; ValueError for anything else."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if not name or not size.isdecimal() or name in sizes:
            raise ValueError(
                f"--mesh is {text!r}; it must be axes and their sizes, each once, such as pp=2,tp=4"
            )
        sizes[name] = int(size)
    return Mesh(sizes)


def checked_ranks(asked: Sequence[int], world_size: int) -> tuple[int, ...]:
    """The ranks that were asked for, each once; ValueError for one that there is not."""
    for rank in asked:
        if not 0 <= rank < world_size:
            raise ValueError(f"--rank is {rank}; there are ranks 0 to {world_size - 1}")
    return tuple(sorted({*asked}))
