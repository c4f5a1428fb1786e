"""Tiny Llamas as GGUF files, written with the package gguf."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import ByteLevel

Floats = npt.NDArray[np.float32]

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTES = tuple(sorted(ByteLevel.alphabet()))
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "a b")
MERGED = tuple(merge.replace(" ", "") for merge in MERGES)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TinyLlama:
    """What to write; a test changes what it is about.

    Attributes:
        kinds: the format of the tensors whose names end so; others are F32.
        extra: more calls on the writer.
    """

    hidden: int = 64
    inner: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    context: int = 128
    theta: float = 100_000.0
    architecture: str = "llama"
    words: str = "smollm"
    model: str = "gpt2"
    tokens: tuple[str, ...] = (*SPECIAL, *BYTES, *MERGED)
    merges: tuple[str, ...] = MERGES
    is_tied: bool = True
    has_bos: bool = False
    chat_template: str | None = CHATML
    kinds: dict[str, gguf.GGMLQuantizationType] = field(default_factory=dict)
    extra: Callable[[gguf.GGUFWriter], None] = lambda writer: None

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.hidden // self.heads


DEFAULT = TinyLlama()


def weights(llama: TinyLlama) -> dict[str, Floats]:
    """Return the tensors of a Llama by their names in GGUF; the same on every call."""
    rng = np.random.default_rng(0)
    kv = llama.kv_heads * llama.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(llama.tokens), llama.hidden),
        "output_norm.weight": (llama.hidden,),
    }
    if not llama.is_tied:
        shapes["output.weight"] = shapes["token_embd.weight"]
    for layer in range(llama.layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (llama.hidden,),
            f"blk.{layer}.attn_q.weight": (llama.hidden, llama.hidden),
            f"blk.{layer}.attn_k.weight": (kv, llama.hidden),
            f"blk.{layer}.attn_v.weight": (kv, llama.hidden),
            f"blk.{layer}.attn_output.weight": (llama.hidden, llama.hidden),
            f"blk.{layer}.ffn_norm.weight": (llama.hidden,),
            f"blk.{layer}.ffn_gate.weight": (llama.inner, llama.hidden),
            f"blk.{layer}.ffn_up.weight": (llama.inner, llama.hidden),
            f"blk.{layer}.ffn_down.weight": (llama.hidden, llama.inner),
        }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path, llama: TinyLlama = DEFAULT, tensors: dict[str, Floats] | None = None
) -> Path:
    """Write a Llama, by default with the tensors of `weights`."""
    writer = gguf.GGUFWriter(path, llama.architecture)
    writer.add_context_length(llama.context)
    writer.add_embedding_length(llama.hidden)
    writer.add_block_count(llama.layers)
    writer.add_feed_forward_length(llama.inner)
    writer.add_head_count(llama.heads)
    writer.add_head_count_kv(llama.kv_heads)
    writer.add_rope_dimension_count(llama.head_dim)
    writer.add_rope_freq_base(llama.theta)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokenizer(writer, llama)
    llama.extra(writer)
    for name, array in (weights(llama) if tensors is None else tensors).items():
        kind = next((k for end, k in llama.kinds.items() if name.endswith(end)), None)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, llama: TinyLlama) -> None:
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model(llama.model)
    writer.add_tokenizer_pre(llama.words)
    writer.add_token_list(list(llama.tokens))
    writer.add_token_types([control if token in SPECIAL else normal for token in llama.tokens])
    writer.add_token_merges(list(llama.merges))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(llama.has_bos)
    if llama.chat_template is not None:
        writer.add_chat_template(llama.chat_template)


def changed(**changes: object) -> TinyLlama:
    """Return the default Llama with changes."""
    return replace(DEFAULT, **changes)  # type: ignore[arg-type]  # reason: any field
