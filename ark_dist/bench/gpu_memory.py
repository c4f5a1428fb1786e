"""Measure how fast a GPU reads and copies, and how fast its weight ring streams."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.bench.gpu_kernels import READ, STREAM, BenchGpu, Kernel, Outcome, Ring
from ark_dist.core import abi
from ark_dist.kernels.stream import cut_weights, segments
from ark_dist.kernels.text import SHARED_BYTES, SLOT_BYTES, SLOTS

VECTOR_BYTES, WORD_BYTES, LANES = 16, 4, 32
# Runs that don't count, and runs by which the fastest way to read is found.
WARM_RUNS, PROBES = 2, 5
BF16_BYTES = 2
# Of a copy, at each end.
CHECKED_BYTES = 64 << 10
KIB = 1024
# Beside the product's own. Their slots are powers of 2, so a ring of exactly 96 KiB is not there.
RINGS = tuple(
    Ring(slots, kib * KIB) for kib, slots in ((4, 16), (4, 32), (8, 8), (8, 16), (12, 16), (16, 8))
)

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to read.

    Attributes:
        unroll: loads of a thread under way at once.
        per_sm: CTAs of 512 threads on a multiprocessor.
        is_once: data leaves the caches first.
        is_dealt: CTAs take turns, instead of a part each.
    """

    unroll: int
    per_sm: int
    is_once: bool
    is_dealt: bool

    def kernel(self, kind: str) -> str:
        """Its kernel's name; `kind` is "read" or "copy"."""
        return f"ark_{kind}_{'once' if self.is_once else 'plain'}_{self.unroll}"


WAYS = tuple(Way(*way) for way in product((4, 8, 16), (1, 2, 4), (False, True), (False, True)))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much memory is read.

    Attributes:
        read_bytes: by a plain read; several times what the L2 holds.
        block_bytes: of random data, which is repeated.
        stream_bytes: that a turn of the ring streams; several times what the L2 holds too.
        stream_turns: how often.
        line_elems: of a weight's line, bf16.
        ways: to read, of which the fastest one counts.
        rounds: runs of it; their median counts.
    """

    read_bytes: int = 4 << 30
    block_bytes: int = 64 << 20
    stream_bytes: int = 1 << 30
    stream_turns: int = 4
    line_elems: int = 2048
    ways: tuple[Way, ...] = WAYS
    rounds: int = 21


def product_ring(arch: str) -> Ring:
    """The ring of generated kernels."""
    return Ring(SLOTS, SLOT_BYTES[arch])


def other_rings(arch: str) -> list[Ring]:
    """Rings that a CTA's shared memory has room for."""
    return [r for r in RINGS if r.bytes <= SHARED_BYTES[arch] and r != product_ring(arch)]


@dataclass(frozen=True, slots=True)
class _Pass:
    """What a kernel does with the data: "read" or "copy", how much of it, and is it right."""

    kind: str
    size_bytes: int
    check: Callable[[int, Outcome], None]
    target: int = 0


