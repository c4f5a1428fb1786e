"""A small random Llama: its config, its checkpoint, and a program that runs it on any ranks."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.convert.int8 import quantize
from ark_dist.core.dtype import as_dtype
from ark_dist.core.op import Array
from ark_dist.models.llama import Llama
from ark_dist.models.llama_config import LlamaConfig, llama_config

CHUNK, CONTEXT = 8, 40
# As a config.json has it; 9 and 3 heads, as SmolLM2.
TABLE: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "vocab_size": 211,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "eos_token_id": 210,
}
CONFIG = replace(llama_config(TABLE), eos_token_ids=())


def random_weights(config: LlamaConfig, seed: int = 0) -> dict[str, Array]:
    """A checkpoint whose logits are about as large as 1, under the names of Hugging Face."""
    rng = np.random.default_rng(seed)
    dtype = as_dtype(config.dtype).numpy
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    groups = config.num_key_value_heads * config.head_dim
    layer = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (groups, hidden),
        "self_attn.v_proj": (groups, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config.vocab_size, hidden)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head"] = (config.vocab_size, hidden)
    weights: dict[str, Array] = {}
    for name, shape in shapes.items():
        data = 1 + 0.1 * rng.normal(size=shape)
        if len(shape) == 2:
            data = rng.normal(size=shape) * (1.5 * shape[1] ** -0.5)
        weights[f"{name}.weight"] = data.astype(dtype)
    return weights


def in_int8(weights: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The checkpoint with int8 matrices and their scales, and in fp32 what that stands for."""
    packed, plain = dict(weights), dict(weights)
    for name, matrix in weights.items():
        if matrix.ndim == 2:
            units, scale = quantize(matrix)
            packed |= {name: units, f"{name}_scale": scale}
            plain[name] = units * scale
    return packed, plain


def save_model(folder: Path, weights: Mapping[str, Array], **changes: object) -> Path:
    """Write a folder as Hugging Face has it: config.json and safetensors."""
    ark.save(dict(weights), f"{folder}/")
    (folder / "config.json").write_text(json.dumps({**TABLE, **changes}))
    return folder


@contextmanager
def running(
    config: LlamaConfig = CONFIG,
    weights: Mapping[str, Array] | str | Path | None = None,
    *,
    device: str = "cpu",
    workers: int | None = None,
    batch: int = 1,
    axes: Mapping[str, int] | None = None,
    communicator: Communicator | None = None,
) -> Iterator[tuple[Llama, ark.Executor]]:
    """A launched model; with a communicator this thread is one of its ranks.

    Two workers if left out, but on "cuda" as many as there are.
    """
    if workers is None and device != "cuda":
        workers = 2
    if communicator is not None:
        with world.use(communicator):
            yield from _running(config, weights, device, workers, batch, axes or {})
    else:
        yield from _running(config, weights, device, workers, batch, axes or {})


def _running(
    config: LlamaConfig,
    weights: Mapping[str, Array] | str | Path | None,
    device: str,
    workers: int | None,
    batch: int,
    axes: Mapping[str, int],
) -> Iterator[tuple[Llama, ark.Executor]]:
    mesh = ark.Mesh(axes) if axes else None
    graph = ark.Model("llama")
    llama = Llama(
        config, batch=batch, context=CONTEXT, chunk=CHUNK, mesh=mesh, graph=graph, keep_logits=True
    )
    with ark.Executor(model=graph, device=device, workers=workers, mesh=mesh) as exe:
        exe.compile()
        llama.load_state_dict(random_weights(config) if weights is None else weights)
        exe.launch()
        yield llama, exe


def generate(
    llama: Llama,
    exe: ark.Executor,
    prompts: list[list[int]],
    count: int,
    scalars: Mapping[str, float] | None = None,
    *,
    restart: bool = True,
) -> list[list[int]]:
    """Read prompts and write up to `count` tokens for each."""
    prefill(llama, exe, prompts, restart=restart)
    exe.run(count, method="decode", scalars=scalars)
    exe.wait()
    return llama.new_tokens()


def prefill(
    llama: Llama, exe: ark.Executor, prompts: list[list[int]], *, restart: bool = True
) -> None:
    """Read prompts."""
    turns = llama.set_prompts(prompts, restart=restart)
    exe.run(turns, method="prefill", scalars={"cursor": 0})
    assert exe.wait() == turns


def a_prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    tokens: list[int] = np.random.default_rng(seed).integers(0, 210, length).tolist()
    return tokens
