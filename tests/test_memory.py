"""Activations share memory: never two live ones at a place, and hardly more than the bound."""

import random
from dataclasses import replace
from functools import cache

import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import AttrValue
from ark_dist.core.plan import ALIGNMENT_BYTES, ARENAS, Plan
from ark_dist.core.target import cpu_target
from ark_dist.scheduler.memory import (
    Lifetime,
    aligned,
    peak_bytes,
    place_activations,
)
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import eager
from tests.random_graphs import random_model

LAYERS = 12
SEEDS = range(20)
# What the plan may need beyond the most bytes alive at once, and two workers beyond one.
ONE_WORKER, TWO_WORKERS = 1.1, 1.3


class Transformer:
    """Layers of attention and feed-forward with random widths, on a random sequence."""

    def __init__(self, seed: int) -> None:
        pick = random.Random(seed)
        self.builder = GraphBuilder(f"transformer_{seed}")
        self.heads = pick.choice([2, 3, 4])
        self.width = self.heads * pick.choice([24, 32, 40])
        self.length = pick.choice([16, 33, 64])
        x = self.builder.tensor((self.length, self.width), "fp32", name="x")
        for _ in range(LAYERS):
            x = self.apply("add", [x, self.attention(x)])
            x = self.apply("add", [x, self.feed_forward(x, self.width * pick.choice([2, 3, 4]))])

    def apply(self, op: str, inputs: list[Value | float], **attrs: AttrValue) -> Value:
        return self.builder.apply(op, inputs, attrs)

    def linear(self, x: Value, columns: int, *, is_relu: bool = False) -> Value:
        weight = self.builder.parameter((x.view.shape[-1], columns), "fp32")
        return self.matmul(x, weight, is_relu=is_relu)

    def matmul(
        self, a: Value, b: Value, *, is_turned: bool = False, is_relu: bool = False
    ) -> Value:
        return self.apply(
            "matmul", [a, b], transpose_input=False, transpose_other=is_turned, is_relu=is_relu
        )

    def norm(self, x: Value) -> Value:
        weight = self.builder.parameter((self.width,), "fp32")
        return self.apply("mul", [self.apply("layernorm", [x], axis=-1, eps=1e-5), weight])

    def attention(self, x: Value) -> Value:
        normed = self.norm(x)
        q, k, v = (self.split(self.linear(normed, self.width)) for _ in range(3))
        scores = self.apply("mul", [self.matmul(q, k, is_turned=True), 0.25])
        mixed = self.matmul(self.apply("softmax", [scores], axis=-1), v)
        joined = self.apply("transpose", [mixed], perm=(1, 0, 2))
        return self.linear(
            self.apply("reshape", [joined], shape=(self.length, self.width)), self.width
        )

    def split(self, x: Value) -> Value:
        shape = (self.length, self.heads, self.width // self.heads)
        return self.apply("transpose", [self.apply("reshape", [x], shape=shape)], perm=(1, 0, 2))

    def feed_forward(self, x: Value, hidden: int) -> Value:
        return self.linear(self.linear(self.norm(x), hidden, is_relu=True), self.width)


@cache
def transformer(seed: int) -> Graph:
    return Transformer(seed).builder.freeze()


def activation_bytes(plan: Plan) -> int:
    return plan.arena_bytes[ARENAS.index("activations")]


def spans(plan: Plan, queue_order: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """For each activation, the first and the last moment at which a task touches it."""
    (method,) = plan.methods
    moments: dict[int, list[int]] = {}
    for moment, task_id in enumerate(queue_order):
        task = method.tasks[task_id]
        for region in (*task.reads, *task.writes):
            if plan.buffers[region.buffer].kind == "activation":
                moments.setdefault(region.buffer, []).append(moment)
    return {buffer: (min(found), max(found)) for buffer, found in moments.items()}


def lower_bound(plan: Plan) -> int:
    """The most bytes of activations alive at once, counted moment by moment."""
    (queue,) = plan.methods[0].queues
    alive = spans(plan, queue)
    return max(
        sum(plan.buffers[b].size_bytes for b, (first, last) in alive.items() if first <= t <= last)
        for t in range(len(queue))
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_transformer_needs_hardly_more_memory_than_is_alive_at_once(seed: int) -> None:
    graph = transformer(seed)
    plan = make_plan(graph, cpu_target(1))
    bound, used = lower_bound(plan), activation_bytes(plan)
    total = sum(b.size_bytes for b in graph.buffers if b.kind == "activation")
    assert bound <= used <= ONE_WORKER * bound, f"seed {seed}: {used} bytes, bound {bound}"
    assert used < total / LAYERS, f"seed {seed}: {used} of {total} bytes"
    two = activation_bytes(make_plan(graph, cpu_target(2)))
    assert two <= TWO_WORKERS * used, f"seed {seed}: {two} bytes for two workers, {used} for one"


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_live_activations_do_not_overlap(seed: int, workers: int, is_fused: bool) -> None:
    graph = random_model(seed, methods=1).graph if seed % 5 else transformer(seed)
    plan = make_plan(graph, eager(cpu_target(workers)), PlanOptions(is_fused=is_fused))
    alive = spans(plan, tuple(range(len(plan.methods[0].tasks))))
    ranges = {
        b: (plan.places[b].offset, plan.places[b].offset + plan.buffers[b].size_bytes)
        for b in alive
    }
    for a, (first, last) in alive.items():
        assert ranges[a][1] <= activation_bytes(plan)
        for b, (other_first, other_last) in alive.items():
            if a < b and first <= other_last and other_first <= last:
                low, high = max(ranges[a][0], ranges[b][0]), min(ranges[a][1], ranges[b][1])
                assert low >= high, f"seed {seed}: {a} and {b} share [{low}, {high})"


def test_every_buffer_is_aligned_and_inside_its_arena() -> None:
    for seed in range(12):
        plan = make_plan(random_model(seed).graph, cpu_target(2))
        sizes = dict(zip(ARENAS, plan.arena_bytes, strict=True))
        for buffer, place in zip(plan.buffers, plan.places, strict=True):
            assert place.offset % ALIGNMENT_BYTES == 0
            if buffer.kind != "activation":
                assert place.offset + buffer.size_bytes <= sizes[place.arena]


def test_methods_share_states_and_lie_over_each_other_with_activations() -> None:
    # How weights are packed depends on all methods that there are.
    options = PlanOptions(is_packed=False)
    for seed in range(40):
        model = random_model(seed, methods=2)
        plan = make_plan(model.graph, cpu_target(2), options)
        graphs = [replace(model.graph, methods=(method,)) for method in model.graph.methods]
        alone = [make_plan(graph, cpu_target(2), options) for graph in graphs]
        assert activation_bytes(plan) == max(activation_bytes(p) for p in alone)
        lasting = [i for i, b in enumerate(plan.buffers) if b.kind != "activation"]
        for p in alone:
            assert [plan.places[i] for i in lasting] == [p.places[i] for i in lasting]


def random_lives(seed: int) -> list[Lifetime]:
    pick = random.Random(seed)
    lives = []
    for buffer in range(pick.randint(1, 60)):
        first = pick.randint(0, 40)
        size = aligned(pick.choice([0, 1, 256, 300, 5000, 70000]))
        lives.append(Lifetime(buffer, size, first, first + pick.choice([0, 1, 2, 5, 30])))
    return lives


@pytest.mark.parametrize("seed", range(60))
def test_placing_random_lifetimes_is_sound_and_close_to_the_peak(seed: int) -> None:
    lives = random_lives(seed)
    found = place_activations(lives)
    for a in lives:
        for b in lives:
            if a.buffer < b.buffer and a.first <= b.last and b.first <= a.last:
                low = max(found.offsets[a.buffer], found.offsets[b.buffer])
                high = min(
                    found.offsets[a.buffer] + a.size_bytes, found.offsets[b.buffer] + b.size_bytes
                )
                assert low >= high, f"seed {seed}: {a} and {b}"
    peak = max(
        sum(life.size_bytes for life in lives if life.first <= t <= life.last) for t in range(80)
    )
    assert peak_bytes(lives) == peak
    assert peak <= found.size_bytes <= TWO_WORKERS * peak, f"seed {seed}"


def test_nothing_to_place_takes_no_memory() -> None:
    assert place_activations([]).size_bytes == 0
    assert aligned(0) == 0 and aligned(1) == ALIGNMENT_BYTES == aligned(256)
