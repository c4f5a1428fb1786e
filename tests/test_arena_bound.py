"""The activation arena of transformers stays close to what any placement needs."""

import random

import pytest

import ark_dist as ark
from ark_dist.core.graph import Graph
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.target import cpu_target
from ark_dist.scheduler.plan import make_plan

LAYERS = 12


def random_transformer(seed: int) -> Graph:
    """Twelve layers whose widths, heads and rows differ from layer to layer."""
    rng = random.Random(seed)
    model = ark.Model(f"transformer_{seed}")
    rows, width = rng.choice([16, 48, 100]), rng.choice([64, 96, 160])
    x = model.tensor((rows, width))
    for _ in range(LAYERS):
        heads = rng.choice([2, 4, 8])
        hidden = rng.choice([width, 2 * width, 3 * width + 32])

        def weight(*shape: int) -> ark.Tensor:
            return model.parameter(shape)

        def split(tensor: ark.Tensor, heads: int = heads) -> ark.Tensor:
            return tensor.reshape((rows, heads, width // heads)).transpose((1, 0, 2))

        normed = x.layernorm()
        q, k, v = (split(normed @ weight(width, width)) for _ in range(3))
        scores = q.matmul(k, transpose_other=True) * 0.125
        mixed = (scores.softmax() @ v).transpose((1, 0, 2)).reshape((rows, width))
        x = x + mixed @ weight(width, width)
        inner = x.layernorm().matmul(weight(width, hidden), is_relu=True)
        if rng.random() < 0.5:
            inner = inner + weight(hidden)
        x = x + inner @ weight(hidden, width)
    return model.freeze()


def live_peak_bytes(plan: Plan) -> int:
    """The most bytes of activations alive after any task, walking the tasks in order."""
    method = plan.methods[0]
    touched: dict[int, list[int]] = {}
    for task in method.tasks:
        for region in (*task.reads, *task.writes):
            if plan.buffers[region.buffer].kind == "activation":
                touched.setdefault(region.buffer, []).append(task.id)
    peak = 0
    for moment in range(len(method.tasks)):
        peak = max(
            peak,
            sum(
                plan.buffers[buffer].size_bytes
                for buffer, tasks in touched.items()
                if tasks[0] <= moment <= tasks[-1]
            ),
        )
    return peak


def activation_bytes(plan: Plan) -> int:
    """Size of the activation arena."""
    return plan.arena_bytes[ARENAS.index("activations")]


@pytest.mark.parametrize("seed", range(12))
def test_the_arena_of_a_transformer_is_close_to_its_live_peak(seed: int) -> None:
    graph = random_transformer(seed)
    one, two = (make_plan(graph, cpu_target(workers)) for workers in (1, 2))
    bound = live_peak_bytes(one)
    assert bound > 0
    assert activation_bytes(one) <= 1.1 * bound, f"seed {seed}: {activation_bytes(one) / bound}"
    assert activation_bytes(two) <= 1.3 * bound, f"seed {seed}: {activation_bytes(two) / bound}"
