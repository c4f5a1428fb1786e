"""Turn a Llama-family configuration into the modules that a model is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist import ops
from ark_dist.core.dtype import FP32, INT8, DType
from ark_dist.core.layout import P
from ark_dist.model import Model
from ark_dist.models.llama_config import LlamaConfig
from ark_dist.module import Module
from ark_dist.tensors import Parameter, Tensor


def rope_table(config: LlamaConfig, positions: int) -> npt.NDArray[np.float64]:
    """Cosines and sines of all positions in pairs, (positions, head_dim); Su et al. 2021."""
    depth = config.head_dim
    frequency = config.rope_theta ** (-np.arange(0, depth, 2) / depth)
    angles = np.arange(positions)[:, None] * frequency
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return pairs.reshape(positions, depth)


@dataclass(frozen=True, slots=True)
class Place:
    """Where modules put their weights and caches, and how large those are.

    Attributes:
        graph: the model that they are part of.
        config: the model's sizes.
        batch: rows of the batch.
        capacity: positions that the caches have.
        dtype: of weights and caches; int8 weights are multiplied by it.
        cut: the mesh axis that cuts heads, columns and words; None where there is none.
        name: the module's dotted name, as checkpoints have it.
    """

    graph: Model
    config: LlamaConfig
    batch: int
    capacity: int
    dtype: str
    cut: str | None
    name: str = ""

    def inner(self, name: object) -> Place:
        """The place of a submodule."""
        whole = f"{self.name}.{name}" if self.name else str(name)
        return Place(
            self.graph, self.config, self.batch, self.capacity, self.dtype, self.cut, whole
        )

    def weight(self, shape: tuple[int, ...], shard: P | None = None) -> Parameter:
        """A weight; a matrix may be of int8."""
        dtype = INT8 if len(shape) > 1 and self.config.is_int8 else self.dtype
        return self.graph.parameter(shape, dtype, name=f"{self.name}.weight", shard=shard)

    def scale(self, rows: int, cut: str | None) -> Parameter | None:
        """What the rows of an int8 matrix are multiples of; None where it is none."""
        if not self.config.is_int8:
            return None
        name = f"{self.name}.weight_scale"
        return self.graph.parameter((rows, 1), FP32, name=name, shard=P(cut, None))


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one method read besides their input.

    Attributes:
        angles: the rotary embedding's table.
        position: int32 (B,), where each row's first token goes in the caches.
        length: int32 (B,), how many entries of the caches its last token may see.
    """

    angles: Tensor
    position: Tensor
    length: Tensor


class Norm(Module):
    """Rows divided by their root mean square, times a weight: from fp32 to the weights' dtype."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.eps = place.config.rms_norm_eps
        self.weight = place.weight((place.config.hidden_size,))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows, scaled."""
        return ops.rmsnorm(x, self.weight, eps=self.eps)


class Matrix(Module):
    """A weight of shape (out, in), of which ranks have rows or columns.

    One of int8 has a scale of shape (out, 1): row i stands for scale[i] * weight[i].
    """

    def __init__(self, place: Place, inputs: int, outputs: int, *, is_row_cut: bool) -> None:
        super().__init__()
        cut = place.cut
        shard = P(cut, None) if is_row_cut else P(None, cut)
        self.weight = place.weight((outputs, inputs), shard)
        self.weight_scale = place.scale(outputs, cut if is_row_cut else None)

    def product(self, x: Tensor, dtype: DType, *, name: str | None = None) -> Tensor:
        """Return x weight^T, rounded once."""
        if self.weight_scale is None:
            return ops.matmul(x, self.weight, transpose_other=True, dtype=dtype, name=name)
        units = ops.matmul(x, self.weight, transpose_other=True, dtype=FP32)
        scale = self.weight_scale.reshape(-1)
        if dtype is FP32:
            return ops.mul(units, scale, name=name)
        return ops.cast(units * scale, dtype, name=name)


class Linear(Matrix):
    """A product with a matrix, in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x weight^T."""
        return self.product(x, x.dtype)


