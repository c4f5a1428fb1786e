"""Turn the metadata of a Llama in GGUF into its configuration and tensors as Hugging Face has them.

The two name tensors differently, and differ in which elements of a head rotary embedding turns
together: neighbours in GGUF, (i, i + head_dim / 2) in Hugging Face. So the rows of the query and
key weights are in another order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ark_dist.bounded_json import shown
from ark_dist.convert.gguf_file import Gguf, Value
from ark_dist.core.errors import CheckpointError
from ark_dist.listing import listed
from ark_dist.safetensors_file import Array

ARCHITECTURE = "llama"
MAX_SIZE = 2**31 - 1  # what fits an index of 32 bits
DEFAULT_THETA = 10_000.0  # llama.cpp's where the file has none
# What a file may say only in this way, since nothing else is computed.
ONLY: Mapping[str, Value] = {
    "rope.scaling.type": "none",
    "rope.scale_linear": 1.0,
    "expert_count": 0,
    "attention.sliding_window": 0,
}


@dataclass(frozen=True, slots=True)
class LlamaSizes:
    """What a Llama is made of, by the names of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor comes from: its name in the GGUF file, its shape, and how its rows lie there.

    Attributes:
        name: in the file.
        shape: in both, rows first.
        rotary_heads: how many heads its rows belong to that rotary embedding turns; 0: none.
    """

    name: str
    shape: tuple[int, ...]
    rotary_heads: int = 0


def read_sizes(gguf: Gguf, token_count: int) -> LlamaSizes:
    """Return the sizes of the Llama in a file whose tokenizer has `token_count` tokens.

    Raises CheckpointError for another architecture, and for what our Llama does not compute.
    """
    found = gguf.metadata.get("general.architecture")
    if found != ARCHITECTURE:
        raise CheckpointError(
            f"{gguf.path}: found the architecture {shown(found)}, wanted {ARCHITECTURE!r}; "
            "only Llama-family models can be converted"
        )
    keys = _Keys(gguf)
    for key, value in ONLY.items():
        keys.check(key, value)
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_dim = keys.size("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        keys.check(key, head_dim)
    sizes = LlamaSizes(
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_hidden_layers=keys.size("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=keys.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=keys.positive("attention.layer_norm_rms_epsilon"),
        rope_theta=keys.positive("rope.freq_base", DEFAULT_THETA),
        vocab_size=token_count,
        max_position_embeddings=keys.size("context_length"),
        tie_word_embeddings="output.weight" not in gguf.tensors,
    )
    if head_dim < 1 or head_dim % 2 or heads % sizes.num_key_value_heads:
        raise CheckpointError(
            f"{gguf.path}: found {heads} heads of {head_dim} elements over "
            f"{sizes.num_key_value_heads} key heads, wanted an even number of elements and key "
            "heads that divide the heads"
        )
    return sizes


class _Keys:
    """Reads the architecture's keys, checked."""

    def __init__(self, gguf: Gguf) -> None:
        self._gguf = gguf

    def get(self, key: str) -> Value | None:
        return self._gguf.metadata.get(f"{ARCHITECTURE}.{key}")

    def _refuse(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self._gguf.path}: {ARCHITECTURE}.{key} is {shown(self.get(key))}, wanted {wanted}"
        )

    def size(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise self._refuse(key, f"a whole number from 1 to {MAX_SIZE}")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, float) or not 0 < value < math.inf:
            raise self._refuse(key, "a number above 0")
        return float(str(np.float32(value)))  # 1e-05, not the 9.999999747378752e-06 of its bits

    def check(self, key: str, wanted: Value) -> None:
        value = self.get(key)
        if value is not None and (type(value) is not type(wanted) or value != wanted):
            raise self._refuse(key, f"{wanted}: nothing else is computed so far")


