"""Write every operator's result down a second time, in float64, with the error it may have."""

from collections.abc import Callable

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


def _reduced(value: Array, attrs: Attrs) -> Array:
    return np.expand_dims(value, _axis(attrs)) if attrs["keepdims"] else value


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


def _layernorm(inputs: Inputs, attrs: Attrs) -> Array:
    x, axis, eps = inputs[0], _axis(attrs), attrs["eps"]
    assert isinstance(eps, float)
    variance = np.var(x.astype(np.float64), axis=axis, keepdims=True)
    return np.asarray((x - np.mean(x, axis=axis, keepdims=True)) / (variance + eps) ** 0.5)


def _softmax(inputs: Inputs, attrs: Attrs) -> Array:
    x, axis = inputs[0].astype(np.float64), _axis(attrs)
    e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(e / np.sum(e, axis=axis, keepdims=True))


def _argmax(inputs: Inputs, attrs: Attrs) -> Array:
    """The first NaN, else the first of the largest: by a plain loop."""
    rows = np.moveaxis(inputs[0], _axis(attrs), -1)
    found = np.zeros(rows.shape[:-1], np.int32)
    for where in np.ndindex(found.shape):
        best = 0
        for i, x in enumerate(rows[where].tolist()):
            top = rows[where][best]
            if top == top and (x > top or x != x):
                best = i
        found[where] = best
    return _reduced(found, attrs)


def _reduce_max(inputs: Inputs, attrs: Attrs) -> Array:
    rows = np.moveaxis(inputs[0], _axis(attrs), 0)
    found = rows[0].copy() if len(rows) else rows.sum(axis=0)
    for row in rows[1:]:
        found = np.where((row > found) | (row != row), row, found)
    return _reduced(found, attrs)


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


def _narrow(inputs: Inputs, attrs: Attrs) -> Array:
    start, length, axis = attrs["start"], attrs["length"], _axis(attrs)
    assert isinstance(start, int) and isinstance(length, int)
    return np.take(inputs[0], range(start, start + length), axis=axis)


# Inputs come as float64, or as int64 so that overflow shows when the result is cut to its dtype.
FORMULAS: dict[str, Formula] = {
    "add": lambda x, _: x[0] + x[1],
    "sub": lambda x, _: x[0] - x[1],
    "mul": lambda x, _: x[0] * x[1],
    "div": lambda x, _: x[0] / x[1],
    "equal": lambda x, _: x[0] == x[1],
    "greater_equal": lambda x, _: x[0] >= x[1],
    "relu": lambda x, _: np.where(x[0] < 0, np.zeros_like(x[0]), x[0]),
    "copy": lambda x, _: x[0],
    "identity": lambda x, _: x[0],
    "cast": _cast,
    "transpose": _transpose,
    "narrow": _narrow,
    "reshape": lambda x, attrs: np.reshape(x[0], _shape(attrs)),
    "broadcast_to": lambda x, attrs: np.broadcast_to(x[0], _shape(attrs)),
    "embedding": lambda x, _: x[1][x[0]],
    "matmul": _matmul,
    "softmax": _softmax,
    "layernorm": _layernorm,
    "reduce_sum": lambda x, attrs: _reduced(x[0].sum(axis=_axis(attrs)), attrs),
    "reduce_mean": lambda x, attrs: _reduced(
        x[0].sum(axis=_axis(attrs)) / np.float64(x[0].shape[_axis(attrs)]), attrs
    ),
    "reduce_max": _reduce_max,
    "argmax": _argmax,
}


def _sum_bound(x: Inputs, _: Floats, attrs: Attrs) -> Floats:
    """Each of n additions rounds a partial sum of at most sum |x|."""
    total = np.abs(x[0]).sum(axis=_axis(attrs))
    return np.asarray(_reduced(total * x[0].shape[_axis(attrs)], attrs), np.float64)


def _mean_bound(x: Inputs, want: Floats, attrs: Attrs) -> Floats:
    bound: Floats = _sum_bound(x, want, attrs) / max(x[0].shape[_axis(attrs)], 1) + np.abs(want)
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
    bound: Floats = np.abs(want) * (n + 4 + shift) + shift
    return bound


# Roundings in fp32 on the way to the result, as a multiple of its epsilon; 1 for one operation.
BOUNDS: dict[str, Bound] = {
    "reduce_sum": _sum_bound,
    "reduce_mean": _mean_bound,
    "matmul": _matmul_bound,
    "softmax": _softmax_bound,
    "layernorm": _layernorm_bound,
}


def allowed_error(op: str, dtype: str, inputs: Inputs, want: Floats, attrs: Attrs) -> Floats:
    """Half a unit of the result's dtype, plus what arithmetic in fp32 may lose before."""
    with np.errstate(all="ignore"):
        floats = tuple(np.asarray(x, np.float64) for x in inputs)
        lost = BOUNDS[op](floats, want, attrs) if op in BOUNDS else np.abs(want)
        allowed: Floats = EPSILON["fp32"] * lost + EPSILON[dtype] / 2 * np.abs(want)
    return np.asarray(allowed + SMALLEST[dtype], np.float64)
