"""Programs that find races, lost memory and results that change, on a GPU or on one faked."""

import gc
import importlib
from typing import Any

import numpy as np

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.data import as_array
from ark_dist.core.graph import Graph
from ark_dist.core.op import Array
from ark_dist.launch.memory import POISON
from ark_dist.launch.session import Session
from tests.cuda_cases import Open, Planner
from tests.cuda_failures import Streamed
from tests.lifecycle_models import NEVER, looping, set_stop
from tests.operator_formulas import EPSILON
from tests.random_oracle import Oracle

# Roundings in fp32 that count in a sum, of the largest result.
MOST_FP32 = 64


class Mixer:
    """Layers of integers that all depend on all, so that every tile waits for other workers.

    Rows and columns change places in each layer, and states go round: reads after writes, writes
    after reads, and memory that is used again, within a turn and between turns. All is exact.
    """

    def __init__(self, size: int, layers: int) -> None:
        """Build it for matrices of size x size."""
        builder = GraphBuilder("mixer")
        self.x = builder.tensor((size, size), "int32", name="x")
        self.state = builder.state((size, size), "int32", name="state", init=1)
        apply, y = builder.apply, self.x
        for layer in range(layers):
            turned = apply("transpose", [y], {"perm": (1, 0)})
            down = apply("cumsum", [turned], {"axis": layer % 2})
            total = apply("reduce_sum", [y], {"axis": layer % 2, "keepdims": True})
            y = apply("add", [apply("mul", [down, 3]), total])
            if layer == layers // 2:
                # The old state is read here, the new one is written below.
                y = apply("sub", [y, apply("transpose", [self.state], {"perm": (1, 0)})])
        self.result: Value = apply("mul", [y, 5])
        apply("add", [apply("mul", [self.state, 7]), y], output=self.state)
        self.graph: Graph = builder.freeze()


