"""Measure what a GPU's kernels are made of, each figure beside its floor of the same run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ark_dist.bench.child import Child
from ark_dist.bench.decode import MODEL, TEXT, TOKENS
from ark_dist.bench.gpu_hops import Counts, Hops, calls_s, hop_s, join_s
from ark_dist.bench.gpu_kernels import BenchGpu, Ring
from ark_dist.bench.gpu_layer import LLAMA_1B, Stack, layer_s
from ark_dist.bench.gpu_layer_peer import stack_text
from ark_dist.bench.gpu_memory import GpuMemory, Sizes, other_rings, product_ring
from ark_dist.bench.own_side import weight_bytes
from ark_dist.bench.rows import ALL, Row, Wanted
from ark_dist.bench.text_peer import CONTEXT
from ark_dist.core.errors import ConfigError
from ark_dist.demo_model import SMOLLM2, find_model
from ark_dist.generation import LanguageModel

GB, US = 1e9, 1e6
LAST_PERCENT = 99
LAYER = "llama-1b layer"
PEER = "ark_dist.bench.gpu_layer_peer"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        sizes: of memory.
        counts: of signals and calls.
        stack: layers that are run.
        turns: of the stack, in a loop.
        rounds: of such loops, and of texts.
    """

    sizes: Sizes
    counts: Counts
    stack: Stack
    turns: int
    rounds: int


FULL = Scale(Sizes(), Counts(), LLAMA_1B, turns=100, rounds=21)


def gpu(wanted: Wanted = ALL, scale: Scale = FULL) -> list[Row]:
    """Reading, the weight ring, signals, commands, decoder layers and a model, on GPU 0.

    Each row is told on stderr as soon as it is known.

    Raises:
        DeviceNotFoundError: there is no GPU.
        ArithmeticError: a result was wrong; other cases are measured before.
    """
    measured, wrong = _Measured(scale), []
    rows = []
    for part in measured.parts():
        if not any(wanted.takes(case, part.dtype) for case in part.cases):
            continue
        try:
            found = part.rows()
        except ArithmeticError as error:
            print(f"gpu: {error}", file=sys.stderr)
            wrong.append(error)
            continue
        for row in found:
            if wanted.takes(row.case, row.dtype):
                print(f"gpu: {json.dumps(row.as_dict())}", file=sys.stderr, flush=True)
                rows.append(row)
    if wrong:
        raise wrong[0]
    return rows


@dataclass(frozen=True, slots=True)
class _Part:
    """Cases that are measured together."""

    cases: tuple[str, ...]
    dtype: str
    rows: Callable[[], list[Row]]


