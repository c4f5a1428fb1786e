"""The GPU's matrix products, run by the emulation, agree with float64."""

import functools

import numpy as np
import pytest

from ark_dist.core.settings import read_settings
from ark_dist.kernels.stream import Cut, segments
from ark_dist.launch.emulation import Emulation, EmulationFault, Program, compile_emulated
from tests.device_kernels import SCRATCH_OFFSET, kernel_text
from tests.matmul_cases import (
    ALL_CASES,
    CONFIG,
    DIRECT_CASES,
    PLAIN_CASES,
    STREAM_CASES,
    TENSOR_CASES,
    Array,
    Case,
    Problem,
)


@functools.cache
def program(
    kind: str, race: bool, arch: int, mutation: tuple[str, str] | None, **parameters: object
) -> Program:
    text = kernel_text(kind, **parameters)
    if mutation is not None:
        if mutation[0] not in text:
            raise LookupError(f"{mutation[0]!r} is not in the source")
        text = text.replace(*mutation)
    return compile_emulated(text, settings=read_settings(), name=kind, arch=arch, race=race)


def run(
    case: Case,
    seed: int,
    *,
    race: bool = False,
    arch: int = 90,
    mutation: tuple[str, str] | None = None,
) -> None:
    """Run a case on random operands and compare with float64; `mutation` changes the source."""
    problem = Problem(case, seed)
    made = program(case.kind, race, arch, mutation, **dict(case.parameters))
    smem_bytes = SCRATCH_OFFSET + case.scratch_bytes
    with Emulation(made, "kernel", ctas=1, smem_bytes=smem_bytes, seed=seed) as emulation:

        def place(name: str, array: Array, is_writable: bool) -> int:
            return emulation.buffer(name, array, is_writable=is_writable)

        emulation.constant("config", problem.config(place))
        assert emulation.resume()
    problem.check()


@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_tensor_cores_multiply_any_layout(case: Case, seed: int) -> None:
    run(case, seed)


@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_cuda_cores_multiply_any_layout(case: Case, seed: int) -> None:
    run(case, seed)


@pytest.mark.parametrize("case", STREAM_CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("arch", [80, 90])
def test_weights_come_through_the_ring(case: Case, seed: int, arch: int) -> None:
    run(case, seed, arch=arch)


@pytest.mark.parametrize("case", DIRECT_CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_come_straight_from_memory(case: Case, seed: int) -> None:
    run(case, seed)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_no_access_races_with_another(case: Case) -> None:
    run(case, 7, race=True)


@pytest.mark.parametrize("case", STREAM_CASES[:3], ids=str)
def test_no_access_races_with_a_copy_by_lanes(case: Case) -> None:
    run(case, 8, race=True, arch=80)


GROUPS = next(case for case in TENSOR_CASES if "128, 128, 8, 3" in dict(case.parameters).values())
BARRIER = "gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);"
# What a case must catch: the text that goes, the text that comes.
MUTATIONS = [
    (TENSOR_CASES[1], f"{BARRIER}\n    }}\n    const int ahead", "}\n    const int ahead"),
    (TENSOR_CASES[1], "gpu_copy_wait<distance - 1>", "gpu_copy_wait<distance>"),
    (TENSOR_CASES[1], "8 * third + in_8, k0 / 8 + second", "8 * second + in_8, k0 / 8 + third"),
    (TENSOR_CASES[2], f"{BARRIER}\n  ark_tensor_finish", "ark_tensor_finish"),
    (GROUPS, "stages - (by_groups ? 2 : 1)", "stages - 1"),
    (GROUPS, "gpu_wgmma_wait<1>", "gpu_wgmma_wait<2>"),
    (GROUPS, "gpu_wgmma_wait<0>();", ""),
    (GROUPS, "gpu_wgmma_fence();", ""),
    (GROUPS, "gpu_warp() / 4 * group_bytes", "gpu_warp() / 4 * 128"),
    (GROUPS, "uint64_t(1024 / 16) << 32", "uint64_t(512 / 16) << 32"),
    (GROUPS, "chunks >= 8 ? 7 : chunks - 1", "chunks >= 8 ? 3 : chunks - 1"),
    (PLAIN_CASES[0], f"is filled next.\n    {BARRIER}\n  }}\n  ark_plain", "\n  }\n  ark_plain"),
    (STREAM_CASES[1], "gpu_sync_warp();  // the other lanes", "// the other lanes"),
    (
        STREAM_CASES[1],
        "= gpu_mbarrier_wait(empty, ark_slot_parity(slot) ^ 1, &ring.closed)",
        "= true",
    ),
    (STREAM_CASES[1], "ark_slot_parity(slot) ^ 1", "ark_slot_parity(slot)"),
    (STREAM_CASES[1], "!source.acquire(first, part)", "0"),
    (STREAM_CASES[7], "segment.bytes * segment.count", "segment.bytes"),
    (STREAM_CASES[1], f"                prologue);\n        {BARRIER}", "prologue);"),
    (
        STREAM_CASES[7],
        f"{BARRIER}\n        ark_stage_rows<TA, M, CHUNK>",
        "ark_stage_rows<TA, M, CHUNK>",
    ),
    (DIRECT_CASES[6], f"{BARRIER}\n    if (lane < lanes)", "if (lane < lanes)"),
]


@pytest.mark.parametrize(("case", "old", "new"), MUTATIONS, ids=range(len(MUTATIONS)))
def test_a_planted_mistake_is_caught(case: Case, old: str, new: str) -> None:
    with pytest.raises((EmulationFault, AssertionError)):
        run(case, 3, race=True, mutation=(old, new))


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("is_drained", [True, False])
def test_a_closed_ring_lets_the_producer_go_when_its_copies_are_done(
    arch: int, is_drained: bool
) -> None:
    weights = np.ones((64, 256), np.float32)
    rows = segments(weights.ctypes.data, 64, 256, 4, 1024, Cut(1, 256))
    y = np.full(1, np.nan, np.float32)
    config = np.zeros((), CONFIG)
    mutation = None if is_drained else ("ark_drain_slots(ring, produced.slot);", "")
    made = program("closed", False, arch, mutation)
    for seed in range(8):
        with Emulation(made, "kernel", ctas=1, smem_bytes=SCRATCH_OFFSET, seed=seed) as emulation:
            emulation.buffer("weights", weights)
            config["segments"] = emulation.buffer("segments", rows)
            config["segment_count"] = len(rows)
            config["y"] = emulation.buffer("y", y, is_writable=True)
            emulation.constant("config", config)
            if is_drained:
                assert emulation.resume()
                assert y[0] == 1
            else:
                with pytest.raises(EmulationFault):
                    emulation.resume()