class GpuMemory:
    """Random data in a GPU's memory, and how fast it is read."""

    def __init__(self, bench: BenchGpu, sizes: Sizes) -> None:
        self._bench, self._sizes = bench, sizes
        random = np.random.default_rng(sizes.block_bytes)
        count = sizes.block_bytes // WORD_BYTES
        self._block = random.integers(0, 1 << 32, count, np.uint32)

    @cached_property
    def _data(self) -> Any:  # noqa: ANN401  # a cupy pointer
        gpu, size = self._bench.gpu, self._sizes.read_bytes
        data = gpu.alloc(size)
        for start in range(0, size, self._block.nbytes):
            part = self._block[: min(self._block.nbytes, size - start) // WORD_BYTES]
            gpu.copy_in(data + start, part)
        return data

    @cached_property
    def read_per_s(self) -> float:
        """Bytes per second of a plain read, the best way's.

        Raises:
            ArithmeticError: the sum of what was read is wrong.
        """
        return self._best(_Pass("read", self._sizes.read_bytes, self._check_read))

    @cached_property
    def copied_per_s(self) -> float:
        """Bytes per second, read and written, of a copy, the best way's.

        Raises:
            ArithmeticError: the copy is wrong.
        """
        size = self._sizes.read_bytes // 2
        target = self._bench.gpu.alloc(size)

        def check(used_bytes: int, outcome: Outcome) -> None:
            gpu, part = self._bench.gpu, np.empty(CHECKED_BYTES // WORD_BYTES, np.uint32)
            for start in (0, used_bytes - part.nbytes):
                gpu.copy_out(target + start, part)
                if not np.array_equal(part, self._words(start, part.size)):
                    raise ArithmeticError("bench gpu: copy: the copy differs from its source")
                gpu.fill(target + start, part.nbytes, 0)  # the next way's copy shall be its own

        return 2 * self._best(_Pass("copy", size, check, int(target.ptr)))

    def _best(self, work: _Pass) -> float:
        """Bytes of the source per second, by the way that is fastest."""
        best = max(self._sizes.ways, key=lambda way: self._rate(work, way, PROBES))
        print(f"gpu: {work.kind}: the best way is {best}", file=sys.stderr)
        return self._rate(work, best, self._sizes.rounds)

    def _rate(self, work: _Pass, way: Way, rounds: int) -> float:
        kernel = self._bench.load(READ, way.kernel(work.kind))
        ctas = self._bench.most_ctas(kernel, way.per_sm)
        unit = READ.threads * way.unroll
        count = work.size_bytes // VECTOR_BYTES // (ctas * unit)
        fields = {
            "source": int(self._data.ptr),
            "target": work.target,
            "first": unit if way.is_dealt else unit * count,
            "step": unit * ctas if way.is_dealt else unit,
            "rounds": count,
        }
        seconds, outcome = _median(self._bench, kernel, ctas, rounds, fields)
        used_bytes = count * ctas * unit * VECTOR_BYTES
        work.check(used_bytes, outcome)
        return used_bytes / seconds

    def _check_read(self, used_bytes: int, outcome: Outcome) -> None:
        whole, rest = divmod(used_bytes, self._block.nbytes)
        wanted = whole * _sum(self._block) + _sum(self._block[: rest // WORD_BYTES])
        _check_sum("read", outcome, wanted)

    def streamed_per_s(self, ring: Ring) -> float:
        """Bytes per second that come through a weight ring, with nothing computed.

        Raises:
            ArithmeticError: the sum of what came is wrong.
        """
        bench, turns = self._bench, self._sizes.stream_turns
        rows = self._segments(ring)
        (size,) = {int(size) for size in rows["bytes"] * rows["count"]}  # all slots' alike
        step = size // WORD_BYTES // LANES
        streams = np.zeros(bench.sm_count, abi.QUEUE.dtype)
        streams["count"] = len(rows) // bench.sm_count
        streams["first"] = np.arange(bench.sm_count) * streams["count"]
        tables = [bench.place(table) for table in (rows, streams)]
        fields = {
            "segments": int(tables[0].ptr),
            "streams": int(tables[1].ptr),
            "rounds": turns,
            "step": step,
        }
        kernel = bench.load(STREAM, "ark_stream_only", ring)
        seconds, outcome = _median(bench, kernel, bench.sm_count, self._sizes.rounds, fields)
        starts = (rows["source"] - int(self._data.ptr)).astype(np.int64) // WORD_BYTES
        places = starts[:, None] + np.arange(LANES) * step
        _check_sum("stream", outcome, turns * _sum(self._block[places % self._block.size]))
        return turns * len(rows) * size / seconds

    def _segments(self, ring: Ring) -> npt.NDArray[np.void]:
        """Those of all CTAs, one CTA's after the other's; each has as many lines of weights."""
        sizes, ctas = self._sizes, self._bench.sm_count
        line_bytes = sizes.line_elems * BF16_BYTES
        columns = max(ring.slot_bytes // line_bytes, 1)
        lines = sizes.stream_bytes // line_bytes // ctas // columns * columns
        cut = cut_weights(
            lines, sizes.line_elems, BF16_BYTES, slot_bytes=ring.slot_bytes, held=columns
        )
        source = int(self._data.ptr)
        own = segments(source, lines, sizes.line_elems, BF16_BYTES, line_bytes, cut)
        rows = np.tile(own, ctas)
        before = np.repeat(np.arange(ctas, dtype=np.uint64), len(own))
        rows["source"] += before * np.uint64(lines * line_bytes)
        return rows

    def _words(self, start_bytes: int, count: int) -> Words:
        """What the memory holds from a place on."""
        places = (start_bytes // WORD_BYTES + np.arange(count)) % self._block.size
        return self._block[places]


def _median(
    bench: BenchGpu, kernel: Kernel, ctas: int, rounds: int, fields: dict[str, int]
) -> tuple[float, Outcome]:
    """The median of so many runs, in seconds, and the last one's outcome."""
    outcomes = [bench.run(kernel, ctas, **fields) for _ in range(WARM_RUNS + rounds)]
    return float(np.median([o.seconds for o in outcomes[WARM_RUNS:]])), outcomes[-1]


def _sum(words: Words) -> int:
    return int(words.sum(dtype=np.uint64))


def _check_sum(name: str, outcome: Outcome, wanted: int) -> None:
    found, wanted = _sum(outcome.sums) % (1 << 32), wanted % (1 << 32)
    if found != wanted:
        raise ArithmeticError(
            f"bench gpu: {name}: the words that came add up to {found}, wanted {wanted}"
        )