class Sum(Matrix):
    """A product that is added to others: in fp32, and so are the parts that ranks have of it."""

    def __init__(self, place: Place, inputs: int, outputs: int) -> None:
        super().__init__(place, inputs, outputs, is_row_cut=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x weight^T, in fp32."""
        return self.product(x, FP32)


class Head(Matrix):
    """What logits of all words are products with.

    They are fp32: rounded to 16 bits, near ties would be decided by how ranks add up.
    """

    def __init__(self, place: Place) -> None:
        config = place.config
        super().__init__(place, config.hidden_size, config.vocab_size, is_row_cut=True)


class Embedding(Head):
    """A table with one row per token, of which ranks have some rows each; it can be the head."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of the tokens, in fp32."""
        rows = ops.cast(ops.embedding(tokens, self.weight), FP32)
        if self.weight_scale is None:
            return rows
        return rows * ops.embedding(tokens, self.weight_scale)


class Attention(Module):
    """Attention of grouped heads over a cache of keys and values, which is state."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        config = place.config
        self.depth = config.head_dim
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        hidden, inner = config.hidden_size, self.heads * self.depth
        outer = self.groups * self.depth
        self.q_proj = Linear(place.inner("q_proj"), hidden, inner, is_row_cut=True)
        self.k_proj = Linear(place.inner("k_proj"), hidden, outer, is_row_cut=True)
        self.v_proj = Linear(place.inner("v_proj"), hidden, outer, is_row_cut=True)
        self.o_proj = Sum(place.inner("o_proj"), inner, hidden)
        shape = (place.batch, place.capacity, self.groups, self.depth)
        self.keys, self.values = (
            place.graph.state(shape, place.dtype, name=f"{place.name}.{name}")
            for name in ("keys", "values")
        )

    def fill(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Write the keys and values of x (B, T, hidden) into the caches; returns those."""
        key = self._turned(self.k_proj, self.groups, x, step)
        value = self._split(self.v_proj(x), self.groups)
        keys = ops.scatter(self.keys, key, step.position, axis=1)
        return keys, ops.scatter(self.values, value, step.position, axis=1)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Return what x (B, T, hidden) finds in the caches, itself included; in fp32."""
        query = self._turned(self.q_proj, self.heads, x, step)
        keys, values = self.fill(x, step)
        found = ops.attention(query, keys, values, step.length)
        batch, times = x.shape[:2]
        result: Tensor = self.o_proj(found.reshape(batch, times, self.heads * self.depth))
        return result

    def _split(self, x: Tensor, count: int) -> Tensor:
        batch, times = x.shape[:2]
        return x.reshape(batch, times, count, self.depth)

    def _turned(self, projection: Linear, count: int, x: Tensor, step: Step) -> Tensor:
        """Queries or keys, rounded once: after the rotary embedding."""
        heads = self._split(projection.product(x, FP32), count)
        return ops.rope(heads, step.angles, step.position, interleaved=False, dtype=x.dtype)


class Gated(Module):
    """The gated layer: down(silu(gate(x)) * up(x)); Shazeer 2020."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        hidden, inner = place.config.hidden_size, place.config.intermediate_size
        self.gate_proj = Linear(place.inner("gate_proj"), hidden, inner, is_row_cut=True)
        self.up_proj = Linear(place.inner("up_proj"), hidden, inner, is_row_cut=True)
        self.down_proj = Sum(place.inner("down_proj"), inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result for x (B, T, hidden), in fp32."""
        result: Tensor = self.down_proj(ops.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Layer(Module):
    """One block: attention and the gated layer, each after a norm and with a residual.

    Residuals add up in fp32: after 30 blocks sums of bf16 would have lost more than all else.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.input_layernorm = Norm(place.inner("input_layernorm"))
        self.self_attn = Attention(place.inner("self_attn"))
        self.post_attention_layernorm = Norm(place.inner("post_attention_layernorm"))
        self.mlp = Gated(place.inner("mlp"))

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Return the next layer's input."""
        found: Tensor = self.self_attn(self.input_layernorm(x), step)
        y = x + found
        inner: Tensor = self.mlp(self.post_attention_layernorm(y))
        return y + inner

    def fill(self, x: Tensor, step: Step) -> None:
        """Write the caches alone: of a prompt's last layer nothing else is needed."""
        self.self_attn.fill(self.input_layernorm(x), step)


class Layers(Module):
    """The blocks, named by number; each belongs to a stage of the pipeline."""

    def __init__(self, place: Place, stages: int) -> None:
        super().__init__()
        self.graph, self.stages = place.graph, stages
        self.blocks = [Layer(place.inner(i)) for i in range(place.config.num_hidden_layers)]
        for i, block in enumerate(self.blocks):
            self.register_module(str(i), block)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Return the last block's result."""
        for i, block in enumerate(self.blocks):
            with self.graph.stage(self.stage_of(i)):
                x = block(x, step)
        return x

    def fill(self, x: Tensor, step: Step) -> None:
        """Write the caches of all blocks."""
        *others, last = self.blocks
        for i, block in enumerate(others):
            with self.graph.stage(self.stage_of(i)):
                x = block(x, step)
        with self.graph.stage(self.stages - 1):
            last.fill(x, step)

    def stage_of(self, block: int) -> int:
        """The stage that a block runs in."""
        return block * self.stages // len(self.blocks)


class Body(Module):
    """Embedding, blocks and the last norm: what checkpoints call `model`."""

    def __init__(self, place: Place, stages: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(place.inner("embed_tokens"))
        self.layers = Layers(place.inner("layers"), stages)
        self.norm = Norm(place.inner("norm"))

    def forward(self, tokens: Tensor, step: Step) -> Tensor:
        """Return the last block's result for tokens (B, T)."""
        result: Tensor = self.layers(self.embed_tokens(tokens), step)
        return result

    def fill(self, tokens: Tensor, step: Step) -> None:
        """Write the caches of all blocks for tokens (B, T)."""
        self.layers.fill(self.embed_tokens(tokens), step)
