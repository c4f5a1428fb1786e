"""Matrix products for the kernels of kernels/ops/matmul.cuh, and what comes out of them."""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ark_dist.kernels.stream import Cut, cut_weights, segments
from tests.device_kernels import SLOT_BYTES

Array = npt.NDArray[np.generic]
CONFIG = np.dtype(
    [
        *((name, "<u8") for name in ("a", "b", "y", "shift", "scale", "weight", "bias")),
        ("segments", "<u8"),
        *((name, "<i8") for name in ("m", "n", "k", "a_m", "a_k", "b_k", "b_n")),
        *((name, "<i8") for name in ("y_m", "scratch_bytes", "segment_count", "rounds")),
        ("columns", "<i4"),
        ("depth", "<i4"),
    ]
)
DTYPES = {"ark_bf16": ml_dtypes.bfloat16, "ark_fp16": np.float16, "float": np.float32}
SCRATCH_BYTES = 100_000
ALIGNMENT = 16
Y_GAP = 6  # elements between rows of the result; even, for pairs
NORM = {"prologue": "test_norm"}


@dataclass(frozen=True)
class Layout:
    """How a (rows, columns) matrix lies in memory: padding of a line, and which index it is."""

    is_transposed: bool = False
    gap: int = 0  # elements between lines
    step: int = 1  # elements from one element of a line to the next
    start: int = 0  # elements before the first


@dataclass(frozen=True)
class Matrix:
    """A matrix, and the memory it lies in."""

    values: npt.NDArray[np.float64]
    memory: Array
    offset: int
    strides: tuple[int, int]

    @property
    def address(self) -> int:
        """Of the first element."""
        return int(self.memory.ctypes.data) + self.offset * self.memory.itemsize


def matrix(rng: np.random.Generator, rows: int, columns: int, name: str, layout: Layout) -> Matrix:
    """Draw a matrix; what lies between its elements is NaN."""
    lines, length = (columns, rows) if layout.is_transposed else (rows, columns)
    pitch = length * layout.step + layout.gap
    dtype = np.dtype(DTYPES[name])
    raw = np.full(lines * pitch + layout.start + ALIGNMENT, np.nan, dtype)
    offset = -raw.ctypes.data % ALIGNMENT // dtype.itemsize + layout.start
    steps = (pitch * dtype.itemsize, layout.step * dtype.itemsize)
    view = np.lib.stride_tricks.as_strided(raw[offset:], (lines, length), steps)
    view[...] = rng.standard_normal((lines, length)).astype(dtype)
    values = view.astype(np.float64)
    if layout.is_transposed:
        return Matrix(values.T, raw, offset, (layout.step, pitch))
    return Matrix(values, raw, offset, (pitch, layout.step))


@dataclass(frozen=True)
class Case:
    """One product: which kernel, for which operands."""

    kind: str
    m: int
    n: int
    k: int
    a: Layout = Layout()
    b: Layout = Layout()
    a_dtype: str = "ark_bf16"
    b_dtype: str = "ark_bf16"
    parameters: tuple[tuple[str, object], ...] = ()
    scratch_bytes: int = SCRATCH_BYTES
    cut: Cut | None = None
    rounds: int = 1
    factor: float = 1.0


