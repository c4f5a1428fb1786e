"""Reading an encoder's folder: what is taken, and which sentence refuses the rest."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

import ark_dist as ark
from ark_dist.models.bert_config import BertConfig, bert_config, read_bert_config
from ark_dist.models.sentence_config import SentenceConfig, read_sentence_config
from tests.bert_models import TABLE

# As published with all-MiniLM-L6-v2.
MINILM = {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased",
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.8.2",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
WANTED = BertConfig(
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=6,
    num_attention_heads=12,
    vocab_size=30522,
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    dtype="fp32",
)
TRANSFORMER = {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
MEAN = {"word_embedding_dimension": 48, "pooling_mode_cls_token": False}
MEAN |= {"pooling_mode_mean_tokens": True}


def test_a_published_configuration_is_read() -> None:
    assert bert_config(MINILM) == WANTED


def test_what_may_be_left_out_is_what_transformers_takes() -> None:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names = ("architectures", *sizes, "vocab_size")
    table = {name: MINILM[name] for name in names}
    assert bert_config(table) == WANTED
    assert bert_config({**table, "dtype": "bfloat16"}) == replace(WANTED, dtype="bf16")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("architectures", ["BertForMaskedLM"], r"architectures is \['BertForMaskedLM'\], wanted o"),
        ("hidden_size", None, "hidden_size is missing"),
        ("hidden_size", 47, "hidden_size is 47 and num_attention_heads 12, wanted a multiple"),
        ("num_hidden_layers", 1025, "num_hidden_layers is 1025, wanted a whole number from 1 to"),
        ("vocab_size", 0, "vocab_size is 0, wanted a whole number from 1"),
        ("type_vocab_size", "2", "type_vocab_size is '2', wanted a whole number"),
        ("layer_norm_eps", 0, "layer_norm_eps is 0, wanted a number above 0"),
        ("hidden_act", "relu", "hidden_act is 'relu'; only 'gelu' is supported"),
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'; o"),
        ("is_decoder", True, "is_decoder is True; only False is supported"),
        ("torch_dtype", "int8", "torch_dtype is 'int8', wanted one of bfloat16"),
    ],
)
def test_what_can_not_be_computed_is_refused(name: str, value: object, text: str) -> None:
    with pytest.raises(ark.ModelConfigError, match=f"^m/config.json: {text}"):
        bert_config({**TABLE, name: value}, "m/config.json")


@pytest.mark.parametrize("text", [None, b"", b"[1]", b"[" * 100_000, b" " * (1 << 20) + b"{}"])
def test_a_damaged_config_is_named(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ark.ModelConfigError, match=r"config\.json: "):
        read_bert_config(tmp_path)


def write(folder: Path, modules: object, pooling: object = MEAN, **sentences: object) -> Path:
    """Write what Sentence Transformers adds to a folder."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentences))
    return folder


def test_a_folder_of_sentence_transformers_says_how_long_texts_are(tmp_path: Path) -> None:
    modules = [TRANSFORMER, POOLING, NORMALIZE]
    folder = write(tmp_path, modules, max_seq_length=256, do_lower_case=True)
    assert read_sentence_config(folder, 512) == SentenceConfig(256, True)
    assert read_sentence_config(folder, 128) == SentenceConfig(128, True)


def test_a_folder_of_a_plain_bert_says_nothing(tmp_path: Path) -> None:
    assert read_sentence_config(tmp_path, 512) == SentenceConfig(512, False)


def test_a_pooling_is_a_mean_in_old_and_new_folders(tmp_path: Path) -> None:
    write(tmp_path, [POOLING], {"embedding_dimension": 48, "pooling_mode": "mean"})
    assert read_sentence_config(tmp_path, 512) == SentenceConfig(512, False)


@pytest.mark.parametrize(
    ("modules", "pooling", "text"),
    [
        ({}, MEAN, "modules.json: found a JSON dict, wanted a list"),
        ([1], MEAN, "modules.json: holds 1, wanted a list of objects"),
        ([{"type": 1, "path": ""}], MEAN, "modules.json: a module has the type 1 and the path ''"),
        ([{**POOLING, "path": None}], MEAN, "and the path None, wanted texts"),
        ([{**POOLING, "type": "a.Dense"}], MEAN, "a module is a 'a.Dense'; only Transformer, P"),
        ([{**POOLING, "path": "../other"}], MEAN, "a module has the path '../other', wanted a"),
        ([{**POOLING, "path": ".."}], MEAN, "a module has the path '..', wanted a name"),
        ([{**POOLING, "path": "/etc"}], MEAN, "a module has the path '/etc', wanted a name"),
        ([{**POOLING, "path": "a\0b"}], MEAN, "a module has the path 'a.x00b', wanted a name"),
        ([POOLING], [], "1_Pooling/config.json: found a JSON list, wanted an object"),
        ([POOLING], {}, "config.json: pooling_mode_mean_tokens is not true; nothing else"),
        ([POOLING], {**MEAN, "pooling_mode_cls_token": True}, "'pooling_mode_cls_token' is true"),
        ([POOLING], {**MEAN, "pooling_mode_cls_token": 1}, "pooling_mode_cls_token is 1, wanted t"),
        ([POOLING], {"pooling_mode": "cls"}, "pooling_mode is 'cls'; only 'mean' is supported"),
    ],
)
def test_vectors_that_are_made_in_another_way_are_refused(
    tmp_path: Path, modules: object, pooling: object, text: str
) -> None:
    write(tmp_path, modules, pooling)
    with pytest.raises(ark.ModelConfigError, match=text):
        read_sentence_config(tmp_path, 512)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (2, "a text may have 2 tokens, wanted at least 3"),
        (0, "max_seq_length is 0, wanted a whole number from 1"),
        ("256", "max_seq_length is '256', wanted a whole number"),
    ],
)
def test_a_length_that_is_none_is_refused(tmp_path: Path, length: object, text: str) -> None:
    write(tmp_path, [POOLING], max_seq_length=length)
    with pytest.raises(ark.ModelConfigError, match=f"sentence_bert_config.json: {text}"):
        read_sentence_config(tmp_path, 512)


@pytest.mark.parametrize("name", ["modules.json", "sentence_bert_config.json"])
def test_a_fifo_does_not_block(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ark.ModelConfigError, match=f"{name}: .*regular file"):
        read_sentence_config(tmp_path, 512)
