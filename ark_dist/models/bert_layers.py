"""Turn the configuration of a BERT into the modules that a model is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ark_dist import ops
from ark_dist.core.dtype import FP32
from ark_dist.core.layout import P
from ark_dist.model import Model
from ark_dist.models.bert_config import BertConfig
from ark_dist.module import Module
from ark_dist.tensors import Parameter, Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where modules put their weights, and how large those are.

    Attributes:
        graph: the model that they are part of.
        config: the model's sizes.
        dtype: of weights and products.
        cut: the mesh axis that cuts heads, columns and words; None where there is none.
        name: the module's dotted name, as checkpoints have it.
    """

    graph: Model
    config: BertConfig
    dtype: str
    cut: str | None
    name: str = ""

    def inner(self, name: object) -> Place:
        """The place of a submodule."""
        return replace(self, name=f"{self.name}.{name}" if self.name else str(name))

    def weight(self, shape: tuple[int, ...], shard: P | None = None) -> Parameter:
        """A weight."""
        return self.graph.parameter(shape, self.dtype, name=f"{self.name}.weight", shard=shard)

    def bias(self, size: int, shard: P | None = None) -> Parameter:
        """A bias."""
        return self.graph.parameter((size,), self.dtype, name=f"{self.name}.bias", shard=shard)


def as_type(x: Tensor, dtype: str) -> Tensor:
    """Return x in this dtype; as it is where it has it."""
    return x if x.dtype.name == dtype else ops.cast(x, dtype)


def widened(x: Tensor) -> Tensor:
    """Return x in fp32."""
    return as_type(x, FP32.name)


class Norm(Module):
    """Rows shifted and scaled to mean 0 and variance 1, then by a weight and a bias; fp32."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        size = place.config.hidden_size
        self.eps = place.config.layer_norm_eps
        self.weight, self.bias = place.weight((size,)), place.bias(size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows, scaled."""
        return ops.layernorm(x, widened(self.weight), widened(self.bias), eps=self.eps)


class Linear(Module):
    """A product with a weight of shape (out, in), of which ranks have rows or columns; a bias."""

    def __init__(self, place: Place, inputs: int, outputs: int, *, is_row_cut: bool) -> None:
        super().__init__()
        cut = place.cut
        self.weight = place.weight((outputs, inputs), P(cut, None) if is_row_cut else P(None, cut))
        self.bias = place.bias(outputs, P(cut) if is_row_cut else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x weight^T + bias."""
        return ops.matmul(x, self.weight, transpose_other=True) + self.bias

    def wide(self, x: Tensor) -> Tensor:
        """Return the same in fp32: what ranks have of a sum is added with all its digits."""
        product = ops.matmul(x, self.weight, transpose_other=True, dtype=FP32)
        return product + widened(self.bias)


class Table(Module):
    """A table with one row for each of `rows` things."""

    def __init__(self, place: Place, rows: int, shard: P | None = None) -> None:
        super().__init__()
        self.weight = place.weight((rows, place.config.hidden_size), shard)

    def forward(self, index: Tensor) -> Tensor:
        """Return the rows of the things, in fp32."""
        return widened(ops.embedding(index, self.weight))

    def part(self, rows: int) -> Tensor:
        """Return the first rows, in fp32."""
        return widened(self.weight[:rows])


class Embeddings(Module):
    """The sum of what tokens, their positions and their types begin with; a norm.

    Ranks have some words each; the other tables are small.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        config = place.config

        def table(name: str, rows: int, shard: P | None = None) -> Table:
            return Table(place.inner(name), rows, shard)

        self.word_embeddings = table("word_embeddings", config.vocab_size, P(place.cut, None))
        self.position_embeddings = table("position_embeddings", config.max_position_embeddings)
        self.token_type_embeddings = table("token_type_embeddings", config.type_vocab_size)
        self.LayerNorm = Norm(place.inner("LayerNorm"))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the first layer's input for tokens (B, T), all of the first type."""
        place = self.position_embeddings.part(tokens.shape[1])
        x = self.word_embeddings(tokens) + (place + self.token_type_embeddings.part(1))
        result: Tensor = self.LayerNorm(x)
        return result


class Heads(Module):
    """Attention of every token to all tokens of its row: what checkpoints call `self`."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        size = place.config.hidden_size
        self.heads = place.config.num_attention_heads
        self.query = Linear(place.inner("query"), size, size, is_row_cut=True)
        self.key = Linear(place.inner("key"), size, size, is_row_cut=True)
        self.value = Linear(place.inner("value"), size, size, is_row_cut=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return what x (B, T, hidden) finds in the first `lengths` tokens of its row."""
        batch, times, size = x.shape
        shape = batch, times, self.heads, size // self.heads
        query, key, value = (
            linear(x).reshape(*shape) for linear in (self.query, self.key, self.value)
        )
        found = ops.attention(query, key, value, lengths, causal=False)
        return found.reshape(batch, times, size)


class Output(Module):
    """The end of half a layer: a product, the half's input added, a norm."""

    def __init__(self, place: Place, inputs: int) -> None:
        super().__init__()
        size = place.config.hidden_size
        self.dense = Linear(place.inner("dense"), inputs, size, is_row_cut=False)
        self.LayerNorm = Norm(place.inner("LayerNorm"))

    def forward(self, found: Tensor, x: Tensor) -> Tensor:
        """Return the rows in fp32: with each layer a sum of 16 bits would lose some."""
        y: Tensor = self.LayerNorm(x + self.dense.wide(found))
        return y


class Attention(Module):
    """The first half of a layer."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.dtype = place.dtype
        self.self = Heads(place.inner("self"))
        self.output = Output(place.inner("output"), place.config.hidden_size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the second half's input."""
        y: Tensor = self.output(self.self(as_type(x, self.dtype), lengths), x)
        return y


class Intermediate(Module):
    """The inner product of a layer's second half."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        config = place.config
        sizes = config.hidden_size, config.intermediate_size
        self.dense = Linear(place.inner("dense"), *sizes, is_row_cut=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return gelu(dense(x))."""
        return ops.gelu(self.dense(x))


class Layer(Module):
    """One block: attention and two products, each with a residual and then a norm."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.dtype = place.dtype
        self.attention = Attention(place.inner("attention"))
        self.intermediate = Intermediate(place.inner("intermediate"))
        self.output = Output(place.inner("output"), place.config.intermediate_size)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the next layer's input."""
        y: Tensor = self.attention(x, lengths)
        z: Tensor = self.output(self.intermediate(as_type(y, self.dtype)), y)
        return z


class Layers(Module):
    """The blocks, named by number."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.blocks = [Layer(place.inner(i)) for i in range(place.config.num_hidden_layers)]
        for i, block in enumerate(self.blocks):
            self.register_module(str(i), block)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the last block's result."""
        for block in self.blocks:
            x = block(x, lengths)
        return x


class Encoder(Module):
    """What checkpoints call `encoder`: the blocks."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.layer = Layers(place.inner("layer"))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the last block's result."""
        result: Tensor = self.layer(x, lengths)
        return result