def iterations_are_exact(
    open: Open, plan: Planner, *, iterations: int, size: int, layers: int = 6
) -> None:
    """Run turn by turn, each with fresh inputs and poisoned outputs, then several at once."""
    model, rng = Mixer(size, layers), np.random.default_rng()
    shape, dtype = (size, size), model.x.view.dtype
    poison = as_array(bytes([POISON]) * (4 * size * size), dtype, shape)
    oracle = Oracle(model.graph, {model.x.view.buffer: np.zeros(shape, np.int32)})
    for depth in (1, 2):
        with open(plan(model.graph, depth=depth)) as session:
            session.write(model.state.view, oracle.view(model.state.view))
            session.launch()
            for number in range(iterations // 2):
                turns = 1 if number % 8 else 3
                x = rng.integers(-(2**31), 2**31, shape, dtype=np.int32)
                session.write(model.x.view, x)
                session.write(model.result.view, poison)
                oracle.view(model.x.view)[...] = x
                session.run(turns, "forward", {})
                assert session.wait() == turns
                oracle.run("forward", turns)
                _check(session, model, oracle, f"depth {depth}, iteration {number}")


def _check(session: Session, model: Mixer, oracle: Oracle, label: str) -> None:
    for name, value in (("result", model.result), ("state", model.state)):
        found, wanted = session.read(value.view), oracle.view(value.view)
        wrong = np.argwhere(found != wanted)
        assert not len(wrong), f"{label}: {name} is wrong in {len(wrong)} places, as {wrong[:4]}"


class Sums:
    """Everything that adds up many floats: reductions, norms, products, attention."""

    def __init__(self, rows: int, width: int) -> None:
        """Build it; `width` is what is added up, a multiple of 64."""
        builder = GraphBuilder("sums")
        self.inputs: list[Value] = []
        self.results: dict[str, Value] = {}
        for dtype in ("fp32", "bf16"):
            x = builder.tensor((rows, width), dtype, name=f"x {dtype}")
            weight = builder.tensor((width, 40), dtype, name=f"weight {dtype}")
            row = builder.tensor((1, width), dtype, name=f"row {dtype}")
            heads = (1, width // 8, 2, 16)
            q, k, v = (builder.tensor(heads, dtype, name=f"{n} {dtype}") for n in "qkv")
            self.inputs += [x, weight, row, q, k, v]
            made = {
                "sum of rows": ("reduce_sum", [x], {"axis": 1, "keepdims": False}),
                "sum of columns": ("reduce_mean", [x], {"axis": 0, "keepdims": False}),
                "softmax": ("softmax", [x], {"axis": -1}),
                "norm": ("layernorm", [x], {"axis": -1, "eps": 1e-5}),
                "product": ("matmul", [x, weight], _PLAIN),
                "one row": ("matmul", [row, weight], _PLAIN),
                "turned": ("matmul", [row, x], {**_PLAIN, "transpose_other": True}),
                "square": ("matmul", [x, x], {**_PLAIN, "transpose_other": True}),
                "attention": ("attention", [q, k, v], {"causal": True, "scale": None}),
            }
            for name, (op, inputs, attrs) in made.items():
                self.results[f"{name} {dtype}"] = builder.apply(op, inputs, attrs)  # type: ignore[arg-type]  # of several kinds
        self.graph: Graph = builder.freeze()

    def data(self, seed: int) -> dict[int, Array]:
        """Random inputs by buffer."""
        rng = np.random.default_rng(seed)
        views = [value.view for value in self.inputs]
        return {v.buffer: rng.uniform(-0.25, 0.25, v.shape).astype(v.dtype.numpy) for v in views}


_PLAIN = {"transpose_input": False, "transpose_other": False, "is_relu": False}


def sums_are_the_same_again(
    open: Open, plan: Planner, *, rows: int, width: int, repeats: int
) -> None:
    """Results are right, and have equal bits in every turn, launch and session."""
    model = Sums(rows, width)
    data = model.data(0)
    oracle = Oracle(model.graph, data)
    oracle.run("forward", 1)
    first: dict[str, bytes] = {}
    for label in ("first session", "second session"):
        with open(plan(model.graph)) as session:
            for value in model.inputs:
                session.write(value.view, data[value.view.buffer])
            for _ in range(2):
                session.launch()
                for _ in range(repeats):
                    session.run(1, "forward", {})
                    session.wait()
                    found = {name: session.read(v.view) for name, v in model.results.items()}
                    bits = {name: result.tobytes() for name, result in found.items()}
                    first = first or bits
                    other = [name for name in bits if bits[name] != first[name]]
                    assert not other, f"{label}: other bits in {other}"
                    check_sums(model, oracle, found)
                session.stop()


def check_sums(model: Sums, oracle: Oracle, results: dict[str, Array]) -> None:
    """Compare with float64."""
    for name, value in model.results.items():
        found = results[name].astype(np.float64)
        wanted = oracle.view(value.view).astype(np.float64)
        # Rounded once, and sums of up to 1024 in fp32, in blocks.
        share = EPSILON[value.view.dtype.name] + MOST_FP32 * EPSILON["fp32"]
        error, limit = np.abs(found - wanted).max(), share * np.abs(wanted).max()
        assert error <= limit, f"{name}: error {error:.3g}, allowed {limit:.3g}"


def used_bytes() -> int:
    """What programs take of GPU 0's memory, with nothing kept for later."""
    gc.collect()
    cupy: Any = importlib.import_module("cupy")
    cupy.get_default_memory_pool().free_all_blocks()
    free, total = cupy.cuda.runtime.memGetInfo()
    return int(total - free)


def programs_after_each_other_leave_no_memory_behind(
    open: Open, plan: Planner, *, rounds: int, slack_bytes: int = 0
) -> None:
    """Open, run and close two programs again and again, which takes no more memory than once."""
    loop, model = looping(), Streamed()

    def both() -> None:
        with open(plan(loop.graph)) as session:
            session.launch()
            set_stop(session, loop, NEVER)
            session.run(2, "forward", {})
            assert session.wait() == 2
        with open(plan(model.graph)) as session:
            model.fill(session)
            session.launch()
            session.run(2, "forward", {})
            assert session.wait() == 2
            model.check(session, 2)

    both()
    used = used_bytes()
    for _ in range(rounds):
        both()
    assert used_bytes() <= used + slack_bytes
