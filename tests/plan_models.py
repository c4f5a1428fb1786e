"""Models for the tests of plans: small known ones, and random ones made from a seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value, whole_view
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
from ark_dist.core.plan import Method, Plan
from ark_dist.core.target import Target, cpu_target, wide_target
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.machine import Chooser, in_task_order
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import PlanOptions, make_plan

SIZE = 6
Result = dict[str, bytes]
Break = Callable[[Plan], Plan]


def eager(target: Target) -> Target:
    """A target on which even the smallest operator is worth cutting into tiles."""
    return replace(target, hop_s=1e-9, task_s=1e-9, bytes_per_s=1e6, ops_per_s=1e6)


def matmul(builder: GraphBuilder, a: Value, b: Value, *, is_relu: bool = False) -> Value:
    attrs = {"transpose_input": False, "transpose_other": False, "is_relu": is_relu}
    return builder.apply("matmul", [a, b], attrs)


def addition() -> Graph:
    """The model tutorial: the sum of two inputs."""
    builder = GraphBuilder("tutorial_model")
    one, two = (builder.tensor((32,), "fp16", name=name) for name in ("input", "other"))
    builder.apply("add", [one, two], name="output")
    return builder.freeze()


def mlp(width: int = 512) -> Graph:
    """The module tutorial: two matmuls, a residual and a norm."""
    builder = GraphBuilder("module_tutorial")
    x = builder.tensor((1, 64, width), "fp16", name="input")
    up = builder.parameter((width, 4 * width), "fp16", name="weight_1")
    down = builder.parameter((4 * width, width), "fp16", name="submodule.weight_2")
    middle = matmul(builder, matmul(builder, x, up, is_relu=True), down)
    builder.apply("layernorm", [builder.apply("add", [middle, x])], {"axis": -1, "eps": 1e-5})
    return builder.freeze()


def loop() -> Graph:
    """A state that grows each turn, copied out, and a stop once it is large enough."""
    builder = GraphBuilder("loop")
    state = builder.state((8, 4), "fp32", name="total")
    step = builder.tensor((8, 4), "fp32", name="step")
    grown = builder.apply("add", [state, builder.apply("mul", [step, 2.0])], output=state)
    builder.keep(builder.apply("copy", [grown], name="seen"))
    largest = builder.apply(
        "reduce_max",
        [builder.apply("reshape", [grown], {"shape": (32,)})],
        {"axis": 0, "keepdims": True},
    )
    flag = builder.apply("greater_equal", [largest, 5.0])
    builder.apply("stop_when", [flag])
    return builder.freeze()


def two_methods() -> Graph:
    """Two methods that share a weight and a cache, one of them with a command's scalar."""
    builder = GraphBuilder("cache")
    weight = builder.parameter((4, 4), "fp32", name="weight")
    cache = builder.state((8, 4), "fp32", name="cache")
    scale = builder.state((1,), "fp32", name="scale", init=1.0)
    builder.command_scalar(scale)
    builder.select_method("prefill")
    prompt = builder.tensor((8, 4), "fp32", name="prompt")
    builder.apply("mul", [matmul(builder, prompt, weight), scale], output=cache)
    builder.select_method("decode")
    row = builder.apply("narrow", [cache], {"axis": 0, "start": 2, "length": 1})
    token = builder.tensor((1, 4), "fp32", name="token")
    builder.apply("add", [row, matmul(builder, token, weight)], output=row)
    builder.apply("softmax", [cache], {"axis": -1}, name="scores")
    return builder.freeze()


def block() -> Graph:
    """An attention block without heads, for targets that are wide."""
    builder = GraphBuilder("block")
    x = builder.tensor((16, 64), "fp16", name="x")
    norm = builder.apply("layernorm", [x], {"axis": -1, "eps": 1e-5})
    shape = (64, 64)
    q, k, v = (
        matmul(builder, norm, builder.parameter(shape, "fp16", name=n)) for n in ("wq", "wk", "wv")
    )
    scores = builder.apply(
        "matmul", [q, k], {"transpose_input": False, "transpose_other": True, "is_relu": False}
    )
    mixed = matmul(builder, builder.apply("softmax", [scores], {"axis": -1}), v)
    out = matmul(builder, mixed, builder.parameter(shape, "fp16", name="wo"))
    builder.apply("add", [x, out], name="y")
    return builder.freeze()


