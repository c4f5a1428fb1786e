"""A model of global shapes gives, cut over any mesh, what it gives on one rank."""

import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from tests.rank_threads import on_ranks

Array = npt.NDArray[np.float32]

ROWS, WIDTH, HIDDEN = 6, 20, 36
MESHES: list[dict[str, int]] = [
    {"tp": 2},
    {"tp": 3},
    {"tp": 4},
    {"dp": 2},
    {"dp": 2, "tp": 2},
    {"pp": 2, "tp": 2},
]


def mlp(values: dict[str, Array], mesh: ark.Mesh, device: str) -> tuple[Array, Array]:
    """Build and run the model on this rank; return the result after one turn and after three."""
    model = ark.Model()
    has_data, has_stages = ("dp" in dict(mesh.axes)), ("pp" in dict(mesh.axes))
    cut = "tp" if "tp" in dict(mesh.axes) else None
    x = model.tensor((ROWS, WIDTH), name="x", shard=ark.P("dp" if has_data else None, None))
    first = model.parameter((WIDTH, HIDDEN), name="first", shard=ark.P(None, cut))
    second = model.parameter((HIDDEN, WIDTH), name="second", shard=ark.P(cut, None))
    total = model.state((ROWS, WIDTH), name="total")
    with model.stage(0):
        inner = model.matmul(x, first, is_relu=True)
    with model.stage(1 if has_stages else 0):
        y = model.add(model.matmul(inner, second), 1.0)
        model.add(total, y, output=total)
    with ark.Executor(model=model, device=device, mesh=mesh, workers=1) as exe:
        exe.compile()
        exe.launch()
        for name, tensor in (("x", x), ("first", first), ("second", second)):
            tensor.from_numpy(values[name])
        exe.run(1)
        exe.wait()
        once = np.asarray(total.to_numpy(), np.float32)
        exe.run(2)
        exe.wait()
        return once, np.asarray(total.to_numpy(), np.float32)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_cut_mlp_is_right(axes: dict[str, int], device: str) -> None:
    rng = np.random.default_rng(3)
    values: dict[str, Array] = {
        "x": rng.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "first": rng.standard_normal((WIDTH, HIDDEN)).astype(np.float32),
        "second": rng.standard_normal((HIDDEN, WIDTH)).astype(np.float32),
    }
    wide = {name: value.astype(np.float64) for name, value in values.items()}
    want = np.maximum(wide["x"] @ wide["first"], 0) @ wide["second"] + 1

    def work(communicator: Communicator) -> tuple[Array, Array]:
        with world.use(communicator):
            return mlp(values, ark.Mesh(axes), device)

    size = int(np.prod(list(axes.values())))
    results = on_ranks(size, work)
    for once, thrice in results:
        np.testing.assert_allclose(once, want, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(thrice, 3 * want, rtol=2e-5, atol=1e-4)
        assert once.tobytes() == results[0][0].tobytes()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_a_scalar_that_one_stage_reads_is_set_by_all_ranks(device: str) -> None:
    def work(communicator: Communicator) -> tuple[object, object]:
        model = ark.Model()
        factor, step = model.scalar("factor", ark.FP32), model.scalar("step", ark.FP32)
        x, y = model.state(1, name="x", init=1), model.state(1, name="y")
        with model.stage(0):
            model.assign(x, x * factor)
        with model.stage(1):
            model.assign(y, x + step)
        mesh = ark.Mesh({"pp": 2})
        with (
            world.use(communicator),
            ark.Executor(model=model, device=device, mesh=mesh, workers=1) as exe,
        ):
            exe.compile()
            exe.launch()
            with pytest.raises(ValueError, match=r"'other' is not one of .* factor, step"):
                exe.run(1, scalars={"other": 1})
            with pytest.raises(TypeError, match="'step' is 'one'; it must be a number"):
                exe.run(1, scalars={"step": "one"})  # type: ignore[dict-item]  # the test
            exe.run(2, scalars={"factor": 3, "step": 0.5})
            assert exe.wait() == 2
            return x.to_numpy().item(), y.to_numpy().item()

    assert on_ranks(2, work) == [(9.0, 9.5)] * 2
