"""Race mode finds the first access that races, as happens-before worked out from a log says."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import numpy as np
import numpy.typing as npt

from ark_dist.launch.emulation import Emulation, EmulationFault
from tests.emulated_kernels.persistent import compiled

CTAS, THREADS, WARP, LENGTH = 2, 64, 32, 14
CELLS, WORDS = 24, 4
RUNS = 120
PAUSE, READ, WRITE, ADD, LOAD_ADDED, STORE, STORE_FENCED = range(7)
LOAD_STORED, LOAD_FENCED, SYNC_WARP, SYNC_CTA = range(7, 11)
OP = np.dtype([("kind", "u4"), ("index", "u4")])
NOTE = np.dtype([("thread", "u4"), ("position", "u4"), ("is_done", "u4"), ("value", "u4")])

Records = npt.NDArray[np.void]


def random_script(rng: np.random.Generator) -> Records:
    """Return what each thread does, [thread, position]; whole warps or CTAs come to barriers."""
    count = CTAS * THREADS
    kinds = np.array([PAUSE, READ, WRITE, ADD, LOAD_ADDED, STORE, STORE_FENCED, LOAD_STORED])
    # Plain accesses are rare, 0.0004 to 0.02 of all, or the first two would race at once.
    rare = 0.02 ** rng.uniform(1, 2)
    weights = np.array([0.3, rare, rare, 0.15, 0.15, 0.05, 0.05, 0.15])
    script = np.zeros((count, LENGTH), OP)
    script["kind"] = rng.choice(kinds, (count, LENGTH), p=weights / weights.sum())
    fenced = (script["kind"] == LOAD_STORED) & (rng.random((count, LENGTH)) < 0.5)
    script["kind"][fenced] = LOAD_FENCED
    plain = (script["kind"] == READ) | (script["kind"] == WRITE)
    cells, words = (rng.integers(0, n, (count, LENGTH)) for n in (CELLS, WORDS))
    script["index"] = np.where(plain, cells, words)
    for groups, kind in ((WARP, SYNC_WARP), (THREADS, SYNC_CTA)):
        for group in range(0, count, groups):
            script["kind"][group : group + groups, rng.integers(0, LENGTH, 2)] = kind
    return _with_whole_barriers(script)


def _with_whole_barriers(script: Records) -> Records:
    """Where one thread of a CTA syncs with it all do; the same for warps."""
    for start in range(0, len(script), THREADS):
        cta = script[start : start + THREADS]
        cta["kind"][:, (cta["kind"] == SYNC_CTA).any(axis=0)] = SYNC_CTA
    for start in range(0, len(script), WARP):
        warp = script[start : start + WARP]
        alone = (warp["kind"] == SYNC_WARP).any(axis=0) & (warp["kind"] != SYNC_CTA).all(axis=0)
        warp["kind"][:, alone] = SYNC_WARP
    return script


def execute(script: Records, seed: int) -> tuple[list[tuple[int, ...]], str | None]:
    """Run a script; return the log and the fault, if there was one."""
    cells, note_count = np.zeros(CELLS, np.uint32), np.zeros(1, np.uint64)
    added, stored = np.zeros(WORDS, np.uint64), np.zeros(WORDS, np.uint64)
    notes = np.zeros(2 * script.size, NOTE)
    arrays: dict[str, npt.NDArray[np.generic]]
    arrays = {"cells": cells, "added": added, "stored": stored, "notes": notes, "n": note_count}
    fault = None
    program = compiled("script.cu", race=True)
    with Emulation(program, "script", ctas=CTAS, smem_bytes=0, seed=seed) as e:
        at = [e.buffer("ops", script)]
        at += [e.buffer(name, array, is_writable=True) for name, array in arrays.items()]
        e.constant("config", np.array([*at, LENGTH], np.uint64))
        try:
            e.resume()
        except EmulationFault as error:
            assert error.kind == "race", str(error)
            fault = str(error)
    return [tuple(int(x) for x in note) for note in notes[: int(note_count[0])]], fault


@dataclass
class Order:
    """Happens-before over plain accesses: sets of them as bits of integers."""

    script: Records
    began: list[int]  # ops that each thread has begun
    values: dict[tuple[int, int], int]  # what finished ops returned
    past: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    added: dict[int, dict[int, int]] = field(default_factory=dict)
    released: dict[int, int] = field(default_factory=dict)
    barriers: dict[tuple[int, int, int], dict[int, int]] = field(default_factory=dict)
    before: dict[tuple[int, int], int] = field(default_factory=dict)

    def work_out(self) -> None:
        """Advance all threads as far as the log tells."""
        self.past = [0] * len(self.began)
        self.at = [0] * len(self.began)
        while any([self._advance(thread) for thread in range(len(self.began))]):
            pass

    def _advance(self, thread: int) -> bool:
        moved = False
        while self.at[thread] < self.began[thread] and self._step(thread, self.at[thread]):
            self.at[thread] += 1
            moved = True
        return moved

    def _step(self, thread: int, position: int) -> bool:
        kind, index = (int(x) for x in self.script[thread, position])
        event = thread * LENGTH + position
        value = self.values.get((thread, position))
        if kind in (READ, WRITE):
            self.before[thread, position] = self.past[thread]
            self.past[thread] |= 1 << event
        elif kind in (STORE, STORE_FENCED):
            self.released[event + 1] = self.past[thread]
        elif kind in (SYNC_WARP, SYNC_CTA):
            return self._sync(thread, position, kind)
        elif value is None:
            return False  # begun, not finished: what it saw is not known
        elif kind in (ADD, LOAD_ADDED):
            seen = self.added.setdefault(index, {})
            if any(number not in seen for number in range(value)):
                return False
            self.past[thread] |= _union(seen[number] for number in range(value))
            if kind == ADD:
                seen[value] = self.past[thread]
        elif kind in (LOAD_STORED, LOAD_FENCED) and value:
            if value not in self.released:
                return False
            self.past[thread] |= self.released[value]
        return True

    def _sync(self, thread: int, position: int, kind: int) -> bool:
        size = WARP if kind == SYNC_WARP else THREADS
        came = self.barriers.setdefault((kind, thread // size, position), {})
        came.setdefault(thread, self.past[thread])
        if len(came) < size:
            return False
        self.past[thread] |= _union(came.values())
        return True


def first_race(script: Records, log: list[tuple[int, ...]]) -> tuple[int, int] | None:
    """Return the first access in the log that an earlier one is unordered with.

    Raises:
        LookupError: an op had an effect, but the fault came before the log could tell which.
    """
    began = [0] * len(script)
    for thread, _, is_done, _ in log:
        began[thread] += 1 - is_done
    order = Order(script, began, {(note[0], note[1]): note[3] for note in log if note[2]})
    order.work_out()
    accesses: dict[int, list[tuple[int, int, bool]]] = {}
    for thread, position, is_done, _ in log:
        kind, cell = (int(x) for x in script[thread, position])
        if is_done or kind not in (READ, WRITE):
            continue
        if (thread, position) not in order.before:
            raise LookupError
        for event, other, is_write in accesses.setdefault(cell, []):
            is_ordered = other == thread or order.before[thread, position] >> event & 1
            if (is_write or kind == WRITE) and not is_ordered:
                return thread, position
        accesses[cell].append((thread * LENGTH + position, thread, kind == WRITE))
    return None


def test_race_mode_agrees_with_happens_before() -> None:
    seed = int(np.random.default_rng().integers(2**32))
    rng = np.random.default_rng(seed)
    raced = clean = 0
    for number in range(RUNS):
        script = random_script(rng)
        log, fault = execute(script, number)
        try:
            wanted = first_race(script, log)
        except LookupError:
            continue
        where = f"seed {seed}, script {number}: {fault}"
        if wanted is None:
            clean += 1
            assert fault is None, where
        else:
            raced += 1
            assert fault is not None, f"{where}; {wanted} races"
            assert log[-1][:2] == wanted, where
            assert f"(thread {wanted[0] % THREADS})" in fault.splitlines()[1], where
    assert min(raced, clean) > RUNS // 10, f"seed {seed}: {raced} raced, {clean} clean"


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)
