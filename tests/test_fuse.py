"""Nodes run as one where that changes nothing but the time."""

from itertools import pairwise

import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.op import AttrValue
from ark_dist.scheduler.fuse import (
    MAX_GROUP_NODES,
    MAX_GROUP_OPERANDS,
    MIN_PROLOGUE_COLUMNS,
    fuse,
    materialized,
)
from tests.random_graphs import random_model

Groups = list[list[str]]
WIDE = MIN_PROLOGUE_COLUMNS


class Model:
    """A builder with short calls for the operators that fuse."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()
        self.x = self.builder.tensor((8, 64), "fp32", name="x")
        self.y = self.builder.tensor((8, 64), "fp32", name="y")
        self.state = self.builder.state((8, 64), "fp32", name="state")

    def apply(
        self, op: str, *inputs: Value | float, output: Value | None = None, **attrs: AttrValue
    ) -> Value:
        return self.builder.apply(op, inputs, attrs, output=output)

    def matmul(self, a: Value, columns: int = WIDE, **changes: AttrValue) -> Value:
        weight = self.builder.parameter((a.view.shape[-1], columns), "fp32")
        return self.product(a, weight, **changes)

    def product(self, a: Value, b: Value, **changes: AttrValue) -> Value:
        attrs: dict[str, AttrValue] = {
            "transpose_input": False, "transpose_other": False, "is_relu": False,
        }  # fmt: skip
        return self.builder.apply("matmul", [a, b], attrs | changes)

    def norm(self, x: Value, axis: int = -1, *, op: str = "layernorm", vectors: int = 0) -> Value:
        size = x.view.shape[axis]
        along = [self.builder.parameter((size,), "fp32") for _ in range(vectors)]
        return self.apply(op, x, *along, axis=axis, eps=1e-5)

    def groups(self, *, is_enabled: bool = True, method: int = 0) -> Groups:
        """The operators of each group."""
        graph = self.builder.freeze()
        nodes = graph.methods[method].nodes
        found = fuse(nodes, graph.buffers, is_enabled=is_enabled)
        return [[nodes[n].op for n in group.nodes] for group in found]


@pytest.fixture
def model() -> Model:
    return Model()


def test_a_chain_of_elementwise_operators_is_one_group(model: Model) -> None:
    value = model.apply("add", model.x, model.y)
    for op in ("relu", "mul", "sub"):
        value = model.apply(op, value) if op == "relu" else model.apply(op, value, 2.0)
    model.apply("greater_equal", value, 0.0)
    assert model.groups() == [["add", "relu", "mul", "sub", "greater_equal"]]


def test_two_chains_that_meet_are_one_group(model: Model) -> None:
    left, right = model.apply("relu", model.x), model.apply("mul", model.y, 3.0)
    model.apply("add", left, right)
    assert model.groups() == [["relu", "mul", "add"]]


def test_a_value_used_twice_by_one_operator_fuses(model: Model) -> None:
    value = model.apply("relu", model.x)
    model.apply("mul", value, value)
    assert model.groups() == [["relu", "mul"]]


@pytest.mark.parametrize("anchor", ["matmul", "softmax", "layernorm", "reduce", "embedding"])
def test_bias_activation_and_residual_run_in_the_epilogue(model: Model, anchor: str) -> None:
    if anchor == "matmul":
        made = model.matmul(model.x)
    elif anchor == "softmax":
        made = model.apply("softmax", model.x, axis=0)
    elif anchor == "layernorm":
        made = model.norm(model.x)
    elif anchor == "reduce":
        made = model.apply("reduce_sum", model.x, axis=1, keepdims=True)
    else:
        index = model.builder.tensor((8,), "int32")
        made = model.apply("embedding", index, model.builder.parameter((9, 64), "fp32"))
    bias = model.builder.parameter(made.view.shape[-1:], "fp32")
    residual = model.builder.tensor(made.view.shape, "fp32")
    made = model.apply("relu", model.apply("add", made, bias))
    model.apply("add", residual, made)
    (group,) = model.groups()
    assert group[1:] == ["add", "relu", "add"]


def test_a_second_matmul_starts_a_group_of_its_own(model: Model) -> None:
    one, two = model.matmul(model.x), model.matmul(model.y)
    model.apply("add", one, two)
    assert model.groups() == [["matmul"], ["matmul", "add"]]


@pytest.mark.parametrize("consumers", [1, 2, 3, 4])
def test_a_norm_runs_inside_the_matmuls_that_read_it(model: Model, consumers: int) -> None:
    normed = model.norm(model.x)
    for _ in range(consumers):
        model.apply("relu", model.matmul(normed))
    assert model.groups() == [["layernorm", "matmul", "relu"]] * consumers


@pytest.mark.parametrize(("op", "vectors"), [("layernorm", 2), ("rmsnorm", 0), ("rmsnorm", 1)])
def test_every_norm_runs_inside_with_its_parameters(model: Model, op: str, vectors: int) -> None:
    normed = model.norm(model.x, op=op, vectors=vectors)
    for _ in range(2):
        model.apply("relu", model.matmul(normed))
    assert model.groups() == [[op, "matmul", "relu"]] * 2


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_norms_parameters_count_as_operands_of_the_group(model: Model, spare: int) -> None:
    """Two vectors more than the matmul's group had, which has its rows, weight and output."""
    value = model.matmul(model.norm(model.x, vectors=2))
    for _ in range(MAX_GROUP_OPERANDS - 3 - spare):
        value = model.apply("add", value, model.builder.tensor((8, WIDE), "fp32"))
    count = MAX_GROUP_OPERANDS - 3 - spare
    chain = ["matmul", *["add"] * count]
    assert model.groups() == ([["layernorm"], chain] if spare < 2 else [["layernorm", *chain]])


