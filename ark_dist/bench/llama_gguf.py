"""Turn a Llama's Hugging Face folder into a GGUF file for llama.cpp, its weights unchanged.

It is for token ids alone: the file has no vocabulary.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ark_dist.checkpoint.reader import open_checkpoint, read_all
from ark_dist.convert.llama import ARCHITECTURE, LlamaSizes, Source, list_tensors, weave
from ark_dist.models.llama_config import LlamaConfig, read_llama_config
from ark_dist.optional import require
from ark_dist.safetensors_file import Array

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Our names of dtypes for those of ggml.
KINDS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
NO_VOCABULARY = "none"


def write_llama_gguf(folder: Path, target: Path) -> None:
    """Write the GGUF file: matrices in the checkpoint's dtype, vectors in fp32, as ggml wants.

    Raises:
        ModelConfigError: for a folder of another architecture.
        CheckpointError: for a folder that is not whole, or damaged.
        ConfigError: the package gguf is not installed.
    """
    require("gguf", "writing GGUF files")
    from gguf import GGMLQuantizationType, GGUFWriter

    config = read_llama_config(folder)
    sizes = _sizes(config)
    kind = GGMLQuantizationType[KINDS[config.dtype]]
    writer = GGUFWriter(target, ARCHITECTURE)
    try:
        _add_sizes(writer, sizes)
        writer.add_tokenizer_model(NO_VOCABULARY)
        with open_checkpoint(folder, allow_links=True) as checkpoint:
            tensors = read_all(checkpoint)
        for name, source in list_tensors(sizes).items():
            array = _as_gguf(tensors[name], source)
            if array.ndim == 1:
                writer.add_tensor(source.name, array.astype(np.float32))
            else:
                writer.add_tensor(source.name, array.view(np.uint8), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _sizes(config: LlamaConfig) -> LlamaSizes:
    return LlamaSizes(**{field.name: getattr(config, field.name) for field in fields(LlamaSizes)})


def _add_sizes(writer: GGUFWriter, sizes: LlamaSizes) -> None:
    writer.add_vocab_size(sizes.vocab_size)
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(sizes.num_attention_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(sizes.rope_theta)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)


def _as_gguf(array: Array, source: Source) -> Array:
    return weave(array, source.rotary_heads) if source.rotary_heads else array
