"""Random models with random annotations and stages compute the same on any mesh."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.graph import Buffer, Graph, GraphMethod
from ark_dist.core.layout import P
from tests.partition_oracle import compare
from tests.random_graphs import fill, random_model

MESHES = (
    {"tp": 2},
    {"tp": 3},
    {"dp": 2, "tp": 2},
    {"pp": 2, "tp": 2},
    {"tp": 5},
    {"pp": 3},
    {"dp": 2, "pp": 2},
)
SEEDS = 300
# The others are for --all.
FIRST_SEEDS = 50
# How often buffers of a kind are annotated.
CHANCES = {"input": 0.6, "weight": 0.6, "state": 0.3, "activation": 0.08, "output": 0.08}
# Values that a cast rounds may differ by a step; random models cast to bf16.
CAST_TOLERANCE = 2e-2
SEED_PARAMS = [
    pytest.param(seed, marks=[pytest.mark.long] if seed >= FIRST_SEEDS else [])
    for seed in range(SEEDS)
]


def annotation(rng: random.Random, buffer: Buffer, axes: list[str]) -> P | None:
    """Most axes, each on some dimension."""
    is_scalar = buffer.kind == "state" and buffer.shape == (1,)
    if not buffer.shape or is_scalar or rng.random() >= CHANCES.get(buffer.kind, 0.0):
        return None
    dims: list[str | None] = [None] * len(buffer.shape)
    for axis in axes:
        d = rng.randrange(len(dims))
        if rng.random() < 0.8 and dims[d] is None:
            dims[d] = axis
    return P(*dims)


def annotated(graph: Graph, axes: dict[str, int], seed: int) -> Graph:
    """The graph with random annotations and stages, in order or not."""
    rng = random.Random(seed)
    cutting, stages = [axis for axis in axes if axis != "pp"], axes.get("pp", 1)
    buffers = tuple(replace(b, shard=annotation(rng, b, cutting)) for b in graph.buffers)
    methods = []
    for method in graph.methods:
        count, is_mixed = len(method.nodes), rng.random() < 0.5
        nodes = tuple(
            replace(node, stage=rng.randrange(stages) if is_mixed else i * stages // count)
            for i, node in enumerate(method.nodes)
        )
        methods.append(GraphMethod(method.name, nodes))
    return replace(graph, buffers=buffers, methods=tuple(methods))


def check(seed: int) -> Counter[str]:
    """Compare a random model with itself on a mesh; returns how often ranks communicate."""
    model, axes = random_model(seed), MESHES[seed % len(MESHES)]
    graph = annotated(model.graph, axes, seed)
    data = {
        buffer: array if array.dtype.kind in "iu" else array.astype(np.float64)
        for buffer, array in fill(model, seed).items()
    }
    has_cast = any(node.op == "cast" for method in graph.methods for node in method.nodes)
    runs = [(m.name, count) for count in (2, 1) for m in graph.methods]
    tolerance = CAST_TOLERANCE if has_cast else 1e-9
    many = compare(graph, axes, data=data, runs=runs, tolerance=tolerance)
    return Counter(op for rank in range(len(many.parts)) for op in many.ops(rank))


@pytest.mark.parametrize("seed", SEED_PARAMS)
def test_a_random_model_gives_the_same_on_a_mesh(seed: int) -> None:
    check(seed)


def test_random_models_communicate_in_all_ways() -> None:
    found = sum((check(seed) for seed in range(16)), Counter[str]())
    assert set(found) >= {"all_gather", "all_reduce", "redistribute", "send", "recv"}
