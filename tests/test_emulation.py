"""The emulated GPU computes what a GPU would, replays its seeds, and catches planted bugs."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.errors import CompileError, CompilerNotFoundError
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.launch.compile import find_compiler
from ark_dist.launch.emulation import Emulation, EmulationFault, compile_emulated
from ark_dist.launch.nvrtc import compile_cuda, find_nvrtc
from tests.emulated_kernels.persistent import FOLDER, Run, compiled, expected, run

ARCHS = (80, 90)
SEEDS = 25
RACE_SEEDS = 4
# A seed may hide a bug that depends on the order; these many do not.
HUNTED_SEEDS = 12
# x is a sum of 64 products of values around 1, one factor of each rounded to bf16 (2^-9) from h,
# whose fp32 error may tip the rounding; five turns.
TOLERANCE = 64**0.5 * 2.0**-8

Array = npt.NDArray[np.generic]


def assert_right(found: Run, seed: int, turns: int) -> None:
    np.testing.assert_allclose(
        found.x, expected(seed, turns), rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"seed {seed}"
    )


# --- a persistent kernel --------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_a_persistent_kernel_is_right_for_every_seed(arch: int) -> None:
    for seed in range(SEEDS):
        assert_right(run(compiled("persistent.cu", arch=arch), seed), seed, 5)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("ctas", [1, 3])
def test_a_persistent_kernel_has_no_race(arch: int, ctas: int) -> None:
    for seed in range(RACE_SEEDS):
        found = run(compiled("persistent.cu", arch=arch, race=True), seed, ctas=ctas)
        assert_right(found, seed, 5)


def test_a_seed_replays_its_schedule_in_both_modes() -> None:
    first, again = (run(compiled("persistent.cu"), 7) for _ in range(2))
    checked = run(compiled("persistent.cu", race=True), 7)
    other = run(compiled("persistent.cu"), 8)
    assert first.digest == again.digest == checked.digest
    assert np.array_equal(first.x, again.x)
    assert other.digest != first.digest


# --- planted bugs ---------------------------------------------------------------------------------

OVERRUN = "mbarrier overrun|overlapping copies|race at"
VALUE, RACE = False, True
BUGS = [
    ("NO_FULL_WAIT", RACE, "race", r"asynchronous copy"),
    ("NO_EMPTY_WAIT", RACE, "mbarrier|copy|race", OVERRUN),
    ("PARITY", RACE, "mbarrier|copy|race", OVERRUN),
    ("RELAXED", RACE, "race", r"in task \d of method 0 reads\n  unordered with an .* write"),
    ("NO_ACQUIRE", RACE, "race", r"in task \d of method 0 reads\n  unordered with an .* write"),
    ("NO_SYNCWARP", RACE, "race", r"copy issued by .* writes its target\n .* earlier read by"),
    ("NO_BARRIER", RACE, "race", r"race at '(h|z|x)'\[\d+\]:"),
    ("THRESHOLD_LOW", RACE, "race", r"race at '(h|z|x)'\[\d+\]:"),
    ("THRESHOLD_HIGH", VALUE, "deadlock", r"gpu_wait on 'counters' \+ 16 bytes: have 0, want 1\n"),
    ("BARRIER_WARP", VALUE, "barrier|collective|deadlock", r"missing lanes|have 96 threads"),
    ("BARRIER_LANE", VALUE, "barrier|collective", r"missing lanes: .* lane 7 \(thread 39\)"),
    ("BARRIER_COUNT", VALUE, "barrier", r"warp \d comes with a count of \d+ threads"),
    ("NO_INIT", VALUE, "mbarrier", r"mbarrier before init: CTA \d warp 4 lane 0"),
    ("NO_FENCE", VALUE, "mbarrier", r"mbarrier before its fence: .* thread 0, which init"),
    ("INIT_UNORDERED", RACE, "mbarrier|race", r"mbarrier before (init|its fence)|race at shared"),
    ("READ", RACE, "undeclared", r"undeclared read: .* in task \d .* reads 4 bytes at 'z'\[0\]"),
    ("WRITE", RACE, "undeclared", r"undeclared write: .* writes 4 bytes at 'h'\[\d+\]"),
    ("READONLY", RACE, "bounds", r"write to read-only memory: .* at 'x0'\[\d+\]"),
    ("SHUFFLE", VALUE, "collective", r"missing lanes: .* lane 9 .* wait in gpu_warp_reduce"),
    ("COPY_ALIGNMENT", VALUE, "misaligned", r"gpu_fill at shared memory \+ 8 of CTA \d"),
    ("COPY_BOUNDS", VALUE, "bounds", r"out of bounds: .* gpu_fill 2048 bytes at address"),
    ("FILL_LANE", VALUE, "collective", r"lane 3 of CTA \d warp 4 called gpu_fill 1 times, lane 0"),
]


def hunt(bug: str, *, race: bool, arch: int) -> EmulationFault:
    program = compiled("persistent.cu", f"BUG_{bug}", arch=arch, race=race)
    for seed in range(HUNTED_SEEDS):
        try:
            run(program, seed)
        except EmulationFault as fault:
            return fault
    raise AssertionError(f"{bug}: {HUNTED_SEEDS} seeds ran without a fault")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("bug", "race", "kind", "text"), BUGS, ids=[bug[0] for bug in BUGS])
def test_a_planted_bug_is_caught(bug: str, race: bool, kind: str, text: str, arch: int) -> None:
    fault = hunt(bug, race=race, arch=arch)
    assert re.fullmatch(kind, fault.kind), str(fault)
    assert re.search(text, str(fault)), str(fault)
    assert re.search(r"\n  seed \d+, step \d+", str(fault)), str(fault)


def test_wrong_byte_counts_are_caught() -> None:
    less = hunt("EXPECT_LESS", race=False, arch=90)
    assert re.search(r"expect_tx mismatch: .* fills \d+ bytes, .* expect (4080|2032)", str(less))
    more = hunt("EXPECT_MORE", race=False, arch=90)
    assert more.kind == "deadlock"
    assert "phase 0, have 1 of 1 arrivals, 16 bytes missing" in str(more)


def test_a_misaligned_vector_load_is_caught() -> None:
    if find_compiler(read_settings()).kind != "gcc":
        pytest.skip("other compilers do not check accesses to whole structs")
    fault = hunt("MISALIGNED", race=False, arch=90)
    assert fault.kind == "misaligned"
    assert re.search(r"type 'const (struct )?gpu_vec4' at shared memory \+ \d+ of CTA", str(fault))


@pytest.mark.parametrize("arch", ARCHS)
def test_leaving_without_a_drain_is_caught(arch: int) -> None:
    for seed in range(HUNTED_SEEDS):
        assert run(compiled("persistent.cu", arch=arch), seed, fail_turn=2).abort == 1
    with pytest.raises(EmulationFault, match=r"exit with copies under way: CTA \d warp 4 lane"):
        for seed in range(HUNTED_SEEDS):
            run(compiled("persistent.cu", "BUG_NO_DRAIN", arch=arch), seed, fail_turn=2)


def test_the_watchdog_lets_waits_time_out() -> None:
    late = 2  # what the kernel writes to the abort word
    found = run(compiled("persistent.cu", "BUG_THRESHOLD_HIGH"), 0, watchdog=True)
    assert found.abort == late


def test_a_deadlock_report_names_every_waiting_thread() -> None:
    lines = str(hunt("THRESHOLD_HIGH", race=False, arch=90)).splitlines()
    assert lines[0] == "deadlock: 480 of 480 threads wait and none can go on"
    pattern = re.compile(r"  CTA (\d) warp (\d) lanes (\d+)-(\d+) (outside any task|in task.*): .*")
    seen = []
    for line in lines[2:]:
        match = pattern.fullmatch(line)
        assert match is not None, line
        cta, warp, first, last = (int(match[i]) for i in range(1, 5))
        seen += [(cta * 5 + warp) * 32 + lane for lane in range(first, last + 1)]
    assert seen == list(range(480))
    producer = r"  CTA 0 warp 4 lanes 0-0 .*: gpu_mbarrier_wait\(parity 0\) on shared memory \+"
    assert any(re.match(producer, line) for line in lines)


def test_an_idle_kernel_can_be_asked_what_it_waits_for() -> None:
    program = compiled("persistent.cu")
    with Emulation(program, "persistent", ctas=1, smem_bytes=32 << 10) as emulation:
        assert "lanes 0-31 outside any task: nothing: it can run" in emulation.report()


# --- compiling ------------------------------------------------------------------------------------


def test_what_can_not_be_compiled_is_said(tmp_path: Path) -> None:
    settings = dataclasses.replace(read_settings(), cache_dir=tmp_path)
    header = '#include "ark_gpu.h"\n'
    with pytest.raises(CompileError, match=r"'toy', emulated: (.|\n)*no_such_thing"):
        compile_emulated(header + "int x = no_such_thing;\n", settings=settings, name="toy")
    with pytest.raises(ValueError, match=r"arch is 70; the emulation knows \(80, 90\)"):
        compile_emulated(header, settings=settings, arch=70)
    with pytest.raises(ValueError, match=r'includes "other\.h"'):
        compile_emulated('#include "other.h"\n', settings=settings)
    done = compile_emulated(header + "GPU_KERNEL(k, 33) {}\n", settings=settings)
    again = compile_emulated(header + "GPU_KERNEL(k, 33) {}\n", settings=settings)
    assert not done.binary.is_cached
    assert again.binary.is_cached
    with pytest.raises(ValueError, match="2 CTAs of 33 threads; at least one CTA, and a multiple"):
        Emulation(done, "k", ctas=2, smem_bytes=0)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["persistent.cu", "primitives.cu"])
def test_the_same_text_compiles_for_a_gpu(name: str, arch: str) -> None:
    try:
        find_nvrtc()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    source = Source(name, "cuda", (FOLDER / name).read_text())
    _, report = compile_cuda(source, arch=arch, settings=read_settings())
    assert all(kernel.stack_bytes == 0 for kernel in report.kernels)
