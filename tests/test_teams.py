"""The texts of row operators work for a team of several threads as they do for one."""

import ctypes
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core import abi
from ark_dist.core.op import Attrs
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.launch.compile import compile_source, load_library
from tests.operator_formulas import FORMULAS, Inputs, allowed_error

HEADERS = ("base.h", "math.h", "team.h", "call.h", "tile.h", "piece.h", "row.h")
OPS = ("softmax", "layernorm", "rmsnorm", "cumsum", "argmax", "reduce_mean")
MEMBERS = 5
SIZES = (1, 2, 4, 5, 6, 11, 640, 4999)
EPS = 0.01
F32 = np.float32
Floats = npt.NDArray[np.float32]

# A team of threads with the members' names of ark_team; `run` calls f(team) on all of them.
CROWD = """
#include <pthread.h>

constexpr int MEMBERS = %(members)d;

struct meeting {
  pthread_barrier_t barrier;
  int64_t values[MEMBERS];
};

struct crowd {
  static constexpr int64_t size = MEMBERS;
  meeting* place;
  int64_t index;

  int64_t rank() const { return index; }
  void sync() const { pthread_barrier_wait(&place->barrier); }
  template <class F>
  void each(int64_t n, const F& f) const {
    for (int64_t i = index; i < n; i += size) f(i);
  }
  template <class T>
  void show(T value) const {
    sync();
    __builtin_memcpy(&place->values[index], &value, sizeof(T));
    sync();
  }
  template <class T>
  T seen(int64_t member) const {
    T value;
    __builtin_memcpy(&value, &place->values[member], sizeof(T));
    return value;
  }
  template <class T, class Combine>
  T combine(T value, const Combine& combine) const {
    show(value);
    T result = seen<T>(0);
    for (int64_t m = 1; m < size; ++m) result = combine(result, seen<T>(m));
    return result;
  }
  template <class T, class Combine>
  T scan_exclusive(T value, const Combine& combine, T start) const {
    show(value);
    for (int64_t m = 0; m < index; ++m) start = combine(start, seen<T>(m));
    return start;
  }
};

template <class F>
struct member {
  const F* f;
  crowd team;
  pthread_t thread;
  static void* work(void* self) {
    (*static_cast<member*>(self)->f)(static_cast<member*>(self)->team);
    return nullptr;
  }
};

template <class F>
void run(const F& f) {
  meeting place;
  pthread_barrier_init(&place.barrier, nullptr, MEMBERS);
  member<F> members[MEMBERS];
  for (int64_t m = 0; m < MEMBERS; ++m) {
    members[m].f = &f;
    members[m].team = {&place, m};
    pthread_create(&members[m].thread, nullptr, member<F>::work, &members[m]);
  }
  for (int64_t m = 0; m < MEMBERS; ++m) pthread_join(members[m].thread, nullptr);
  pthread_barrier_destroy(&place.barrier);
}

#define EXPORT extern "C" __attribute__((visibility("default")))

// Write the values of a row over it: each member what the team gives it.
template <class Value>
void write(const crowd& team, float* x, int64_t n, const Value& value) {
  team.each(n, [&](int64_t i) { x[i] = value(i); });
}
EXPORT void run_softmax(float* x, int64_t n, const float*, const float*, float) {
  run([&](const crowd& team) {
    write(team, x, n, ark_softmax(team, ark_row<float>{x, 1}, x, n));
  });
}
EXPORT void run_layernorm(float* x, int64_t n, const float* weight, const float* bias, float eps) {
  run([&](const crowd& team) {
    const ark_row<float> row{x, 1}, by{weight, 1}, plus{bias, 1};
    write(team, x, n, ark_layernorm(team, row, x, n, by, plus, eps));
  });
}
EXPORT void run_rmsnorm(float* x, int64_t n, const float* weight, const float*, float eps) {
  run([&](const crowd& team) {
    const ark_row<float> row{x, 1}, by{weight, 1};
    write(team, x, n, ark_rmsnorm(team, row, x, n, by, eps));
  });
}

// Every member writes what it found: sum, mean, max, min and argmax.
template <class T, class Row>
void fold(const Row& row, int64_t n, T* to) {
  run([&](const crowd& team) {
    T* mine = to + 5 * team.rank();
    mine[0] = ark_sum<T>(team, row, n);
    mine[1] = ark_reduce_mean<T>(team, row, n);
    mine[2] = ark_max<T>(team, row, n);
    mine[3] = ark_min<T>(team, row, n);
    mine[4] = T(ark_argmax<T>(team, row, n));
  });
}
EXPORT void run_fold(const float* x, int64_t n, float* to) { fold(ark_row<float>{x, 1}, n, to); }
EXPORT void run_fold_int(const int32_t* x, int64_t n, int32_t* to) {
  fold(ark_row<int32_t>{x, 1}, n, to);
}
EXPORT void run_fold_grid(const float* x, const int64_t* sizes, int64_t n, float* to) {
  fold(ark_grid<float, 3>{x, sizes}, n, to);
}

template <class T>
void cumsum(const T* x, T* to, const int64_t* tile, int64_t axis) {
  void* operands[2] = {const_cast<T*>(x), to};
  ark_call call = {};
  call.params = tile;
  call.operands = operands;
  run([&](const crowd& team) {
    const ark_tile<const T, 2> in(call, 0, 0);
    const ark_tile<T, 2> out(call, 1, 0);
    ark_cumsum(team, call, in, out, axis);
  });
}
EXPORT void run_cumsum(const float* x, float* to, const int64_t* tile, int64_t axis) {
  cumsum(x, to, tile, axis);
}
EXPORT void run_cumsum_int(const int32_t* x, int32_t* to, const int64_t* tile, int64_t axis) {
  cumsum(x, to, tile, axis);
}
"""


