"""Measure what a signal between multiprocessors costs, and a command from Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ark_dist.bench.gpu_kernels import EMPTY, HOPS, BenchGpu
from ark_dist.bench.policies import alternating
from ark_dist.core import abi
from ark_dist.core.builder import DEFAULT_METHOD
from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_settings
from ark_dist.executor import Executor
from ark_dist.kernels.emit import EMITTERS
from ark_dist.launch.devices.cuda import WHOLE
from ark_dist.launch.open import DEVICES, LANGUAGES, target_for
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.model import Model
from ark_dist.scheduler.order import Policy, earliest_finish
from ark_dist.scheduler.plan import PlanOptions, make_plan
from ark_dist.tensors import Tensor

ELEMENTS = 32
CHAIN = 10
# A tile of the operator between two joins: two lines of 128 bytes.
TILE = 64
# Posted once more than any round asks for: the kernel that answers goes.
ALL = 1 << 62
ANSWER_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Counts:
    """How often.

    Attributes:
        turns: of a loop inside a kernel.
        rounds: of such loops; their median counts.
        calls: from Python.
    """

    turns: int = 2000
    rounds: int = 21
    calls: int = 3000


class Hops:
    """Signals with nothing around them."""

    def __init__(self, bench: BenchGpu, counts: Counts) -> None:
        self._bench, self._counts = bench, counts

    def ping_s(self, *, pauses: bool = True) -> float:
        """Seconds of a signal between two CTAs that take turns; a wait pauses between two looks.

        Raises:
            ArithmeticError: a wait did not end.
        """
        return self._phase_s("ark_ping" if pauses else "ark_ping_restless", 2)

    def fan_s(self) -> float:
        """Seconds of a phase: one CTA signals one on each multiprocessor, all of them signal it.

        Raises:
            ArithmeticError: a wait did not end.
        """
        return self._phase_s("ark_fan", self._bench.sm_count)

    def _phase_s(self, name: str, ctas: int) -> float:
        bench, turns = self._bench, self._counts.turns
        kernel = bench.load(HOPS, name)
        zeros = np.zeros(2, abi.COUNTER.dtype)
        words = bench.place(zeros)
        seconds = []
        for _ in range(1 + self._counts.rounds):
            bench.gpu.copy_in(words, zeros)
            outcome = bench.run(kernel, ctas, rounds=turns, words=int(words.ptr))
            if np.any(outcome.sums != turns):
                raise ArithmeticError(
                    f"bench gpu: {name}: CTAs were through {outcome.sums} rounds, wanted {turns}"
                )
            seconds.append(outcome.seconds)
        return float(np.median(seconds[1:])) / turns / 2

    def echo_s(self) -> list[float]:
        """Seconds of each time that a resident CTA answers a word of the host's."""
        bench, calls = self._bench, self._counts.calls
        kernel = bench.load(HOPS, "ark_echo")
        words = bench.gpu.pinned(2 * abi.COUNTER.dtype.itemsize).view(abi.COUNTER.dtype)
        words["value"] = 0
        bench.configure(kernel, rounds=calls, words=words.ctypes.data)
        asked, answered = (words["value"][i : i + 1].data for i in range(2))
        bench.launch(kernel, 1)
        try:
            return [_asked_s(asked, answered, call + 1) for call in range(calls)]
        finally:
            asked[0] = ALL
            bench.finish(kernel)

    def launch_s(self) -> list[float]:
        """Seconds of each launch of an empty kernel, until it is known to have ended."""
        bench = self._bench
        kernel = bench.load(EMPTY, "ark_empty")
        bench.configure(kernel)

        def call() -> None:
            bench.launch(kernel, 1)
            bench.finish(kernel)

        return _each_s(call, self._counts.calls)


def _asked_s(asked: memoryview, answered: memoryview, number: int) -> float:
    began = time.perf_counter()
    asked[0] = number
    while answered[0] < number:
        if time.perf_counter() - began > ANSWER_LIMIT_S:
            raise ArithmeticError(f"bench gpu: ark_echo: no answer in {ANSWER_LIMIT_S:.0f} s")
    return time.perf_counter() - began


