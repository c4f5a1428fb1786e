"""A BERT in NumPy, written from the formulas: one text at a time, without padding."""

from collections.abc import Mapping, Sequence
from math import erf

import numpy as np
import numpy.typing as npt

from ark_dist.core.op import Array
from ark_dist.models.bert_config import BertConfig

Floats = npt.NDArray[np.float64]
_erf = np.vectorize(erf, otypes=[np.float64])


class Reference:
    """The weights of a checkpoint, by their names there, in float64."""

    def __init__(self, config: BertConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        floats = {name: array for name, array in weights.items() if "position_ids" not in name}
        self.weights: dict[str, Floats] = {n: a.astype(np.float64) for n, a in floats.items()}

    def vectors(self, rows: Sequence[Sequence[int]]) -> Floats:
        """Return each row's mean over tokens, divided by its length."""
        means = np.array([self.hidden(tokens).mean(axis=0) for tokens in rows])
        return np.asarray(means / np.sqrt((means * means).sum(axis=1, keepdims=True)))

    def hidden(self, tokens: Sequence[int]) -> Floats:
        """Return what the last layer makes of tokens, (T, hidden_size)."""
        table = "embeddings.{}_embeddings.weight".format
        x = (
            self.weights[table("word")][np.asarray(tokens)]
            + self.weights[table("position")][: len(tokens)]
            + self.weights[table("token_type")][0]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for layer in range(self.config.num_hidden_layers):
            name = f"encoder.layer.{layer}"
            found = self._linear(self._attention(x, name), f"{name}.attention.output.dense")
            x = self._norm(x + found, f"{name}.attention.output.LayerNorm")
            inner = self._linear(x, f"{name}.intermediate.dense")
            inner = inner * (1 + _erf(inner / np.sqrt(2))) / 2
            found = self._linear(inner, f"{name}.output.dense")
            x = self._norm(x + found, f"{name}.output.LayerNorm")
        return x

    def _linear(self, x: Floats, name: str) -> Floats:
        product = x @ self.weights[f"{name}.weight"].T
        return np.asarray(product + self.weights[f"{name}.bias"])

    def _norm(self, x: Floats, name: str) -> Floats:
        deviation = np.sqrt(x.var(axis=-1, keepdims=True) + self.config.layer_norm_eps)
        scaled = (x - x.mean(axis=-1, keepdims=True)) / deviation
        return np.asarray(scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])

    def _attention(self, x: Floats, name: str) -> Floats:
        def heads(part: str) -> Floats:
            y = self._linear(x, f"{name}.attention.self.{part}")
            heads = y.reshape(len(x), self.config.num_attention_heads, -1)
            return np.asarray(heads.transpose(1, 0, 2))

        query, key, value = heads("query"), heads("key"), heads("value")
        score = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[2])
        weight = np.exp(score - score.max(axis=-1, keepdims=True))
        found = weight / weight.sum(axis=-1, keepdims=True) @ value
        return np.asarray(found.transpose(1, 0, 2).reshape(len(x), -1))
