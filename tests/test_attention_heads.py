"""Attention over some of a model's heads, groups cut anywhere, is that part of the whole."""

from contextlib import AbstractContextManager

import numpy as np
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
from ark_dist.core.target import cpu_target
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.session import Session
from ark_dist.scheduler.plan import make_plan
from tests.emulated import emulated, gpu_plan
from tests.plan_models import eager
from tests.running import launched
from tests.test_attention import Case
from tests.test_cuda_attention import check, fill

Sizes = dict[str, tuple[tuple[int, int, int, int, int, int], int, int]]
# (B, T, H, S, D, Dv), heads that share a key, those of the first key's that are not here; D and Dv
# are such that a GPU takes each of its ways.
SIZES: Sizes = {
    "9 and 3 heads, rank 1 of 2": ((1, 2, 4, 40, 16, 32), 3, 2),
    "9 and 3 heads, rank 0 of 2": ((2, 1, 5, 70, 8, 9), 3, 0),
    "inside of one group": ((2, 3, 1, 65, 8, 5), 4, 2),
    "both groups begun": ((1, 20, 4, 65, 16, 16), 5, 4),
    "many groups": ((1, 40, 9, 40, 16, 16), 4, 3),
    "one key per head": ((1, 2, 3, 17, 8, 8), 1, 0),
}
LONG: Sizes = {
    "long": ((1, 1, 4, 700, 16, 24), 3, 2),
    "long, of two rows": ((2, 2, 3, 520, 8, 9), 4, 3),
}
Added = list[tuple[Case, tuple[int, int], list[Value], Value]]


def build(sizes: Sizes, dtype: str) -> tuple[Graph, Added]:
    builder = GraphBuilder("heads")
    added: Added = []
    for number, ((b, t, h, s, d, w), group, first) in enumerate(sizes.values()):
        keys = -(-(first + h) // group)
        shapes = ((b, t, h, d), (b, s, keys, d), (b, s, keys, w))
        leaves = [builder.tensor(shape, dtype) for shape in shapes]
        if number % 2:
            leaves.append(builder.tensor((b,), "int32"))
        attrs: dict[str, AttrValue] = {"heads_per_key": group, "first_head": first}
        result = builder.apply("attention", leaves, {**attrs, "causal": number % 3 != 0})
        builder.keep(result)
        # Each head with a copy of its key head, for the formula.
        case = Case((b, t, h, h, s, d, w), b if number % 2 else None, number % 3 != 0, None)
        added.append((case, (group, first), leaves, result))
    return builder.freeze(), added


def run(opened: AbstractContextManager[Session], added: Added, dtype: str) -> None:
    rng = np.random.default_rng(3)
    with opened as session:
        for case, _, leaves, _ in added:
            for leaf in leaves:
                session.write(leaf.view, fill(case, leaf, rng))
        session.run(1, "forward", {})
        session.wait()
        for case, (group, first), leaves, output in added:
            q, k, v, *length = (session.read(leaf.view).astype(np.float64) for leaf in leaves)
            which = (np.arange(q.shape[2]) + first) // group
            inputs = [q, k[:, :, which], v[:, :, which], *length]
            check(case, inputs, session.read(output.view).astype(np.float64), dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("workers", [1, 4])
def test_groups_that_are_cut_have_their_keys(device: str, workers: int, dtype: str) -> None:
    graph, added = build(SIZES, dtype)
    run(launched(graph, eager(cpu_target(workers, best_isa())), device), added, dtype)


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_parts_of_the_keys_have_the_same_groups(device: str) -> None:
    graph, added = build(LONG, "fp32")
    target = eager(cpu_target(64, best_isa()))
    ops = [node.op for node in make_plan(graph, target).methods[0].nodes]
    assert ops.count("attention_part") == len(added)
    run(launched(graph, target, device), added, "fp32")


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_gpu_has_the_same_groups(dtype: str, race: bool) -> None:
    graph, added = build(SIZES, dtype)
    run(emulated(gpu_plan(graph, workers=3), seed=1, race=race), added, dtype)


def test_parts_of_the_keys_have_the_same_groups_on_a_gpu() -> None:
    graph, added = build(LONG, "fp16")
    plan = gpu_plan(graph, workers=12)
    assert sum(node.op == "attention_part" for node in plan.methods[0].nodes) == len(added)
    run(emulated(plan, seed=2, race=True), added, "fp16")


def test_a_cut_group_is_not_cut_again_by_tiles() -> None:
    graph, _ = build({"many": SIZES["many groups"]}, "fp32")
    method = make_plan(graph, eager(cpu_target(8, best_isa()))).methods[0]
    heads = sorted({task.box[2] for task in method.tasks})
    assert heads == [(0, 1), (1, 5), (5, 9)]


@pytest.mark.parametrize(
    ("heads", "keys", "group", "first", "text"),
    [
        (4, 2, 3, 3, r"heads_per_key is 3 and first_head 3; both must be integers, 0 <= first"),
        (4, 2, 3, -1, r"heads_per_key is 3 and first_head -1"),
        (4, 2, None, 1, r"heads_per_key is None and first_head 1"),
        (4, 2, 0, 0, r"heads_per_key is 0 and first_head 0"),
        (4, 3, 3, 2, r"heads_per_key 3 and first_head 2 there must be 2 key heads"),
        (5, 1, 3, 0, r"heads_per_key 3 and first_head 0 there must be 2 key heads"),
    ],
)
def test_key_heads_that_are_not_the_queries_are_refused(
    heads: int, keys: int, group: int | None, first: int, text: str
) -> None:
    builder = GraphBuilder()
    query, key = builder.tensor((1, 1, heads, 8), "fp32"), builder.tensor((1, 5, keys, 8), "fp32")
    with pytest.raises(ValueError, match=f"^attention: .*{text}"):
        builder.apply("attention", [query, key, key], {"heads_per_key": group, "first_head": first})


def test_no_heads_give_nothing() -> None:
    builder = GraphBuilder("none")
    query, key = builder.tensor((1, 2, 0, 8), "fp32"), builder.tensor((1, 5, 0, 8), "fp32")
    output = builder.apply("attention", [query, key, key], {"heads_per_key": 3, "first_head": 1})
    builder.keep(output)
    for device in ("numpy", "cpu"):
        with launched(builder.freeze(), cpu_target(1, best_isa()), device) as session:
            session.run(1, "forward", {})
            session.wait()
            assert session.read(output.view).shape == (1, 2, 0, 8)
