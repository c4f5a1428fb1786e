"""A small Llama-like model for tests: a graph with the methods prefill and decode, and NumPy."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.graph import Graph
from ark_dist.core.op import Array, AttrValue

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
EPS = 1e-5


@dataclass(frozen=True)
class Config:
    """Sizes; `end` is the token that ends a run once all rows of the batch have it.

    With `is_output_major` weights are (out, in), as checkpoints have them, else (in, out).
    """

    batch: int = 1
    prompt: int = 5
    layers: int = 2
    hidden: int = 32
    heads: int = 6
    groups: int = 2
    depth: int = 8
    inner: int = 48
    vocabulary: int = 61
    positions: int = 40
    dtype: str = "fp32"
    is_per_row: bool = False
    is_output_major: bool = False
    end: int = -1
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Transformer:
    """A model's graph, and the handles that a test writes and reads."""

    config: Config
    graph: Graph
    weights: dict[str, Value]
    prompt: Value
    tokens: Value
    position: Value
    logits: dict[str, Value]


def rope_table(config: Config) -> Floats:
    """Cosines and sines of all positions in pairs, (positions, depth)."""
    frequency = 10000.0 ** (-np.arange(0, config.depth, 2) / config.depth)
    angles = np.arange(config.positions)[:, None] * frequency
    pairs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return pairs.reshape(config.positions, config.depth)


def weight_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {"embedding": (c.vocabulary, c.hidden)}
    for layer in range(c.layers):
        part = {
            "norm": (c.hidden,),
            "query": (c.hidden, c.heads * c.depth),
            "key": (c.hidden, c.groups * c.depth),
            "value": (c.hidden, c.groups * c.depth),
            "output": (c.heads * c.depth, c.hidden),
            "inner_norm": (c.hidden,),
            "gate": (c.hidden, c.inner),
            "up": (c.hidden, c.inner),
            "down": (c.inner, c.hidden),
        }
        if c.is_output_major:
            part = {name: shape[::-1] for name, shape in part.items()}
        shapes |= {f"layer_{layer}.{name}": shape for name, shape in part.items()}
    return shapes | {"norm": (c.hidden,), "head": (c.vocabulary, c.hidden)}


def random_weights(config: Config, seed: int) -> dict[str, Array]:
    """Weights that keep values near 1 and give clear winners."""
    rng = np.random.default_rng(seed)
    dtype = GraphBuilder().tensor((1,), config.dtype).view.dtype.numpy
    weights = {}
    for name, shape in weight_shapes(config).items():
        inner = shape[-1 if config.is_output_major else 0]
        scale = 1.0 if len(shape) == 1 or name == "embedding" else inner**-0.5
        data = rng.normal(size=shape) * scale + (1.0 if len(shape) == 1 else 0.0)
        weights[name] = data.astype(dtype)
    return weights


