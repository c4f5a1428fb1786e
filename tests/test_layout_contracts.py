"""How a tensor is cut over a mesh: the records that partitioning relies on."""

import pytest

from ark_dist.core.layout import MeshShape, P, Share


def test_a_partition_is_a_tuple_of_axis_names() -> None:
    assert P(None, "tp") == (None, "tp")
    assert repr(P(None, "tp")) == "P(None, 'tp')"
    assert hash(P("a")) == hash(("a",))


def test_a_partition_of_anything_but_names_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^P: axis 3 must be a mesh axis name or None$"):
        P("tp", 3)  # type: ignore[arg-type]  # that is the test


def test_ranks_walk_a_mesh_row_by_row() -> None:
    mesh = MeshShape((("pp", 2), ("tp", 3)))
    assert mesh.world_size == 6
    found = [mesh.coordinates(rank) for rank in range(6)]
    assert found[0] == {"pp": 0, "tp": 0}
    assert found[1] == {"pp": 0, "tp": 1}
    assert found[3] == {"pp": 1, "tp": 0}
    assert len({tuple(sorted(c.items())) for c in found}) == 6


def test_a_mesh_without_axes_has_one_rank() -> None:
    assert MeshShape(()).world_size == 1
    assert MeshShape(()).coordinates(0) == {}


def test_a_rank_with_an_empty_part_holds_nothing() -> None:
    share = Share(3, (((0, 4), (0, 2)), ((4, 4), (0, 2))))
    assert [share.is_held_by(rank) for rank in range(2)] == [True, False]


def test_of_a_tensor_without_dimensions_an_empty_interval_says_nothing() -> None:
    share = Share(3, ((), ((0, 0),)))
    assert [share.is_held_by(rank) for rank in range(2)] == [True, False]
