"""A GGUF file becomes a Hugging Face folder: names, order of rows, dtypes, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.convert.int8 import quantize
from ark_dist.convert.llama import unweave
from ark_dist.convert.target_folder import Converted
from ark_dist.core.errors import ArkError, CheckpointError, ConfigError
from ark_dist.core.settings import child_environment
from ark_dist.launch.exit_codes import BAD_CONFIG, BAD_FILE, exit_code
from ark_dist.models.llama_config import read_llama_config
from tests.gguf_models import DEFAULT, TinyLlama, changed, weights, write_gguf

Doubles = npt.NDArray[np.float64]

F16, Q8_0 = gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0
NO_TOKENIZER = "a vocabulary that no tokenizer can have"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "rope_scaling": None,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def converted(tmp_path: Path, llama: TinyLlama, dtype: str = "fp32") -> Path:
    """Write a Llama, convert it and return the folder."""
    convert_gguf(write_gguf(tmp_path / "tiny.gguf", llama), tmp_path / "model", dtype=dtype)
    return tmp_path / "model"


def names_in(folder: Path) -> list[str]:
    """List the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def rope(x: Doubles, theta: float, *, is_interleaved: bool) -> Doubles:
    """Turn rows (position, element) as RoFormer, https://arxiv.org/abs/2104.09864, equation 34."""
    count, size = x.shape
    angle = np.arange(count)[:, None] * theta ** (-np.arange(0, size, 2) / size)
    halves = (slice(0, None, 2), slice(1, None, 2))
    if not is_interleaved:
        halves = (slice(0, size // 2), slice(size // 2, None))
    first, second = (x[:, half] for half in halves)
    out = np.empty_like(x)
    out[:, halves[0]] = first * np.cos(angle) - second * np.sin(angle)
    out[:, halves[1]] = second * np.cos(angle) + first * np.sin(angle)
    return out


def test_the_configuration_is_that_of_transformers(tmp_path: Path) -> None:
    llama = DEFAULT
    config = json.loads((converted(tmp_path, llama) / "config.json").read_text())
    assert config == {**CONFIG, "vocab_size": len(llama.tokens)}


def test_every_tensor_has_the_name_and_data_of_hugging_face(tmp_path: Path) -> None:
    llama = changed(is_tied=False)
    found = ark.load(converted(tmp_path, llama))
    there = weights(llama)
    wanted: dict[str, npt.NDArray[np.generic]] = {
        "model.embed_tokens.weight": there["token_embd.weight"],
        "model.norm.weight": there["output_norm.weight"],
        "lm_head.weight": there["output.weight"],
    }
    for layer in range(llama.layers):
        to, of = f"model.layers.{layer}", f"blk.{layer}"
        wanted |= {
            f"{to}.input_layernorm.weight": there[f"{of}.attn_norm.weight"],
            f"{to}.self_attn.q_proj.weight": unweave(there[f"{of}.attn_q.weight"], 4),
            f"{to}.self_attn.k_proj.weight": unweave(there[f"{of}.attn_k.weight"], 2),
            f"{to}.self_attn.v_proj.weight": there[f"{of}.attn_v.weight"],
            f"{to}.self_attn.o_proj.weight": there[f"{of}.attn_output.weight"],
            f"{to}.post_attention_layernorm.weight": there[f"{of}.ffn_norm.weight"],
            f"{to}.mlp.gate_proj.weight": there[f"{of}.ffn_gate.weight"],
            f"{to}.mlp.up_proj.weight": there[f"{of}.ffn_up.weight"],
            f"{to}.mlp.down_proj.weight": there[f"{of}.ffn_down.weight"],
        }
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("heads", [1, 3])
def test_interleaved_rope_on_rows_of_gguf_is_half_rope_on_converted_rows(heads: int) -> None:
    rng = np.random.default_rng(heads)
    size, columns, count = 8, 5, 7
    rows = rng.standard_normal((heads * size, columns))
    x = rng.standard_normal((count, columns))
    there = (x @ rows.T).reshape(count, heads, size)
    here = (x @ unweave(rows, heads).T).reshape(count, heads, size)
    for head in range(heads):
        turned = rope(there[:, head], 1e4, is_interleaved=True)
        wanted = np.concatenate([turned[:, ::2], turned[:, 1::2]], axis=1)
        found = rope(here[:, head], 1e4, is_interleaved=False)
        # float64 sums of 5 products, in any order
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14 * np.abs(wanted).max() * 10)


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype", "torch_name"),
    [
        ("bf16", ml_dtypes.bfloat16, "bfloat16"),
        ("fp16", np.float16, "float16"),
        ("fp32", np.float32, "float32"),
    ],
)
def test_weights_are_rounded_to_the_dtype_that_was_asked_for(
    tmp_path: Path, dtype: str, numpy_dtype: npt.DTypeLike, torch_name: str
) -> None:
    folder = converted(tmp_path, DEFAULT, dtype)
    found = ark.load(folder)["model.layers.1.mlp.up_proj.weight"]
    wanted = weights(DEFAULT)["blk.1.ffn_up.weight"].astype(numpy_dtype)
    np.testing.assert_array_equal(found, wanted)
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == torch_name


