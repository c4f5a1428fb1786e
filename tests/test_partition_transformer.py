"""A transformer gives the same tokens and logits on any mesh."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.graph import Graph, GraphMethod, Node
from ark_dist.core.layout import MeshShape, P
from ark_dist.core.plan import Method
from ark_dist.core.target import cpu_target, topology_of
from ark_dist.scheduler.partition import partition
from ark_dist.scheduler.plan import make_plan
from tests.partition_oracle import compare, random_data, sharded
from tests.transformer import Config, Transformer, random_weights, transformer

COLUMNS = ("query", "key", "value", "gate", "up")
ROWS = ("output", "down")
SMALL = Config(layers=1, hidden=16, heads=9, groups=3, depth=4, inner=20, vocabulary=23)
# Two rounds of prefill and decode: states carry over, and positions start anew.
RUNS = (("prefill", 1), ("decode", 3), ("decode", 2))


def annotated(made: Transformer, axes: dict[str, int]) -> Graph:
    """Weights cut by heads, by columns and rows, and by words; the prompt by batch."""
    shards: dict[str, P | None] = {}
    for name in made.weights:
        last = name.split(".")[-1]
        dims = (None, "tp") if last in COLUMNS else ("tp", None)
        if "tp" in axes and (last in (*COLUMNS, *ROWS) or name in ("embedding", "head")):
            turned = made.config.is_output_major and "layer" in name
            shards[name] = P(*(dims[::-1] if turned else dims))
    if "dp" in axes:
        shards["prompt"] = P("dp", None)
    return sharded(made.graph, shards)


def staged(made: Transformer, graph: Graph, stages: int) -> Graph:
    """Layers spread over stages; what comes between goes with what was before it."""
    names = {value.view.buffer: name for name, value in made.weights.items()}

    def stage_of(node: Node, before: int) -> int:
        read = [names[view.buffer] for view in node.inputs if view.buffer in names]
        layers = [int(name[6]) for name in read if name.startswith("layer_")]
        if any(name in ("norm", "head") for name in read):
            return stages - 1
        return layers[0] * stages // made.config.layers if layers else before

    methods = []
    for method in graph.methods:
        nodes: list[Node] = []
        for node in method.nodes:
            stage = stage_of(node, nodes[-1].stage if nodes else 0)
            nodes.append(replace(node, stage=stage))
        methods.append(GraphMethod(method.name, tuple(nodes)))
    return replace(graph, methods=tuple(methods))


def check(config: Config, axes: dict[str, int]) -> Counter[str]:
    """Compare with one rank; returns how often rank 0 communicates."""
    made = transformer(config)
    graph = staged(made, annotated(made, axes), axes.get("pp", 1))
    weights = random_weights(config, 1)
    data = dict(random_data(graph, 0, {made.prompt.view.buffer: config.vocabulary}))
    data |= {v.view.buffer: weights[n].astype(np.float64) for n, v in made.weights.items()}
    scalars = {"temperature": 0.5}
    many = compare(graph, axes, data=data, runs=RUNS, tolerance=1e-6, scalars=scalars)
    return Counter(many.ops())


def test_one_row_of_one_token_is_fused_on_ranks_too() -> None:
    graph = annotated(transformer(SMALL), {"tp": 2})
    part = partition(graph, MeshShape((("tp", 2),)), 0, topology_of((0, 0))).graph
    many = make_plan(part, cpu_target(1), rank=0, topology=topology_of((0, 0))).method("decode")
    assert "matmul mul silu" in fused(many)


def fused(method: Method) -> set[str]:
    """Operators of the groups that have several of them, by name."""
    groups = ([method.nodes[n].op for n in group.nodes] for group in method.groups)
    return {" ".join(sorted(ops)) for ops in groups if len(ops) > 1}


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("is_output_major", [False, True])
def test_heads_and_columns_are_cut(count: int, is_output_major: bool) -> None:
    found = check(replace(SMALL, is_output_major=is_output_major), {"tp": count})
    # Per method: after the embedding, attention and the inner layer; logits for sampling.
    assert found == {"all_reduce": 6, "all_gather": 2}


def test_a_batch_is_cut() -> None:
    found = check(replace(SMALL, batch=4, is_per_row=True), {"dp": 2})
    assert found["all_gather"] <= 4
    # Whether all rows have ended.
    assert found["all_reduce"] <= 1


@pytest.mark.parametrize("stages", [2, 3])
def test_layers_are_spread_over_stages(stages: int) -> None:
    found = check(replace(SMALL, layers=3), {"pp": stages})
    assert set(found) == {"send", "recv", "broadcast"}


@pytest.mark.parametrize(
    "axes",
    [{"pp": 2, "tp": 2}, {"tp": 2, "pp": 2}, {"dp": 2, "tp": 2}, {"dp": 2, "pp": 2}],
    ids=str,
)
def test_axes_multiply(axes: dict[str, int]) -> None:
    check(replace(SMALL, layers=2, batch=2, is_per_row=True), axes)


@pytest.mark.long
def test_three_axes_multiply() -> None:
    check(replace(SMALL, layers=2, batch=2, is_per_row=True), {"dp": 2, "pp": 2, "tp": 2})
