"""Write every operator's result down a second time, in float64, with the error it may have."""

from collections.abc import Callable
from math import erfc, prod

import numpy as np
import numpy.typing as npt

from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import Array, Attrs
from ark_dist.core.shape import Shape

Floats = npt.NDArray[np.float64]
# Integers come as int64 under this name: the formulas read the same.
Inputs = tuple[Floats, ...]
Formula = Callable[[Inputs, Attrs], Array]
Bound = Callable[[Inputs, Floats, Attrs], Floats]

# Spacing of the numbers just above 1.
EPSILON = {"fp32": 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
SMALLEST = {"fp32": 2.0**-149, "fp16": 2.0**-24, "bf16": 2.0**-133}
# exp by a polynomial of degree 7: within about 2 ulp.
EXP_ULPS = 4


def _axis(attrs: Attrs) -> int:
    axis = attrs["axis"]
    assert isinstance(axis, int)
    return axis


def _shape(attrs: Attrs) -> Shape:
    shape = attrs["shape"]
    assert isinstance(shape, tuple)
    return shape


def _axes(attrs: Attrs, ndim: int) -> tuple[int, ...]:
    """The dimensions that are reduced, counted from 0, in order."""
    axis = attrs["axis"]
    if axis is None:
        return tuple(range(ndim))
    assert isinstance(axis, (int, tuple))
    given = axis if isinstance(axis, tuple) else (axis,)
    return tuple(sorted(item % ndim for item in given))


def _as_rows(x: Array, attrs: Attrs) -> Array:
    """The elements that are reduced to one, as the last of the dimensions that are left."""
    axes = _axes(attrs, x.ndim)
    rows = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    kept = rows.shape[: x.ndim - len(axes)]
    return rows.reshape(*kept, prod(rows.shape[len(kept) :]))


def _reduced(value: Array, x: Array, attrs: Attrs) -> Array:
    """A result without the reduced dimensions, or with size 1 there."""
    return np.expand_dims(value, _axes(attrs, x.ndim)) if attrs["keepdims"] else value


def _matmul_operands(inputs: Inputs, attrs: Attrs) -> tuple[Floats, Floats]:
    a, b = inputs
    return (
        np.swapaxes(a, -1, -2) if attrs["transpose_input"] else a,
        np.swapaxes(b, -1, -2) if attrs["transpose_other"] else b,
    )


def _matmul(inputs: Inputs, attrs: Attrs) -> Array:
    a, b = _matmul_operands(inputs, attrs)
    value: Floats = np.einsum("...mk,...kn->...mn", a, b)
    return np.where(value < 0, 0.0, value) if attrs["is_relu"] else value


def _along(vector: Array, x: Array, axis: int) -> Array:
    """A vector along one dimension of x."""
    return np.moveaxis(vector.reshape(*(1,) * (x.ndim - 1), -1), -1, axis)


def _layernorm(inputs: Inputs, attrs: Attrs) -> Array:
    x, axis, eps = inputs[0], _axis(attrs), attrs["eps"]
    assert isinstance(eps, float)
    variance = np.var(x.astype(np.float64), axis=axis, keepdims=True)
    normed = (x - np.mean(x, axis=axis, keepdims=True)) / (variance + eps) ** 0.5
    weight = _along(inputs[1], x, axis) if len(inputs) > 1 else 1.0
    bias = _along(inputs[2], x, axis) if len(inputs) > 2 else 0.0
    return np.asarray(normed * weight + bias)


def _rmsnorm(inputs: Inputs, attrs: Attrs) -> Array:
    x, axis, eps = inputs[0], _axis(attrs), attrs["eps"]
    assert isinstance(eps, float)
    square = np.sum(x * x, axis=axis, keepdims=True) / x.shape[axis]
    weight = _along(inputs[1], x, axis) if len(inputs) > 1 else 1.0
    return np.asarray(x * (square + eps) ** -0.5 * weight)


def _cumsum(inputs: Inputs, attrs: Attrs) -> Array:
    """One addition after the other, by a plain loop."""
    sums = np.moveaxis(inputs[0].copy(), _axis(attrs), 0)
    for i in range(1, len(sums)):
        sums[i] += sums[i - 1]
    return np.moveaxis(sums, 0, _axis(attrs))


def _softmax(inputs: Inputs, attrs: Attrs) -> Array:
    x, axis = inputs[0].astype(np.float64), _axis(attrs)
    e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / np.sum(e, axis=axis, keepdims=True))


