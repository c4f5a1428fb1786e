"""Read the sizes of a BERT out of a Hugging Face config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ark_dist.models.config_file import FILE, Keys, keys_of, read_config

ARCHITECTURES = ("BertModel",)
# What transformers takes where the file says nothing.
POSITIONS, TYPES, EPS = 512, 2, 1e-12
# What a file may say only in this way, since nothing else is computed.
ONLY: Mapping[str, object] = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Sizes of a model, under the names that Hugging Face gives them.

    Attributes:
        hidden_size: elements of the vector that goes from layer to layer.
        intermediate_size: elements inside the layers.
        num_hidden_layers: how many layers.
        num_attention_heads: heads, which divide hidden_size.
        vocab_size: how many tokens there are.
        max_position_embeddings: the longest text that the model was made for, in tokens.
        type_vocab_size: types of tokens; here all have the first one.
        layer_norm_eps: added to the variance in norms.
        dtype: of the weights: "bf16", "fp16" or "fp32".
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    dtype: str


def read_bert_config(folder: str | os.PathLike[str]) -> BertConfig:
    """Read `config.json` of a folder.

    Raises:
        ModelConfigError: if it is missing, damaged, or of a model that is not supported.
    """
    keys = read_config(folder)
    return bert_config(keys.table, keys.source)


def bert_config(table: object, source: str = FILE) -> BertConfig:
    """Check what a config.json holds; `source` is what errors call it.

    Raises:
        ModelConfigError: for an unknown architecture, a missing key, a bad value, or a kind of
            layer that is not supported.
    """
    keys = keys_of(table, source)
    _check_supported(keys)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    if hidden % heads:
        raise keys.error(
            f"hidden_size is {hidden} and num_attention_heads {heads}, wanted a multiple of it"
        )
    return BertConfig(
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        num_hidden_layers=keys.layers(),
        num_attention_heads=heads,
        vocab_size=keys.size("vocab_size"),
        max_position_embeddings=keys.size("max_position_embeddings", POSITIONS),
        type_vocab_size=keys.size("type_vocab_size", TYPES),
        layer_norm_eps=keys.number("layer_norm_eps", EPS),
        dtype=keys.dtype(),
    )


def _check_supported(keys: Keys) -> None:
    """Refuse what the model would compute differently."""
    keys.check_architecture(*ARCHITECTURES)
    for name, wanted in ONLY.items():
        found = keys.table.get(name)
        if found is not None and found != wanted:
            raise keys.error(f"{name} is {found!r:.80}; only {wanted!r} is supported")
