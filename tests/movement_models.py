"""Run models that move data, and make random ones together with what they must give."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import Array
from ark_dist.core.settings import read_settings
from ark_dist.core.target import cpu_target, wide_target
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import make_plan
from tests.plan_models import adversary, eager

Rng = np.random.Generator
PARTS = (np.s_[:6], np.s_[6:], np.s_[::2], np.s_[3:9])
Key = tuple[slice, slice]
MACHINES = [("numpy", 1), ("numpy", 16), ("cpu", 1), ("cpu", 3)]


@contextmanager
def running(model: ark.Model, machine: tuple[str, int]) -> Iterator[Session]:
    """A launched program of the model, cut into as many tiles as there are workers."""
    kind, workers = machine
    if kind == "numpy":
        plan = make_plan(model.freeze(), eager(wide_target(workers)))
        runner: NumpyDevice | CpuDevice = NumpyDevice(plan, choose=adversary(workers))
    else:
        plan = make_plan(model.freeze(), eager(cpu_target(workers, best_isa())))
        runner = CpuDevice(plan, read_settings())
    session = Session(plan, runner, SessionOptions())
    session.compile(lambda path: None)
    session.launch()
    try:
        yield session
    finally:
        session.close()


def turn(session: Session, inputs: Sequence[tuple[ark.Tensor, Array]], iterations: int = 1) -> None:
    """Write inputs and run."""
    for tensor, array in inputs:
        session.write(tensor.value.view, array)
    session.run(iterations, "forward", {})
    assert session.wait() == iterations


def read(session: Session, tensor: ark.Tensor) -> Array:
    return session.read(tensor.value.view)


def compute(result: ark.Tensor, *inputs: tuple[ark.Tensor, Array]) -> Array:
    """One iteration on the CPU with two workers."""
    result.model.keep(result)
    with running(result.model, ("cpu", 2)) as session:
        turn(session, inputs)
        return read(session, result)


def random(rng: Rng, shape: Sequence[int], dtype: str = "fp32") -> Array:
    return rng.integers(-50, 50, tuple(shape)).astype(DTYPES[dtype].numpy)


def fresh() -> Rng:
    """Random numbers of a new seed, which is printed."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")  # pytest shows it where the test fails
    return np.random.default_rng(seed)


Refused = Sequence[tuple[Callable[[], object], type[Exception], str]]


def check_refused(refused: Refused) -> None:
    """Each call raises this error, with a message that begins like this."""
    for call, error, text in refused:
        with pytest.raises(error, match=f"^{text}"):
            call()


def along(axis: int, part: slice) -> Key:
    """A part of one of two dimensions."""
    return (part, slice(None)) if axis == 0 else (slice(None), part)


def taking(key: slice | Key) -> Callable[[Array], Array]:
    """Look at a part of an array."""
    return lambda a: a[key]


class Program:
    """A random program of moves, as a model and as the NumPy steps that say what it does."""

    def __init__(self, rng: Rng) -> None:
        """Start with an input, two states of which there are views only, and positions."""
        self.rng, self.model = rng, ark.Model()
        self.memory: list[Array] = []
        self.steps: list[Callable[[], None]] = []
        # Each tensor of shape (6, 4), the memory it looks at, and how.
        self.pool: list[tuple[ark.Tensor, int, Callable[[Array], Array]]] = []
        self.x = self.model.tensor((6, 4))
        self.states = [self.model.state((12, 4)) for _ in range(2)]
        self.positions = [self.model.tensor(n, "int32") for n in (1, 6)]
        for tensor in (self.x, *self.states, *self.positions):
            self.memory.append(np.zeros(tensor.shape, tensor.dtype.numpy))
        self.pool.append((self.x, 0, lambda a: a))
        for number, state in enumerate(self.states):
            for part in PARTS:
                self.pool.append((state[part], 1 + number, taking(part)))

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def pick(self) -> tuple[ark.Tensor, Callable[[], Array]]:
        """Any tensor, and what it holds at that time."""
        tensor, base, look = self.pool[self.integer(0, len(self.pool))]
        return tensor, lambda: look(self.memory[base]).copy()

    def join(self) -> None:
        """Put some together, and look at part of that or compute with it."""
        count, axis = self.integer(1, 5), self.integer(0, 2)
        parts = [self.pick() for _ in range(count)]
        key = along(axis, slice(self.integer(0, count), None, count))
        joined = self.model.keep(self.model.concat([tensor for tensor, _ in parts], axis))
        base, more = len(self.memory), self.integer(0, 2)
        self.memory.append(np.zeros(0))

        def step() -> None:
            self.memory[base] = np.concatenate([value() for _, value in parts], axis)[key] + more

        self.steps.append(step)
        result = self.model.keep(joined[key] + 1) if more else joined[key]
        self.pool.append((result, base, lambda a: a))

    def write(self) -> None:
        """Scatter into a view of a state."""
        which, state = self.integer(0, 2), self.integer(0, 2)
        part = PARTS[self.integer(0, len(PARTS))]
        axis = 1 if which else self.integer(0, 2)
        source, value = self.pick()
        length = self.integer(0, 3)
        key = along(axis, slice(length))
        self.model.scatter(self.states[state][part], source[key], self.positions[which], axis)

        def step() -> None:
            target, wanted = self.memory[1 + state][part], value()[key]
            for row, first in enumerate(self.memory[3 + which].tolist()):
                rows = slice(row, row + 1) if which else slice(None)
                inside = [rows, slice(None)]
                inside[axis] = slice(first, first + length)
                target[tuple(inside)] = wanted[rows]

        self.steps.append(step)

    def assign(self) -> None:
        """Replace a view of a state."""
        state, part = self.integer(0, 2), PARTS[self.integer(0, len(PARTS))]
        source, value = self.pick()
        self.model.assign(self.states[state][part], source - 1)

        def step() -> None:
            self.memory[1 + state][part] = value() - 1

        self.steps.append(step)

    def turn(self, session: Session, iterations: int) -> None:
        """Run on fresh inputs, here and there."""
        self.memory[0] = random(self.rng, (6, 4))
        self.memory[3:5] = [self.rng.integers(0, 3, n, np.int32) for n in (1, 6)]
        leaves = (self.x, 0), (self.positions[0], 3), (self.positions[1], 4)
        turn(session, [(tensor, self.memory[base]) for tensor, base in leaves], iterations)
        for _ in range(iterations):
            for step in self.steps:
                step()
