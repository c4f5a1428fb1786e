"""Products with int8 weights agree with float64, however they are cut, stored and scaled."""

from dataclasses import dataclass

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.convert.int8 import quantize
from ark_dist.core.dtype import DTYPES

DEVICES = ("numpy", "cpu", "emulated")


@dataclass(frozen=True)
class Case:
    """x (m, k) times a matrix of n columns."""

    dtype: str
    m: int
    n: int
    k: int
    is_turned: bool = True
    is_weight: bool = True

    def __str__(self) -> str:
        kind = "weight" if self.is_weight else "tensor"
        return f"{self.dtype}-{self.m}x{self.k}x{self.n}-{kind}{'-turned' * self.is_turned}"


CASES = [
    Case("bf16", 1, 40, 37),
    Case("bf16", 1, 130, 576),
    Case("bf16", 8, 70, 66),
    Case("bf16", 20, 100, 1030),  # more rows than are widened in place, more depth than a block
    Case("bf16", 100, 33, 50),
    Case("bf16", 300, 136, 208),  # warp groups of a GPU, lines that are copied whole
    Case("bf16", 7, 64, 32, is_turned=False),
    Case("bf16", 24, 50, 40, is_turned=False),
    Case("bf16", 2, 4000, 20, is_turned=False),  # lanes of a GPU have more columns than threads
    Case("bf16", 5, 17, 90, is_weight=False),
    Case("bf16", 2, 40, 16, is_turned=False, is_weight=False),
    Case("fp16", 1, 33, 64),
    Case("fp16", 40, 33, 70),
    Case("fp32", 3, 100, 50),
    Case("fp32", 30, 40, 260),
    Case("fp32", 1, 1, 1),
]


def check(case: Case, device: str) -> None:
    """Run a case twice on random data and compare with float64."""
    rng = np.random.default_rng()
    graph = ark.Model("int8")
    x = graph.tensor((case.m, case.k), case.dtype)
    shape = (case.n, case.k) if case.is_turned else (case.k, case.n)
    make = graph.parameter if case.is_weight else graph.tensor
    weight, scale = make(shape, "int8", name="weight"), graph.parameter((case.n,), name="scale")
    sums = ark.matmul(x, weight, transpose_other=case.is_turned, dtype=ark.fp32)
    result = graph.keep(ark.cast(sums * scale, case.dtype))
    with ark.Executor(model=graph, device=device, workers=2 if device == "cpu" else None) as exe:
        exe.compile()
        matrix = rng.integers(-128, 128, shape).astype(np.int8)
        scales = rng.random(case.n, np.float32) / 100
        weight.from_numpy(matrix)
        scale.from_numpy(scales)
        exe.launch()
        for _ in range(2):
            rows = rng.standard_normal((case.m, case.k)).astype(DTYPES[case.dtype].numpy)
            x.from_numpy(rows)
            exe.run(1)
            exe.wait()
            wide = rows.astype(np.float64)
            columns = (matrix.T if case.is_turned else matrix).astype(np.float64)
            wanted, size = wide @ columns * scales, np.abs(wide) @ np.abs(columns) * scales
            error = np.abs(result.to_numpy().astype(np.float64) - wanted)
            rounding = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 5e-3}[case.dtype]
            assert (error <= rounding * size + 1e-7).all()
        assert (weight.to_numpy() == matrix).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_int8_matrices_are_multiplied_and_scaled(case: Case, device: str) -> None:
    check(case, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_product_keeps_the_dtype_that_it_is_asked_for(dtype: str, device: str) -> None:
    rng = np.random.default_rng()
    graph = ark.Model("logits")
    x, weight = graph.tensor((3, 96), dtype), graph.parameter((50, 96), dtype, name="weight")
    logits = graph.keep(ark.matmul(x, weight, transpose_other=True, dtype=ark.fp32))
    assert logits.dtype is ark.fp32
    with ark.Executor(model=graph, device=device, workers=None) as exe:
        exe.compile()
        rows, matrix = (rng.standard_normal(t.shape).astype(t.dtype.numpy) for t in (x, weight))
        weight.from_numpy(matrix)
        exe.launch()
        x.from_numpy(rows)
        exe.run(1)
        exe.wait()
        wanted = rows.astype(np.float64) @ matrix.astype(np.float64).T
        found = np.asarray(logits.to_numpy(), np.float64)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_only_an_int8_matrix_may_differ_from_the_left_operand() -> None:
    graph = ark.Model("mixed")
    x, weight = graph.tensor((2, 8), "bf16"), graph.tensor((8, 4), "fp32")
    with pytest.raises(TypeError, match="dtypes differ, bf16 and fp32"):
        ark.matmul(x, weight)
    with pytest.raises(TypeError, match="dtype int8 is not supported"):
        ark.matmul(graph.tensor((2, 8), "int8"), graph.tensor((8, 4), "int8"))
    with pytest.raises(TypeError, match="dtype 'int32' is not supported"):
        ark.matmul(x, graph.tensor((8, 4), "int8"), dtype=ark.int32)


def test_rows_are_rounded_to_the_nearest_multiple_of_their_scale() -> None:
    rows = np.random.default_rng().standard_normal((40, 70)).astype(np.float32)
    rows[3] = 0
    rows[4] *= 1e-30
    units, scale = quantize(rows)
    assert units.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (40, 1)
    assert (np.abs(units).max(axis=1)[np.arange(40) != 3] == 127).all()
    assert (units[3] == 0).all() and scale[3, 0] == 0
    assert (np.abs(units * scale - rows) <= 0.5001 * scale).all()
