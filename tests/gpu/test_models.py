"""Language models and encoders on a real GPU: tiny ones with random weights, and published ones."""

import re
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.errors import CacheError
from ark_dist.demo_model import MINILM, fetch_folder
from ark_dist.models.bert_config import read_bert_config
from ark_dist.tokenizer import load_tokenizer
from tests import real_model, test_real_model, test_sentence_encoder
from tests.bert_reference import Reference
from tests.cuda_face import prints
from tests.cuda_models import (
    CHECKS,
    a_folder_writes_texts,
    an_encoder_gives_the_vectors_of_numpy,
    logits_of_int8_weights_are_those_of_numpy,
)
from tests.real_ranks import forced_logits

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", CHECKS)
def test_a_llama_does_what_it_does_on_a_cpu(name: str, workers: int) -> None:
    CHECKS[name]()


@pytest.mark.parametrize("is_tied", [True, False])
def test_logits_of_int8_weights_are_those_of_numpy(
    is_tied: bool, workers: int, tmp_path: Path
) -> None:
    logits_of_int8_weights_are_those_of_numpy(tmp_path, is_tied=is_tied, count=30)


def test_a_folder_writes_texts(
    workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a_folder_writes_texts(tmp_path, monkeypatch)


def test_an_encoder_gives_the_vectors_of_numpy(workers: int, tmp_path: Path) -> None:
    an_encoder_gives_the_vectors_of_numpy(tmp_path)


def minilm() -> Path:
    """MiniLM's folder; the test is skipped where it can't be fetched."""
    try:
        return fetch_folder(MINILM)
    except CacheError as error:
        pytest.skip(f"MiniLM is not in the cache and can't be fetched: {error}")


@pytest.mark.long
@pytest.mark.real
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_logits_of_smollm2_are_those_of_numpy(dtype: str) -> None:
    folder = real_model.folder(dtype)
    found = forced_logits(folder, None, real_model.rows(), "cuda")
    test_real_model.check_forced(dtype, "on a GPU", found, real_model.wanted(dtype))
    assert np.array_equal(forced_logits(folder, None, real_model.rows(), "cuda"), found)


@pytest.mark.long
@pytest.mark.real
@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_smollm2_answers(dtype: str) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    with ark.LanguageModel(real_model.folder(dtype), context=512, device="cuda") as model:
        found = [model.generate(chat, max_new_tokens=20)[0] for _ in range(2)]
    assert "Paris" in found[0].text
    assert found[0] == found[1]


@pytest.mark.long
@pytest.mark.real
def test_minilm_gives_the_vectors_of_numpy() -> None:
    folder, tests = minilm(), test_sentence_encoder
    texts = [*(text for pair in tests.PAIRS for text in pair), tests.LONG]
    tokenizer = load_tokenizer(folder, max_tokens=256)
    reference = Reference(read_bert_config(folder), ark.load(folder))
    wanted = reference.vectors([tokenizer.encode(text) for text in texts])
    with ark.SentenceEncoder(folder, batch=4, device="cuda") as model:
        found = model.encode(texts)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.long
@pytest.mark.real
def test_the_examples_of_published_models_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    minilm()
    pairs = test_sentence_encoder.PAIRS[:2]
    printed = prints(EXAMPLES / "encode.py", capsys, monkeypatch)
    found = re.findall(r"^(.*?)  +0\.\d\d (.*)$", printed, re.MULTILINE)
    assert found == [nearest for pair in pairs for nearest in (pair, pair[::-1])]
    real_model.folder("bf16")
    assert prints(EXAMPLES / "generate.py", capsys, monkeypatch).startswith("Once upon a time")
