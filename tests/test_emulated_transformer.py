"""The small transformer on the emulated GPU: prefill, decode loops, caches, sampling, early end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tests.emulated import emulated, gpu_plan
from tests.test_transformer_block import Run, check, running
from tests.transformer import Config, random_weights, transformer

STEPS = 6
# Weights come through the ring; enough positions and heads for attention in parts.
STREAMED = Config(is_output_major=True, hidden=64, heads=4, inner=96, dtype="bf16")
CONFIGS = {
    "fp32": Config(),
    "streamed bf16": STREAMED,
    "streamed fp16, batch": replace(STREAMED, dtype="fp16", batch=3, groups=4, is_per_row=True),
    "long prompt": replace(STREAMED, prompt=33, positions=200, layers=1),
}
MODES = [(0, False, "sm_90a"), (1, False, "sm_80"), (0, True, "sm_90a"), (1, True, "sm_80")]


@contextmanager
def on_gpu(config: Config, *, seed: int, race: bool, arch: str, workers: int = 3) -> Iterator[Run]:
    """The model with random weights on an emulated GPU; the same weights for the same config."""
    model, weights = transformer(config), random_weights(config, 0)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, config.vocabulary, (config.batch, config.prompt)).astype(np.int32)
    plan = gpu_plan(model.graph, workers=workers, arch=arch)
    with emulated(plan, seed=seed, race=race) as session:
        for name, value in model.weights.items():
            session.write(value.view, weights[name])
        session.write(model.prompt.view, prompt)
        yield Run(model, weights, session, prompt)


@pytest.mark.parametrize(("seed", "race", "arch"), MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_numpy(name: str, seed: int, race: bool, arch: str) -> None:
    with on_gpu(CONFIGS[name], seed=seed, race=race, arch=arch) as run:
        assert run.generate(STEPS) == STEPS
        check(run, STEPS)


@pytest.mark.parametrize("seed", range(3))
def test_an_early_end_leaves_the_weight_stream_in_step(seed: int) -> None:
    heat = 2.0
    with running(STREAMED, "numpy", 1) as run:
        run.generate(STEPS + 4, heat)
        free = run.tokens()[0, STREAMED.prompt :]
    step = next(i for i in range(2, STEPS) if free[i] not in free[1:i])
    config = replace(STREAMED, end=int(free[step]))
    with on_gpu(config, seed=seed, race=False, arch="sm_90a") as run:
        for _ in range(2):
            assert run.generate(STEPS + 4, heat) == step
            made = run.tokens()[0, config.prompt :][: step + 1]
            assert np.array_equal(made, free[: step + 1])


def test_sampled_tokens_are_those_of_the_other_devices() -> None:
    config = replace(Config(), batch=2, top_k=20, top_p=0.9, seed=11)
    with running(config, "numpy", 1) as run:
        run.generate(STEPS, temperature=1.5)
        wanted = run.tokens()
    with on_gpu(config, seed=2, race=False, arch="sm_90a") as run:
        run.generate(STEPS, temperature=1.5)
        assert np.array_equal(run.tokens(), wanted)
