"""The products that AMX computes, with its instructions emulated."""

import ctypes
import os
from functools import cache
from importlib import resources

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core import abi
from ark_dist.core.dtype import as_dtype
from ark_dist.core.packing import PANEL_WIDTH, pack, packed_shape
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.kernels.cpu_matmul import COLUMNS, COPIED_DEPTH, block_rows
from ark_dist.kernels.text import INCLUDED
from ark_dist.launch import cpuinfo
from ark_dist.launch.compile import compile_source, load_library

Array = npt.NDArray[np.generic]
DTYPES: dict[str, npt.DTypeLike] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
# Rows: few, those of one piece, of two, of several tiles, of two blocks of rows. Depths: pairs
# alone, a last element without a partner, whole tiles, and both.
SHAPES = (
    (7, 2, 16), (8, 1, 1), (16, 32, 33), (17, 33, 64), (31, 64, 80), (33, 31, 17), (65, 97, 130),
    (100, 513, 47), (241, 96, 65), (243, 1100, 20),
)  # fmt: skip
# Sums are fp32: 2^-24 for each of the additions that a result goes through, of products up to 1.
ROUNDING = 2.0**-24

BEFORE = ("include/base", "include/math", "include/team", "include/piece")
AFTER = (
    "include/call",
    "include/loop",
    "include/tile",
    "include/row",
    "include/micro",
    "include/int8",
)

# The instructions, and what the processor would refuse.
EMULATED = """
#define ARK_AMX
static const bool ark_amx_has_fp16 = true;
struct ark_amx_shape {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static ark_amx_shape amx;
static uint8_t tiles[8][16][64];
static int mistakes = 0;

static void must(bool is_right) { mistakes += !is_right; }
static void ark_amx_configure(const ark_amx_shape& shape) {
  amx = shape;
  must(amx.palette == 1 && amx.start_row == 0);
  for (int t = 0; t < 8; ++t) must(amx.rows[t] <= 16 && amx.row_bytes[t] <= 64);
  for (int t = 0; t < 8; ++t) must(!amx.rows[t] == !amx.row_bytes[t] && amx.row_bytes[t] % 4 == 0);
  __builtin_memset(tiles, 0, sizeof tiles);
}
static void ark_amx_release() {
  must(amx.palette == 1);
  amx = {};
}
template <int TILE>
static void ark_amx_clear() {
  must(amx.rows[TILE] > 0);
  __builtin_memset(tiles[TILE], 0, sizeof tiles[TILE]);
}
template <int TILE>
static void ark_amx_load(const void* from, int64_t pitch_bytes) {
  ark_amx_clear<TILE>();
  for (int r = 0; r < amx.rows[TILE]; ++r)
    __builtin_memcpy(tiles[TILE][r], static_cast<const char*>(from) + r * pitch_bytes,
                     amx.row_bytes[TILE]);
}
template <int TILE>
static void ark_amx_store(void* to, int64_t pitch_bytes) {
  must(amx.rows[TILE] > 0);
  for (int r = 0; r < amx.rows[TILE]; ++r)
    __builtin_memcpy(static_cast<char*>(to) + r * pitch_bytes, tiles[TILE][r],
                     amx.row_bytes[TILE]);
}
template <int SUMS, int A, int B, class T>
static void ark_amx_add(T) {
  must(amx.rows[SUMS] > 0 && amx.rows[SUMS] == amx.rows[A]);
  must(amx.row_bytes[A] == 4 * amx.rows[B] && amx.row_bytes[SUMS] == amx.row_bytes[B]);
  for (int r = 0; r < amx.rows[SUMS]; ++r)
    for (int n = 0; n < amx.row_bytes[B] / 4; ++n) {
      float even = 0, odd = 0;
      for (int p = 0; p < amx.rows[B]; ++p) {
        const T* a = reinterpret_cast<const T*>(tiles[A][r]) + 2 * p;
        const T* b = reinterpret_cast<const T*>(tiles[B][p]) + 2 * n;
        even += ark_load<T>(a[0]) * ark_load<T>(b[0]);
        odd += ark_load<T>(a[1]) * ark_load<T>(b[1]);
      }
      reinterpret_cast<float*>(tiles[SUMS][r])[n] += even + odd;
    }
}
"""

