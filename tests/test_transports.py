"""Every communication operator is right on both transports, at 1 to 4 ranks."""

from collections.abc import Callable

import numpy as np
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.op import Array
from ark_dist.core.settings import read_settings
from ark_dist.launch.open import open_session
from ark_dist.scheduler.plan import PlanOptions
from tests.rank_threads import on_ranks

TURNS = 3
SHAPE = (12, 5)
Build = Callable[[GraphBuilder, Value], Value]
Check = Callable[[list[Array], int], Array]


def _ring(builder: GraphBuilder, x: Value) -> Value:
    rank, size = builder.rank, builder.world_size
    if size == 1:
        return builder.apply("copy", [x])
    token = builder.apply("send", [x], {"dst": (rank + 1) % size})
    got = builder.apply(
        "recv", [], {"src": (rank - 1) % size, "shape": SHAPE, "dtype": x.view.dtype.name}
    )
    return builder.apply("copy", [got], deps=[builder.apply("send_done", [token])])


def _pieces(given: list[Array], rank: int) -> Array:
    step = SHAPE[0] // len(given)
    return np.concatenate([x[rank * step : (rank + 1) * step] for x in given])


def _rows(given: list[Array], rank: int) -> Array:
    step = SHAPE[0] // len(given)
    total: Array = np.sum(given, axis=0)[rank * step : (rank + 1) * step]
    return total


CASES: dict[str, tuple[Build, Check]] = {
    "all_reduce": (lambda b, x: b.apply("all_reduce", [x]), lambda g, r: np.sum(g, axis=0)),
    "max": (
        lambda b, x: b.apply("all_reduce", [x], {"reduce": "max"}),
        lambda g, r: np.max(g, axis=0),
    ),
    "all_gather": (
        lambda b, x: b.apply("all_gather", [x], {"axis": 1}),
        lambda g, r: np.concatenate(g, axis=1),
    ),
    "reduce_scatter": (lambda b, x: b.apply("reduce_scatter", [x]), _rows),
    "broadcast": (
        lambda b, x: b.apply("broadcast", [x], {"root": b.world_size - 1}),
        lambda g, r: g[-1],
    ),
    "all_to_all": (lambda b, x: b.apply("all_to_all", [x]), _pieces),
    "ring": (_ring, lambda g, r: g[r - 1]),
    "barrier": (
        lambda b, x: b.apply("copy", [x], deps=[b.apply("barrier", [x])]),
        lambda g, r: g[r],
    ),
}


def given(rank: int, turn: int, dtype: np.dtype[np.generic]) -> Array:
    """What a rank's x is after so many turns."""
    start = (np.arange(np.prod(SHAPE)) % 7).reshape(SHAPE)
    return (start + rank + turn).astype(dtype)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("transport", ["peer", "proxy"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int32"])
def test_communication_gives_what_it_should(
    device: str, transport: str, size: int, dtype: str
) -> None:
    def work(communicator: Communicator) -> list[tuple[str, Array]]:
        builder = GraphBuilder("cases", rank=communicator.rank, world_size=size)
        first = given(communicator.rank, 0, np.dtype(np.float32))
        x = builder.state(SHAPE, dtype, name="x", init=first)
        grown = builder.apply("add", [x, 1], output=x)
        outputs = {
            name: build(builder, builder.apply("mul", [grown, 1]))
            for name, (build, _) in CASES.items()
        }
        opened = open_session(
            builder.freeze(),
            device=device,
            settings=read_settings(),
            worker_count=1 + size % 2,
            options=PlanOptions(transport=transport),
            communicator=communicator,
        )
        session = opened.session
        session.compile(lambda path: None)
        session.launch()
        session.run(TURNS, "forward", {})
        assert session.wait() == TURNS
        found = [(name, session.read(value.view)) for name, value in outputs.items()]
        session.stop()
        session.close()
        return found

    for rank, results in enumerate(on_ranks(size, work)):
        for name, value in results:
            parts = [given(r, TURNS, value.dtype) for r in range(size)]
            want = CASES[name][1](parts, rank)
            np.testing.assert_array_equal(value, want.astype(value.dtype), err_msg=name)
