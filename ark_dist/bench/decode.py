"""Measure how fast a real model writes and reads, beside the rate at which memory gives weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from ark_dist.bench.child import Child
from ark_dist.bench.peaks import Peaks
from ark_dist.bench.rows import ALL, Row, Wanted
from ark_dist.bench.timing import FULL, Effort, rest
from ark_dist.core.dtype import as_dtype
from ark_dist.demo_model import SMOLLM2, fetch_model
from ark_dist.generation import LanguageModel

MODEL = "smollm2-135m"
DTYPE = "bf16"
WORKERS = 2
TEXT = "Once upon a time there was"
TOKENS, PROMPT_TOKENS, BATCH = 64, 512, 8
# The context that its caches have room for.
CONTEXT = 2048
MS = 1e3


def decode(wanted: Wanted = ALL, effort: Effort = FULL, folder: Path | None = None) -> list[Row]:
    """Tokens per second of one row and of several, and the time to read a prompt; one rank."""
    cases = {MODEL: 1, f"{MODEL} batch {BATCH}": BATCH, f"{MODEL} prefill {PROMPT_TOKENS}": 1}
    chosen = {name: batch for name, batch in cases.items() if wanted.takes(name, DTYPE)}
    if not chosen:
        return []
    folder = fetch_model(SMOLLM2, dtype=DTYPE) if folder is None else folder
    with ExitStack() as stack:
        arguments = [str(folder), DTYPE, str(WORKERS)]
        peer = stack.enter_context(Child("ark_dist.bench.transformers_peer", arguments, WORKERS))
        if peer.name is None:
            print("decode: transformers or torch is not installed, no peer", file=sys.stderr)
        peaks = Peaks(effort)
        return [
            _row(name, folder, batch, peer, peaks, effort, is_prefill="prefill" in name)
            for name, batch in chosen.items()
        ]


def _row(
    name: str, folder: Path, batch: int, peer: Child, peaks: Peaks, effort: Effort,
    *, is_prefill: bool,
) -> Row:  # fmt: skip
    options = {"batch": batch, "context": CONTEXT, "workers": WORKERS, "device": "cpu"}
    with LanguageModel(folder, **options) as model:  # type: ignore[arg-type]  # of several types
        prompt = model.tokenizer.encode(TEXT)
        if is_prefill:
            prompt = (prompt * PROMPT_TOKENS)[:PROMPT_TOKENS]
        count = 1 if is_prefill else TOKENS
        prompts = [prompt] * batch

        def ours() -> float:
            model.generate(prompts, max_new_tokens=count)
            timing = model.timing
            return timing.prefill_s + timing.decode_s if is_prefill else timing.decode_s

        own_s, peer_s = _in_turn(ours, partial(_peer_s, peer, prompts, is_prefill), peer, effort)
        floor = _floor(model, peaks, is_prefill=is_prefill)
        if is_prefill:
            figures = own_s * MS, None if peer_s is None else peer_s * MS, floor * MS
            return _filled(name, "ms", peer, figures, is_faster_less=True)
        assert model.timing.turns == TOKENS, "the text ended before its last token was measured"
        rate = batch * TOKENS
        figures = rate / own_s, None if peer_s is None else rate / peer_s, batch * floor
        return _filled(name, "tokens/s", peer, figures, is_faster_less=False)


def _filled(
    name: str, unit: str, peer: Child, figures: tuple[float, float | None, float],
    *, is_faster_less: bool,
) -> Row:  # fmt: skip
    ours, theirs, floor = figures
    ratio = None if theirs is None else theirs / ours if is_faster_less else ours / theirs
    of_floor = floor / ours if is_faster_less else ours / floor
    name_of_peer = None if theirs is None else peer.name
    return Row(
        "decode", name, DTYPE, 1, WORKERS, unit, ours, name_of_peer, theirs, ratio, floor, of_floor
    )


def _peer_s(peer: Child, prompts: list[list[int]], is_prefill: bool) -> float:
    """Seconds of the peer for what ours is timed for: the prompt, or the tokens without it."""
    if is_prefill:
        return peer.seconds({"tokens": prompts})
    first_s = peer.seconds({"tokens": prompts, "count": 1})
    return peer.seconds({"tokens": prompts, "count": 1 + TOKENS}) - first_s


def _in_turn(
    ours: Callable[[], float], theirs: Callable[[], float], peer: Child, effort: Effort
) -> tuple[float, float | None]:
    """Medians of rounds that take turns; a first round is not counted."""
    own_s, peer_s = [], []
    for _ in range(effort.rounds + 1):
        rest()
        own_s.append(ours())
        if peer.name is not None:
            rest()
            peer_s.append(theirs())
    return float(np.median(own_s[1:])), float(np.median(peer_s[1:])) if peer_s else None


def _floor(model: LanguageModel, peaks: Peaks, *, is_prefill: bool) -> float:
    """Turns per second, by reading all weights in each; or seconds for a prompt's arithmetic."""
    weights = model.llama.params_dict()
    if is_prefill:
        # The table of embeddings is looked up, and the head has one row.
        inner = sum(prod(w.shape) for name, w in weights.items() if "layers." in name)
        return 2.0 * inner * PROMPT_TOKENS / peaks.operations_per_s(DTYPE, WORKERS)
    size = sum(prod(w.shape) * as_dtype(w.dtype).itemsize for w in weights.values())
    return peaks.read_per_s(size, WORKERS) / size
