"""Tiles cover each output once, and read what the whole operator would."""

import random
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import OPS, Array
from ark_dist.core.shape import box_shape, full_box
from ark_dist.core.target import Target, cpu_target, wide_target
from ark_dist.scheduler.fuse import fuse
from ark_dist.scheduler.tile import anchor_node, node_boxes, tile
from tests.operator_cases import TESTED, add_case, fill_leaf
from tests.plan_models import block, eager
from tests.random_graphs import random_model

TARGETS = [eager(cpu_target(n)) for n in (1, 2, 3)] + [eager(wide_target(n)) for n in (16, 132)]
COMPUTED = [name for name in TESTED if OPS[name].kernel is not None]


def counts(boxes: tuple[tuple[tuple[int, int], ...], ...], shape: tuple[int, ...]) -> Array:
    """How many boxes hold each element."""
    found = np.zeros(shape, np.int64)
    for box in boxes:
        found[tuple(slice(a, b) for a, b in box)] += 1
    return found


@pytest.mark.parametrize("op", COMPUTED)
def test_tiles_cover_the_output_exactly_once(op: str) -> None:
    record = OPS[op]
    rng = np.random.default_rng(3)
    for number in range(30):
        builder = GraphBuilder()
        add_case(builder, record, record.dtypes[0], number, rng)
        node = builder.freeze().methods[0].nodes[-1]
        for target in TARGETS:
            boxes = record.tiles(node.input_specs, node.output.spec, node.attributes, target)
            found = counts(boxes, node.output.shape)
            assert (found == 1).all(), (op, node.output.shape, target.worker_count, boxes)
            assert len(boxes) <= 4 * target.worker_count, (op, node.output.shape, len(boxes))


@pytest.mark.parametrize("op", COMPUTED)
def test_tiles_computed_one_by_one_give_the_whole(op: str) -> None:
    record = OPS[op]
    rng = np.random.default_rng(4)
    for number in range(12):
        builder = GraphBuilder()
        case = add_case(builder, record, record.dtypes[0], number, rng)
        node = builder.freeze().methods[0].nodes[-1]
        inputs = [look(fill_leaf(case, i, rng)) for i, look in enumerate(case.looks)]
        wide = [a.astype(np.float64) if DTYPES[v.dtype.name].is_float else a
                for a, v in zip(inputs, node.inputs, strict=True)]  # fmt: skip
        box = full_box(node.output.shape)
        if 0 in node.output.shape:
            continue
        whole = record.reference(tuple(wide), case.attrs, box)
        specs, out = node.input_specs, node.output.spec
        for part in record.tiles(specs, out, case.attrs, TARGETS[3]):
            boxes = record.in_boxes(specs, out, case.attrs, part)
            tiles = tuple(
                a[tuple(slice(s, e) for s, e in b)] for a, b in zip(wide, boxes, strict=True)
            )
            found = record.reference(tiles, case.attrs, part)
            assert found.shape == box_shape(part), case.text
            wanted = whole[tuple(slice(s, e) for s, e in part)]
            np.testing.assert_allclose(
                np.asarray(found, np.float64), np.asarray(wanted, np.float64), rtol=1e-12,
                atol=1e-12, err_msg=case.text,
            )  # fmt: skip


@pytest.mark.parametrize("op", COMPUTED)
def test_costs_of_tiles_add_up_to_the_cost_of_the_whole(op: str) -> None:
    record = OPS[op]
    rng = np.random.default_rng(5)
    for number in range(12):
        builder = GraphBuilder()
        add_case(builder, record, record.dtypes[0], number, rng)
        node = builder.freeze().methods[0].nodes[-1]
        specs, out, attrs = node.input_specs, node.output.spec, node.attributes
        whole = record.cost(specs, out, attrs, full_box(out.shape))
        boxes = record.tiles(specs, out, attrs, TARGETS[3])
        parts = [record.cost(specs, out, attrs, box) for box in boxes]
        assert all(p.bytes >= 0 and p.ops >= 0 for p in parts)
        # Shares are rounded down, one unit a tile.
        assert abs(sum(p.ops for p in parts) - whole.ops) <= 8 * len(parts) + whole.ops * (
            not parts
        )


def test_a_large_operator_is_cut_for_every_worker_and_a_small_one_is_not() -> None:
    builder = GraphBuilder()
    large, small = builder.tensor((1024, 1024), "fp32"), builder.tensor((8,), "fp32")
    builder.apply("relu", [large])
    builder.apply("relu", [small])
    graph = builder.freeze()
    nodes = graph.methods[0].nodes
    tasks = tile(fuse(nodes, graph.buffers), nodes, graph.buffers, cpu_target(3))
    assert [t.group for t in tasks] == [0, 0, 0, 1]
    assert [t.id for t in tasks] == [0, 1, 2, 3]


def test_an_empty_tensor_has_no_tasks() -> None:
    builder = GraphBuilder()
    builder.apply("relu", [builder.tensor((0, 4), "fp32")])
    graph = builder.freeze()
    nodes = graph.methods[0].nodes
    assert tile(fuse(nodes, graph.buffers), nodes, graph.buffers, cpu_target(2)) == ()


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.counters}-{t.worker_count}")
def test_tasks_of_fused_groups_cover_what_the_group_writes(target: Target) -> None:
    for seed in range(15):
        graph = random_model(seed).graph
        for method in graph.methods:
            groups = fuse(method.nodes, graph.buffers)
            tasks = tile(groups, method.nodes, graph.buffers, target)
            for group in groups:
                output = method.nodes[group.nodes[-1]].output
                boxes = tuple(t.box for t in tasks if t.group == group.id)
                assert (counts(boxes, output.shape) == 1).all(), (seed, group)
            pick = random.Random(seed)
            task = pick.choice(tasks)
            group = groups[task.group]
            order = [node.id for node, _, _ in node_boxes(group, method.nodes, task.box)]
            assert order == list(group.nodes)
            made = {method.nodes[n].output.buffer for n in group.nodes[:-1]}
            assert not made & {r.buffer for r in task.reads}, (seed, task)


def test_the_anchor_is_the_matmul_even_behind_a_norm() -> None:
    graph = block()
    nodes = graph.methods[0].nodes
    for group in fuse(nodes, graph.buffers):
        ops = [nodes[n].op for n in group.nodes]
        wanted = "matmul" if "matmul" in ops else ops[-1]
        assert anchor_node(group, nodes).op == wanted


def test_slower_signals_make_fewer_tiles() -> None:
    builder = GraphBuilder()
    builder.apply("relu", [builder.tensor((64, 64), "fp32")])
    graph = builder.freeze()
    nodes = graph.methods[0].nodes
    groups = fuse(nodes, graph.buffers)
    found = [
        len(tile(groups, nodes, graph.buffers, replace(cpu_target(8), hop_s=hop_s)))
        for hop_s in (1e-9, 3e-7, 1e-3)
    ]
    assert found == sorted(found, reverse=True) and found[0] == 8 and found[2] == 1
