"""Each device primitive does under emulation what it should, and misuse of it is caught."""

import re

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.settings import read_settings
from ark_dist.launch.compile import find_compiler
from ark_dist.launch.emulation import Emulation, EmulationFault
from tests.emulated_kernels.persistent import compiled

# A seed may hide a bug that depends on the order; these many do not.
HUNTED_SEEDS = 12

Array = npt.NDArray[np.generic]


def launch(
    kernel: str,
    given: Array,
    out: Array,
    *defines: str,
    mode: int = 0,
    seed: int = 0,
    ctas: int = 1,
    race: bool = True,
    boxes: bool = False,
    steps: int | None = None,
    source: str = "primitives.cu",
) -> None:
    """Run a small kernel to its end; it fills `out`."""
    program = compiled(source, *defines, race=race)
    word, flag = np.zeros(1, np.uint64), np.zeros(1, np.uint32)
    with Emulation(program, kernel, ctas=ctas, smem_bytes=8192, seed=seed) as emulation:
        at = [emulation.buffer("in", given)]
        at += [emulation.buffer("out", out, is_writable=True)]
        at += [emulation.buffer("word", word, is_writable=True)]
        at += [emulation.buffer("flag", flag, is_writable=True)]
        emulation.constant("config", np.array([*at, mode], np.uint64))
        if boxes:
            for address, is_write in zip(at[:2], (False, True), strict=True):
                emulation.box(2, 3, address, 4, (8, 4), (8, 1), is_write=is_write)
        if steps is not None:
            emulation.limit_steps(steps)
        assert emulation.resume()


@pytest.mark.parametrize("mode", range(8))
def test_mma_through_ldmatrix_is_a_matrix_product(mode: int) -> None:
    dtype = np.dtype(np.float16 if mode & 4 else ml_dtypes.bfloat16)
    rng = np.random.default_rng(mode)
    a, b = rng.standard_normal((16, 16)).astype(dtype), rng.standard_normal((16, 8)).astype(dtype)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    wanted = a.astype(np.float64) @ b.astype(np.float64) + c
    parts = [a.ravel(), b.ravel(), b.T.ravel(), a.T.ravel()]
    launch("matrices", np.concatenate(parts).view(np.uint16), c, mode=mode)
    # The sum is rounded once to fp32; sums of 17 values of size 1 stay below 32.
    np.testing.assert_allclose(c, wanted, rtol=0, atol=32 * 2.0**-24)


def test_warps_shuffle_vote_and_reduce() -> None:
    x = np.random.default_rng().standard_normal(64).astype(np.float32)
    out = np.zeros((64, 5), np.float32)
    launch("warps", x, out)
    lanes = np.arange(32)
    for warp in range(2):
        mine, rows = x[warp * 32 :][:32], out[warp * 32 :][:32]
        np.testing.assert_allclose(rows[:, 0], mine.astype(np.float64).sum(), rtol=0, atol=1e-4)
        assert len(set(rows[:, 0])) == 1
        assert np.array_equal(rows[:, 1], mine[lanes ^ 5])
        assert np.array_equal(rows[:, 2], mine[(lanes + 3) % 32])
        assert set(rows[:, 3].view(np.uint32)) == {sum(1 << i for i in lanes if mine[i] > 0)}
        assert set(rows[:, 4]) == {sum(range(warp * 32, warp * 32 + 32))}