def test_a_norm_with_five_readers_is_computed_once(model: Model) -> None:
    normed = model.norm(model.x)
    for _ in range(5):
        model.matmul(normed)
    assert model.groups() == [["layernorm"]] + [["matmul"]] * 5


def narrow_matmul(model: Model) -> None:
    model.matmul(model.norm(model.x), WIDE - 1)


def norm_along_rows(model: Model) -> None:
    model.matmul(model.norm(model.x, 0))


def norm_as_right_operand(model: Model) -> None:
    model.product(model.builder.tensor((64, 8), "fp32"), model.norm(model.x))


def norm_on_both_sides(model: Model) -> None:
    normed = model.norm(model.builder.tensor((64, 64), "fp32"))
    model.product(normed, normed)


def turned_norm(model: Model) -> None:
    model.product(model.norm(model.x), model.builder.tensor((8, 64), "fp32"), transpose_input=True)


def norm_seen_through_a_view(model: Model) -> None:
    normed = model.norm(model.builder.tensor((64, 64), "fp32"))
    model.matmul(model.apply("transpose", normed, perm=(1, 0)))


def norm_with_another_reader(model: Model) -> None:
    normed = model.norm(model.x)
    model.matmul(normed)
    model.apply("relu", normed)


def kept_norm(model: Model) -> None:
    normed = model.norm(model.x)
    model.matmul(normed)
    model.builder.keep(normed)


def norm_of_a_state_that_is_written_before_the_matmul(model: Model) -> None:
    normed = model.norm(model.state)
    model.apply("relu", model.x, output=model.state)
    model.matmul(normed)


def norm_whose_weight_is_written_before_the_matmul(model: Model) -> None:
    weight = model.builder.state((64,), "fp32")
    normed = model.apply("layernorm", model.x, weight, axis=-1, eps=1e-5)
    model.apply("relu", model.builder.tensor((64,), "fp32"), output=weight)
    model.matmul(normed)


def norm_spread_over_a_batch(model: Model) -> None:
    normed = model.norm(model.builder.tensor((1, 8, 64), "fp32"))
    model.product(normed, model.builder.parameter((3, 64, WIDE), "fp32"))


@pytest.mark.parametrize(
    "build",
    [
        narrow_matmul, norm_along_rows, norm_as_right_operand, norm_on_both_sides, turned_norm,
        norm_seen_through_a_view, norm_with_another_reader, kept_norm,
        norm_of_a_state_that_is_written_before_the_matmul, norm_spread_over_a_batch,
        norm_whose_weight_is_written_before_the_matmul,
    ],
)  # fmt: skip
def test_a_norm_that_can_not_run_inside_stays_outside(model: Model, build: object) -> None:
    assert callable(build)
    build(model)
    assert ["layernorm"] in model.groups()


def state_written_in_between(model: Model) -> None:
    value = model.apply("mul", model.state, 2.0)
    model.apply("relu", model.x, output=model.state)
    model.apply("add", value, 1.0)