def test_matrices_become_int8_and_all_else_bf16(tmp_path: Path) -> None:
    folder = converted(tmp_path, DEFAULT, "int8")
    found = ark.load(folder)
    for name, source in (
        ("model.layers.1.mlp.up_proj", "blk.1.ffn_up"),
        ("model.embed_tokens", "token_embd"),
    ):
        units, scale = quantize(weights(DEFAULT)[f"{source}.weight"])
        np.testing.assert_array_equal(found[f"{name}.weight"], units)
        np.testing.assert_array_equal(found[f"{name}.weight_scale"], scale)
    assert found["model.norm.weight"].dtype == ml_dtypes.bfloat16
    assert "model.norm.weight_scale" not in found
    assert read_llama_config(folder).is_int8 and read_llama_config(folder).dtype == "bf16"


def test_quantized_weights_are_dequantized(tmp_path: Path) -> None:
    llama = changed(kinds={"ffn_up.weight": Q8_0, "ffn_down.weight": F16})
    found, there = ark.load(converted(tmp_path, llama)), weights(llama)
    for name, kind, key in (("up", Q8_0, "ffn_up"), ("down", F16, "ffn_down")):
        array = there[f"blk.0.{key}.weight"]
        wanted = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
        assert np.abs(wanted - array).max() > 0
        np.testing.assert_array_equal(found[f"model.layers.0.mlp.{name}_proj.weight"], wanted)


def test_a_large_tensor_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ark_dist.convert.gguf_file._PIECE_ELEMS", 150)  # 2 rows of 64
    llama = changed(kinds={"token_embd.weight": Q8_0})
    array = weights(llama)["token_embd.weight"]
    wanted = gguf.quants.dequantize(gguf.quants.quantize(array, Q8_0), Q8_0)
    found = ark.load(converted(tmp_path, llama))
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], wanted)


