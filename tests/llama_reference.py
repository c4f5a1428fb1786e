"""A Llama-family model in NumPy, written from the formulas: no cache, one sequence at a time."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ark_dist.core.op import Array
from ark_dist.models.llama_config import LlamaConfig

Floats = npt.NDArray[np.floating]


class Reference:
    """The weights of a checkpoint, by their names there, in float32 or float64."""

    def __init__(
        self,
        config: LlamaConfig,
        weights: Mapping[str, Array],
        dtype: type[np.floating] = np.float64,
    ) -> None:
        self.config, self.dtype = config, dtype
        self.weights: dict[str, Floats] = {
            name: array.astype(dtype) for name, array in weights.items()
        }

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits (T, vocabulary) after each of the tokens."""
        embedding = self.weights["model.embed_tokens.weight"]
        x = embedding[np.asarray(tokens)]
        for layer in range(self.config.num_hidden_layers):
            name = f"model.layers.{layer}"
            x = x + self._attention(self._norm(x, f"{name}.input_layernorm"), f"{name}.self_attn")
            x = x + self._gated(self._norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        head = embedding if self.config.tie_word_embeddings else self.weights["lm_head.weight"]
        return np.asarray(self._norm(x, "model.norm") @ head.T)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The likeliest tokens after a prompt."""
        tokens = [*prompt]
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def _norm(self, x: Floats, name: str) -> Floats:
        mean = (x * x).mean(axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + self.config.rms_norm_eps) * self._weight(name))

    def _weight(self, name: str) -> Floats:
        return self.weights[f"{name}.weight"]

    def _heads(self, x: Floats, name: str) -> Floats:
        """(heads, T, head_dim)."""
        y = x @ self._weight(name).T
        return np.asarray(y.reshape(len(x), -1, self.config.head_dim).transpose(1, 0, 2))

    def _turned(self, x: Floats) -> Floats:
        """Each pair (i, i + head_dim / 2) turned by its angle, as complex numbers."""
        half = self.config.head_dim // 2
        speed = self.config.rope_theta ** (-np.arange(half) / half)
        turn = np.exp(1j * np.outer(np.arange(x.shape[1]), speed))
        pairs = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([pairs.real, pairs.imag], axis=-1).astype(self.dtype)

    def _attention(self, x: Floats, name: str) -> Floats:
        config, count = self.config, len(x)
        shared = config.num_attention_heads // config.num_key_value_heads
        query = self._turned(self._heads(x, f"{name}.q_proj"))
        key = self._turned(self._heads(x, f"{name}.k_proj")).repeat(shared, axis=0)
        value = self._heads(x, f"{name}.v_proj").repeat(shared, axis=0)
        score = query @ key.transpose(0, 2, 1) / np.asarray(config.head_dim**0.5, self.dtype)
        score = np.where(np.tri(count, dtype=bool), score, -np.inf)
        weight = np.exp(score - score.max(axis=-1, keepdims=True))
        found = weight / weight.sum(axis=-1, keepdims=True) @ value
        return np.asarray(
            found.transpose(1, 0, 2).reshape(count, -1) @ self._weight(f"{name}.o_proj").T
        )

    def _gated(self, x: Floats, name: str) -> Floats:
        gate = x @ self._weight(f"{name}.gate_proj").T
        inner = gate / (1 + np.exp(-gate)) * (x @ self._weight(f"{name}.up_proj").T)
        return np.asarray(inner @ self._weight(f"{name}.down_proj").T)
