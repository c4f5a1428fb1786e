"""Reading a model's config.json: what is taken, and which sentence refuses the rest."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import ark_dist as ark
from ark_dist.launch.exit_codes import BAD_FILE, exit_code
from ark_dist.models.llama_config import LlamaConfig, llama_config, read_llama_config
from ark_dist.models.quantization import INT8
from tests.llama_models import TABLE

# As published with SmolLM2-135M-Instruct.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}
WANTED = LlamaConfig(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
    dtype="bf16",
    eos_token_ids=(2,),
)


def test_a_published_configuration_is_read() -> None:
    assert llama_config(SMOLLM2) == WANTED


def test_transformers_5_writes_some_keys_elsewhere() -> None:
    table = {k: v for k, v in SMOLLM2.items() if k not in ("rope_theta", "torch_dtype")}
    table |= {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    }
    assert llama_config(table) == WANTED


def test_what_may_be_left_out_is_what_transformers_takes() -> None:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names = ("architectures", *sizes, "vocab_size")
    found = llama_config({name: SMOLLM2[name] for name in names} | {"eos_token_id": [2, 5]})
    assert found == replace(
        WANTED,
        num_key_value_heads=9,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        dtype="fp32",
        eos_token_ids=(2, 5),
    )


MISSING = object()


def int8_with(targets: Sequence[str] = ("Linear", "Embedding"), **weights: object) -> object:
    """A quantization_config with something else in it."""
    words = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    group = {"targets": list(targets), "weights": {**words, "dynamic": False, **weights}}
    return {**INT8, "config_groups": {"group_0": group}}


def test_int8_matrices_are_found() -> None:
    assert llama_config(TABLE | {"quantization_config": INT8}).is_int8
    assert llama_config(TABLE | {"quantization_config": int8_with()}).is_int8
    assert not llama_config(TABLE | {"quantization_config": None}).is_int8


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("architectures", ["BertModel"], r"architectures is \['BertModel'\], wanted one of Llama"),
        ("architectures", MISSING, "architectures is None, wanted one of"),
        ("hidden_size", MISSING, "hidden_size is missing"),
        ("intermediate_size", None, "intermediate_size is missing"),
        ("num_hidden_layers", "30", "num_hidden_layers is '30', wanted a whole number"),
        ("num_hidden_layers", 1025, "num_hidden_layers is 1025, wanted a whole number from 1 to"),
        ("vocab_size", 0, "vocab_size is 0, wanted a whole number from 1"),
        ("vocab_size", 2**31, "vocab_size is 2147483648, wanted"),
        ("num_attention_heads", True, "num_attention_heads is True, wanted a whole number"),
        ("num_key_value_heads", 2, "num_attention_heads is 9 and num_key_value_heads 2, wanted"),
        ("num_key_value_heads", 9.0, "num_key_value_heads is 9.0"),
        ("head_dim", 7, "heads of 7 elements"),
        ("head_dim", MISSING, r"heads of 7 elements \(9 of hidden_size 64\)"),
        ("rms_norm_eps", 0, "rms_norm_eps is 0, wanted a number above 0"),
        ("rms_norm_eps", 10**400, "rms_norm_eps is 1000*, wanted a number above 0"),
        ("rms_norm_eps", "small", "rms_norm_eps is 'small', wanted a number"),
        ("rope_theta", float("nan"), "rope_theta is nan, wanted a number above 0"),
        ("rope_scaling", {"rope_type": "yarn"}, "rope_scaling is of type 'yarn'; rotary"),
        ("rope_scaling", {"type": "linear"}, "rope_scaling is of type 'linear'"),
        ("rope_scaling", 2.0, "rope_scaling is 2.0, wanted an object or null"),
        ("rope_parameters", {"rope_theta": -1}, "rope_parameters: rope_theta is -1"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings is 'yes', wanted true or false"),
        ("attention_bias", True, "attention_bias is true; layers with a bias"),
        ("mlp_bias", True, "mlp_bias is true"),
        ("hidden_act", "gelu", "hidden_act is 'gelu'; only 'silu'"),
        ("torch_dtype", "int8", "torch_dtype is 'int8', wanted one of bfloat16"),
        ("eos_token_id", 211, "eos_token_id is 211, wanted tokens from 0 to 210"),
        ("eos_token_id", [1, "x"], "eos_token_id is"),
        ("quantization_config", {"quant_method": "gptq"}, "found a quantization_config of another"),
        ("quantization_config", "int8", "found a quantization_config of another format"),
        ("quantization_config", {**INT8, "ignore": ["lm_head"]}, r".* leaves out \['lm_head'\]"),
        ("quantization_config", {**INT8, "config_groups": {}}, ".* of several groups; wanted int8"),
        ("quantization_config", int8_with(num_bits=4), ".* with other weights"),
        ("quantization_config", int8_with(strategy="group"), ".* with other weights"),
        ("quantization_config", int8_with(["Linear"]), r".* for \['Linear'\]; wanted int8"),
    ],
)
def test_what_can_not_be_computed_is_refused(name: str, value: object, text: str) -> None:
    table = {**TABLE, name: value}
    if value is MISSING:
        del table[name]
    with pytest.raises(ark.ModelConfigError, match=f"^m/config.json: {text}"):
        llama_config(table, "m/config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read .No such file or directory.; wanted a model's folder"),
        (b"", "damaged JSON of"),
        (b'{"hidden_size": ', "damaged JSON of"),
        (b"\xff\xfe", "damaged JSON of"),
        (b"[" * 100_000, "damaged JSON of"),
        (b"[1, 2]", "found a JSON list, wanted an object"),
        (b" " * (1 << 20) + b"{}", "found 1048578 bytes, wanted at most 1048576"),
    ],
    ids=["none", "empty", "cut", "no text", "deep", "a list", "large"],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ark.ModelConfigError, match=f"config.json: {message}") as caught:
        read_llama_config(tmp_path)
    assert exit_code(caught.value) == BAD_FILE


def test_a_config_that_is_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ark.ModelConfigError, match=r"config\.json: .*regular file"):
        read_llama_config(tmp_path)