class Problem:
    """A case with random operands, and what comes out of it."""

    def __init__(self, case: Case, seed: int) -> None:
        rng = np.random.default_rng([seed, case.m, case.n, case.k])
        self.case, self.seed = case, seed
        self.a = matrix(rng, case.m, case.k, case.a_dtype, case.a)
        self.b = matrix(rng, case.k, case.n, case.b_dtype, case.b)
        self.y = np.full((case.m + 1, case.n + Y_GAP), np.nan, np.float32)
        rows = rng.standard_normal((2, case.m)).astype(np.float32)
        lines = rng.standard_normal((2, case.k)).astype(np.float32)
        self.norm: dict[str, Array] = dict(
            zip(("shift", "scale", "weight", "bias"), (*rows, *lines), strict=True)
        )

    def config(self, place: Callable[[str, Array, bool], int]) -> npt.NDArray[np.void]:
        """Return what the kernel reads; `place(name, array, is_writable)` says where arrays lie."""
        case, config = self.case, np.zeros((), CONFIG)
        for name in ("m", "n", "k", "scratch_bytes", "rounds"):
            config[name] = getattr(case, name)
        config["a_m"], config["a_k"] = self.a.strides
        config["b_k"], config["b_n"] = self.b.strides
        config["y_m"] = case.n + Y_GAP
        config["y"] = place("y", self.y, True)
        for name, operand in (("a", self.a), ("b", self.b)):
            start = place(name, operand.memory, False)
            config[name] = start + operand.offset * operand.memory.itemsize
        for name, array in self.norm.items():
            config[name] = place(name, array, False)
        if case.kind == "stream":
            rows = self._segments(int(config["b"]))
            config["segments"] = place("segments", rows, False)
            config["segment_count"] = len(rows)
            config["columns"], config["depth"] = self._cut().columns, self._cut().depth
        return config

    def _cut(self) -> Cut:
        case = self.case
        itemsize = self.b.memory.itemsize
        return case.cut or cut_weights(case.n, case.k, itemsize, slot_bytes=SLOT_BYTES, held=4)

    def _segments(self, source: int) -> npt.NDArray[np.void]:
        case, cut, itemsize = self.case, self._cut(), self.b.memory.itemsize
        assert cut.columns * cut.depth * itemsize <= SLOT_BYTES
        rows = segments(source, case.n, case.k, itemsize, self.b.strides[1] * itemsize, cut)
        assert len(rows) == cut.slot_count(case.n, case.k)
        return rows

    def check(self) -> None:
        """Compare `y` with float64."""
        case, a, b = self.case, self.a.values, self.b.values * self.case.factor
        relative = (case.k + 2) * 2.0**-24  # of a sum of k + 1 rounded values
        if dict(case.parameters).get("prologue") == "test_norm":
            shift, scale, weight, bias = (v.astype(np.float64) for v in self.norm.values())
            a = (a - shift[:, None]) * scale[:, None] * weight + bias
            relative += 2.0**-20  # of the sum in the normalization, which may cancel
            if case.kind == "tensor":  # rounds what it multiplies
                relative += 2.0**-8 if case.a_dtype == "ark_bf16" else 2.0**-11
        bound = relative * (np.abs(a) @ np.abs(b)) + 2.0**-18
        y, outside = self.y[: case.m, : case.n], self.y.copy()
        error = np.abs(y - a @ b)
        wrong = np.argwhere(~(error <= bound))
        assert not len(wrong), (case, self.seed, wrong[0], y[tuple(wrong[0])], len(wrong))
        outside[: case.m, : case.n] = np.nan
        assert np.isnan(outside).all(), "written outside"


def tensor(
    m: int, n: int, k: int, tile: str = "64, 64, 2, 3", dtype: str = "ark_bf16", **rest: object
) -> Case:
    a, b = rest.pop("a", Layout()), rest.pop("b", Layout(is_transposed=True))
    assert isinstance(a, Layout) and isinstance(b, Layout)
    along = {"a_along_k": not a.is_transposed, "b_along_k": b.is_transposed}
    texts = {name: str(value).lower() for name, value in along.items()}
    parameters = tuple(sorted({"t": dtype, "tile": tile, **texts, **rest}.items()))
    return Case("tensor", m, n, k, a, b, dtype, dtype, parameters)


T = Layout(is_transposed=True)
TENSOR_CASES = [
    tensor(64, 64, 64),
    tensor(64, 64, 256, dtype="ark_fp16"),
    tensor(70, 72, 104, b=Layout()),  # several tiles, none of them full
    tensor(64, 40, 96, a=T),
    tensor(40, 24, 64, a=T, b=Layout()),
    tensor(33, 17, 37),  # odd: elements one by one
    tensor(5, 9, 3, a=T, b=Layout()),
    tensor(20, 31, 41, a=Layout(gap=7), b=T),  # lines aligned, k is not
    tensor(20, 31, 40, a=Layout(step=3), b=Layout(gap=5, step=2, start=1)),
    tensor(16, 130, 72, tile="16, 128, 1, 2"),
    tensor(100, 120, 80, tile="128, 128, 2, 2", epilogue="test_store_pair"),
    tensor(140, 70, 200, tile="128, 64, 8, 3"),
    tensor(130, 140, 200, tile="128, 128, 8, 3", dtype="ark_fp16"),
    tensor(128, 64, 320, tile="128, 64, 8, 4"),
    tensor(100, 60, 200, tile="128, 64, 8, 3", **NORM),
    tensor(64, 64, 200, **NORM),
    tensor(30, 20, 77, dtype="ark_fp16", a=T, b=Layout(), **NORM),
    tensor(64, 64, 128, a=T, **NORM),
]


