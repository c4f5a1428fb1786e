"""A small random BERT: its config, its folder, and a program that runs it on any ranks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.dtype import as_dtype
from ark_dist.core.op import Array
from ark_dist.models.bert import Bert
from ark_dist.models.bert_config import BertConfig, bert_config

LENGTH = 40
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TOKENS = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "sea", "is", "blue"]
# As a config.json has it; 12 heads, as MiniLM, and sizes that no number of ranks divides.
TABLE: dict[str, object] = {
    "architectures": ["BertModel"],
    "hidden_act": "gelu",
    "hidden_size": 48,
    "intermediate_size": 97,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 50,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 3,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 211,
}
CONFIG = bert_config(TABLE)


def random_weights(config: BertConfig, seed: int = 0) -> dict[str, Array]:
    """A checkpoint under the names of Hugging Face, with what it has besides."""
    rng = np.random.default_rng(seed)
    dtype = as_dtype(config.dtype).numpy
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "attention.output.LayerNorm": (hidden,),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
        "output.LayerNorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (hidden,)}
    for i in range(config.num_hidden_layers):
        shapes |= {f"encoder.layer.{i}.{name}": shape for name, shape in layer.items()}
    shapes["pooler.dense"] = (hidden, hidden)
    weights: dict[str, Array] = {}
    for name, shape in shapes.items():
        data = 1 + 0.1 * rng.normal(size=shape)
        if len(shape) == 2:
            data = rng.normal(size=shape) * (1.5 * shape[1] ** -0.5)
        weights[f"{name}.weight"] = data.astype(dtype)
        weights[f"{name}.bias"] = (0.3 * rng.normal(size=shape[0])).astype(dtype)
    rows = config.vocab_size, config.max_position_embeddings, config.type_vocab_size
    for table, count in zip(("word", "position", "token_type"), rows, strict=True):
        data = rng.normal(size=(count, hidden))
        weights[f"embeddings.{table}_embeddings.weight"] = data.astype(dtype)
    return weights


def save_model(folder: Path, weights: Mapping[str, Array], **changes: object) -> Path:
    """Write a folder as Hugging Face has it: config.json, safetensors, tokenizer.json."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ark.save(dict(weights), f"{folder}/")
    (folder / "config.json").write_text(json.dumps({**TABLE, **changes}))
    ids = {token: i for i, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(SPECIAL)
    # As MiniLM's file does, which neither counts.
    tokenizer.enable_truncation(9)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@contextmanager
def running(
    config: BertConfig = CONFIG,
    weights: Mapping[str, Array] | str | Path | None = None,
    *,
    device: str = "cpu",
    workers: int = 2,
    batch: int = 1,
    axes: Mapping[str, int] | None = None,
    communicator: Communicator | None = None,
) -> Iterator[tuple[Bert, ark.Executor]]:
    """A launched model; with a communicator this thread is one of its ranks."""
    if communicator is not None:
        with world.use(communicator):
            yield from _running(config, weights, device, workers, batch, axes or {})
    else:
        yield from _running(config, weights, device, workers, batch, axes or {})


def _running(
    config: BertConfig,
    weights: Mapping[str, Array] | str | Path | None,
    device: str,
    workers: int,
    batch: int,
    axes: Mapping[str, int],
) -> Iterator[tuple[Bert, ark.Executor]]:
    mesh = ark.Mesh(axes) if axes else None
    graph = ark.Model("bert")
    bert = Bert(config, batch=batch, length=LENGTH, mesh=mesh, graph=graph)
    with ark.Executor(model=graph, device=device, workers=workers, mesh=mesh) as exe:
        exe.compile()
        bert.load_state_dict(random_weights(config) if weights is None else weights)
        exe.launch()
        yield bert, exe


def encode(bert: Bert, exe: ark.Executor, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.generic]:
    """The vectors of rows of tokens."""
    exe.run(method=bert.set_tokens(rows))
    assert exe.wait() == 1
    return bert.vectors.to_numpy()[: len(rows)]


def random_rows(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]
