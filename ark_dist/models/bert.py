"""Turn the configuration of a BERT into a model that gives each text a vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ark_dist import ops
from ark_dist.context import current_model
from ark_dist.core.dtype import FP32, INT32
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.models.bert_config import BertConfig
from ark_dist.models.bert_layers import Embeddings, Encoder, Place
from ark_dist.module import Module
from ark_dist.tensors import Tensor

TENSOR_AXIS = "tp"
BATCH = 8
# The shortest texts that there is a method for; the next ones are for texts of twice the length.
SHORTEST = 32
# A vector is divided by its length, or by this where it has none; as PyTorch's normalize does.
MIN_NORM = 1e-12


class Bert(Module):
    """A BERT that gives each text of a batch one vector: its mean over tokens, of length 1.

    Its parameters have the names of Hugging Face's BertModel, so `load_state_dict("folder/")`
    reads a checkpoint. There are several methods, which differ in the tokens that a text may have
    alone: "encode_32", "encode_64" and so on up to `length`. A run of one iteration encodes the
    batch.

        bert = Bert(read_bert_config("folder/"), batch=8, length=256)
        ... an Executor of `bert.graph`; compile, load_state_dict, launch ...
        exe.run(method=bert.set_tokens([[101, 7592, 102], [101, 2088, 102]]))
        exe.wait()
        bert.vectors.to_numpy()[:2]

    Args:
        config: the model's sizes.
        batch: rows of the batch.
        length: the most tokens that a text may have; the model's own limit if left out.
        mesh: the Executor's. Its axis "tp" cuts heads, columns and the vocabulary.
        dtype: of weights; the checkpoint's if left out.
        graph: the model to add it to; the current one if left out.

    Attributes:
        tokens, lengths: inputs, int32 (B, length) and (B,), which `set_tokens` writes.
        vectors: state, fp32 (B, hidden_size): each row's vector; zeros for rows without tokens.
        methods: tokens that a text may have -> the method's name, the shortest first.

    Raises:
        ValueError: for a batch or length out of range.
    """

    # What checkpoints have besides, for classifiers, and in the place of 0, 1, 2, ...
    unused_names = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")

    def __init__(
        self,
        config: BertConfig,
        *,
        batch: int = BATCH,
        length: int | None = None,
        mesh: Mesh | None = None,
        dtype: str | None = None,
        graph: Model | None = None,
    ) -> None:
        super().__init__()
        length = config.max_position_embeddings if length is None else length
        _check_sizes(config, batch, length)
        self.config, self.batch, self.length = config, batch, length
        self.graph = current_model() if graph is None else graph
        axes = {} if mesh is None else dict(mesh.shape.axes)
        cut = TENSOR_AXIS if TENSOR_AXIS in axes else None
        place = Place(self.graph, config, dtype or config.dtype, cut)
        self.embeddings = Embeddings(place.inner("embeddings"))
        self.encoder = Encoder(place.inner("encoder"))
        self.tokens = self.graph.tensor((batch, length), INT32, name="tokens")
        self.lengths = self.graph.tensor((batch,), INT32, name="lengths")
        self.vectors = self.graph.state((batch, config.hidden_size), FP32, name="vectors")
        self.methods = {size: f"encode_{size}" for size in _method_sizes(length)}
        for size, name in self.methods.items():
            with self.graph.method(name):
                self.graph.assign(self.vectors, self(self.tokens[:, :size]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors (B, hidden_size) of tokens (B, T)."""
        batch, times = tokens.shape
        x = self.encoder(self.embeddings(tokens), self.lengths)
        lengths = self.lengths.reshape(batch, 1)
        places = self.graph.constant(np.arange(times, dtype=np.int32).reshape(1, times))
        is_text = ops.less(places, lengths).cast(FP32).reshape(batch, times, 1)
        total = ops.reduce_sum(x * is_text, axis=1, keepdims=False)
        # A row without tokens has the sum 0.
        mean = total / ops.maximum(lengths, 1).cast(FP32)
        norm = ops.sqrt(ops.reduce_sum(mean * mean, axis=1))
        return mean / ops.maximum(norm, MIN_NORM)

    # The host's part.

    def set_tokens(self, rows: Sequence[Sequence[int]]) -> str:
        """Write the tokens of up to `batch` texts; returns the method that encodes them.

        All ranks call it, with the same tokens.

        Raises:
            ValueError: for too many rows, an empty one, an unknown token, or more tokens than
                `length`.
            LifecycleError: before the program has memory, and while it runs.
        """
        if not 1 <= len(rows) <= self.batch:
            raise ValueError(f"set_tokens: found {len(rows)} rows, wanted 1 to {self.batch}")
        array, lengths = np.zeros(self.tokens.shape, np.int32), np.zeros(self.batch, np.int32)
        for row, tokens in enumerate(rows):
            self._check_row(row, tokens)
            array[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
        self.tokens.from_numpy(array)
        self.lengths.from_numpy(lengths)
        return next(name for size, name in self.methods.items() if lengths.max() <= size)

    def _check_row(self, row: int, tokens: Sequence[int]) -> None:
        if not 1 <= len(tokens) <= self.length:
            raise ValueError(
                f"set_tokens: row {row} has {len(tokens)} tokens, wanted 1 to {self.length}; cut "
                "the text, or make the model with another length"
            )
        vocabulary = self.config.vocab_size
        unknown = next((token for token in tokens if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise ValueError(
                f"set_tokens: row {row} has the token {unknown}, wanted 0 to {vocabulary - 1}; "
                "is it another model's tokenizer?"
            )


def _method_sizes(length: int) -> list[int]:
    sizes: list[int] = []
    while SHORTEST << len(sizes) < length:
        sizes.append(SHORTEST << len(sizes))
    return [*sizes, length]


def _check_sizes(config: BertConfig, batch: int, length: int) -> None:
    if batch < 1:
        raise ValueError(f"Bert: batch is {batch}; it must be 1 or more")
    if not 1 <= length <= config.max_position_embeddings:
        raise ValueError(
            f"Bert: length is {length}; it must be 1 to {config.max_position_embeddings}, which "
            "the model was made for"
        )