class _Measured:
    """What is measured on a GPU; what several rows need is measured once."""

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._bench = BenchGpu(0)
        self._memory = GpuMemory(self._bench, scale.sizes)
        self._hops = Hops(self._bench, scale.counts)
        self._workers = self._bench.sm_count
        self._join = f"hop, {self._workers} waiters"

    def parts(self) -> list[_Part]:
        """All of them, the simple ones first."""
        arch = self._bench.arch
        rings = {"stream-only": product_ring(arch)}
        rings |= {f"stream-only {ring.name}": ring for ring in other_rings(arch)}
        layer = (LAYER, f"{LAYER} vs CUDA graph")
        return [
            _Part(("read",), "byte", self._read_rows),
            _Part(("copy",), "byte", self._copy_rows),
            *(
                _Part((case,), "byte", partial(self._stream_rows, case, ring))
                for case, ring in rings.items()
            ),
            _Part(("hop",), "fp32", self._hop_rows),
            _Part((self._join,), "fp32", self._join_rows),
            _Part(("run(1)+wait", "run(1)+wait p99"), "fp32", self._call_rows),
            _Part(layer, "bf16", partial(self._layer_rows, *layer)),
            _Part((f"{MODEL} decode",), "bf16", self._decode_rows),
        ]

    def _row(self, case: str, dtype: str, unit: str, ours: float) -> Row:
        return Row("gpu", case, dtype, 1, self._workers, unit, ours)

    def _read_rows(self) -> list[Row]:
        return [self._row("read", "byte", "GB/s", self._memory.read_per_s / GB)]

    def _copy_rows(self) -> list[Row]:
        return [self._row("copy", "byte", "GB/s", self._memory.copied_per_s / GB)]

    def _stream_rows(self, case: str, ring: Ring) -> list[Row]:
        floor = self._memory.read_per_s / GB
        ours = self._memory.streamed_per_s(ring) / GB
        return [_over(self._row(case, "byte", "GB/s", ours), floor)]

    def _hop_rows(self) -> list[Row]:
        """The floor waits as tasks do; the peer is the same without pauses between two looks."""
        floor, peer = (self._hops.ping_s(pauses=pauses) * US for pauses in (True, False))
        ours = hop_s(self._scale.counts) * US
        row = _under(replace(self._row("hop", "fp32", "us/task", ours), workers=2), floor)
        return [replace(row, peer_name="signal, no pauses", peer=peer, ratio=peer / ours)]

    def _join_rows(self) -> list[Row]:
        floor = self._hops.fan_s() * US
        ours = join_s(self._scale.counts, self._workers) * US
        return [_under(self._row(self._join, "fp32", "us/phase", ours), floor)]

    def _call_rows(self) -> list[Row]:
        """The floor is a word that a resident kernel answers; the peer is launched each time."""
        floors, peers = np.array(self._hops.echo_s()) * US, np.array(self._hops.launch_s()) * US
        ours = np.array(calls_s(self._scale.counts)) * US
        rows = []
        for case, percent in (("run(1)+wait", 50), ("run(1)+wait p99", LAST_PERCENT)):
            own, floor, peer = (float(np.percentile(a, percent)) for a in (ours, floors, peers))
            row = _under(self._row(case, "fp32", "us/call", own), floor)
            rows.append(replace(row, peer_name="empty kernel", peer=peer, ratio=peer / own))
        return rows

    def _layer_rows(self, case: str, graph_case: str) -> list[Row]:
        """The floor is reading a layer's weights, and the keys and values that are seen."""
        scale, stack = self._scale, self._scale.stack
        moved = (stack.weight_bytes + stack.cache_bytes) / stack.layers
        floor = moved / self._memory.read_per_s * US
        ours = layer_s(stack, scale.turns, scale.rounds) * US
        row = _under(self._row(case, "bf16", "us", ours), floor)
        # Our kernel has ended: the other process has the GPU for itself.
        name, peer = self._torch()
        ratio = None if peer is None else peer / ours
        return [row, replace(row, case=graph_case, peer_name=name, peer=peer, ratio=ratio)]

    def _torch(self) -> tuple[str, float | None]:
        """What PyTorch calls itself, and its microseconds of a layer; or why there are none."""
        scale, stack = self._scale, self._scale.stack
        question: dict[str, object] = {"rounds": scale.rounds, "count": scale.turns}
        try:
            with Child(PEER, [stack_text(stack)], 1) as child:
                if child.name is not None:
                    return child.name, child.seconds(question) / stack.layers * US
                problem = str(child.hello["problem"])
        except (RuntimeError, TimeoutError) as error:
            problem = str(error)
        print(f"gpu: no PyTorch beside the {LAYER}: {problem}", file=sys.stderr)
        return f"no torch ({problem})", None

    def _decode_rows(self) -> list[Row]:
        """Tokens per second of a real model, if it is there."""
        case = f"{MODEL} decode"
        folder = find_model(SMOLLM2)
        if folder is None:
            print(f"gpu: no {case}: `ark-dist demo` fetches the model", file=sys.stderr)
            return []
        read_per_s, seconds = self._memory.read_per_s, []
        try:
            model = LanguageModel(folder, context=CONTEXT, device="cuda")
        except ConfigError as error:
            print(f"gpu: no {case}: {error}", file=sys.stderr)
            return []
        with model:
            floor = read_per_s / weight_bytes(model)
            for _ in range(1 + self._scale.rounds):
                model.generate(TEXT, max_new_tokens=TOKENS)
                assert model.timing.turns == TOKENS, "the text ended before"
                seconds.append(model.timing.decode_s)
        ours = TOKENS / float(np.median(seconds[1:]))
        return [_over(self._row(case, "bf16", "tokens/s", ours), floor)]


def _over(row: Row, floor: float) -> Row:
    """The row of a rate, with the one that can't be exceeded."""
    return replace(row, floor=floor, of_floor=row.ours / floor)


def _under(row: Row, floor: float) -> Row:
    """The row of a time, with the shortest that can be."""
    return replace(row, floor=floor, of_floor=floor / row.ours)