class _Builder:
    """Adds the operators of one method."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.graph = GraphBuilder("transformer")
        c = config
        self.weights = {
            name: self.graph.parameter(shape, c.dtype, name=name)
            for name, shape in weight_shapes(c).items()
        }
        self.table = self.graph.constant(rope_table(c), (c.positions, c.depth), "fp32")
        one = (c.batch,) if c.is_per_row else (1,)
        self.position = self.graph.state(one, "int32", name="position")
        self.token = self.graph.state((c.batch,), "int32", name="token")
        self.tokens = self.graph.state((c.batch, c.positions + 1), "int32", name="tokens")
        self.heat = self.graph.state((1,), "fp32", name="temperature")
        self.graph.command_scalar(self.heat)
        cache = (c.batch, c.positions, c.groups, c.depth)
        self.caches = [
            tuple(self.graph.state(cache, c.dtype, name=f"{n}_{i}") for n in ("keys", "values"))
            for i in range(c.layers)
        ]

    def apply(
        self, op: str, *inputs: Value | float, output: Value | None = None, **attrs: AttrValue
    ) -> Value:
        return self.graph.apply(op, inputs, attrs, output=output)

    def product(self, x: Value, weight: str) -> Value:
        turned = self.config.is_output_major
        return self.apply("matmul", x, self.weights[weight], transpose_other=turned)

    def heads(self, x: Value, weight: str, count: int) -> Value:
        product = self.product(x, weight)
        shape = (*x.view.shape[:2], count, self.config.depth)
        return self.apply("reshape", product, shape=shape)

    def norm(self, x: Value, weight: str) -> Value:
        return self.apply("rmsnorm", x, self.weights[weight], axis=-1, eps=EPS)

    def attention(self, x: Value, layer: int, length: Value) -> Value:
        c, name = self.config, f"layer_{layer}."
        q = self.heads(x, name + "query", c.heads)
        k, v = (self.heads(x, name + n, c.groups) for n in ("key", "value"))
        q, k = (self.apply("rope", y, self.table, self.position, interleaved=False) for y in (q, k))
        keys, values = (
            self.apply("scatter", cache, new, self.position, axis=1, output=cache)
            for cache, new in zip(self.caches[layer], (k, v), strict=True)
        )
        mixed = self.apply("attention", q, keys, values, length, causal=True)
        flat = self.apply("reshape", mixed, shape=(*x.view.shape[:2], c.heads * c.depth))
        return self.product(flat, name + "output")

    def block(self, x: Value, layer: int, length: Value) -> Value:
        name = f"layer_{layer}."
        x = self.apply("add", x, self.attention(self.norm(x, name + "norm"), layer, length))
        y = self.norm(x, name + "inner_norm")
        gate = self.apply("silu", self.product(y, name + "gate"))
        inner = self.apply("mul", gate, self.product(y, name + "up"))
        return self.apply("add", x, self.product(inner, name + "down"))

    def method(self, name: str, tokens: Value) -> Value:
        """All of one step, from tokens (B, T) to the next token; returns the logits."""
        c = self.config
        self.graph.select_method(name)
        x = self.apply("embedding", tokens, self.weights["embedding"])
        times = tokens.view.shape[1]
        length = self.apply("add", self.position, times)
        for layer in range(c.layers):
            x = self.block(x, layer, length)
        last = self.apply("narrow", x, axis=1, start=times - 1, length=1)
        row = self.apply("reshape", self.norm(last, "norm"), shape=(c.batch, c.hidden))
        logits = self.apply("matmul", row, self.weights["head"], transpose_other=True)
        self.graph.keep(logits)
        self.apply("sample", logits, length, self.heat, c.top_k, c.top_p, c.seed, output=self.token)
        column = self.apply("reshape", self.token, shape=(c.batch, 1))
        self.apply("scatter", self.tokens, column, length, axis=1, output=self.tokens)
        self.apply("copy", length, output=self.position)
        return logits

    def stop(self) -> None:
        """End the run once all rows have the end token."""
        is_end = self.apply("cast", self.apply("equal", self.token, self.config.end), dtype="int32")
        self.apply("stop_when", self.apply("reduce_min", is_end, axis=0, keepdims=True))


def transformer(config: Config) -> Transformer:
    """Build both methods; they share weights, caches and positions."""
    builder = _Builder(config)
    builder.graph.select_method("prefill")
    prompt = builder.graph.tensor((config.batch, config.prompt), "int32", name="prompt")
    logits = {"prefill": builder.method("prefill", prompt)}
    builder.graph.select_method("decode")
    token = builder.apply("reshape", builder.token, shape=(config.batch, 1))
    logits["decode"] = builder.method("decode", token)
    builder.stop()
    graph = builder.graph.freeze()
    return Transformer(
        config, graph, builder.weights, prompt, builder.tokens, builder.position, logits
    )


# The same in NumPy: no cache, all positions of one sequence at once.


def _norm(x: Floats, weight: Floats) -> Floats:
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight)


def _turned(x: Floats, config: Config) -> Floats:
    """Half-split rotation of (T, heads, depth) by complex numbers."""
    table = rope_table(config).astype(np.float32).astype(np.float64)[: len(x), None]
    half = config.depth // 2
    pairs = (x[..., :half] + 1j * x[..., half:]) * (table[..., ::2] + 1j * table[..., 1::2])
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def _attention(x: Floats, w: dict[str, Floats], name: str, c: Config) -> Floats:
    count = len(x)
    q = _turned((x @ w[name + "query"]).reshape(count, c.heads, c.depth), c)
    k = _turned((x @ w[name + "key"]).reshape(count, c.groups, c.depth), c)
    v = (x @ w[name + "value"]).reshape(count, c.groups, c.depth)
    mixed = np.zeros((count, c.heads, c.depth))
    for t, h in np.ndindex(count, c.heads):
        group = h // (c.heads // c.groups)
        score = k[: t + 1, group] @ q[t, h] / np.sqrt(c.depth)
        weight = np.exp(score - score.max())
        mixed[t, h] = weight / weight.sum() @ v[: t + 1, group]
    return np.asarray(mixed.reshape(count, -1) @ w[name + "output"])


def sequence_logits(config: Config, weights: dict[str, Array], tokens: Ints) -> Floats:
    """Logits (T, vocabulary) after each token of one sequence, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    if config.is_output_major:
        w |= {name: w[name].T for name in w if "layer" in name}
    x = w["embedding"][tokens]
    for layer in range(config.layers):
        name = f"layer_{layer}."
        x = x + _attention(_norm(x, w[name + "norm"]), w, name, config)
        y = _norm(x, w[name + "inner_norm"])
        gate = y @ w[name + "gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[name + "up"])) @ w[name + "down"]
    return np.asarray(_norm(x, w["norm"]) @ w["head"].T)