def test_conversions_agree_with_numpy() -> None:
    rng = np.random.default_rng()
    patterns = rng.integers(0, 2**32, 4096, np.uint32)
    near = rng.standard_normal(4096).astype(np.float32).view(np.uint32)
    ties = (rng.integers(0, 2**16, 4096, np.uint32) << 16) + 0x8000
    halves_ties = np.float32(1) + np.arange(4096, dtype=np.float32) * np.float32(2.0**-11)
    x = np.concatenate([patterns, near, ties, halves_ties.view(np.uint32)]).view(np.float32)
    out = np.zeros((2, x.size), np.uint16)
    launch("to_halves", x, out, mode=x.size, race=False)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = [x.astype(kind).view(np.uint16) for kind in (ml_dtypes.bfloat16, np.float16)]
    for found, right in zip(out, wanted, strict=True):
        assert np.array_equal(found, np.where(np.isnan(x), 0x7FFF, right))
    halves = np.arange(2**16, dtype=np.uint16)
    back = np.zeros((2, halves.size), np.float32)
    launch("from_halves", halves, back, mode=halves.size, race=False)
    np.testing.assert_array_equal(back[0], halves.view(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(back[1], halves.view(np.float16).astype(np.float32))


def test_copies_land_in_groups_and_invalid_ones_are_zeros() -> None:
    given = np.random.default_rng().integers(0, 256, (64, 4, 16), np.uint8)
    wanted = given.copy()
    wanted[1::2, 3] = 0
    for seed in range(6):
        out = np.zeros_like(given)
        launch("copies", given, out, seed=seed)
        assert np.array_equal(out, wanted)


def test_atomic_words_count_and_compare() -> None:
    for seed in range(6):
        out = np.zeros(1, np.uint64)
        launch("words", out, out.copy(), seed=seed, ctas=5)
        launch("words", np.zeros(1), out, seed=seed, ctas=5)
        assert int(out[0]) == 5


def test_fences_and_arrivals_order_plain_memory() -> None:
    for seed in range(6):
        out = np.zeros(32, np.float32)
        launch("fences", np.zeros(1), out, seed=seed, ctas=2)
        assert out[1] == 42
        launch("arrives", np.zeros(1), out, seed=seed)
        assert np.array_equal(out, np.arange(32)[::-1])


def test_bytes_of_neighbours_do_not_race() -> None:
    out = np.zeros(32, np.uint8)
    launch("bytes", np.zeros(1), out)
    assert list(out[:9]) == [9, 9, 10, 11, 12, 13, 14, 15, 8]


def test_strided_boxes_hold_exactly_their_elements() -> None:
    given, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    launch("task", given, out, boxes=True)
    inside = np.arange(64) % 8 < 4
    assert np.array_equal(out, np.where(inside, given, 0))
    undeclared = r"undeclared read: .* in task 3 of method 2 .*'in'\[\d+\]"
    with pytest.raises(EmulationFault, match=undeclared):
        launch("task", given, out, boxes=True, mode=1)


PLANTED = [
    ("copies", ("BUG_COPY_WAIT",), 0, "race", r"copy issued by CTA 0 warp \d lane \d+"),
    ("copies", ("BUG_COPY_BARRIER",), 0, "race", r"copy issued by CTA 0 warp \d lane \d+"),
    ("fences", ("BUG_NO_FENCE",), 0, "race", r"race at 'out' \+ 0 bytes:"),
    ("fences", ("BUG_NO_FENCE_AFTER",), 0, "race", r"race at 'out' \+ 0 bytes:"),
    ("arrives", ("BUG_AFTER_ARRIVE",), 0, "race", r"race at shared memory"),
    ("bytes", (), 1, "race", r"race at 'out' \+ 6 bytes:\n .* lane [56] .* writes"),
    ("plain_flag", (), 0, "race", r"race at shared memory \+ 0 of CTA 0:"),
]
MISUSED = [
    ("null_pointer", 16, "crash|bounds", r"address 0x10, in no named buffer"),
    ("recursion", 0, "crash", r"stack overflow: CTA 0 warp 0 lane"),
    ("stale_load", 0, "bounds", r"read-only load of 'out' .* the buffer is writable"),
    ("shared_as_global", 0, "bounds", r"gpu_global of shared memory \+ 0 of CTA 0"),
    ("atomic_on_shared", 0, "bounds", r"atomic update by .* shared memory"),
    ("others_stack", 0, "bounds", r"lane 1 .* at the local memory of CTA 0 thread 0"),
    ("early_exit", 0, "collective", r"missing lanes: .*(17|0x20000)"),
    ("two_collectives", 0, "collective", r"missing lanes: .* (gpu_ballot|gpu_sync_warp)"),
    ("far_lane", 0, "collective", r"asks for lane 32; a warp has 32"),
    ("barrier_id", 0, "barrier", r"barrier\(16, 32\) by .*: ids are 0 to 15"),
    ("barrier_twice", 0, "barrier", r"warp 0 comes twice to one use; it has 32 of 64"),
    ("overwritten", 0, "mbarrier", r"mbarrier overwritten: .* gpu_mbarrier_arrive"),
    ("exit_copying", 0, "copy", r"exits and 1 of its copies have not landed"),
    ("beyond", 60, "bounds", r"reads 4 bytes at .*('in' \+ 256 bytes|past the end of 'in')"),
    ("beyond", 1 << 40, "bounds", r"reads 4 bytes at address 0x\w+, in no named buffer"),
]
SMALL = [("primitives.cu", *case) for case in PLANTED] + [
    ("misuse.cu", kernel, (), mode, kind, text) for kernel, mode, kind, text in MISUSED
]


@pytest.mark.parametrize(
    ("source", "kernel", "defines", "mode", "kind", "text"),
    SMALL,
    ids=["-".join([case[1], *case[2], str(case[3])]) for case in SMALL],
)
def test_misuse_of_a_primitive_is_caught(
    source: str, kernel: str, defines: tuple[str, ...], mode: int, kind: str, text: str
) -> None:
    given = np.zeros(4096 if kernel == "copies" else 256, np.uint8)
    out = np.zeros(4096, np.uint8)
    with pytest.raises(EmulationFault, match=text) as caught:
        for seed in range(HUNTED_SEEDS):
            ctas = 2 if kernel == "fences" else 1
            launch(kernel, given, out, *defines, mode=mode, ctas=ctas, seed=seed, source=source)
    assert re.fullmatch(kind, caught.value.kind), str(caught.value)


@pytest.mark.parametrize("defines", [(), ("BUG_NOT_TOLD",)])
def test_the_host_orders_what_it_was_told_before_its_next_command(defines: tuple[str, ...]) -> None:
    out, word, flag = np.zeros(2, np.uint64), np.zeros(1, np.uint64), np.zeros(1, np.uint32)
    program = compiled("primitives.cu", *defines, race=True)
    with Emulation(program, "commands", ctas=3, smem_bytes=0) as emulation:
        at = [emulation.buffer("out", out, is_writable=True)]
        at += [emulation.buffer("word", word), emulation.buffer("flag", flag)]
        emulation.constant("config", np.array([0, *at, 0], np.uint64))
        assert not emulation.resume()
        word[:] = 1
        assert not emulation.resume()
        word[:] = 2
        if defines:
            with pytest.raises(EmulationFault, match=r"race at 'out' \+ 0 bytes:"):
                emulation.resume()
            return
        assert not emulation.resume()
        assert out.view(np.float32)[0] == 2
        flag[:] = 1
        assert emulation.resume()


def test_a_misaligned_vector_load_is_caught() -> None:
    if find_compiler(read_settings()).kind != "gcc":
        pytest.skip("other compilers do not check accesses to whole structs")
    with pytest.raises(EmulationFault, match=r"at 'in' \+ 4 bytes, .* multiple of 16 bytes, by"):
        launch("wide_load", np.zeros(64), np.zeros(64), race=False, source="misuse.cu")


def test_a_livelock_ends_at_the_step_limit() -> None:
    two = np.zeros(1), np.zeros(1)
    with pytest.raises(EmulationFault, match="step limit: not done after 5000 steps") as caught:
        launch("livelock", *two, steps=5000, race=False, source="misuse.cu")
    assert caught.value.kind == "step limit"


def test_a_crash_in_value_mode_is_a_fault() -> None:
    two = np.zeros(1), np.zeros(1)
    with pytest.raises(EmulationFault, match=r"crash: signal 11 at address 0x10, .* lane 4") as it:
        launch("null_pointer", *two, mode=16, race=False, source="misuse.cu")
    assert it.value.kind == "crash"
