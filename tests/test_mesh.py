"""Meshes, shards and stages: what a user may say of several ranks, and what is refused."""

import re
from collections.abc import Callable

import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.inproc import inproc_world
from ark_dist.context import check_ranks
from ark_dist.core.layout import MeshShape


def test_tensors_are_sharded_afterwards_too() -> None:
    model = ark.Model("m")
    x = model.tensor((4, 6))
    y = x.relu()
    assert ark.shard(y, ark.P("dp", None)) is y
    assert model.shard(x, ark.P(None, "tp")) is x
    by_name = {b.name: b.shard for b in model.freeze().buffers}
    assert by_name == {"tensor": ark.P(None, "tp"), "relu": ark.P("dp", None)}
    model.shard(x, ark.P("tp", None))
    assert model.freeze().buffers[0].shard == ark.P("tp", None)


SHARDS: list[tuple[Callable[[ark.Model, ark.Tensor], object], type[Exception], str]] = [
    (
        lambda m, x: m.shard(x[1:], ark.P("tp", None)),
        ValueError,
        "shard: the tensor is only a view of 'x'; shard that tensor, or a copy of the view",
    ),
    (lambda m, x: m.shard(x.T, ark.P("tp", None)), ValueError, "shard: the tensor is only a view"),
    (
        lambda m, x: ark.shard(x, ark.P("tp")),
        ValueError,
        "shard: shard P('tp') names 1 dimensions, the shape (4, 6) has 2",
    ),
    (
        lambda m, x: ark.shard(x, ark.P("tp", "tp")),
        ValueError,
        "shard: shard P('tp', 'tp') names an axis twice; an axis can cut one dimension",
    ),
    (
        lambda m, x: ark.shard(x, ("tp", None)),  # type: ignore[arg-type]  # on purpose
        TypeError,
        "shard: shard is ('tp', None); it must be a P, which names a mesh axis or None",
    ),
    (
        lambda m, x: m.shard(3, ark.P("tp")),  # type: ignore[arg-type]  # on purpose
        TypeError,
        "shard: found a int, wanted a tensor",
    ),
    (
        lambda m, x: m.tensor((2, 2), shard="tp"),  # type: ignore[arg-type]  # on purpose
        TypeError,
        "tensor: shard is 'tp'; it must be a P",
    ),
    (
        lambda m, x: m.parameter((2, 2), shard=[None, "tp"]),  # type: ignore[arg-type]  # on purpose
        TypeError,
        "tensor: shard is [None, 'tp']; it must be a P",
    ),
    (
        lambda m, x: m.state((2, 2), shard=("tp", None)),  # type: ignore[arg-type]  # on purpose
        TypeError,
        "state: shard is ('tp', None); it must be a P",
    ),
    (
        lambda m, x: m.shard(ark.Model("other").tensor(2), ark.P("tp")),
        ValueError,
        "shard: tensor 'tensor' belongs to model 'other', not to 'm'",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), SHARDS)
def test_a_shard_that_can_not_be_is_refused(
    call: Callable[[ark.Model, ark.Tensor], object], error: type[Exception], text: str
) -> None:
    model = ark.Model("m")
    with pytest.raises(error, match="^" + re.escape(text)):
        call(model, model.tensor((4, 6), name="x"))


def test_operators_of_a_block_are_in_its_stage() -> None:
    ark.init(reset=True)
    x = ark.tensor(4)
    with ark.stage(1):
        y = x.relu()
        with ark.stage(2):
            y = y.exp()
    with pytest.raises(RuntimeError), x.model.stage(3):
        raise RuntimeError
    y.neg()
    assert [n.stage for n in x.model.freeze().methods[0].nodes] == [1, 2, 0]


def test_a_stage_that_can_not_be_is_refused() -> None:
    with pytest.raises(TypeError, match="stage: '1' is no stage; it must be an integer"):
        ark.stage("1").__enter__()  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="stage: -1 is no stage; the first one is 0"):
        ark.stage(-1).__enter__()