def _each_s(call: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


@dataclass(frozen=True, slots=True)
class Loop:
    """A program that goes round by itself; a state counts what was done.

    Attributes:
        model: of one method.
        count: state of one element or several alike.
        phases: tasks or joins of a turn, each after the one before.
        step: what a turn adds to the count.
    """

    model: Model
    count: Tensor
    phases: int
    step: int


def chain() -> Loop:
    """Additions of one tile each, each of the result before, the last of the turn before too."""
    model = Model("hop")
    one = model.full((ELEMENTS,), 1, "fp32")
    count = model.state((ELEMENTS,), "fp32", name="count")
    value = count
    for _ in range(CHAIN - 1):
        value = model.add(value, one)
    model.add(value, one, output=count)
    return Loop(model, count, CHAIN, CHAIN)


def join(workers: int) -> Loop:
    """One task that all workers wait for, then a task on each, which the first one waits for."""
    model = Model("join")
    one = model.full((workers, TILE), 1, "fp32")
    count = model.state((1, 1), "fp32", name="count")
    wide = model.add(one, count)
    model.reduce_max(wide.narrow(1, 0, 1), axis=0, keepdims=True, output=count)
    return Loop(model, count, 2, 1)


def plan_of(loop: Loop, device: str, workers: int, policy: Policy = earliest_finish) -> Plan:
    """The loop's plan: operators are not fused, and cut into tiles however small they are."""
    target = replace(
        target_for(device, read_settings(), workers),
        hop_s=1e-9, task_s=1e-9, bytes_per_s=1e6, ops_per_s=1e6,
    )  # fmt: skip
    return make_plan(loop.model.freeze(), target, PlanOptions(is_fused=False, policy=policy))


@contextmanager
def launched(plan: Plan, device: str) -> Iterator[Session]:
    """A plan's kernel, resident."""
    settings = read_settings()
    runner = DEVICES[device](plan, settings, WHOLE, None, EMITTERS[LANGUAGES[device]])
    session = Session(plan, runner, SessionOptions(timeout_s=settings.timeout_s))
    session.compile(lambda path: None)
    try:
        session.launch()
        yield session
    finally:
        session.close()


def phase_s(session: Session, loop: Loop, counts: Counts) -> float:
    """Seconds of one of a loop's phases, the median of rounds.

    Raises:
        ArithmeticError: the loop did not count its turns.
    """
    seconds = []
    for _ in range(1 + counts.rounds):
        began = time.perf_counter()
        session.run(counts.turns, DEFAULT_METHOD, {})
        session.wait()
        seconds.append(time.perf_counter() - began)
    found = session.read(loop.count.value.view)
    wanted = len(seconds) * counts.turns * loop.step
    if np.any(found != wanted):
        raise ArithmeticError(
            f"bench gpu: {loop.model.name} counted to {found.reshape(-1)[0]}, wanted {wanted}"
        )
    return float(np.median(seconds[1:])) / counts.turns / loop.phases


def hop_s(counts: Counts, *, device: str = "cuda") -> float:
    """Seconds of a task of a chain that two workers take turns at."""
    loop = chain()
    with launched(plan_of(loop, device, 2, alternating), device) as session:
        return phase_s(session, loop, counts)


def join_s(counts: Counts, workers: int, *, device: str = "cuda") -> float:
    """Seconds of a phase: a task on every worker waits for one, which waits for all of them."""
    loop = join(workers)
    with launched(plan_of(loop, device, workers), device) as session:
        return phase_s(session, loop, counts)


def calls_s(counts: Counts, *, device: str = "cuda") -> list[float]:
    """Seconds of each run(1) and wait() of a model of one operator, on all workers."""
    model = Model("call")
    x = model.tensor((ELEMENTS,), "fp32")
    model.add(x, x)
    with Executor(0, 0, 1, model, device=device) as exe:
        exe.compile()
        x.from_numpy(np.ones(ELEMENTS))
        exe.launch()

        def call() -> None:
            exe.run(1)
            exe.wait()

        return _each_s(call, counts.calls)