def plain(m: int, n: int, k: int, ta: str = "float", tb: str = "float", **rest: object) -> Case:
    a, b = rest.pop("a", Layout()), rest.pop("b", Layout())
    assert isinstance(a, Layout) and isinstance(b, Layout)
    parameters = {"ta": ta, "tb": tb, "tile": "4, 4", **rest}
    return Case("plain", m, n, k, a, b, ta, tb, tuple(sorted(parameters.items())))


PLAIN_CASES = [
    plain(64, 64, 32),
    plain(70, 33, 45),
    plain(7, 5, 3, a=T, b=T),
    plain(65, 40, 17, a=Layout(gap=3, start=1), b=Layout(step=2)),
    plain(30, 70, 20, ta="ark_bf16", tb="ark_fp16", a=T),
    plain(100, 130, 40, tile="8, 8", b=T),
    plain(20, 20, 33, **NORM),
]


def few(
    kind: str, m: int, n: int, k: int, dtype: str = "ark_bf16", *, rows: int = 1, **rest: object
) -> Case:
    a, b = rest.pop("a", Layout()), rest.pop("b", T)
    scratch_bytes, cut = rest.pop("scratch_bytes", SCRATCH_BYTES), rest.pop("cut", None)
    rounds, factor = rest.pop("rounds", 1), rest.pop("factor", 1.0)
    assert isinstance(a, Layout) and isinstance(b, Layout)
    assert isinstance(scratch_bytes, int) and isinstance(rounds, int) and isinstance(factor, float)
    assert cut is None or isinstance(cut, Cut)
    parameters = tuple(sorted({"ta": dtype, "tb": dtype, "m": rows, "r": 4, **rest}.items()))
    return Case(
        *(kind, m, n, k, a, b, dtype, dtype, parameters),
        scratch_bytes=scratch_bytes,
        cut=cut,
        rounds=rounds,
        factor=factor,
    )


STREAM_CASES = [
    few("stream", 1, 40, 64),
    few("stream", 1, 23, 256, rounds=5),  # 7 lines a slot would hold, 3 keep all warps busy
    few("stream", 1, 5, 1032, b=Layout(is_transposed=True, gap=8)),  # a line is longer than a slot
    few("stream", 1, 3, 24, dtype="ark_fp16"),
    few("stream", 1, 100, 136, dtype="float", rounds=3),
    few("stream", 3, 37, 520, rows=4, a=Layout(gap=3)),
    few("stream", 8, 70, 264, rows=8, a=T),
    few("stream", 2, 66, 1600, rows=2, scratch_bytes=4096),  # x comes in parts
    few("stream", 1, 130, 64, cut=Cut(9, 64), rounds=4),  # more lines than a warp holds at once
    few("stream", 2, 20, 72, rows=2, **NORM),
]


DIRECT_CASES = [
    few("direct", 1, 40, 64),
    few("direct", 1, 37, 77),
    few("direct", 3, 10, 200, rows=4, b=Layout(is_transposed=True, gap=8)),
    few("direct", 1, 21, 48, b=Layout(is_transposed=True, start=1)),
    few("direct", 1, 21, 48, dtype="float", b=Layout(is_transposed=True, step=2)),
    few("direct", 1, 264, 40, b=Layout()),
    few("direct", 4, 24, 100, rows=4, b=Layout()),
    few("direct", 8, 19, 33, rows=8, dtype="ark_fp16", b=Layout(step=3)),
    few("direct", 2, 300, 50, rows=2, dtype="float", b=Layout(gap=4), a=T),
    few("direct", 8, 33, 600, rows=8, b=Layout(), scratch_bytes=9000),
    few("direct", 2, 33, 600, rows=2, scratch_bytes=2048),
    few("direct", 2, 20, 72, rows=2, **NORM),
    few("direct", 2, 20, 72, rows=2, b=Layout(), **NORM),
    few("computed", 2, 11, 70, rows=2, factor=2.0),
]

ALL_CASES = [*TENSOR_CASES, *PLAIN_CASES, *STREAM_CASES, *DIRECT_CASES]