@cache
def library() -> ctypes.CDLL:
    """The texts, compiled for a team of threads."""
    files = resources.files("ark_dist.kernels")
    parts = [(files / "include" / name).read_text("utf-8") for name in HEADERS]
    parts.insert(HEADERS.index("call.h"), abi.c_header())
    parts += [(files / "ops" / f"{op}.h").read_text("utf-8") for op in OPS]
    text = "\n".join([*parts, CROWD % {"members": MEMBERS}])
    binary = compile_source(
        Source("teams", "c++", text), isa="portable", settings=read_settings(),
        on_compile=lambda path: None,
    )  # fmt: skip
    return load_library(binary)


def address(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def close(op: str, inputs: tuple[Floats, ...], attrs: Attrs, got: Floats) -> bool:
    """Whether a result is within the bound of its formula."""
    wide: Inputs = tuple(x.astype(np.float64) for x in inputs)
    want = FORMULAS[op](wide, attrs).astype(np.float64)
    limit = allowed_error(op, "fp32", wide, want, attrs)
    return bool((np.abs(got.astype(np.float64) - want) <= limit).all())


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("op", ["softmax", "layernorm", "rmsnorm"])
def test_a_team_maps_a_row_in_place(op: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x, weight, bias = (rng.uniform(-2, 2, n).astype(F32) for _ in range(3))
    row = x.copy()
    getattr(library(), f"run_{op}")(
        address(row), ctypes.c_int64(n), address(weight), address(bias), ctypes.c_float(EPS)
    )
    inputs = {"softmax": (x,), "layernorm": (x, weight, bias), "rmsnorm": (x, weight)}[op]
    assert close(op, inputs, {"axis": 0, "eps": EPS}, row)


def check_folds(x: Floats, found: Floats) -> None:
    """Each member's sum, mean, largest, smallest and first largest."""
    attrs: Attrs = {"axis": None, "keepdims": False}
    assert (found == found[0]).all(), "members found different results"
    for op, got in zip(("reduce_sum", "reduce_mean"), found[0], strict=False):
        assert close(op, (x,), attrs, got)
    assert found[0, 2] == x.max() and found[0, 3] == x.min() and found[0, 4] == x.argmax()


@pytest.mark.parametrize("n", SIZES)
def test_all_members_find_the_same(n: int) -> None:
    x = np.random.default_rng(n).integers(-72, 72, n).astype(F32)
    found = np.zeros((MEMBERS, 5), F32)
    library().run_fold(address(x), ctypes.c_int64(n), address(found))
    check_folds(x, found)


@pytest.mark.parametrize("where", [0, 3, 639])
def test_a_nan_wins_whoever_reads_it(where: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 640).astype(F32)
    x[where] = x[-1] = np.nan
    found = np.zeros((MEMBERS, 5), F32)
    library().run_fold(address(x), ctypes.c_int64(640), address(found))
    assert np.isnan(found[:, :4]).all() and (found[:, 4] == where).all()


def test_integers_wrap_in_a_team_too() -> None:
    x = np.random.default_rng(1).integers(-(2**31), 2**31, 4999).astype(np.int32)
    found = np.zeros((MEMBERS, 5), np.int32)
    library().run_fold_int(address(x), ctypes.c_int64(4999), address(found))
    total = x.sum(dtype=np.int32)
    assert (found[:, [0, 2, 3, 4]] == [total, x.max(), x.min(), x.argmax()]).all()


def test_several_loops_are_one_row() -> None:
    x = np.random.default_rng(2).uniform(-1, 1, (7, 5, 9, 11)).astype(F32)
    # Sizes, then strides.
    loops = np.array([7, 5, 11, *(x.strides[d] // 4 for d in (0, 1, 3))], np.int64)
    found = np.zeros((MEMBERS, 5), F32)
    library().run_fold_grid(address(x), address(loops), ctypes.c_int64(7 * 5 * 11), address(found))
    check_folds(np.ascontiguousarray(x[:, :, 0]), found)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (1, 4999), (3, 641), (5, 6), (700, 11)])
def test_running_sums_go_from_member_to_member(shape: tuple[int, int], axis: int) -> None:
    rng = np.random.default_rng(3)
    # Start, sizes, strides and extents of the tile, which is all of the tensor.
    tile = np.array([0, 0, *shape, shape[1], 1, *shape], np.int64)
    x = rng.uniform(-1, 1, shape).astype(F32)
    found = np.zeros_like(x)
    library().run_cumsum(address(x), address(found), address(tile), ctypes.c_int64(axis))
    assert close("cumsum", (x,), {"axis": axis}, found)
    whole = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    sums = np.zeros_like(whole)
    library().run_cumsum_int(address(whole), address(sums), address(tile), ctypes.c_int64(axis))
    np.testing.assert_array_equal(sums, whole.cumsum(axis=axis, dtype=np.int32))