def _argmax(inputs: Inputs, attrs: Attrs) -> Array:
    """The first NaN, else the first of the largest: by a plain loop."""
    rows = _as_rows(inputs[0], attrs)
    found = np.zeros(rows.shape[:-1], np.int32)
    for where in np.ndindex(found.shape):
        best = 0
        for i, x in enumerate(rows[where].tolist()):
            top = rows[where][best]
            if top == top and (x > top or x != x):
                best = i
        found[where] = best
    return _reduced(found, inputs[0], attrs)


def _reduce_max(inputs: Inputs, attrs: Attrs) -> Array:
    rows = np.moveaxis(_as_rows(inputs[0], attrs), -1, 0)
    found = rows[0].copy() if len(rows) else rows.sum(axis=0)
    for row in rows[1:]:
        found = np.where((row > found) | (row != row), row, found)
    return _reduced(found, inputs[0], attrs)


def _reduce_min(inputs: Inputs, attrs: Attrs) -> Array:
    rows = np.moveaxis(_as_rows(inputs[0], attrs), -1, 0)
    found = rows[0].copy() if len(rows) else rows.sum(axis=0)
    for row in rows[1:]:
        found = np.where((row < found) | (row != row), row, found)
    return _reduced(found, inputs[0], attrs)


def _reduce_sum(inputs: Inputs, attrs: Attrs) -> Array:
    return _reduced(_as_rows(inputs[0], attrs).sum(axis=-1), inputs[0], attrs)


def _reduce_mean(inputs: Inputs, attrs: Attrs) -> Array:
    rows = _as_rows(inputs[0], attrs)
    return _reduced(rows.sum(axis=-1) / np.float64(rows.shape[-1]), inputs[0], attrs)


def _cast(inputs: Inputs, attrs: Attrs) -> Array:
    value, target = inputs[0], DTYPES[str(attrs["dtype"])]
    if target.kind == "bool":
        return np.asarray(value != 0)
    if target.is_float:
        return value.astype(np.float64)
    bits = 8 * target.itemsize
    low, high = (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if target.kind == "int" else (0, 2**bits - 1)
    )
    if value.dtype.kind == "f":
        items = [0 if x != x else int(min(max(x, low), high)) for x in value.reshape(-1).tolist()]
    else:
        items = [(int(x) - low) % 2**bits + low for x in value.reshape(-1).tolist()]
    return np.array(items, np.int64).reshape(value.shape)


def _transpose(inputs: Inputs, attrs: Attrs) -> Array:
    perm = attrs["perm"]
    assert perm is None or isinstance(perm, tuple)
    return np.transpose(inputs[0], perm)


def _gather(inputs: Inputs, attrs: Attrs) -> Array:
    """Element by element, as the operator's documentation has it."""
    source, index = inputs
    result = np.zeros(index.shape, source.dtype)
    for place in np.ndindex(index.shape):
        chosen = list(place)
        chosen[_axis(attrs)] = int(index[place])
        result[place] = source[tuple(chosen)]
    return result


def _scatter(inputs: Inputs, attrs: Attrs) -> Array:
    target, source, position = inputs
    axis, result = _axis(attrs) % target.ndim, np.array(target)
    for place in np.ndindex(source.shape):
        chosen = list(place)
        chosen[axis] += int(position.flat[place[0] if position.size > 1 else 0])
        result[tuple(chosen)] = source[place]
    return result


def _split(inputs: Inputs, attrs: Attrs) -> Array:
    size, part, axis = attrs["split_size"], attrs["part"], _axis(attrs)
    assert isinstance(part, int)
    count = inputs[0].shape[axis]
    if isinstance(size, tuple):
        edges = np.cumsum(size)
        return np.asarray(np.split(inputs[0], edges[:-1], axis)[part])
    assert isinstance(size, int)
    return np.take(inputs[0], range(part * size, min((part + 1) * size, count)), axis)


