"""The benchmarks of operators: what they measure is right, and their rows say what was measured."""

import ctypes
import time
from pathlib import Path

import numpy as np
import pytest

from ark_dist.bench import compute
from ark_dist.bench.cases import OPERATIONS, Case
from ark_dist.bench.peaks import Peaks
from ark_dist.bench.rows import Row, Wanted
from ark_dist.bench.timing import Effort, others_s
from ark_dist.bench.torch_peer import TorchPeer
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.launch import cpuinfo
from ark_dist.launch.compile import compile_source, load_library

SHORT = Effort(rounds=1, round_s=1e-4)
ISAS = [isa for isa in ("portable", "avx2", "avx512") if cpuinfo.can_run(isa)]
SUM = Case("reduce_sum", "sum", "fp32", ((4, 8),))


def check_rows(rows: list[Row]) -> None:
    for row in rows:
        assert row.ours > 0 and row.floor is not None and row.floor > 0
        assert row.of_floor == pytest.approx(row.floor / row.ours)
        if row.peer is None:
            assert row.peer_name is None and row.ratio is None
        else:
            assert row.ratio == pytest.approx(row.peer / row.ours)


def test_matmul_has_a_row_per_product_and_number_of_workers() -> None:
    rows = compute.matmul(Wanted("3x", "fp32"), SHORT, ((3, 5, 7), (2, 2, 2)))
    assert [(row.case, row.workers) for row in rows] == [("3x5x7", 1), ("3x5x7", 2)]
    check_rows(rows)


def test_mlp_has_a_row_per_number_of_workers() -> None:
    rows = compute.mlp(Wanted(dtype="bf16"), SHORT, (4, 16, 32))
    assert [(row.case, row.dtype, row.workers) for row in rows] == [
        ("tutorial", "bf16", 1),
        ("tutorial", "bf16", 2),
    ]
    check_rows(rows)


def test_ops_measures_every_operator_at_both_sizes() -> None:
    rows = compute.ops(Wanted(dtype="fp32"), SHORT, large_bytes=1)
    kinds = [row.case.rpartition(" ")[0] for row in rows]
    assert {*kinds} == {*OPERATIONS} - {"attention", "matmul", "mlp"} | {
        "attention prefill",
        "attention decode",
    }
    assert all(kinds.count(kind) == 2 for kind in kinds if not kind.startswith("attention"))
    check_rows(rows)


def test_nothing_is_measured_where_no_case_is_wanted() -> None:
    assert compute.matmul(Wanted("no such case"), SHORT) == []


@pytest.mark.parametrize("wrong", [1.0, np.nan])
def test_a_wrong_result_is_never_timed(wrong: float) -> None:
    result = SUM.truth()
    SUM.check(result, "ours")
    result[-1] += wrong
    with pytest.raises(ArithmeticError, match="ours: sum in fp32 is off by"):
        SUM.check(result, "ours")


def test_a_large_operand_repeats_its_first_rows_and_all_of_its_result_is_checked() -> None:
    case = Case("silu", "silu", "fp32", ((4096, 2),))
    (whole,), (part,) = (case.operands(is_whole=is_whole) for is_whole in (True, False))
    assert whole.shape == (4096, 2) and part.shape == (2048, 2)
    result = np.tile(case.truth(), (2, 1))
    case.check(result, "ours")
    result[-1] += 1
    with pytest.raises(ArithmeticError, match="off by"):
        case.check(result, "ours")


def test_a_peer_without_torch_says_so_and_one_with_torch_computes_every_kind() -> None:
    x, square = (4, 16), (16, 16)
    heads, keys = (1, 4, 6, 8), (1, 4, 2, 8)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "attention": (heads, keys, keys),
        "chain": (x, x),
        "layernorm": (x, (16,), (16,)),
        "matmul": (x, square),
        "mlp": (x, square, square),
        "rmsnorm": (x, (16,)),
        "rope": ((4, 2, 8), (4, 1, 8)),
    }
    with TorchPeer(1) as peer:
        if peer.name is None:
            return
        for kind in OPERATIONS:
            case = Case(kind, kind, "fp32", shapes.get(kind, (x,)))
            assert peer.prepare(case) is not None
            assert peer.run(2) > 0


def test_the_machines_limits_are_found_and_those_of_arithmetic_once() -> None:
    peaks = Peaks(SHORT)
    for found in (
        peaks.operations_per_s("fp32", 1),
        peaks.operations_per_s("bf16", 2),
        peaks.read_per_s(1 << 16, 2),
        peaks.copied_per_s(1 << 16, 2),
    ):
        assert found > 0
    assert peaks.operations_per_s("fp32", 1) == peaks.operations_per_s("fp16", 1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["copy", "stream"])
def test_the_loops_of_every_instruction_set_copy(isa: str, kind: str) -> None:
    text = (Path(compute.__file__).parent / "peak.h").read_text("utf-8")
    source = Source("peaks", "c++", text)
    library = load_library(compile_source(source, isa=isa, settings=read_settings()))
    size = 4096
    memory = np.zeros(3 * size, np.uint8)
    start = -memory.ctypes.data % size
    source_bytes, target = (memory[start + i * size :][:size] for i in range(2))
    source_bytes[:] = np.arange(size) % 251
    arrived = ctypes.c_uint32(0)
    pointers = (ctypes.c_void_p(part.ctypes.data) for part in (source_bytes, target))
    turns, count = ctypes.c_uint64(1), ctypes.c_uint32(1)
    function = getattr(library, f"ark_peak_{kind}")
    function(ctypes.byref(arrived), count, turns, *pointers, ctypes.c_uint64(size))
    np.testing.assert_array_equal(target, source_bytes)


def test_what_this_process_computes_is_not_counted_as_others() -> None:
    before = others_s(), time.process_time()
    while time.process_time() - before[1] < 0.2:
        pass
    # Others may have been busy too, but not with less than nothing: a tick is 10 ms.
    assert others_s() - before[0] > -0.1
