"""Read the sizes of a Llama-family model out of a Hugging Face config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ark_dist.models.config_file import FILE, Keys, is_int, keys_of, read_config
from ark_dist.models.quantization import is_int8

ARCHITECTURES = ("LlamaForCausalLM",)
# What transformers takes where the file says nothing.
THETA, EPS, CONTEXT = 10000.0, 1e-6, 2048


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a model, under the names that Hugging Face gives them.

    Attributes:
        hidden_size: elements of the vector that goes from layer to layer.
        intermediate_size: elements inside the gated layers.
        num_hidden_layers: how many layers.
        num_attention_heads: query heads.
        num_key_value_heads: heads of keys and values; query heads are a multiple of them.
        head_dim: elements of a head, an even number.
        vocab_size: how many tokens there are.
        max_position_embeddings: the longest context that the model was made for.
        rms_norm_eps: added to the mean square in norms.
        rope_theta: base of the rotary embedding's wave lengths.
        tie_word_embeddings: whether the head is the table of embeddings.
        dtype: of the weights: "bf16", "fp16" or "fp32".
        is_int8: whether all matrices, embeddings included, are int8 with a scale per row.
        eos_token_ids: tokens that end a text.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    dtype: str
    eos_token_ids: tuple[int, ...]
    is_int8: bool = False


def read_llama_config(folder: str | os.PathLike[str]) -> LlamaConfig:
    """Read `config.json` of a folder.

    Raises:
        ModelConfigError: if it is missing, damaged, or of a model that is not supported.
    """
    keys = read_config(folder)
    return llama_config(keys.table, keys.source)


def llama_config(table: object, source: str = FILE) -> LlamaConfig:
    """Check what a config.json holds; `source` is what errors call it.

    Raises:
        ModelConfigError: for an unknown architecture, a missing key, a bad value, or a rotary
            embedding or bias that is not supported.
    """
    keys = keys_of(table, source)
    _check_supported(keys)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    vocabulary = keys.size("vocab_size")
    groups = keys.size("num_key_value_heads", heads)
    if heads % groups:
        raise keys.error(
            f"num_attention_heads is {heads} and num_key_value_heads {groups}, "
            "wanted a multiple of it"
        )
    depth = keys.size("head_dim", max(hidden // heads, 1))
    if depth % 2 or ("head_dim" not in keys.table and hidden % heads):
        raise keys.error(
            f"heads of {depth} elements ({heads} of hidden_size {hidden}), wanted an even size"
        )
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        num_hidden_layers=keys.layers(),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=depth,
        vocab_size=vocabulary,
        max_position_embeddings=keys.size("max_position_embeddings", CONTEXT),
        rms_norm_eps=keys.number("rms_norm_eps", EPS),
        rope_theta=_theta(keys),
        tie_word_embeddings=keys.flag("tie_word_embeddings"),
        dtype=keys.dtype(),
        eos_token_ids=_eos(keys, vocabulary),
        is_int8=is_int8(keys.table.get("quantization_config"), source),
    )


def _check_supported(keys: Keys) -> None:
    """Refuse what the model would compute differently."""
    keys.check_architecture(*ARCHITECTURES)
    for name in ("attention_bias", "mlp_bias"):
        if keys.flag(name):
            raise keys.error(f"{name} is true; layers with a bias are not supported")
    act = keys.table.get("hidden_act", "silu")
    if act != "silu":
        raise keys.error(f"hidden_act is {act!r:.80}; only 'silu' is supported")


def _theta(keys: Keys) -> float:
    """The base of the wave lengths; transformers 5 has it under rope_parameters."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = keys.table.get(name)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise keys.error(f"{name} is {rope!r:.80}, wanted an object or null")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise keys.error(
                f"{name} is of type {kind!r:.80}; rotary embeddings are supported without "
                "scaling only"
            )
        if "rope_theta" in rope:
            return Keys(rope, f"{keys.source}: {name}").number("rope_theta", THETA)
    return keys.number("rope_theta", THETA)


def _eos(keys: Keys, vocabulary: int) -> tuple[int, ...]:
    found = keys.table.get("eos_token_id")
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    for token in tokens:
        if not is_int(token) or not 0 <= token < vocabulary:
            raise keys.error(
                f"eos_token_id is {found!r:.80}, wanted tokens from 0 to {vocabulary - 1}"
            )
    return tuple(tokens)