def test_a_mesh_has_the_sizes_it_was_given() -> None:
    mesh = ark.Mesh({"pp": 2, "tp": 4})
    assert mesh.sized(8) == MeshShape((("pp", 2), ("tp", 4)))
    assert repr(mesh) == "Mesh({'pp': 2, 'tp': 4})"
    assert mesh == ark.Mesh({"pp": 2, "tp": 4}) != ark.Mesh({"tp": 4, "pp": 2})
    assert len({mesh, ark.Mesh({"pp": 2, "tp": 4})}) == 1


def test_one_size_of_a_mesh_can_be_the_rest() -> None:
    assert ark.Mesh({"dp": -1, "tp": 4}).sized(12).axes == (("dp", 3), ("tp", 4))
    assert ark.Mesh({"tp": -1}).sized(7).axes == (("tp", 7),)


def test_on_one_rank_every_mesh_is_one_rank() -> None:
    assert ark.Mesh({"dp": -1, "tp": 4}).shape.axes == (("dp", 1), ("tp", 1))
    assert ark.Mesh({"tp": 4}).sized(1).world_size == 1


@pytest.mark.parametrize(
    ("axes", "ranks", "text"),
    [
        ({"tp": 4}, 2, "Mesh({'tp': 4}) needs 4 ranks, and there are 2; start another number"),
        ({"tp": 4}, 8, "Mesh({'tp': 4}) needs 4 ranks, and there are 8"),
        ({"tp": 4, "dp": -1}, 6, "needs a multiple of 4 ranks, and there are 6"),
        ({"tp": 4, "dp": -1}, 2, "needs a multiple of 4 ranks, and there are 2"),
    ],
)
def test_a_mesh_that_does_not_fit_the_ranks_is_refused(
    axes: dict[str, int], ranks: int, text: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        ark.Mesh(axes).sized(ranks)


@pytest.mark.parametrize(
    ("axes", "error", "text"),
    [
        ([("tp", 2)], TypeError, "Mesh: axes is [('tp', 2)]; it must be a mapping of names to"),
        ({}, ValueError, "Mesh: there are no axes; name at least one"),
        ({1: 2}, TypeError, "Mesh: axis 1 must be a string"),
        ({"": 2}, ValueError, "Mesh: an axis has an empty name"),
        ({"tp": "2"}, TypeError, "Mesh: axis 'tp' has size '2'; it must be an integer"),
        ({"tp": True}, TypeError, "Mesh: axis 'tp' has size True; it must be an integer"),
        ({"tp": 0}, ValueError, "Mesh: axis 'tp' has size 0; it must be 1 or more, or -1"),
        ({"tp": -1, "dp": -1}, ValueError, "has several sizes of -1; only one can be the rest"),
    ],
)
def test_a_mesh_that_can_not_be_is_refused(
    axes: dict[str, int], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        ark.Mesh(axes)


def test_rank_and_world_are_those_of_the_communicator() -> None:
    with world.use(inproc_world(4)[2]) as here:
        assert (ark.rank(), ark.world_size()) == (2, 4)
        model = ark.Model("m")
        assert (model.builder.rank, model.builder.world_size) == (2, 4)
        assert ark.Mesh({"dp": -1, "tp": 2}).shape.axes == (("dp", 2), ("tp", 2))
        assert check_ranks("Executor", None, None) is check_ranks("Executor", 2, 4) is here
    assert (ark.rank(), ark.world_size()) == (0, 1)


def test_a_rank_may_run_a_program_of_its_own() -> None:
    with world.use(inproc_world(4)[2]):
        assert check_ranks("Executor", 0, 1) is check_ranks("Executor", None, 1) is world.ALONE


@pytest.mark.parametrize(
    ("rank", "size", "error", "text"),
    [
        (
            1,
            4,
            ark.ConfigError,
            "Executor: rank is 1 and world_size is 4, but this process is rank",
        ),
        (
            None,
            2,
            ark.ConfigError,
            "rank is 0 and world_size is 2, but this process is rank 2 of 4",
        ),
        (4, 4, ValueError, "rank is 4 and world_size is 4; rank must be 0 to world_size - 1"),
        ("0", 4, TypeError, "Executor: rank is '0'; it must be an integer"),
    ],
)
def test_ranks_that_are_not_those_of_the_process_are_refused(
    rank: int, size: int, error: type[Exception], text: str
) -> None:
    with world.use(inproc_world(4)[2]), pytest.raises(error, match=re.escape(text)):
        check_ranks("Executor", rank, size)