def test_weights_are_cut_into_files_of_a_given_size(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    done = convert_gguf(source, tmp_path / "model", dtype="fp32", max_shard_bytes=100_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert {path.name for path in (tmp_path / "model").glob("*.safetensors")} == files
    size_bytes = sum(4 * array.size for array in weights(DEFAULT).values())
    assert done == Converted(str(tmp_path / "model"), "fp32", 20, size_bytes)
    assert index["metadata"]["total_size"] == size_bytes


def test_the_folder_holds_the_files_that_hugging_face_has(tmp_path: Path) -> None:
    folder = converted(tmp_path, DEFAULT)
    names = {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert names_in(tmp_path) == ["model", "tiny.gguf"]


def test_a_token_that_ends_a_turn_stops_too(tmp_path: Path) -> None:
    llama = changed(extra=lambda writer: writer.add_eot_token_id(0))
    folder = converted(tmp_path, llama)
    config = json.loads((folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == [0, 2]


# --- what is refused --------------------------------------------------------------------------


def add(key: str, value: float) -> TinyLlama:
    """Return a Llama with one more key, an integer or a float."""
    if isinstance(value, int):
        return changed(extra=lambda writer: writer.add_uint32(key, value))
    return changed(extra=lambda writer: writer.add_float32(key, value))


NUMBER_AS_TEMPLATE = changed(
    chat_template=None, extra=lambda writer: writer.add_uint32("tokenizer.chat_template", 1)
)


@pytest.mark.parametrize(
    ("llama", "message"),
    [
        (changed(architecture="bert"), "found the architecture 'bert', wanted 'llama'"),
        (changed(words="qwen2"), "a tokenizer 'gpt2' that cuts words as 'qwen2'"),
        (changed(model="llama"), "a tokenizer 'llama' that cuts words"),
        (add("llama.expert_count", 8), "llama.expert_count is '8', wanted 0"),
        (add("llama.rope.scale_linear", 2.0), "rope.scale_linear is '2.0', wanted 1.0"),
        (changed(hidden=20), "found 4 heads of 5 elements"),
        (add("llama.attention.value_length", 8), "value_length is '8', wanted 16"),
        (changed(heads=3, kv_heads=2, hidden=48), "3 heads of 16 elements over 2 key heads"),
        (changed(theta=0.0), "llama.rope.freq_base is '0.0', wanted a number above 0"),
        (changed(theta=float("inf")), "llama.rope.freq_base is 'inf', wanted a number above 0"),
        (NUMBER_AS_TEMPLATE, "tokenizer.chat_template is a int, wanted a str"),
        (changed(context=0), "context_length is '0', wanted a whole number from 1"),
        (changed(tokens=("a", "a", "b")), "3 tokens, 2 different ones"),
        (changed(merges=("a",)), "the merge 'a', wanted two tokens that make another one"),
        (changed(merges=("a z",)), "the merge 'a z', wanted two tokens that make another one"),
        (changed(tokens=("a", "$A:x", "b"), merges=(), has_bos=True), NO_TOKENIZER),
        (changed(tokens=("a", "b"), merges=()), "eos_token_id is 2, wanted one of the 2 tokens"),
    ],
)
def test_a_model_of_another_kind_is_named(tmp_path: Path, llama: TinyLlama, message: str) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", llama)
    with pytest.raises(CheckpointError) as caught:
        convert_gguf(source, tmp_path / "model")
    assert message in str(caught.value)
    assert str(source) in str(caught.value)
    assert names_in(tmp_path) == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk.0.attn_q.bias": (64,)}, "has besides 'blk.0.attn_q.bias'"),
        ({"blk.1.ffn_up.weight": None}, "misses 'blk.1.ffn_up.weight'"),
        ({"blk.1.ffn_up.weight": (96, 32)}, "has the shape (96, 32), its configuration wants"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(
    tmp_path: Path, change: dict[str, tuple[int, ...] | None], message: str
) -> None:
    tensors = weights(DEFAULT)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.ones(shape, np.float32)
    source = write_gguf(tmp_path / "tiny.gguf", DEFAULT, tensors)
    with pytest.raises(CheckpointError) as caught:
        convert_gguf(source, tmp_path / "model")
    assert message in str(caught.value)


def test_layers_that_are_not_there_are_not_listed(tmp_path: Path) -> None:
    llama = changed(layers=2**31 - 1)
    source = write_gguf(tmp_path / "tiny.gguf", llama, weights(DEFAULT))
    with pytest.raises(CheckpointError, match="20 tensors, wanted those of 2147483647 layers"):
        convert_gguf(source, tmp_path / "model")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [(np.nan, "fp32", "not finite"), (70_000.0, "fp16", "too large for float16; convert it")],
)
def test_a_weight_that_the_dtype_cannot_hold_leaves_nothing(
    tmp_path: Path, value: float, dtype: str, message: str
) -> None:
    tensors = weights(DEFAULT)
    tensors["blk.1.ffn_down.weight"][3, 5] = value
    source = write_gguf(tmp_path / "tiny.gguf", DEFAULT, tensors)
    with pytest.raises(CheckpointError, match=message):
        convert_gguf(source, tmp_path / "model", dtype=dtype)
    assert names_in(tmp_path) == ["tiny.gguf"]


def test_a_target_that_is_no_empty_folder_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for target, message in (
        (tmp_path, "not empty"),
        (source, "a file or a symlink"),
        (tmp_path / "link", "a file or a symlink"),
        (tmp_path / "no" / "model", "there is no folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_gguf(source, target)
    (tmp_path / "model").mkdir()
    convert_gguf(source, tmp_path / "model")
    with pytest.raises(CheckpointError, match="not empty"):
        convert_gguf(source, tmp_path / "model")


@pytest.mark.parametrize("package", ["gguf", "tokenizers"])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"needs the package {package}.*pip install") as caught:
        convert_gguf(source, tmp_path / "model")
    assert exit_code(caught.value) == BAD_CONFIG


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'fp8'; it must be bf16, fp16, fp32, int8"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model", dtype="fp8")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / ".model.convert").write_text("in the way")
    with pytest.raises(CheckpointError, match="model: can't be written: Not a directory"):
        convert_gguf(source, tmp_path / "model")


# --- the command ------------------------------------------------------------------------------


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ark-dist convert` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ark_dist.cli", "convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=child_environment(**environment),
    )


def test_the_command_converts_and_says_what(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    done = run(source, f"{tmp_path}/model/", "--dtype", "fp16", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["path"], row["dtype"], row["tensors"]) == (str(tmp_path / "model"), "fp16", 20)
    assert ark.load(tmp_path / "model")["model.norm.weight"].dtype == np.float16


def test_the_command_ends_with_a_sentence_and_the_code_of_its_kind(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + b"\xff" * 40)
    for arguments, code, message in (
        ((tmp_path / "none.gguf", tmp_path / "model"), BAD_CONFIG, "none.gguf is not there"),
        ((damaged, tmp_path / "model"), BAD_FILE, "damaged GGUF file of 44 bytes"),
        ((damaged, tmp_path / "model", "--dtype", "int3"), BAD_CONFIG, "dtype is 'int3'"),
    ):
        done = run(*arguments)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("phase", ["tensor", "commit"])
def test_a_conversion_that_is_killed_leaves_no_model_and_the_next_one_cleans_up(
    tmp_path: Path, phase: str
) -> None:
    source, target = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model"
    done = run(source, target, ARK_DIST_FAULT=f"save:{phase},kind=sigkill")
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert run(source, target).returncode == 0
    assert names_in(tmp_path) == ["model", "tiny.gguf"]


def test_two_conversions_to_one_place_do_not_mix(tmp_path: Path) -> None:
    import fcntl

    source = write_gguf(tmp_path / "tiny.gguf")
    work = tmp_path / ".model.convert"
    work.mkdir()
    fd = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(ArkError, match="another process converts to it now"):
            convert_gguf(source, tmp_path / "model")
    finally:
        os.close(fd)
    assert not any(work.iterdir())
