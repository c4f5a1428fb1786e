"""Measure how fast a real model writes and reads, beside other programs and the memory's rate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ark_dist.bench.child import Child, Message
from ark_dist.bench.peaks import Peaks
from ark_dist.bench.rows import ALL, Row, Wanted
from ark_dist.bench.timing import Effort
from ark_dist.demo_model import SMOLLM2, fetch_model
from ark_dist.launch.mpirun import find_mpirun
from ark_dist.tokenizer import load_tokenizer

MODEL = "smollm2-135m"
TEXT = "Once upon a time there was"
TOKENS, PROMPT_TOKENS, BATCH = 64, 512, 8
# Threads of each side, whether they are of one rank or of several.
THREADS = 2
# A turn of all sides takes 8 seconds.
EFFORT = Effort(rounds=5)
# A peer's name for its module.
PEERS = {
    "llama.cpp": "ark_dist.bench.llama_cpp_peer",
    "transformers": "ark_dist.bench.transformers_peer",
}
# Of the largest logit: twice the most that bf16 was found to change one (docs/models.md); the
# largest gap that was found is 0.005.
NEAR_TIE = 0.05
MS = 1e3


# What tells a process of ours: dtype, ranks, batch.
Side: TypeAlias = tuple[str, int, int]
# Seconds of each turn.
Turns: TypeAlias = list[float]


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured.

    Attributes:
        name: of the row.
        dtype: of the weights, whose folder is found by it.
        ranks: of ours, with as many threads together as a peer.
        batch: rows that are written at once.
        is_prefill: a long prompt is read, in place of tokens that are written after a short one.
        over: a case of ours that it is compared with too.
    """

    name: str
    dtype: str = "bf16"
    ranks: int = 1
    batch: int = 1
    is_prefill: bool = False
    over: Case | None = None

    @property
    def workers(self) -> int:
        """Threads of each rank."""
        return THREADS // self.ranks

    @property
    def side(self) -> Side:
        """The process of ours that is asked."""
        return self.dtype, self.ranks, self.batch

    @property
    def title(self) -> str:
        """What it is called as the peer of another case."""
        return f"{self.dtype}, {self.ranks} x {self.workers} workers, batch {self.batch}"

    @property
    def tokens(self) -> int:
        """How many are written."""
        return self.batch * TOKENS

    def shown(self, seconds: float) -> float:
        """In the row's unit."""
        return seconds * MS if self.is_prefill else self.tokens / seconds

    def question(self, prompt: Sequence[int]) -> Message:
        """What each side is asked."""
        if self.is_prefill:
            return {"prompts": [(list(prompt) * PROMPT_TOKENS)[:PROMPT_TOKENS]]}
        return {"prompts": [list(prompt)] * self.batch, "count": TOKENS}


ONE_ROW = Case(MODEL)
CASES = (
    ONE_ROW,
    Case(MODEL, ranks=2, over=ONE_ROW),
    Case(MODEL, dtype="int8", over=ONE_ROW),
    Case(f"{MODEL} batch {BATCH}", batch=BATCH, over=ONE_ROW),
    Case(f"{MODEL} prefill {PROMPT_TOKENS}", is_prefill=True),
)


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of one case, turn by turn: ours, the peers' by their names, and the floor."""

    ours: Turns = field(default_factory=list)
    peers: dict[str, Turns] = field(default_factory=dict)
    floor: Turns = field(default_factory=list)


def decode(
    wanted: Wanted = ALL,
    effort: Effort = EFFORT,
    folder_of: Callable[[str], Path] = lambda dtype: fetch_model(SMOLLM2, dtype=dtype),
) -> list[Row]:
    """Tokens per second and the time to read a prompt: a row per case and peer.

    `folder_of` finds the model's folder with weights of a dtype.
    """
    cases = [case for case in CASES if wanted.takes(case.name, case.dtype)]
    if any(case.ranks > 1 for case in cases) and find_mpirun() is None:
        print("decode: there is no mpirun, no rows of several ranks", file=sys.stderr)
        cases = [case for case in cases if case.ranks == 1]
    if not cases:
        return []
    with ExitStack() as stack:
        sides = _Sides(cases, folder_of, Peaks(effort), stack)
        times = {case: _Times() for case in cases}
        for turn in range(effort.rounds + 1):
            sides.measure(times, is_checked=turn == 0)
        names = {case: sides.names(case) for case in cases}
    return [row for case in cases for row in _rows(case, times, names[case])]


