"""Any mesh gives what one rank gives: whole programs, as plans and as kernels."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core.graph import Graph
from ark_dist.core.op import Array
from ark_dist.core.target import cpu_target, wide_target
from ark_dist.scheduler.plan import PlanOptions
from tests.mesh_runs import on_kernels, on_machines
from tests.random_graphs import fill, random_model
from tests.test_partition_random import MESHES, annotated
from tests.test_partition_transformer import annotated as cut_weights
from tests.test_partition_transformer import staged
from tests.transformer import Config, random_weights, transformer

CONFIG = Config(
    batch=4,
    layers=3,
    hidden=18,
    heads=9,
    groups=3,
    depth=4,
    inner=23,
    vocabulary=29,
    is_per_row=True,
)
RUNS = (("prefill", 1), ("decode", 4), ("decode", 2))
# Every product of tp, pp and dp over up to 4 ranks.
AXES: list[dict[str, int]] = [
    *(
        {name: count}
        for name in ("tp", "pp", "dp")
        for count in (2, 3, 4)
        if (name, count) != ("pp", 4)
    ),
    {"pp": 2, "tp": 2},
    {"dp": 2, "tp": 2},
    {"dp": 2, "pp": 2},
]
# Of fp32, relative to the largest value: sums are added in another order.
TOLERANCE = 2e-4
TRANSPORTS = [pytest.param("peer"), pytest.param("proxy", marks=pytest.mark.long)]


def program(axes: Mapping[str, int]) -> tuple[Graph, dict[int, Array]]:
    """The transformer with 9 and 3 heads, cut as users cut it, and its data."""
    made = transformer(CONFIG)
    graph = staged(made, cut_weights(made, dict(axes)), axes.get("pp", 1))
    weights = random_weights(CONFIG, 1)
    data = {value.view.buffer: weights[name] for name, value in made.weights.items()}
    prompt = np.random.default_rng(2).integers(0, CONFIG.vocabulary, (4, CONFIG.prompt))
    return graph, {**data, made.prompt.view.buffer: prompt.astype(np.int32)}


def compare(graph: Graph, found: Mapping[int, Array], want: Mapping[int, Array]) -> None:
    for buffer, value in want.items():
        wide, near = value.astype(np.float64), found[buffer].astype(np.float64)
        limit = TOLERANCE * (1 + np.abs(wide).max(initial=0))
        np.testing.assert_allclose(
            near, wide, rtol=0, atol=limit, err_msg=graph.buffers[buffer].name
        )


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_a_transformer_gives_the_same_in_any_order_of_steps(axes: dict[str, int]) -> None:
    target = cpu_target(2)
    alone, data = program({})
    want = on_machines(alone, {}, target, data, RUNS, PlanOptions(), 0)
    graph, data = program(axes)
    found = on_machines(graph, axes, target, data, RUNS, PlanOptions(), 1)
    compare(graph, found, want)


@pytest.mark.parametrize("axes", [{"tp": 2}, {"dp": 2, "tp": 2}, {"pp": 2, "tp": 2}], ids=str)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_kernels_of_a_transformer_give_the_same_and_the_same_bits_again(
    axes: dict[str, int], transport: str
) -> None:
    alone, data = program({})
    want = on_kernels(alone, {"tp": 1}, 2, data, RUNS)
    graph, data = program(axes)
    options = PlanOptions(transport=transport)
    found, again = (on_kernels(graph, axes, 1, data, RUNS, options) for _ in range(2))
    compare(graph, found, want)
    for buffer, value in found.items():
        assert again[buffer].tobytes() == value.tobytes(), graph.buffers[buffer]


@pytest.mark.parametrize("seed", range(50))
def test_a_random_model_of_prime_sizes_gives_the_same_as_a_plan(seed: int) -> None:
    model, axes = random_model(seed), MESHES[seed % len(MESHES)]
    graph = annotated(model.graph, axes, seed)
    data = fill(model, seed)
    runs = [(m.name, count) for count in (2, 1) for m in graph.methods]
    is_wide = seed % 3 == 0
    target = wide_target(5, kind="cuda") if is_wide else cpu_target(1 + seed % 3)
    whole = replace(graph, buffers=tuple(replace(b, shard=None) for b in graph.buffers))
    want = on_machines(whole, {}, target, data, runs, PlanOptions(), seed)
    found = on_machines(graph, axes, target, data, runs, PlanOptions(depth=1 + seed % 2), seed)
    for buffer, value in want.items():
        wide, near = value.astype(np.float64), found[buffer].astype(np.float64)
        scale = 1 + np.abs(wide).max(initial=0)
        # Partial sums are rounded on each rank; bf16 has 8 bits.
        limit = (2e-2 if "16" in graph.buffers[buffer].dtype.name else 2e-3) * scale
        np.testing.assert_allclose(near, wide, rtol=0, atol=limit, err_msg=f"seed {seed}")