class RandomGraph:
    """Grows a graph of random operators; one seed, one graph."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._builder = GraphBuilder(f"random_{seed}")
        self._states = [
            self._builder.state((SIZE, SIZE), "fp32", name=f"state_{i}", init=i + 1)
            for i in range(self._random.randint(0, 3))
        ]
        self._scalar = self._builder.state((1,), "fp32", name="scalar", init=2.0)
        self._builder.command_scalar(self._scalar)

    def grow(self, *, has_stop: bool) -> Graph:
        methods = ["main", "other"][: self._random.randint(1, 2)]
        for name in methods:
            self._builder.select_method(name)
            self._fill(name, has_stop=has_stop)
        return self._builder.freeze()

    def _fill(self, name: str, *, has_stop: bool) -> None:
        values = [self._builder.tensor((SIZE, SIZE), "fp32", name=f"{name}_x")]
        values += [*self._states, self._builder.parameter((SIZE, SIZE), "fp32", name=f"{name}_w")]
        if self._random.random() < 0.3:
            values.append(self._apply("mul", [values[0], self._scalar]))
        for _ in range(self._random.randint(3, 14)):
            values.append(self._step(values))
        if self._random.random() < 0.5:
            self._builder.keep(self._random.choice(values[1:]))
        if has_stop:
            total = self._apply(
                "reduce_max",
                [self._apply("reshape", [values[-1]], {"shape": (SIZE * SIZE,)})],
                {"axis": 0, "keepdims": True},
            )
            flag = self._apply("greater_equal", [total, self._random.choice([0.5, 1.0, 4.0])])
            self._builder.apply("stop_when", [flag])

    def _step(self, values: Sequence[Value]) -> Value:
        pick = self._random.choice
        # The newest values half of the time: chains are what fuses.
        a = values[-1] if self._random.random() < 0.5 else pick(values)
        b = pick(values)
        kind = pick(
            ["map", "map", "one", "row", "matmul", "reduce", "view", "state", "state", "dep"]
        )
        if kind == "map":
            return self._apply(pick(["add", "sub", "mul"]), [a, b])
        if kind == "one":
            return self._apply(pick(["relu", "copy"]), [a])
        if kind == "row":
            return self._row(a)
        if kind == "matmul":
            attrs: dict[str, AttrValue] = {
                "transpose_input": pick([True, False]),
                "transpose_other": pick([True, False]),
                "is_relu": pick([True, False]),
            }
            return self._apply("mul", [self._apply("matmul", [a, b], attrs), 0.1])
        if kind == "reduce":
            name = pick(["reduce_sum", "reduce_max", "reduce_mean"])
            return self._apply(
                "add", [b, self._apply(name, [a], {"axis": pick([0, 1]), "keepdims": True})]
            )
        if kind == "view":
            return self._apply("transpose", [a], {"perm": (1, 0)})
        if kind == "dep":
            return self._builder.apply("identity", [a], deps=[b])
        return self._write(a)

    def _row(self, a: Value) -> Value:
        if self._random.random() < 0.5:
            return self._apply("softmax", [a], {"axis": self._random.choice([0, -1])})
        return self._apply("layernorm", [a], {"axis": self._random.choice([0, -1]), "eps": 1e-3})

    def _write(self, a: Value) -> Value:
        """Assign to all of a state, or to some rows of it, perhaps from itself."""
        if not self._states:
            return a
        state = self._random.choice(self._states)
        if self._random.random() < 0.5:
            source = self._random.choice([a, state])
            return self._builder.apply("mul", [self._apply("add", [source, a]), 0.5], output=state)
        start, length = self._random.choice([(0, 1), (0, 3), (3, 3), (2, 2)])
        attrs: dict[str, AttrValue] = {
            "axis": self._random.choice([0, 1]),
            "start": start,
            "length": length,
        }
        part = self._apply("narrow", [state], attrs)
        self._builder.apply("relu", [self._apply("narrow", [a], attrs)], output=part)
        return state

    def _apply(
        self, name: str, inputs: Sequence[Value | float], attrs: dict[str, AttrValue] | None = None
    ) -> Value:
        return self._builder.apply(name, inputs, attrs)


def random_plan(seed: int) -> Plan:
    """A plan of a random graph for a random small target."""
    pick = random.Random(seed + 1_000_000).choice
    target = pick([*(cpu_target(n) for n in (1, 2, 3)), *(wide_target(n) for n in (4, 7, 16))])
    depth = pick([1, 2, 3])
    graph = RandomGraph(seed).grow(has_stop=pick([True, False]))
    return make_plan(
        graph, eager(target), PlanOptions(is_fused=pick([True, True, False]), depth=depth)
    )


def execute(plan: Plan, choose: Chooser = in_task_order) -> Result:
    """Run each method of a plan on fixed data; return all states and outputs, and the turns."""
    session = Session(plan, NumpyDevice(plan, choose=choose), SessionOptions())
    session.compile(lambda path: None)
    data = np.random.default_rng(7)
    for buffer in plan.buffers:
        if buffer.kind in ("input", "weight"):
            value = data.integers(-2, 3, buffer.shape).astype(buffer.dtype.numpy)
            session.write(whole_view(buffer), value)
    session.launch()
    result: Result = {}
    for turn, name in enumerate((*plan.method_names, *plan.method_names)):
        session.run(3, name, {})
        result[f"turns {turn}"] = bytes([session.wait()])
    for buffer in plan.buffers:
        if buffer.kind in ("state", "output"):
            result[buffer.name] = session.read(whole_view(buffer)).tobytes()
    session.stop()
    return result


def adversary(seed: int) -> Chooser:
    """A scheduler that lets some workers run as far ahead as they can."""
    rng = random.Random(seed)
    rank = [rng.random() for _ in range(64)]

    def choose(ready: Sequence[tuple[int, int]]) -> int:
        if rng.random() < 0.02:
            rng.shuffle(rank)
        return max(ready, key=lambda item: rank[item[0] % len(rank)])[0]

    return choose


def changed(plan: Plan, change: Callable[[Method], Method], index: int = 0) -> Plan:
    methods = list(plan.methods)
    methods[index] = change(methods[index])
    return replace(plan, methods=tuple(methods))


def at(name: str, index: int, **changes: object) -> Break:
    """Change one item of a sequence of the first method."""

    def change(method: Method) -> Method:
        items = list(getattr(method, name))
        items[index] = replace(items[index], **changes)
        return replace(method, **{name: tuple(items)})  # type: ignore[arg-type]  # on purpose

    return lambda plan: changed(plan, change)


def setting(**changes: object) -> Break:
    """Change fields of the first method."""
    return lambda plan: changed(plan, lambda m: replace(m, **changes))  # type: ignore[arg-type]


def mapping(name: str, change: Callable[[Any], object]) -> Break:
    """Change a field of the first method, given what it was."""
    return lambda plan: changed(
        plan,
        lambda m: replace(m, **{name: change(getattr(m, name))}),  # type: ignore[arg-type]
    )
