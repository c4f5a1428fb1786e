"""Measure operators and small models against floors of this machine and against PyTorch."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path

import numpy as np

from ark_dist.bench.cases import OPERATIONS, PERIOD, Case
from ark_dist.bench.peaks import Peaks
from ark_dist.bench.rows import ALL, Row, Wanted
from ark_dist.bench.timing import FULL, Effort, loop_s, others_s, rest
from ark_dist.bench.torch_peer import TorchPeer
from ark_dist.core.dtype import as_dtype
from ark_dist.executor import Executor
from ark_dist.model import Model
from ark_dist.tensors import Tensor

DTYPES = ("fp32", "bf16", "fp16")
# M, K, N; the odd ones are neighbours of two of the others.
PRODUCTS = (
    (64, 512, 2048),
    (128, 576, 1536),
    (1024, 1024, 1024),
    (1, 576, 1536),
    (65, 513, 2047),
    (1, 577, 1535),
)
WORKERS = (1, 2)
# Both sides take turns on all of these.
OPS_WORKERS = (2,)
# The tutorial's model: rows, width, inner width.
TUTORIAL = 64, 512, 2048
# Rows of an operand: 256 KB in fp32, and enough for the second size below.
CACHED_ROWS, WIDTH = 128, 512
LEAST_BYTES, CACHES = 64 << 20, 4
HEAD, QUERY_HEADS, KEY_HEADS = 64, 9, 3
PREFILL, DECODE = 128, 1024
# Where less than this part of the bytes is written, reading alone is the floor.
MOSTLY_READ = 0.1
# Of a core; where other processes use more, figures are worth little.
MOST_FOREIGN = 0.1
US = 1e6


def matmul(
    wanted: Wanted = ALL,
    effort: Effort = FULL,
    products: Sequence[tuple[int, int, int]] = PRODUCTS,
) -> list[Row]:
    """A product with a parameter, the faster of torch's matmul and linear as the peer."""
    cases = [
        Case("matmul", f"{m}x{k}x{n}", dtype, ((m, k), (k, n)), 2.0 * m * k * n)
        for m, k, n in products
        for dtype in DTYPES
    ]
    return _rows("matmul", cases, WORKERS, wanted, effort)


def mlp(
    wanted: Wanted = ALL, effort: Effort = FULL, sizes: tuple[int, int, int] = TUTORIAL
) -> list[Row]:
    """The tutorial's model on one rank: two products and a relu between them."""
    m, k, n = sizes
    shapes = (m, k), (k, n), (n, k)
    cases = [Case("mlp", "tutorial", dtype, shapes, 4.0 * m * k * n) for dtype in DTYPES]
    return _rows("mlp", cases, WORKERS, wanted, effort)


def ops(wanted: Wanted = ALL, effort: Effort = FULL, large_bytes: int | None = None) -> list[Row]:
    """Operators whose operands fit a core's cache, and such as fit none."""
    large = max(LEAST_BYTES, CACHES * last_cache_bytes()) if large_bytes is None else large_bytes
    cases = []
    for dtype in DTYPES:
        row_bytes = WIDTH * as_dtype(dtype).itemsize
        periods = -(-large // (row_bytes * PERIOD))
        for rows in (CACHED_ROWS, periods * PERIOD):
            cases += _row_cases(rows, dtype)
        cases += _attention_cases(dtype)
    return _rows("ops", sorted(cases, key=lambda c: c.kind), OPS_WORKERS, wanted, effort)


def last_cache_bytes() -> int:
    """Size of the last-level cache that this machine says it has; 0 if it does not say."""
    found = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text("ascii").strip()
        found.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1], 0))
    return max(found)


def _row_cases(rows: int, dtype: str) -> list[Case]:
    x, vector = (rows, WIDTH), (WIDTH,)
    heads = rows, WIDTH // HEAD, HEAD
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {
        "chain": (x, x),
        "gelu": (x,),
        "gelu tanh": (x,),
        "layernorm": (x, vector, vector),
        "reduce_sum": (x,),
        "rmsnorm": (x, vector),
        "rope": (heads, (rows, 1, HEAD)),
        "silu": (x,),
        "softmax": (x,),
    }
    return [Case(kind, f"{kind} {rows}x{WIDTH}", dtype, s) for kind, s in shapes.items()]