def _sharding(inputs: Inputs, attrs: Attrs) -> Array:
    size, part = attrs["dim_per_shard"], attrs["part"]
    assert isinstance(size, int) and isinstance(part, int)
    axis = _axis(attrs)
    return np.asarray(np.split(inputs[0], inputs[0].shape[axis] // size, axis)[part])


def _slice(inputs: Inputs, attrs: Attrs) -> Array:
    starts, stops, steps = (attrs[name] for name in ("starts", "stops", "steps"))
    assert isinstance(starts, tuple) and isinstance(stops, tuple)
    chosen = steps if isinstance(steps, tuple) else (1,) * len(starts)
    return inputs[0][tuple(slice(*ends) for ends in zip(starts, stops, chosen, strict=True))]


def _im2col(inputs: Inputs, attrs: Attrs) -> Array:
    """Cut each window out of the padded input and lay it flat."""
    numbers = {name: int(str(value)) for name, value in attrs.items()}
    high, wide = numbers["pad_height"], numbers["pad_width"]
    x = np.pad(inputs[0], [(0, 0)] * (inputs[0].ndim - 2) + [(high, high), (wide, wide)])
    reach = [
        numbers[f"dilation_{side}"] * (numbers[f"kernel_{side}"] - 1) + 1
        for side in ("height", "width")
    ]
    windows = [
        x[
            ...,
            y : y + reach[0] : numbers["dilation_height"],
            left : left + reach[1] : numbers["dilation_width"],
        ].reshape(*x.shape[:-3], -1)
        for y in range(0, x.shape[-2] - reach[0] + 1, numbers["stride_height"])
        for left in range(0, x.shape[-1] - reach[1] + 1, numbers["stride_width"])
    ]
    return np.stack(windows, axis=-1)


def _narrow(inputs: Inputs, attrs: Attrs) -> Array:
    start, length, axis = attrs["start"], attrs["length"], _axis(attrs)
    assert isinstance(start, int) and isinstance(length, int)
    return np.take(inputs[0], range(start, start + length), axis=axis)


def _pow(inputs: Inputs, _: Attrs) -> Array:
    x, y = inputs
    if x.dtype.kind == "f":
        return np.asarray(np.power(x, y))
    # Modulo 2^64, from which narrower integers are cut; of negative powers what is left of 1/x.
    inverse = np.select([x == 1, x == -1], [1, np.where(y % 2, -1, 1)], 0)
    return np.where(y < 0, inverse, np.power(x, np.maximum(y, 0)))


def _logistic(x: Floats) -> Floats:
    """Half of 1 + tanh(x / 2), in the form that keeps small values."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def _gelu(inputs: Inputs, attrs: Attrs) -> Array:
    x = inputs[0].astype(np.float64)
    if attrs["approximate"] == "tanh":
        chance = _logistic(2 * (2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x))
    else:
        chance = 0.5 * np.vectorize(erfc, otypes=[np.float64])(-x / 2**0.5)
    return np.where(np.isneginf(x), 0.0, x * chance)


def _silu(inputs: Inputs, _: Attrs) -> Array:
    x = inputs[0].astype(np.float64)
    return np.where(np.isneginf(x), 0.0, x * _logistic(x))


def _embedding(inputs: Inputs, attrs: Attrs) -> Array:
    """Look up in the whole table, of which all but a part is zeros."""
    index, table = inputs
    first, rows = attrs.get("first_row", 0), attrs.get("rows") or len(table)
    assert isinstance(first, int) and isinstance(rows, int)
    whole = np.zeros((rows, table.shape[1]), table.dtype)
    whole[first : first + len(table)] = table
    return np.asarray(whole[index])


def _reduce_parts(inputs: Inputs, attrs: Attrs) -> Array:
    parts, how = np.stack(inputs), attrs["how"]
    total = np.asarray(
        parts.sum(axis=0) if how == "sum" else parts.max(0) if how == "max" else parts.min(0)
    )
    return total if attrs["scale"] is None else total * np.float64(str(attrs["scale"]))


# Inputs come as float64, or as int64 so that overflow shows when the result is cut to its dtype.
FORMULAS: dict[str, Formula] = {
    "add": lambda x, _: x[0] + x[1],
    "sub": lambda x, _: x[0] - x[1],
    "mul": lambda x, _: x[0] * x[1],
    "div": lambda x, _: x[0] / x[1],
    "equal": lambda x, _: x[0] == x[1],
    "greater_equal": lambda x, _: x[0] >= x[1],
    "not_equal": lambda x, _: x[0] != x[1],
    "greater": lambda x, _: x[0] > x[1],
    "less": lambda x, _: x[0] < x[1],
    "less_equal": lambda x, _: x[0] <= x[1],
    "maximum": lambda x, _: np.where((x[1] > x[0]) | (x[1] != x[1]), x[1], x[0]),
    "minimum": lambda x, _: np.where((x[1] < x[0]) | (x[1] != x[1]), x[1], x[0]),
    "where": lambda x, _: np.where(x[0], x[1], x[2]),
    "neg": lambda x, _: 0 - x[0],
    "abs": lambda x, _: np.where(x[0] < 0, 0 - x[0], x[0]),
    "scale": lambda x, attrs: x[0] * np.float64(str(attrs["val"])),
    "pow": _pow,
    "exp": lambda x, _: np.exp(x[0]),
    "log": lambda x, _: np.log(x[0]),
    "sqrt": lambda x, _: np.sqrt(x[0]),
    "rsqrt": lambda x, _: 1 / np.sqrt(x[0]),
    "sin": lambda x, _: np.sin(x[0]),
    "cos": lambda x, _: np.cos(x[0]),
    "tanh": lambda x, _: np.tanh(x[0]),
    "sigmoid": lambda x, _: _logistic(x[0]),
    "silu": _silu,
    "gelu": _gelu,
    "relu": lambda x, _: np.where(x[0] < 0, np.zeros_like(x[0]), x[0]),
    "copy": lambda x, _: x[0],
    "identity": lambda x, _: x[0],
    "cast": _cast,
    "transpose": _transpose,
    "narrow": _narrow,
    "reshape": lambda x, attrs: np.reshape(x[0], _shape(attrs)),
    "broadcast_to": lambda x, attrs: np.broadcast_to(x[0], _shape(attrs)),
    "gather": _gather,
    "scatter": _scatter,
    "concat": lambda x, attrs: np.concatenate(x, _axis(attrs)),
    "split": _split,
    "sharding": _sharding,
    "view": lambda x, attrs: x[0].reshape(_shape(attrs)),
    "slice": _slice,
    "im2col": _im2col,
    "embedding": _embedding,
    "reduce_parts": _reduce_parts,
    "matmul": _matmul,
    "softmax": _softmax,
    "layernorm": _layernorm,
    "rmsnorm": _rmsnorm,
    "cumsum": _cumsum,
    "reduce_sum": _reduce_sum,
    "reduce_mean": _reduce_mean,
    "reduce_max": _reduce_max,
    "reduce_min": _reduce_min,
    "argmax": _argmax,
}


def _sum_bound(x: Inputs, _: Floats, attrs: Attrs) -> Floats:
    """Each addition on the way of a value rounds a partial sum of at most sum |x|."""
    rows = np.abs(_as_rows(x[0], attrs))
    return np.asarray(
        _reduced(rows.sum(axis=-1) * additions(rows.shape[-1]), x[0], attrs), np.float64
    )


def additions(count: int) -> int:
    """How many additions a value goes through in a sum of `count` at most, by blocks of 128.

    On a CPU: those within a block, 4 that join lanes, one per block of 16 lanes. On a GPU a
    thread has fewer, and log2 of the threads at the end.
    """
    return min(count, 128) + 10 + count // 128


def _mean_bound(x: Inputs, want: Floats, attrs: Attrs) -> Floats:
    count = _as_rows(x[0], attrs).shape[-1]
    bound: Floats = _sum_bound(x, want, attrs) / max(count, 1) + np.abs(want)
    return bound


def _cumsum_bound(x: Inputs, _: Floats, attrs: Attrs) -> Floats:
    """Values go through the additions of a block, then one per block."""
    axis = _axis(attrs)
    bound: Floats = np.abs(x[0]).cumsum(axis=axis) * additions(x[0].shape[axis])
    return bound


def _matmul_bound(x: Inputs, _: Floats, attrs: Attrs) -> Floats:
    a, b = _matmul_operands((np.abs(x[0]), np.abs(x[1])), attrs)
    return np.asarray(np.matmul(a, b) * (a.shape[-1] + 1), np.float64)


def _softmax_bound(x: Inputs, want: Floats, attrs: Attrs) -> Floats:
    """The argument of exp rounds, which exp passes on; then n additions, two products."""
    n = x[0].shape[_axis(attrs)]
    spread = np.abs(x[0] - x[0].max(axis=_axis(attrs), keepdims=True, initial=-np.inf))
    far = np.where(np.isfinite(spread), spread, 0.0).max(initial=0.0)
    bound: Floats = np.abs(want) * (n + 2 * far + 2 * EXP_ULPS)
    return bound


def _layernorm_bound(x: Inputs, want: Floats, attrs: Attrs) -> Floats:
    """The mean is off by n roundings of |x|, the variance by n of its own; both divide by it."""
    axis, eps = _axis(attrs), attrs["eps"]
    assert isinstance(eps, float)
    n = x[0].shape[axis]
    deviation = np.sqrt(x[0].var(axis=axis, keepdims=True) + eps)
    size = np.abs(x[0]).max(axis=axis, keepdims=True, initial=0)
    shift = (n + 1) * size / deviation
    # A shift of the mean changes the variance by its product with the deviations left over.
    normed = _layernorm((x[0],), attrs)
    bound: Floats = np.abs(normed) * (n + 4 + shift) + shift
    if len(x) > 1:
        bound = (bound + np.abs(normed)) * np.abs(_along(x[1], x[0], axis))
    return bound + np.abs(want)


def _rmsnorm_bound(x: Inputs, want: Floats, attrs: Attrs) -> Floats:
    """Half the relative error of a sum of squares, then root, division and two products."""
    bound: Floats = np.abs(want) * (additions(x[0].shape[_axis(attrs)]) + 6)
    return bound


def _ulps(count: float) -> Bound:
    """So many units in the last place of fp32, as kernels/include/math.h says."""

    def bound(_: Inputs, want: Floats, attrs: Attrs) -> Floats:
        found: Floats = count * np.abs(want)
        return found

    return bound


def _gelu_bound(x: Inputs, want: Floats, attrs: Attrs) -> Floats:
    """The tanh form's error grows with the exponent, 1.6 |x| (1 + 0.045 x^2) at most."""
    size = np.abs(x[0])
    slope = 3 * 1.6 * size * (1 + 0.045 * size * size) if attrs["approximate"] == "tanh" else 2.0
    bound: Floats = (4 + slope) * np.abs(want)
    return bound


def _parts_bound(x: Inputs, want: Floats, attrs: Attrs) -> Floats:
    """Each addition rounds a partial sum, scaled afterwards, which rounds once more."""
    lost: Floats = np.abs(np.stack(x)).sum(axis=0) * (len(x) if attrs["how"] == "sum" else 0)
    scale = 1.0 if attrs["scale"] is None else float(str(attrs["scale"]))
    return lost * scale + np.abs(want)


# Roundings in fp32 on the way to the result, as a multiple of its epsilon; 1 for one operation.
BOUNDS: dict[str, Bound] = {
    **{name: _ulps(1) for name in ("exp", "log", "pow")},
    "rsqrt": _ulps(1.5),
    **{name: _ulps(2.5) for name in ("sin", "cos", "tanh", "sigmoid")},
    "silu": _ulps(3.5),
    "gelu": _gelu_bound,
    "reduce_sum": _sum_bound,
    "reduce_mean": _mean_bound,
    "matmul": _matmul_bound,
    "softmax": _softmax_bound,
    "layernorm": _layernorm_bound,
    "rmsnorm": _rmsnorm_bound,
    "cumsum": _cumsum_bound,
    "reduce_parts": _parts_bound,
}


def allowed_error(op: str, dtype: str, inputs: Inputs, want: Floats, attrs: Attrs) -> Floats:
    """Half a unit of the result's dtype, plus what arithmetic in fp32 may lose before."""
    with np.errstate(all="ignore"):
        floats = tuple(np.asarray(x, np.float64) for x in inputs)
        lost = BOUNDS[op](floats, want, attrs) if op in BOUNDS else np.abs(want)
        allowed: Floats = EPSILON["fp32"] * lost + EPSILON[dtype] / 2 * np.abs(want)
    return np.asarray(allowed + SMALLEST[dtype], np.float64)
