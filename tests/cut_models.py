"""A module that is cut over a mesh, and its weights, for tests of checkpoints."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator

Array: TypeAlias = npt.NDArray[np.generic]

ROWS, WIDTH, HIDDEN = 2, 10, 14
MESHES: list[dict[str, int]] = [
    {"tp": 1},
    {"tp": 2},
    {"tp": 3},
    {"dp": 2, "tp": 2},
    {"pp": 2, "tp": 2},
]


class Cut(ark.Module):
    """Two products cut by columns and by rows, a norm that every rank has, a scalar, and a tie."""

    def __init__(self, model: ark.Model, axes: Mapping[str, int]) -> None:
        super().__init__()
        cut = "tp" if "tp" in axes else None
        self.first = model.parameter((WIDTH, HIDDEN), shard=ark.P(None, cut))
        self.second = model.parameter((HIDDEN, WIDTH), shard=ark.P(cut, None))
        self.norm = model.parameter(WIDTH)
        self.scale = model.parameter(())
        self.head = self.second  # tied
        x = model.tensor((ROWS, WIDTH), name="x")
        with model.stage(0):
            inner = model.matmul(model.rmsnorm(x, self.norm), self.first, is_relu=True)
        with model.stage(axes.get("pp", 1) - 1):
            y = model.mul(model.matmul(inner, self.second), self.scale)
        self.x, self.y = x, y


def cut_weights(seed: int = 0) -> dict[str, Array]:
    """A state_dict that fits Cut."""
    rng = np.random.default_rng(seed)
    second = rng.standard_normal((HIDDEN, WIDTH)).astype(np.float32)
    return {
        "first": rng.standard_normal((WIDTH, HIDDEN)).astype(np.float32),
        "second": second,
        "norm": rng.standard_normal(WIDTH).astype(np.float32),
        "scale": np.array(rng.standard_normal(), np.float32),
        "head": second,
    }


@contextmanager
def cut_model(
    communicator: Communicator | None, axes: Mapping[str, int], device: str = "numpy"
) -> Iterator[tuple[Cut, ark.Executor]]:
    """A Cut with memory on this rank; without a communicator on the ranks of this process."""
    model = ark.Model()
    module = Cut(model, axes)

    def opened() -> ark.Executor:
        return ark.Executor(model=model, device=device, workers=1, mesh=ark.Mesh(dict(axes)))

    if communicator is None:
        with opened() as exe:
            exe.compile()
            yield module, exe
        return
    with world.use(communicator), opened() as exe:
        exe.compile()
        yield module, exe


def result_of(module: Cut, exe: ark.Executor) -> Array:
    """Run the model once."""
    exe.launch()
    x = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH) / WIDTH - 1
    module.x.from_numpy(x)
    exe.run(1)
    exe.wait()
    y = module.y.to_numpy()
    exe.stop()
    return y


def expected(weights: Mapping[str, Array]) -> npt.NDArray[np.float64]:
    """What `result_of` gives, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = (np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH) / WIDTH - 1).astype(
        np.float64
    )
    normed = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * w["norm"]
    result: npt.NDArray[np.float64] = np.maximum(normed @ w["first"], 0) @ w["second"] * w["scale"]
    return result
