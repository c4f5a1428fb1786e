"""Turn a GGUF file into a folder as Hugging Face has it, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ark_dist.checkpoint.saver import MAX_SHARD_BYTES
from ark_dist.checkpoint.shards import Layout
from ark_dist.convert.bpe import (
    Vocabulary,
    build_tokenizer,
    generation_config,
    read_vocabulary,
    tokenizer_config,
)
from ark_dist.convert.gguf_file import Gguf, open_gguf
from ark_dist.convert.llama import LlamaSizes, Source, check_tensors, read_sizes, read_tensor
from ark_dist.convert.target_folder import (
    Converted,
    check_dtype,
    checked_place,
    making,
    write_files,
    write_weights,
)
from ark_dist.convert.weights import BESIDE_INT8, TORCH_DTYPES, Weights
from ark_dist.core.dtype import FP32, INT8
from ark_dist.core.errors import ShardCorruptError
from ark_dist.models import quantization as quantization_config
from ark_dist.optional import require


def convert_gguf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "bf16",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    is_shown: bool = False,
) -> Converted:
    """Write a Llama in GGUF as a Hugging Face folder: configuration, weights and tokenizer.

    The folder is made under another name beside its place and renamed when it is complete. Its
    weights are dequantized and rounded to nearest in `dtype`: "bf16", "fp16" or "fp32". With "int8"
    matrices are, with a scale per row in fp32, and all else is in bf16.

    Args:
        source: the GGUF file.
        target: the folder to make; it must be absent or empty, its parent must be there.
        dtype: of all weights in the folder.
        max_shard_bytes: where to begin another file of weights.
        is_shown: whether to show on stderr how far it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: for another dtype.
        ConfigError: the packages gguf and tokenizers are not installed.
        CheckpointError: for a file that is damaged, not a Llama or not byte-level BPE, and for a
            folder that can't be written.
    """
    check_dtype(dtype)
    require("tokenizers", "converting a tokenizer")
    place = checked_place(Path(target))
    with open_gguf(source) as gguf:
        vocabulary = read_vocabulary(gguf)
        sizes = read_sizes(gguf, len(vocabulary.tokens))
        sources = check_tensors(gguf, sizes)
        texts = _config_texts(gguf.path, sizes, vocabulary, dtype)
        weights = _weights(gguf, sources, dtype)
        with making(place) as folder:
            write_weights(folder, weights, max_shard_bytes, is_shown)
            write_files(folder, {name: text.encode() for name, text in texts.items()})
    return Converted(str(place), dtype, len(sources), weights.size_bytes)


def _weights(gguf: Gguf, sources: Mapping[str, Source], dtype: str) -> Weights:
    layouts = {name: Layout(source.shape, FP32.numpy) for name, source in sources.items()}
    return Weights(layouts, lambda name, wanted: read_tensor(gguf, sources[name], wanted), dtype)


def _config_texts(
    path: str, sizes: LlamaSizes, vocabulary: Vocabulary, dtype: str
) -> dict[str, str]:
    """Return the small files of the folder by name."""
    try:
        tokenizer = build_tokenizer(vocabulary)
    except ValueError as error:
        raise ShardCorruptError(
            f"{path}: found a vocabulary that no tokenizer can have: {error}; fetch it again"
        ) from error
    tables = {
        "tokenizer_config.json": tokenizer_config(vocabulary, sizes.max_position_embeddings),
        "generation_config.json": generation_config(vocabulary),
        "config.json": _model_config(sizes, vocabulary, dtype),
    }
    return {"tokenizer.json": tokenizer, **{name: _text(each) for name, each in tables.items()}}


def _model_config(sizes: LlamaSizes, vocabulary: Vocabulary, dtype: str) -> dict[str, object]:
    """Return what config.json holds."""
    is_int8 = dtype == INT8.name
    quantization = {quantization_config.KEY: quantization_config.INT8} if is_int8 else {}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rope_scaling": None,
        "torch_dtype": TORCH_DTYPES[BESIDE_INT8 if is_int8 else dtype],
        **quantization,
        **asdict(sizes),
        **generation_config(vocabulary),
    }


def _text(table: Mapping[str, object]) -> str:
    return json.dumps(table, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