def list_tensors(sizes: LlamaSizes) -> dict[str, Source]:
    """Return where each tensor of Hugging Face's Llama comes from."""
    hidden, head_dim = sizes.hidden_size, sizes.head_dim
    heads, kv_heads = sizes.num_attention_heads, sizes.num_key_value_heads
    query, key, inner = heads * head_dim, kv_heads * head_dim, sizes.intermediate_size
    vocabulary = (sizes.vocab_size, hidden)
    found = {"model.embed_tokens.weight": Source("token_embd.weight", vocabulary)}
    for layer in range(sizes.num_hidden_layers):
        there, here = f"model.layers.{layer}", f"blk.{layer}"
        found |= {
            f"{there}.input_layernorm.weight": Source(f"{here}.attn_norm.weight", (hidden,)),
            f"{there}.self_attn.q_proj.weight": Source(
                f"{here}.attn_q.weight", (query, hidden), heads
            ),
            f"{there}.self_attn.k_proj.weight": Source(
                f"{here}.attn_k.weight", (key, hidden), kv_heads
            ),
            f"{there}.self_attn.v_proj.weight": Source(f"{here}.attn_v.weight", (key, hidden)),
            f"{there}.self_attn.o_proj.weight": Source(
                f"{here}.attn_output.weight", (hidden, query)
            ),
            f"{there}.post_attention_layernorm.weight": Source(
                f"{here}.ffn_norm.weight", (hidden,)
            ),
            f"{there}.mlp.gate_proj.weight": Source(f"{here}.ffn_gate.weight", (inner, hidden)),
            f"{there}.mlp.up_proj.weight": Source(f"{here}.ffn_up.weight", (inner, hidden)),
            f"{there}.mlp.down_proj.weight": Source(f"{here}.ffn_down.weight", (hidden, inner)),
        }
    found["model.norm.weight"] = Source("output_norm.weight", (hidden,))
    if not sizes.tie_word_embeddings:
        found["lm_head.weight"] = Source("output.weight", vocabulary)
    return found


def check_tensors(gguf: Gguf, sizes: LlamaSizes) -> dict[str, Source]:
    """Return `list_tensors`; raise CheckpointError where the file has others than these."""
    if sizes.num_hidden_layers > len(gguf.tensors):  # before a list of that many is made
        raise CheckpointError(
            f"{gguf.path}: found {len(gguf.tensors)} tensors, wanted those of "
            f"{sizes.num_hidden_layers} layers"
        )
    sources = list_tensors(sizes)
    wanted = {source.name: source.shape for source in sources.values()}
    missing = [name for name in wanted if name not in gguf.tensors]
    extra = [name for name in gguf.tensors if name not in wanted]
    if missing or extra:
        kinds = (("misses", missing), ("has besides", extra))
        told = "; ".join(
            f"{verb} {listed([shown(name) for name in names])}" for verb, names in kinds if names
        )
        raise CheckpointError(f"{gguf.path}: of the tensors of a Llama the file {told}")
    for name, shape in wanted.items():
        if gguf.tensors[name].shape != shape:
            raise CheckpointError(
                f"{gguf.path}: tensor {name} has the shape {gguf.tensors[name].shape}, "
                f"its configuration wants {shape}"
            )
    return sources


def read_tensor(gguf: Gguf, source: Source, dtype: np.dtype[np.generic]) -> Array:
    """Return a tensor as Hugging Face has it; raises as `Gguf.read`."""
    array = gguf.read(source.name, dtype)
    return unweave(array, source.rotary_heads) if source.rotary_heads else array


def unweave(rows: Array, heads: int) -> Array:
    """Put the even rows of each head before its odd ones: GGUF's order to Hugging Face's."""
    count, columns = rows.shape
    pairs = rows.reshape(heads, count // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(count, columns)


def weave(rows: Array, heads: int) -> Array:
    """Put the rows of each head's halves in turn: Hugging Face's order to GGUF's."""
    count, columns = rows.shape
    halves = rows.reshape(heads, 2, count // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(count, columns)