def second_consumer(model: Model) -> None:
    value = model.apply("relu", model.x)
    model.apply("mul", value, 2.0)
    model.apply("sub", value, 1.0)


def kept_output(model: Model) -> None:
    value = model.apply("relu", model.x)
    model.builder.keep(value)
    model.apply("mul", value, 2.0)


def growing_shape(model: Model) -> None:
    value = model.apply("relu", model.builder.tensor((1, 64), "fp32"))
    model.apply("add", value, model.x)


def another_view_of_the_value(model: Model) -> None:
    value = model.apply("relu", model.x)
    model.apply("mul", model.apply("reshape", value, shape=(64, 8)), 2.0)


def another_view_of_the_target(model: Model) -> None:
    square = model.builder.state((8, 8), "fp32")
    value = model.apply("relu", model.apply("transpose", square, perm=(1, 0)))
    model.apply("mul", value, 2.0, output=square)


def a_row_read_of_the_target(model: Model) -> None:
    value = model.apply("softmax", model.state, axis=1)
    model.apply("mul", value, 2.0, output=model.state)


def waited_for_by_a_dep(model: Model) -> None:
    value = model.apply("relu", model.x)
    late = model.builder.apply("identity", [model.y], deps=[value])
    model.apply("mul", value, model.apply("relu", late))


def another_stage(model: Model) -> None:
    value = model.apply("relu", model.x)
    model.builder.select_stage(1)
    model.apply("mul", value, 2.0)


@pytest.mark.parametrize(
    "build",
    [
        state_written_in_between, second_consumer, kept_output, growing_shape,
        another_view_of_the_value, another_view_of_the_target, a_row_read_of_the_target,
        waited_for_by_a_dep, another_stage,
    ],
)  # fmt: skip
def test_what_has_to_stay_apart_stays_apart(model: Model, build: object) -> None:
    assert callable(build)
    build(model)
    first = model.groups()[0]
    assert len(first) == 1, model.groups()


def test_a_state_changed_in_place_fuses_with_its_reader(model: Model) -> None:
    half = model.apply("mul", model.state, 0.5)
    model.apply("add", half, model.x, output=model.state)
    assert model.groups() == [["mul", "add"]]


def test_a_write_to_another_buffer_in_between_does_not_matter(model: Model) -> None:
    value = model.apply("mul", model.x, 2.0)
    model.apply("relu", model.y, output=model.state)
    model.apply("add", value, 1.0)
    assert model.groups() == [["relu"], ["mul", "add"]]


def test_groups_stay_small_enough_for_generated_functions(model: Model) -> None:
    value = model.x
    for _ in range(50):
        value = model.apply("add", value, model.builder.tensor((8, 64), "fp32"))
    groups = model.groups()
    assert max(map(len, groups)) <= MAX_GROUP_NODES
    assert sum(map(len, groups)) == 50
    assert len(groups) <= 5


def test_without_fusion_every_node_is_a_group() -> None:
    for seed in range(20):
        for method in (graph := random_model(seed).graph).methods:
            groups = fuse(method.nodes, graph.buffers, is_enabled=False)
            assert [g.nodes for g in groups] == [(n.id,) for n in method.nodes]


def test_groups_keep_the_order_and_lose_no_node() -> None:
    for seed in range(60):
        for method in (graph := random_model(seed).graph).methods:
            groups = fuse(method.nodes, graph.buffers)
            lasts = [g.nodes[-1] for g in groups]
            assert all(a < b for a, b in pairwise(lasts)), seed
            assert {n for g in groups for n in g.nodes} == {n.id for n in method.nodes}, seed
            kept = materialized(groups, method.nodes)
            for node in method.nodes:
                if graph.buffers[node.output.buffer].kind in ("state", "output"):
                    assert node.id in lasts and node.output.buffer in kept, seed


def test_effects_follow_from_what_a_group_writes(model: Model) -> None:
    value = model.matmul(model.x)
    model.matmul(value)
    model.apply("relu", model.x, output=model.state)
    model.apply("stop_when", model.builder.tensor((1,), "bool"))
    graph = model.builder.freeze()
    groups = fuse(graph.methods[0].nodes, graph.buffers)
    assert [g.effect for g in groups] == ["none", "effect", "effect", "stop"]