EXPORTS = """
template <class T, bool IS_PACKED>
static void multiply(float* scratch, const T* a, const T* b, const int64_t* params, float* to) {
  const ark_matmul_shape shape = ark_matmul_params(params);
  const auto epilogue = [&](int64_t i, int64_t j0, const float* sums, int64_t n) {
    for (int64_t j = 0; j < n; ++j) to[i * shape.n + j0 + j] = sums[j];
  };
  const ark_matmul_b<T, T, IS_PACKED> given{b};
  ark_matmul(scratch, a, given, shape, ark_matmul_no_prologue{}, epilogue);
}
#define EXPORT(NAME, T, IS_PACKED)                                                             \\
  extern "C" __attribute__((visibility("default"))) void NAME(                                 \\
      float* scratch, const T* a, const T* b, const int64_t* params, float* to) {              \\
    multiply<T, IS_PACKED>(scratch, a, b, params, to);                                         \\
  }
EXPORT(packed_bf16, ark_bf16, true)
EXPORT(packed_fp16, ark_fp16, true)
EXPORT(plain_bf16, ark_bf16, false)
EXPORT(plain_fp16, ark_fp16, false)
"""
MISTAKES = """
extern "C" __attribute__((visibility("default"))) int count_mistakes() { return mistakes; }
"""


def text(*, is_emulated: bool) -> str:
    """The kernels' texts that matrix products need."""
    files = resources.files("ark_dist.kernels")

    def texts(names: tuple[str, ...]) -> list[str]:
        return [INCLUDED.sub("", (files / f"{name}.h").read_text("utf-8")) for name in names]

    instead, count = (EMULATED, MISTAKES) if is_emulated else ("", "")
    parts = [*texts(BEFORE), abi.c_header(), *texts(AFTER), instead]
    return "\n".join([*parts, *texts(("include/amx", "ops/matmul")), EXPORTS, count])


@cache
def library(isa: str) -> ctypes.CDLL:
    source = Source("amx", "c++", text(is_emulated=True))
    binary = compile_source(source, isa=isa, settings=read_settings())
    return load_library(binary)


def address(array: Array) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def product(
    isa: str, dtype: str, a: Array, b: Array, *, is_packed: bool
) -> npt.NDArray[np.float32]:
    """What the kernel makes of a (M, K) by b (K, N)."""
    (m, k), n = a.shape, b.shape[1]
    rows = block_rows(k)
    strides = (PANEL_WIDTH, k + k % 2) if is_packed else (n, 1)
    params = np.array([m, n, k, k, 1, *strides, rows], np.int64)
    depth = k + k % 2
    scratch = np.full(rows * COLUMNS + COPIED_DEPTH * COLUMNS + rows * depth, np.nan, np.float32)
    given = b
    if is_packed:
        given = np.empty(packed_shape("panels", b.shape, as_dtype(dtype)), b.dtype)
        pack("panels", b, given)
    to = np.full((m, n), np.nan, np.float32)
    name = f"{'packed' if is_packed else 'plain'}_{dtype}"
    arrays = (scratch, a, given, params, to)
    getattr(library(isa), name)(*map(address, arrays))
    return to


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_multiply_any_shape(shape: tuple[int, int, int], dtype: str, is_packed: bool) -> None:
    isa = min(cpuinfo.best_isa(), "avx512", key=cpuinfo.LADDER.index)
    rng = np.random.default_rng(sum(shape))
    m, k, n = shape
    a, b = (rng.uniform(-1, 1, size).astype(DTYPES[dtype]) for size in ((m, k), (k, n)))
    got = product(isa, dtype, a, b, is_packed=is_packed)
    want = a.astype(np.float64) @ b.astype(np.float64)
    limit = ROUNDING * (k + 2) * (np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64)))
    assert (np.abs(got - want) <= limit).all()
    assert library(isa).count_mistakes() == 0


def test_the_instructions_are_compiled() -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("this is no x86-64 processor")
    source = Source("amx_instructions", "c++", text(is_emulated=False))
    binary = compile_source(source, isa="amx", settings=read_settings())
    assert binary.path.stat().st_size > 0