def _attention_cases(dtype: str) -> list[Case]:
    found = []
    scores = PREFILL * (PREFILL + 1) // 2, DECODE
    for name, count, seen, pairs in zip(
        ("prefill", "decode"), (PREFILL, 1), (PREFILL, DECODE), scores, strict=True
    ):
        keys = 1, seen, KEY_HEADS, HEAD
        shapes = (1, count, QUERY_HEADS, HEAD), keys, keys
        operations = 4.0 * HEAD * QUERY_HEADS * pairs
        found.append(Case("attention", f"attention {name} {seen}", dtype, shapes, operations))
    return found


def _rows(
    bench: str, cases: Iterable[Case], workers: Sequence[int], wanted: Wanted, effort: Effort
) -> list[Row]:
    chosen = [case for case in cases if wanted.takes(case.name, case.dtype)]
    if not chosen:
        return []
    peaks = Peaks(effort)
    with ExitStack() as stack:
        peers = {count: stack.enter_context(TorchPeer(count)) for count in workers}
        if any(peer.name is None for peer in peers.values()):
            print("torch is not installed: no comparison with it", file=sys.stderr)
        return [
            _row(bench, case, count, peers[count], peaks, effort)
            for case in chosen
            for count in workers
        ]


def _row(
    bench: str, case: Case, workers: int, peer: TorchPeer, peaks: Peaks, effort: Effort
) -> Row:
    before = _floor_s(case, workers, peaks)
    ours, theirs = _measured(case, workers, peer, effort)
    floor = min(before, _floor_s(case, workers, peaks))
    return Row(
        bench=bench,
        case=case.name,
        dtype=case.dtype,
        ranks=1,
        workers=workers,
        unit="us",
        ours=ours * US,
        peer_name=None if theirs is None else peer.name,
        peer=None if theirs is None else theirs * US,
        ratio=None if theirs is None else theirs / ours,
        floor=floor * US,
        of_floor=floor / ours,
    )


def _floor_s(case: Case, workers: int, peaks: Peaks) -> float:
    """What no program can go below: arithmetic, or memory that is read and written."""
    arithmetic = 0.0
    if case.operations:
        arithmetic = case.operations / peaks.operations_per_s(case.dtype, workers)
    if case.kind in ("matmul", "mlp"):
        memory = case.weight_bytes / peaks.read_per_s(case.weight_bytes, workers)
        return max(arithmetic, memory)
    written = prod(case.shapes[0]) * as_dtype(case.dtype).itemsize
    if case.kind == "reduce_sum":
        written //= case.shapes[0][-1]
    moved = case.read_bytes + written
    if written < MOSTLY_READ * moved:
        return max(arithmetic, moved / peaks.read_per_s(case.read_bytes, workers))
    return max(arithmetic, moved / peaks.copied_per_s(moved // 2, workers))


def _measured(
    case: Case, workers: int, peer: TorchPeer, effort: Effort
) -> tuple[float, float | None]:
    """Medians of rounds that take turns: seconds of our iteration, and of torch's call."""
    exe, result = _executor(case, workers)
    with exe:
        exe.launch()
        loop_s(exe, 1)
        case.check(result.to_numpy(), "ours")
        count = effort.count(loop_s(exe, effort.count(loop_s(exe, 1))))
        peer_s = peer.prepare(case) if peer.name is not None else None
        ours, theirs, foreign_s = [], [], 0.0
        for _ in range(effort.rounds):
            rest()
            before_s = others_s()
            ours.append(loop_s(exe, count))
            foreign_s += others_s() - before_s
            if peer_s is not None:
                rest()
                theirs.append(peer.run(effort.count(peer_s)))
    share = foreign_s / (sum(ours) * count)
    if share > MOST_FOREIGN and effort == FULL:
        print(f"{case.name}: other processes used {share:.0%} of a core", file=sys.stderr)
    return float(np.median(ours)), float(np.median(theirs)) if theirs else None


def _executor(case: Case, workers: int) -> tuple[Executor, Tensor]:
    """A compiled kernel with its operands in place, and the tensor of the result."""
    operation, model = OPERATIONS[case.kind], Model(case.kind.replace(" ", "_"))
    leaves = [
        (model.parameter if index in operation.weights else model.tensor)(shape, case.dtype)
        for index, shape in enumerate(case.shapes)
    ]
    result = operation.build(model, leaves)
    exe = Executor(rank=0, world_size=1, model=model, device="cpu", workers=workers)
    exe.compile()
    for leaf, array in zip(leaves, case.operands(is_whole=True), strict=True):
        leaf.from_numpy(array)
    return exe, result
