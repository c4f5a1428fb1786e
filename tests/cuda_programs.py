"""Programs that a CUDA device must compute: every operator, and a transformer that generates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ark_dist.core.op import OPS, Array
from ark_dist.core.plan import ALIGNMENT_BYTES
from ark_dist.launch.devices.cupy_gpu import STAGING_BYTES, Gpu
from tests.cuda_cases import Open, Planner
from tests.operator_cases import TESTED, Case, fill_leaf
from tests.random_graphs import random_model
from tests.test_emulated_transformer import STEPS, STREAMED
from tests.test_operators import build
from tests.test_operators import check as check_case
from tests.test_random_graphs import check_model
from tests.test_transformer_block import Run
from tests.test_transformer_block import check as check_tokens
from tests.transformer import Config, random_weights, transformer

# Of the operators of a dtype.
PARTS = 6


def check_copies(gpu: Gpu) -> None:
    """Copy blocks around the size of the staging memory in and out, and fill them."""
    rng = np.random.default_rng(0)
    for size in (1, 3, 255, STAGING_BYTES - 1, STAGING_BYTES, 2 * STAGING_BYTES + 5):
        data = rng.integers(0, 256, size, np.uint8)
        memory, found = gpu.alloc(size), np.zeros(size, np.uint8)
        assert memory.ptr % ALIGNMENT_BYTES == 0
        gpu.copy_in(memory, data)
        gpu.copy_out(memory, found)
        assert np.array_equal(found, data)
        gpu.fill(memory, size, 0xFF)
        gpu.copy_out(memory, found)
        assert (found == 0xFF).all()


def some_operators(dtype: str, part: int) -> tuple[str, ...]:
    """One of the parts of the operators that take a dtype: a few dozen functions for NVRTC."""
    return tuple(name for name in TESTED if dtype in OPS[name].dtypes)[part::PARTS]


def operators(
    open: Open,
    plan: Planner,
    dtype: str,
    *,
    seed: int,
    most: int = 99,
    names: tuple[str, ...] = TESTED,
) -> dict[str, bytes]:
    """Run the cases of operators that take a dtype in one program, and check each.

    Returns the bits of the results, which a second turn gives again.
    """
    graph, cases = build((dtype,), most, seed, names)
    rng = np.random.default_rng(seed)
    with open(plan(graph)) as session:
        seen: list[tuple[Case, tuple[Array, ...]]] = []
        for case in cases:
            arrays = tuple(fill_leaf(case, i, rng) for i in range(len(case.leaves)))
            for leaf, array in zip(case.leaves, arrays, strict=True):
                session.write(leaf.view, array)
            looks = zip(case.looks, arrays, strict=True)
            seen.append((case, tuple(look(array) for look, array in looks)))
        session.launch()
        bits: dict[str, bytes] = {}
        for label in ("first turn", "second turn"):
            session.run(1, "forward", {})
            session.wait()
            for number, (case, inputs) in enumerate(seen):
                output = session.read(case.output.view)
                check_case(case, inputs, output, f"cuda, {label}")
                found = bits.setdefault(f"{number} {case.text}", output.tobytes())
                assert found == output.tobytes(), f"{label}, {case.text}: other bits"
        return bits


def random_graph(open: Open, plan: Planner, seed: int) -> dict[str, bytes]:
    """Compare a random model with float64 after one run and after seven more; return the bits."""
    model = random_model(seed)
    with open(plan(model.graph, depth=1 + seed % 3)) as session:
        return check_model(session, model, seed, "cuda")


@contextmanager
def generating(open: Open, plan: Planner, config: Config) -> Iterator[Run]:
    """The transformer with random weights; the same weights for the same config."""
    model, weights = transformer(config), random_weights(config, 0)
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, config.vocabulary, (config.batch, config.prompt)).astype(np.int32)
    with open(plan(model.graph)) as session:
        for name, value in model.weights.items():
            session.write(value.view, weights[name])
        session.write(model.prompt.view, prompt)
        session.launch()
        yield Run(model, weights, session, prompt)


def greedy_tokens(open: Open, plan: Planner, config: Config) -> None:
    """Logits and tokens are NumPy's, also after a new launch."""
    with generating(open, plan, config) as run:
        for _ in range(2):
            assert run.generate(STEPS) == STEPS
            check_tokens(run, STEPS)
            run.session.stop()
            run.session.launch()


def sampled_tokens(open: Open, plan: Planner) -> None:
    """The same seed draws the same tokens again."""
    config = replace(Config(), batch=2, top_k=20, top_p=0.9, seed=11)
    with generating(open, plan, config) as run:
        run.generate(STEPS, temperature=1.5)
        first = run.tokens()
        run.generate(STEPS, temperature=1.5)
        assert np.array_equal(run.tokens(), first)


def early_end_of_generation(open: Open, plan: Planner) -> None:
    """A token that ends the run leaves the stream of weights in step with its readers."""
    heat = 2.0
    with generating(open, plan, STREAMED) as run:
        run.generate(STEPS + 4, heat)
        free = run.tokens()[0, STREAMED.prompt :]
    step = next(i for i in range(2, STEPS) if free[i] not in free[1:i])
    config = replace(STREAMED, end=int(free[step]))
    with generating(open, plan, config) as run:
        for _ in range(2):
            assert run.generate(STEPS + 4, heat) == step
            made = run.tokens()[0, config.prompt :][: step + 1]
            assert np.array_equal(made, free[: step + 1])
