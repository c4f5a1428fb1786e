"""What is measured: operands, the same for both sides, our graph, and the truth in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import erf, prod

import numpy as np
import numpy.typing as npt

from ark_dist.core.dtype import as_dtype
from ark_dist.core.shape import Shape
from ark_dist.model import Model
from ark_dist.tensors import Tensor

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]

# Large operands repeat their first rows, so that the truth is computed of these alone.
PERIOD = 2048
# Largest error in units of the largest result: some roundings of intermediate results in the dtype.
TOLERANCES = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}
LAYERNORM_EPS, RMSNORM_EPS = 1e-5, 1e-6
CHAIN_FACTOR = 0.5


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of work.

    Attributes:
        build: adds it to a model.
        truth: the same in float64.
        weights: which operands are parameters; the others have as many rows as the first.
    """

    build: Callable[[Model, Sequence[Tensor]], Tensor]
    truth: Callable[[Sequence[Floats]], Floats]
    weights: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of work at one size; `operations` counts arithmetic where that can be the limit."""

    kind: str
    name: str
    dtype: str
    shapes: tuple[Shape, ...]
    operations: float = 0.0

    @property
    def read_bytes(self) -> int:
        """Bytes of all operands."""
        return sum(map(prod, self.shapes)) * as_dtype(self.dtype).itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters."""
        weights = (prod(self.shapes[w]) for w in OPERATIONS[self.kind].weights)
        return sum(weights) * as_dtype(self.dtype).itemsize

    def operands(self, *, is_whole: bool) -> list[Array]:
        """Standard normal numbers, the same in every process; without `is_whole` one period."""
        random = np.random.default_rng(0)
        found = []
        for index, shape in enumerate(self.shapes):
            is_weight = index in OPERATIONS[self.kind].weights
            rows = shape[0] if is_weight else min(shape[0], PERIOD)
            assert is_weight or shape[0] % rows == 0, f"{self.name}: rows do not repeat"
            values = random.standard_normal((rows, *shape[1:]), np.float32)
            part = values.astype(as_dtype(self.dtype).numpy)
            times = shape[0] // rows if is_whole else 1
            found.append(np.tile(part, (times, *[1] * (part.ndim - 1))))
        return found

    def truth(self) -> Floats:
        """The first period of the result in float64."""
        operands = [a.astype(np.float64) for a in self.operands(is_whole=False)]
        return OPERATIONS[self.kind].truth(operands)

    def check(self, result: Array, who: str) -> None:
        """Raise where a whole result is not what it must be."""
        truth = self.truth()
        allowed = TOLERANCES[self.dtype] * float(np.abs(truth).max())
        parts = result.reshape(-1, *truth.shape)
        for part in parts:
            error = float(np.abs(part.astype(np.float64) - truth).max())
            if not error <= allowed:  # NaN also is wrong
                raise ArithmeticError(
                    f"{who}: {self.name} in {self.dtype} is off by {error:.3g}, "
                    f"allowed are {allowed:.3g}"
                )


def _softmax(x: Floats) -> Floats:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _layernorm(v: Sequence[Floats]) -> Floats:
    x, weight, bias = v
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + LAYERNORM_EPS) * weight + bias)


def _rmsnorm(v: Sequence[Floats]) -> Floats:
    x, weight = v
    return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + RMSNORM_EPS) * weight)


def _silu(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-x)))


def _gelu(v: Sequence[Floats]) -> Floats:
    return np.asarray(v[0] / 2 * (1 + np.vectorize(erf)(v[0] / 2**0.5)))


def _gelu_tanh(v: Sequence[Floats]) -> Floats:
    x = v[0]
    return np.asarray(x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))


def _rope(v: Sequence[Floats]) -> Floats:
    x, table = v
    half = x.shape[-1] // 2
    cos, sin = table[..., 0::2], table[..., 1::2]
    left, right = x[..., :half], x[..., half:]
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _attention(v: Sequence[Floats]) -> Floats:
    query, key, value = (a.transpose(0, 2, 1, 3) for a in v)  # to (B, heads, T, D)
    key, value = (a.repeat(query.shape[1] // key.shape[1], axis=1) for a in (key, value))
    scores = query @ key.swapaxes(-1, -2) * query.shape[-1] ** -0.5
    count, seen = scores.shape[-2:]
    hidden = np.triu(np.ones((count, seen), bool), k=seen - count + 1)
    mixed = _softmax(np.where(hidden, -np.inf, scores)) @ value
    return np.asarray(mixed.transpose(0, 2, 1, 3))


def _chain(v: Sequence[Floats]) -> Floats:
    x, y = v
    return np.maximum(_silu(x * y + x) * CHAIN_FACTOR - x, y)


def _build_chain(model: Model, v: Sequence[Tensor]) -> Tensor:
    x, y = v
    gated = model.silu(model.add(model.mul(x, y), x))
    return model.maximum(model.sub(model.mul(gated, CHAIN_FACTOR), x), y)


OPERATIONS: dict[str, Operation] = {
    "attention": Operation(lambda m, v: m.attention(v[0], v[1], v[2]), _attention),
    "chain": Operation(_build_chain, _chain),
    "gelu": Operation(lambda m, v: m.gelu(v[0]), _gelu),
    "gelu tanh": Operation(lambda m, v: m.gelu(v[0], approximate="tanh"), _gelu_tanh),
    "layernorm": Operation(
        lambda m, v: m.layernorm(v[0], v[1], v[2], eps=LAYERNORM_EPS), _layernorm, (1, 2)
    ),
    "matmul": Operation(lambda m, v: m.matmul(v[0], v[1]), lambda v: v[0] @ v[1], (1,)),
    "mlp": Operation(
        lambda m, v: m.matmul(m.matmul(v[0], v[1], is_relu=True), v[2]),
        lambda v: np.asarray(np.maximum(v[0] @ v[1], 0) @ v[2]),
        (1, 2),
    ),
    "reduce_sum": Operation(
        lambda m, v: m.reduce_sum(v[0], axis=-1), lambda v: np.asarray(v[0].sum(-1, keepdims=True))
    ),
    "rmsnorm": Operation(lambda m, v: m.rmsnorm(v[0], v[1], eps=RMSNORM_EPS), _rmsnorm, (1,)),
    "rope": Operation(lambda m, v: m.rope(v[0], v[1], interleaved=False), _rope),
    "silu": Operation(lambda m, v: m.silu(v[0]), lambda v: _silu(v[0])),
    "softmax": Operation(lambda m, v: m.softmax(v[0]), lambda v: _softmax(v[0])),
}