class _Sides:
    """All processes that take turns."""

    def __init__(
        self,
        cases: Sequence[Case],
        folder_of: Callable[[str], Path],
        peaks: Peaks,
        stack: ExitStack,
    ) -> None:
        folders = {case.dtype: folder_of(case.dtype) for case in cases}
        self._prompts = {
            dtype: load_tokenizer(folder).encode(TEXT) for dtype, folder in folders.items()
        }
        self._ours: dict[Side, Child] = {}
        for case in cases:
            if case.side not in self._ours:
                arguments = [str(folders[case.dtype]), str(case.batch), str(case.workers)]
                child = Child("ark_dist.bench.own_side", arguments, THREADS, ranks=case.ranks)
                self._ours[case.side] = stack.enter_context(child)
        self._peers = {
            dtype: _started_peers(folder, dtype, stack) for dtype, folder in folders.items()
        }
        self._peaks = peaks
        self._readers: dict[int, Callable[[], float]] = {}

    def names(self, case: Case) -> Mapping[str, str]:
        """The peers of a case: what each calls itself, by its name here."""
        return {name: str(peer.name) for name, peer in self._peers[case.dtype].items()}

    def measure(self, times: Mapping[Case, _Times], *, is_checked: bool) -> None:
        """Let all sides take one turn; a peer that was asked the same answers once."""
        heard: dict[tuple[str, str, bool, int], float] = {}
        for case, found in times.items():
            prompt = self._prompts[case.dtype]
            question = case.question(prompt)
            answer = self._ours[case.side].ask(question)
            found.ours.append(float(str(answer["seconds"])))
            found.floor.append(self._floor_s(case))
            for name, peer in self._peers[case.dtype].items():
                key = name, case.dtype, case.is_prefill, case.batch
                if key not in heard:
                    heard[key] = peer.seconds(question)
                found.peers.setdefault(name, []).append(heard[key])
                if is_checked and not case.is_prefill:
                    check_text(peer, prompt, _first_row(answer))

    def _floor_s(self, case: Case) -> float:
        """Seconds to read all weights once per token, or of a prompt's arithmetic."""
        hello = self._ours[case.side].hello
        if case.is_prefill:
            operations = 2.0 * int(str(hello["layer_elements"])) * PROMPT_TOKENS
            return operations / self._peaks.operations_per_s(case.dtype, THREADS)
        size = int(str(hello["weight_bytes"]))
        if size not in self._readers:
            self._readers[size] = self._peaks.reader(size, THREADS)
        return TOKENS * size / self._readers[size]()


def _started_peers(folder: Path, dtype: str, stack: ExitStack) -> dict[str, Child]:
    """The peers that are installed; the others are named."""
    found = {}
    for name, module in PEERS.items():
        peer = stack.enter_context(Child(module, [str(folder), dtype, str(THREADS)], THREADS))
        if peer.name is None:
            print(f"decode: no {name}: {peer.hello['problem']}", file=sys.stderr)
        else:
            found[name] = peer
    return found


def _first_row(answer: Message) -> list[int]:
    rows = answer["tokens"]
    assert isinstance(rows, list)
    return list(rows[0])


def check_text(peer: Child, prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """Refuse a peer that would write something else than ours, but where two tokens nearly tie.

    Raises:
        ArithmeticError: if the peer thinks one of our tokens too unlikely.
    """
    gaps = peer.ask({"text": [*prompt, *tokens], "start": len(prompt)})["gaps"]
    assert isinstance(gaps, list)
    worst = max(gaps)
    if not worst <= NEAR_TIE:
        raise ArithmeticError(
            f"{peer.name}: our token {gaps.index(worst)} is {worst:.1%} of the largest logit below "
            f"its own, wanted at most {NEAR_TIE:.0%}; the two do not compute the same model"
        )


def _rows(case: Case, times: Mapping[Case, _Times], names: Mapping[str, str]) -> list[Row]:
    """A row per peer, and one beside another case of ours; one by itself where there is neither."""
    own = times[case]
    rows = [_row(case, own, (names[name], case, turns)) for name, turns in own.peers.items()]
    if case.over is not None and case.over in times:
        rows.append(_row(case, own, (case.over.title, case.over, times[case.over].ours)))
    return rows or [_row(case, own, None)]


def _row(case: Case, own: _Times, other: tuple[str, Case, Turns] | None) -> Row:
    """Medians of all turns but the first one; ratios are medians of each turn's."""
    ours, floor = (np.array(turns[1:]) for turns in (own.ours, own.floor))
    name = peer = ratio = None
    if other is not None:
        name, of, turns = other
        seconds = np.array(turns[1:])
        peer = of.shown(float(np.median(seconds)))
        ratio = float(np.median(seconds / ours)) * case.tokens / of.tokens
    return Row(
        bench="decode",
        case=case.name,
        dtype=case.dtype,
        ranks=case.ranks,
        workers=case.workers,
        unit="ms" if case.is_prefill else "tokens/s",
        ours=case.shown(float(np.median(ours))),
        peer_name=name,
        peer=peer,
        ratio=ratio,
        floor=case.shown(float(np.median(floor))),
        of_floor=float(np.median(floor / ours)),
    )
