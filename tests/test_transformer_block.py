"""A small transformer generates, in one run, the tokens that NumPy gets without any cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.op import OPS, Array
from ark_dist.core.target import cpu_target, wide_target
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.session import Session
from ark_dist.scheduler.plan import make_plan
from tests.plan_models import eager
from tests.running import launched
from tests.transformer import Config, Transformer, random_weights, sequence_logits, transformer

Ints = npt.NDArray[np.int32]
STEPS = 12
# Of logits near 1, after two layers in that precision.
TOLERANCE = {"fp32": 2e-5, "fp16": 0.06, "bf16": 0.5}
DEVICES = [("numpy", 1), ("numpy", 3), ("cpu", 1), ("cpu", 2), ("cpu", 4)]


@dataclass(frozen=True)
class Run:
    """A model with its weights, running."""

    model: Transformer
    weights: dict[str, Array]
    session: Session
    prompt: Ints

    def generate(self, steps: int, temperature: float = 0.0) -> int:
        """Prefill and decode from the start; returns the iterations of decode that were done."""
        self.session.reset_state()
        self.session.run(1, "prefill", {"temperature": temperature})
        assert self.session.wait() == 1
        self.session.run(steps, "decode", {"temperature": temperature})
        return self.session.wait()

    def tokens(self) -> Ints:
        """The prompt and what was generated, (B, positions + 1)."""
        made = self.session.read(self.model.tokens.view).astype(np.int32)
        return np.concatenate([self.prompt, made[:, self.prompt.shape[1] :]], axis=1)


@contextmanager
def running(config: Config, device: str, workers: int, seed: int = 0) -> Iterator[Run]:
    model, weights = transformer(config), random_weights(config, seed)
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, config.vocabulary, (config.batch, config.prompt)).astype(np.int32)
    target = eager(cpu_target(workers, best_isa()))
    with launched(model.graph, target, device) as session:
        for name, value in model.weights.items():
            session.write(value.view, weights[name])
        session.write(model.prompt.view, prompt)
        yield Run(model, weights, session, prompt)


def check(run: Run, steps: int) -> None:
    """Compare logits with NumPy's for the tokens that were generated, and those as well."""
    config, tokens = run.model.config, run.tokens()
    end = config.prompt + steps
    tolerance = TOLERANCE[config.dtype]
    last = run.session.read(run.model.logits["decode"].view).astype(np.float64)
    assert (run.session.read(run.model.position.view) == end).all()
    for b in range(config.batch):
        wanted = sequence_logits(config, run.weights, tokens[b, :end])
        assert np.abs(last[b] - wanted[-1]).max() < tolerance
        for t in range(config.prompt, end + 1):
            row = wanted[t - 1]
            assert row[tokens[b, t]] > row.max() - 2 * tolerance, (b, t)


@pytest.mark.parametrize(("device", "workers"), DEVICES)
def test_greedy_tokens_are_those_of_numpy(device: str, workers: int) -> None:
    with running(Config(), device, workers) as run:
        assert run.generate(STEPS) == STEPS
        check(run, STEPS)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize(("device", "workers"), [("numpy", 1), ("cpu", 2)])
def test_16_bit_weights_and_caches_stay_close(device: str, workers: int, dtype: str) -> None:
    with running(Config(dtype=dtype), device, workers, seed=3) as run:
        assert run.generate(STEPS) == STEPS
        check(run, STEPS)


@pytest.mark.parametrize("is_per_row", [False, True])
@pytest.mark.parametrize(("device", "workers"), [("numpy", 2), ("cpu", 2)])
def test_rows_of_a_batch_generate_side_by_side(device: str, workers: int, is_per_row: bool) -> None:
    config = Config(batch=3, prompt=2, groups=3, is_per_row=is_per_row)
    with running(config, device, workers, seed=4) as run:
        assert run.generate(STEPS) == STEPS
        check(run, STEPS)


@pytest.mark.parametrize(("device", "workers"), [("numpy", 1), ("cpu", 2)])
def test_sampled_tokens_are_those_of_the_reference(device: str, workers: int) -> None:
    config = Config(batch=2, top_k=20, top_p=0.9, seed=11)
    with running(config, device, workers, seed=5) as run:
        run.generate(STEPS, temperature=1.5)
        tokens = run.tokens()
        greedy = 0
        for b in range(2):
            logits = sequence_logits(config, run.weights, tokens[b, : config.prompt + STEPS])
            for t in range(config.prompt, config.prompt + STEPS + 1):
                rows = np.repeat(logits[t - 1 : t], 2, axis=0).astype(np.float32)
                values = (np.array([t]), np.array([1.5]), np.array([20]), np.array([0.9]))
                drawn = OPS["sample"].reference((rows, *values, np.array([11])), {}, ((0, 2),))
                assert drawn[b] == tokens[b, t]
                greedy += int(logits[t - 1].argmax() == tokens[b, t])
        assert greedy < 2 * STEPS
        # Another run of the same length draws the same.
        run.generate(STEPS, temperature=1.5)
        assert np.array_equal(run.tokens(), tokens)


@pytest.mark.parametrize(("device", "workers"), DEVICES)
def test_a_run_ends_with_the_end_token_and_goes_on_where_it_was(device: str, workers: int) -> None:
    config, heat = Config(), 2.0
    with running(config, device, workers, seed=6) as run:
        run.generate(STEPS, heat)
        free = run.tokens()[0, config.prompt :]
    # A token that comes up for the first time after a few steps.
    step = next(i for i in range(4, STEPS - 2) if free[i] not in free[1:i])
    config = replace(config, end=int(free[step]))
    with running(config, device, workers, seed=6) as run:
        assert run.generate(STEPS, heat) == step
        assert np.array_equal(run.tokens()[0, config.prompt :][: step + 1], free[: step + 1])
        assert run.session.read(run.model.position.view) == config.prompt + step
        run.session.run(2, "decode", {})
        done = run.session.wait()
        assert done == (1 if free[step + 1] == config.end else 2)
        assert np.array_equal(run.tokens()[0, config.prompt :][: step + 1 + done],
                              free[: step + 1 + done])  # fmt: skip


def test_one_run_of_many_steps_is_many_runs_of_one() -> None:
    with running(Config(), "cpu", 2, seed=7) as run:
        run.generate(STEPS)
        once = run.tokens()
        run.generate(0)
        for _ in range(STEPS):
            run.session.run(1, "decode", {})
        run.session.wait()
        assert np.array_equal(run.tokens(), once)


def test_the_plan_for_a_wide_target_splits_attention_and_passes_verification() -> None:
    config = Config(positions=2048, groups=1, heads=2, depth=64, hidden=128, vocabulary=300)
    plan = make_plan(transformer(config).graph, wide_target())
    ops = {m.name: [node.op for node in m.nodes] for m in plan.methods}
    assert ops["decode"].count("attention_merge") == config.layers
    assert plan == make_plan(transformer(config).graph, wide_target())
