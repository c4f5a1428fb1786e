"""Operators become steps where a target wants it, and the result stays the same."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph, GraphMethod
from ark_dist.core.op import AttrValue
from ark_dist.core.planfile import fingerprint, plan_from_bytes, plan_to_bytes
from ark_dist.core.target import cpu_target, wide_target
from ark_dist.core.verify_graph import graph_problems
from ark_dist.launch.cpuinfo import LADDER, best_isa, can_run
from ark_dist.scheduler.expand import expand
from ark_dist.scheduler.plan import make_plan
from tests.operator_formulas import EPSILON, SMALLEST
from tests.plan_models import eager
from tests.running import launched, strided

Floats = npt.NDArray[np.float64]


def product(
    builder: GraphBuilder,
    a: Value,
    b: Value,
    splitk: int,
    attrs: Mapping[str, AttrValue] | None = None,
    *,
    name: str | None = None,
    deps: Sequence[Value] = (),
    output: Value | None = None,
) -> Value:
    attrs = {"splitk": splitk, **(attrs or {})}
    return builder.apply("matmul", [a, b], attrs, name=name, deps=deps, output=output)


def small(splitk: int, dtype: str = "fp16") -> tuple[Graph, Value]:
    builder = GraphBuilder("small")
    a, b = builder.tensor((4, 24), dtype, name="a"), builder.tensor((24, 8), dtype, name="b")
    result = product(builder, a, b, splitk, {"is_relu": True}, name="y")
    return builder.freeze(), result


def steps(graph: Graph) -> GraphMethod:
    return expand(graph.methods[0], graph.buffers, cpu_target(1))[0]


def test_an_operator_that_stays_one_changes_nothing() -> None:
    graph, _ = small(1)
    assert expand(graph.methods[0], graph.buffers, cpu_target(4)) == (
        graph.methods[0],
        graph.buffers,
    )


def test_steps_write_new_activations_and_the_last_one_the_output() -> None:
    graph, result = small(3)
    method, buffers = expand(graph.methods[0], graph.buffers, cpu_target(1))
    assert [node.op for node in method.nodes] == ["matmul_part", "reduce_sum", "relu", "cast"]
    assert [node.id for node in method.nodes] == [0, 1, 2, 3]
    assert method.nodes[-1].output == result.view and method.nodes[-1].name == "y"
    assert buffers[: len(graph.buffers)] == graph.buffers
    made = buffers[len(graph.buffers) :]
    assert [b.name for b in made] == ["y.matmul_part", "y.reduce_sum", "y.relu"]
    assert {(b.kind, b.method, b.dtype.name) for b in made} == {("activation", "forward", "fp32")}
    assert made[0].shape == (3, 4, 8) and made[1].shape == (4, 8)
    assert list(graph_problems(Graph("expanded", buffers, (method,)))) == []


def test_names_that_are_taken_get_a_number() -> None:
    builder = GraphBuilder("names")
    a = builder.tensor((4, 24), "fp32", name="y.matmul_part")
    product(builder, a, builder.tensor((24, 8), "fp32"), 3, name="y")
    graph = builder.freeze()
    _, buffers = expand(graph.methods[0], graph.buffers, cpu_target(1))
    assert buffers[-1].name == "y.matmul_part_1"
    make_plan(graph, cpu_target(2))


def test_stage_and_order_are_kept() -> None:
    builder = GraphBuilder("order")
    a, b = builder.tensor((4, 24), "fp32"), builder.tensor((24, 8), "fp32")
    first = builder.apply("add", [a, 1.0])
    builder.select_stage(2)
    product(builder, a, b, 2, deps=[first])
    builder.apply("sub", [a, 1.0])
    method = steps(builder.freeze())
    assert [node.op for node in method.nodes] == ["add", "matmul_part", "reduce_sum", "sub"]
    assert [node.id for node in method.nodes] == [0, 1, 2, 3]
    assert [node.stage for node in method.nodes] == [0, 2, 2, 2]
    # What reads a step comes after all that the step comes after.
    assert [node.after for node in method.nodes] == [(), (first.view,), (), ()]


def test_methods_keep_their_own_buffers() -> None:
    builder = GraphBuilder("methods")
    a, b = builder.tensor((4, 24), "fp32"), builder.parameter((24, 8), "fp32")
    for name in ("one", "two"):
        builder.select_method(name)
        product(builder, a, b, 4, name=f"y_{name}")
    plan = make_plan(builder.freeze(), eager(cpu_target(2)))
    made = {b.name: b.method for b in plan.buffers if b.kind == "activation"}
    assert made == {"y_one.matmul_part": "one", "y_two.matmul_part": "two"}


def test_plans_with_steps_are_deterministic_and_survive_their_file() -> None:
    target = eager(cpu_target(3))
    plan = make_plan(small(4)[0], target)
    assert plan == make_plan(small(4)[0], target)
    assert fingerprint(plan) == fingerprint(make_plan(small(4)[0], target))
    assert fingerprint(plan) != fingerprint(make_plan(small(1)[0], target))
    assert plan_from_bytes(plan_to_bytes(plan)) == plan


@pytest.mark.parametrize(
    ("k", "splitk", "parts"), [(24, 5, 4), (24, 24, 24), (24, 99, 24), (7, 3, 1), (6, 2, 2)]
)
def test_parts_of_k_are_equal_and_no_more_than_asked_for(k: int, splitk: int, parts: int) -> None:
    builder = GraphBuilder()
    product(builder, builder.tensor((2, k), "fp32"), builder.tensor((k, 3), "fp32"), splitk)
    method = steps(builder.freeze())
    found = method.nodes[0].output.shape[0] if method.nodes[0].op == "matmul_part" else 1
    assert found == parts


@pytest.mark.parametrize("splitk", [0, -1])
def test_less_than_one_part_is_refused(splitk: int) -> None:
    builder = GraphBuilder()
    a = builder.tensor((4, 4), "fp32")
    with pytest.raises(ValueError, match=rf"^matmul: splitk is {splitk}; it must be 1 or more"):
        product(builder, a, a, splitk)


def test_a_wide_target_splits_long_products_of_few_tiles_by_itself() -> None:
    """Few tiles and a long K; not where tiles are many, K is short, or workers are few."""
    found = {}
    for m, k, n in ((1, 4096, 512), (1, 256, 512), (512, 4096, 4096)):
        builder = GraphBuilder()
        product(builder, builder.tensor((m, k), "bf16"), builder.parameter((k, n), "bf16"), 1)
        graph = builder.freeze()
        for target in (wide_target(), cpu_target(2)):
            plan = make_plan(graph, target)
            is_split = plan.methods[0].nodes[0].op == "matmul_part"
            found[m, k, n, target.worker_count] = is_split
            if is_split:
                most = max(len(queue) for queue in plan.methods[0].queues)
                assert most <= 2, "parts are side by side"
    assert [key for key, is_split in found.items() if is_split] == [(1, 4096, 512, 132)]


def matmul_case(
    builder: GraphBuilder, dtype: str, rng: np.random.Generator
) -> tuple[list[Value], list[Value], dict[str, bool], Value]:
    m, n = (int(rng.choice([1, 2, 5, 7, 64, 70])) for _ in range(2))
    k = int(rng.choice([0, 1, 2, 12, 30, 64, 96, 210]))
    turned = {name: bool(rng.random() < 0.4) for name in ("transpose_input", "transpose_other")}
    batch = (2, 3)[: int(rng.integers(3))]
    cut = batch[int(rng.integers(len(batch) + 1)) :]
    a = (*batch, *((k, m) if turned["transpose_input"] else (m, k)))
    b = (*cut, *((n, k) if turned["transpose_other"] else (k, n)))
    pairs = [strided(builder, shape, dtype, rng) for shape in (a, b)]
    turned["is_relu"] = bool(rng.random() < 0.4)
    splitk = int(rng.choice([2, 3, 4, 7, 16]))
    result = product(builder, pairs[0][1], pairs[1][1], splitk, turned)
    builder.keep(result)
    return [leaf for leaf, _ in pairs], [value for _, value in pairs], turned, result


def check_matmuls(device: str, isa: str, workers: int, dtype: str, count: int) -> None:
    rng = np.random.default_rng([1, *dtype.encode()])
    builder = GraphBuilder("matmuls")
    cases = [matmul_case(builder, dtype, rng) for _ in range(count)]
    with launched(builder.freeze(), eager(cpu_target(workers, isa)), device) as session:
        for leaves, _, _, _ in cases:
            for leaf in leaves:
                data = rng.normal(size=leaf.view.shape).astype(leaf.view.dtype.numpy)
                session.write(leaf.view, data)
        session.run(1, "forward", {})
        session.wait()
        for _, values, turned, result in cases:
            a, b = (session.read(value.view).astype(np.float64) for value in values)
            a = a.swapaxes(-1, -2) if turned["transpose_input"] else a
            b = b.swapaxes(-1, -2) if turned["transpose_other"] else b
            wanted, size = a @ b, np.abs(a) @ np.abs(b)
            wanted = np.maximum(wanted, 0) if turned["is_relu"] else wanted
            allowed = EPSILON["fp32"] * (a.shape[-1] + 17) * size
            allowed += EPSILON[dtype] / 2 * np.abs(wanted) + SMALLEST[dtype]
            found = session.read(result.view).astype(np.float64)
            assert found.shape == wanted.shape
            assert (np.abs(found - wanted) <= allowed).all(), (values[0].view.shape, turned)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_split_products_agree_with_the_formula(device: str, workers: int, dtype: str) -> None:
    check_matmuls(device, best_isa(), workers, dtype, 22)


@pytest.mark.parametrize("isa", [isa for isa in LADDER if can_run(isa)])
def test_every_instruction_set_splits_alike(isa: str) -> None:
    for dtype in ("fp32", "fp16", "bf16"):
        check_matmuls("cpu", isa, 2, dtype, 8)


def test_split_products_are_the_same_bits_every_time() -> None:
    rng = np.random.default_rng(3)
    results = set()
    for workers in (1, 2, 4, 4):
        builder = GraphBuilder("bits")
        a, b = builder.tensor((3, 960), "fp32"), builder.tensor((960, 70), "fp32")
        result = product(builder, a, b, 6)
        rng = np.random.default_rng(3)
        with launched(builder.freeze(), eager(cpu_target(workers, best_isa())), "cpu") as session:
            for value in (a, b):
                session.write(value.view, rng.normal(size=value.view.shape).astype(np.float32))
            session.run(5, "forward", {})
            session.wait()
            results.add(session.read(result.view).tobytes())
    assert len(results) == 1


def test_a_state_that_is_multiplied_with_itself_in_parts_goes_through_a_copy() -> None:
    builder = GraphBuilder("state")
    rng = np.random.default_rng(4)
    first = rng.normal(size=(8, 8)) / 3
    state = builder.state((8, 8), "fp32", init=first.astype(np.float32))
    product(builder, state, state, 4, output=state)
    for device in ("numpy", "cpu"):
        with launched(builder.freeze(), eager(cpu_target(2, best_isa())), device) as session:
            session.run(2, "forward", {})
            session.wait()
            wanted = np.linalg.matrix_power(first.astype(np.float32).astype(np.float64), 4)
            assert np.abs(session.read(state.view) - wanted).max() < 1e-5
