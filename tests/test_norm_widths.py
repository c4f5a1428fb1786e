"""A norm takes fp32 rows beside weights of 16 bits, alone and inside the matmul behind it."""

from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.target import Target, cpu_target, wide_target
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.session import Session
from ark_dist.scheduler.plan import make_plan
from tests.emulated import emulated, gpu_plan
from tests.plan_models import eager
from tests.running import launched

DEPTH, COLUMNS, EPS = 96, 128, 1e-5
# Matrix-vector products, few rows, and more rows than tiles of products take at once.
ROWS = (1, 5, 33)


def graph(dtype: str) -> tuple[Graph, dict[str, Value], list[Value]]:
    """For each number of rows a product of normalized rows; and the rows themselves."""
    m = GraphBuilder("norms")
    leaves = {f"x{rows}": m.tensor((rows, DEPTH), "fp32", name=f"x{rows}") for rows in ROWS}
    leaves["gain"] = m.parameter((DEPTH,), dtype, name="gain")
    leaves["weight"] = m.parameter((COLUMNS, DEPTH), dtype, name="weight")
    attrs = {"transpose_input": False, "transpose_other": True, "is_relu": False}
    outputs = []
    for rows in ROWS:
        inputs = [leaves[f"x{rows}"], leaves["gain"]]
        outputs.append(m.apply("rmsnorm", inputs, {"axis": 1, "eps": EPS}))
        hidden = m.apply("rmsnorm", inputs, {"axis": 1, "eps": EPS})
        outputs.append(m.apply("matmul", [hidden, leaves["weight"]], attrs))
    assert all(output.view.dtype.name == dtype for output in outputs)
    return m.freeze(), leaves, outputs


def check(
    opened: AbstractContextManager[Session],
    leaves: dict[str, Value],
    outputs: list[Value],
    dtype: str,
) -> None:
    rng = np.random.default_rng(5)
    data: dict[str, npt.NDArray[np.float64]] = {}
    with opened as session:
        for name, value in leaves.items():
            array = rng.normal(size=value.view.shape).astype(value.view.dtype.numpy)
            session.write(value.view, array)
            data[name] = array.astype(np.float64)
        session.run(1, "forward", {})
        session.wait()
        found = [session.read(output.view).astype(np.float64) for output in outputs]
    # Half of the last bit, for the rows and once more for what is made of them.
    ulp = {"bf16": 2.0**-8, "fp16": 2.0**-11}[dtype]
    for k, rows in enumerate(ROWS):
        x = data[f"x{rows}"]
        normed = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPS) * data["gain"]
        np.testing.assert_allclose(found[2 * k], normed, rtol=1.01 * ulp, atol=1e-6)
        bound = 2 * ulp * (np.abs(normed) @ np.abs(data["weight"].T))
        assert (np.abs(found[2 * k + 1] - normed @ data["weight"].T) <= bound).all()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_fp32_rows_beside_16_bit_weights(device: str, dtype: str) -> None:
    made, leaves, outputs = graph(dtype)
    check(launched(made, cpu_target(2, best_isa()), device), leaves, outputs, dtype)


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_gpu_gives_the_same(dtype: str, race: bool) -> None:
    made, leaves, outputs = graph(dtype)
    check(emulated(gpu_plan(made), race=race), leaves, outputs, dtype)


@pytest.mark.parametrize(
    ("target", "counts"),
    [
        (cpu_target(2, "avx512"), [2, 2, 2]),
        (eager(wide_target(3, "sm_90a", "cuda")), [2, 2, 1]),
    ],
    ids=["cpu", "cuda"],
)
def test_tensor_cores_do_not_normalize_wider_rows(target: Target, counts: list[int]) -> None:
    plan = make_plan(graph("bf16")[0], target)
    (method,) = plan.methods
    groups = [group for group in method.groups if method.nodes[group.nodes[-1]].op == "matmul"]
    assert [len(group.nodes) for group in groups] == counts


def test_other_mixtures_are_refused() -> None:
    m = GraphBuilder()
    inputs = [m.tensor((4, 6), "bf16"), m.tensor((6,), "fp16")]
    with pytest.raises(TypeError, match="rmsnorm: dtypes differ, "):
        m.apply("rmsnorm", inputs, {"axis": 1, "eps": EPS})
    with pytest.raises(TypeError, match="rmsnorm: dtype int32 is not supported; use fp32"):
        m.apply(
            "rmsnorm", [m.tensor((4, 6), "fp32"), m.tensor((6,), "int32")], {"axis": 1, "eps": EPS}
        )
