"""Sampling on an emulated GPU draws the reference's tokens, bit for bit."""

import numpy as np
import pytest

from tests.emulated import emulated, gpu_plan
from tests.test_sampling import build, reference_tokens

MODES = [(0, False, "sm_90a"), (1, False, "sm_80"), (2, True, "sm_80"), (3, True, "sm_90a")]
IDS = ["seed 0", "seed 1", "race sm_80", "race sm_90a"]
ROWS = 6


@pytest.mark.parametrize(("seed", "race", "arch"), MODES, ids=IDS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("size", [37, 8203])
def test_tokens_are_those_of_the_reference(
    size: int, dtype: str, seed: int, race: bool, arch: str
) -> None:
    """Short rows are kept whole, long ones only where few logits matter; equals included."""
    rng = np.random.default_rng([seed, size])
    builder, leaves, token = build((ROWS, size), dtype, is_per_row=True)
    plan = gpu_plan(builder.freeze(), workers=3, arch=arch)
    with emulated(plan, seed=seed, race=race) as session:
        for turn in range(2 if race else 8):
            scale = rng.choice([0.0, 0.01, 1, 8], (ROWS, 1))
            logits = np.asarray(rng.normal(size=(ROWS, size)) * scale)
            logits = logits.astype(leaves[0].view.dtype.numpy)
            if turn % 3 == 1:
                logits[rng.random(logits.shape) < 0.5] = -np.inf
            if turn == 5:
                logits[0, 5], logits[1, 7:9], logits[2] = np.nan, np.inf, -np.inf
                logits[3] = np.sort(logits[3])
            arrays = [
                logits,
                rng.integers(-5, 2**31 - 1, ROWS, np.int32),
                rng.choice([0.0, 0.5, 1, 3, 1e-30, 1e30], ROWS).astype(np.float32),
                rng.choice([0, -3, 1, 5, 200, 256, 257, 5000], ROWS).astype(np.int32),
                rng.choice([0.0, 1e-4, 0.5, 0.95, 1.0, 7.0], ROWS).astype(np.float32),
                rng.integers(0, 2**32, ROWS, np.uint32, endpoint=False),
            ]
            for leaf, array in zip(leaves, arrays, strict=True):
                session.write(leaf.view, array)
            session.run(1, "forward", {})
            session.wait()
            assert np.array_equal(session.read(token.view), reference_tokens(arrays)), turn
