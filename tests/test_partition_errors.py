"""Meshes, annotations and stages that do not fit are refused, by name."""

import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import PlanError
from ark_dist.core.layout import MeshShape, P
from ark_dist.core.target import topology_of
from ark_dist.scheduler.partition import partition
from tests.partition_oracle import sharded
from tests.test_partition import Model, cut, mlp


@pytest.mark.parametrize(
    ("axes", "rank", "size", "message"),
    [
        ([("tp", 2)], 0, 3, r"^mesh: tp 2 are 2 ranks, there are 3; start 2 ranks, or change"),
        ([("tp", 2)], 2, 2, r"^rank 2 is outside of the mesh; it has 2 ranks$"),
        ([("tp", 2), ("tp", 2)], 0, 4, r"^mesh: axes \['tp', 'tp'\] name one twice"),
        ([("tp", 0)], 0, 0, r"^mesh: axis 'tp' has size 0; it must be 1 or more$"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(
    axes: list[tuple[str, int]], rank: int, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        partition(mlp(), MeshShape(tuple(axes)), rank, topology_of((0,) * size))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (P("ep", None), r"^'up': shard P\('ep', None\) names 'ep', .* there are 'tp'$"),
        (P("tp", "tp"), r"^'up': shard P\('tp', 'tp'\) names 'tp' twice; an axis cuts one dim"),
        (P("tp"), r"^'up': shard P\('tp'\) names 1 dimensions, the shape \(8, 12\) has 2$"),
        (P("pp", None), r"^'up': shard P\('pp', None\) names 'pp', which is no axis of the mesh"),
    ],
)
def test_an_annotation_that_does_not_fit_is_refused(shard: P, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(sharded(mlp(), {"up": shard}), [("tp", 2), ("pp", 2)])


def test_without_cutting_axes_an_annotation_is_told_that_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"there are none$"):
        cut(mlp(), [("pp", 2)])


def test_a_stage_that_the_mesh_does_not_have_is_refused() -> None:
    m = Model()
    m.select_stage(2)
    m.op("exp", m.x(3))
    message = r"exp 'exp' is in stage 2, the mesh axis 'pp' has 2: stages 0 to 1$"
    with pytest.raises(ValueError, match=message):
        cut(m.freeze(), [("pp", 2)])


def test_communication_of_ones_own_does_not_go_with_a_mesh() -> None:
    m = GraphBuilder(rank=0, world_size=2)
    m.apply("all_reduce", [m.tensor((3,), "fp32")])
    with pytest.raises(PlanError, match=r"^method 'forward': all_reduce 'all_reduce' communicates"):
        cut(m.freeze(), [("tp", 2)])
