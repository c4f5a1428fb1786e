"""What is kept with a plan is read as it was written."""

import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields

import numpy as np
import pytest

from ark_dist.core.errors import PlanFormatError
from ark_dist.core.layout import MeshShape, Share
from ark_dist.core.target import cpu_target, topology_of, wide_target
from ark_dist.kernels.emit import EMITTERS
from ark_dist.kernels.tables import Tables
from ark_dist.launch.agreement import said_of
from ark_dist.launch.plan_entry import LIMITS, PlanEntry, entry_from_bytes, entry_to_bytes
from ark_dist.scheduler.partition import partition
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import block, eager, loop, mlp
from tests.random_graphs import random_model
from tests.test_mesh_runs import program


def same_tables(one: Tables, two: Tables) -> bool:
    def alike(name: str) -> bool:
        a, b = getattr(one, name), getattr(two, name)
        if isinstance(a, np.ndarray):
            return bool(a.dtype == b.dtype) and a.tobytes() == b.tobytes()
        return bool(a == b)

    return all(alike(each.name) for each in fields(Tables))


def check_round_trip(entry: PlanEntry) -> None:
    data = entry_to_bytes(entry)
    again = entry_from_bytes(data)
    assert again.plan == entry.plan
    assert again.shares == entry.shares
    assert (again.said, again.source) == (entry.said, entry.source)
    assert same_tables(again.tables, entry.tables)
    assert entry_to_bytes(again) == data


@pytest.mark.parametrize("language", ["c++", "cuda"])
@pytest.mark.parametrize("graph", [mlp, loop, block, *(random_model(n) for n in range(4))])
def test_an_entry_is_read_as_it_was_written(graph: object, language: str) -> None:
    target = eager(cpu_target(2)) if language == "c++" else wide_target(4, "sm_90a", "cuda")
    built = graph() if callable(graph) else graph.graph  # type: ignore[attr-defined]
    plan = make_plan(built, target)
    check_round_trip(PlanEntry(plan, {}, b"", *EMITTERS[language](plan)))


@pytest.mark.parametrize("axes", [{"tp": 3}, {"pp": 2, "tp": 2}])
@pytest.mark.parametrize("transport", ["peer", "proxy"])
def test_the_entry_of_a_rank_is_read_as_it_was_written(
    axes: Mapping[str, int], transport: str
) -> None:
    graph, _ = program(axes)
    mesh = MeshShape(tuple(axes.items()))
    topology = topology_of((0,) * mesh.world_size)
    for rank in range(mesh.world_size):
        cut = partition(graph, mesh, rank, topology)
        options = PlanOptions(transport=transport)
        plan = make_plan(cut.graph, cpu_target(2), options, rank=rank, topology=topology)
        shares = {**cut.shares, 9999: Share(-1, ((),) * mesh.world_size)}
        said = said_of(cut.graph, rank, mesh.world_size)
        check_round_trip(PlanEntry(plan, shares, said, *EMITTERS["c++"](plan)))


def test_bytes_of_something_else_are_refused_or_read_without_harm() -> None:
    plan = make_plan(loop(), cpu_target(2))
    data = zlib.decompress(entry_to_bytes(PlanEntry(plan, {}, b"", *EMITTERS["c++"](plan))))
    for place in range(0, len(data), 97):
        for other in (data[:place], data[:place] + b"\xff" + data[place + 1 :]):
            with suppress(PlanFormatError, ValueError):
                entry_from_bytes(zlib.compress(other))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\0" + data[1:],
        lambda data: zlib.compress(bytes(LIMITS.size_bytes + 1)),
    ],
)
def test_a_stream_that_is_not_whole_or_too_long_is_refused(
    change: Callable[[bytes], bytes],
) -> None:
    plan = make_plan(loop(), cpu_target(2))
    data = entry_to_bytes(PlanEntry(plan, {}, b"", *EMITTERS["c++"](plan)))
    with pytest.raises(PlanFormatError, match="the entry is"):
        entry_from_bytes(change(data))
