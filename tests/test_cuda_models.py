"""Language models and encoders on a GPU that is faked."""

from pathlib import Path

import numpy as np
import pytest

from tests import real_model, test_real_model
from tests.cuda_models import (
    CHECKS,
    SHORT,
    a_folder_writes_texts,
    an_encoder_gives_the_vectors_of_numpy,
    logits_of_int8_weights_are_those_of_numpy,
)
from tests.fake_cupy import Fake
from tests.real_ranks import forced_logits

# Of a real model, some seconds each.
STEPS = 3


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long]) for name in CHECKS],
)
def test_a_llama_does_what_it_does_on_a_cpu(name: str, fake: Fake) -> None:
    CHECKS[name]()


@pytest.mark.parametrize("is_tied", [True, False])
def test_logits_of_int8_weights_are_those_of_numpy(
    is_tied: bool, fake: Fake, tmp_path: Path
) -> None:
    logits_of_int8_weights_are_those_of_numpy(tmp_path, is_tied=is_tied, count=8)


@pytest.mark.parametrize("is_short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_folder_writes_texts(
    is_short: bool, fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a_folder_writes_texts(tmp_path, monkeypatch, is_short=is_short)


@pytest.mark.parametrize("is_short", [True, pytest.param(False, marks=pytest.mark.long)])
def test_an_encoder_gives_the_vectors_of_numpy(is_short: bool, fake: Fake, tmp_path: Path) -> None:
    an_encoder_gives_the_vectors_of_numpy(tmp_path, is_short=is_short)


@pytest.mark.long
@pytest.mark.real
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_logits_of_smollm2_are_those_of_numpy(dtype: str, fake: Fake) -> None:
    # Numbers that are counted up: which comes next is clear.
    rows = [row[: STEPS + 8] for row in real_model.rows()[3:5]]
    folder = real_model.folder(dtype)
    found = forced_logits(folder, None, rows, "cuda", steps=STEPS, chunk=8)
    model = real_model.reference(dtype)
    expected = np.stack([model.logits(tokens)[-STEPS:] for tokens in rows], axis=1)
    test_real_model.check_forced(dtype, "on a GPU that is faked", found, expected)
