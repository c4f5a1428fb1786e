"""Elementwise operators: integers, casts, choices, their edges, and what they refuse."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.dtype import DTYPES, FLOATS, INTEGERS, DType
from ark_dist.core.op import OPS
from tests.elementwise_cases import BITS, Use, computed


def python_pow(a: int, b: int, dtype: DType) -> int:
    """A power of Python's integers, wrapped; of negative powers the quotient's whole part."""
    low, high = dtype.limits
    if b < 0:
        return {1: 1, -1: -1 if b % 2 else 1}.get(a, 0)
    count = high - low + 1
    return (pow(a % count, b, count) - low) % count + low


INTEGER_FORMULAS: dict[str, Callable[[int, int], int]] = {
    "maximum": max,
    "minimum": min,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "neg": lambda a, _: -a,
    "abs": lambda a, _: abs(a),
}


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_and_compare_as_python_says(dtype: str, device: str) -> None:
    """All pairs of 8 bits; of 32 bits the ends of the range, small numbers, and random ones."""
    kind = DTYPES[dtype]
    low, high = kind.limits
    rng = np.random.default_rng(3)
    near = [n for n in (low, low + 1, -2, -1, 0, 1, 2, 3, 7, high - 1, high) if n >= low]
    chosen = [*near, *rng.integers(low, high, 40, np.int64, endpoint=True).tolist()]
    every = list(range(low, high + 1)) if kind.itemsize == 1 else chosen
    a, b = (np.array(part, kind.numpy).ravel() for part in np.meshgrid(every, every))
    names = [*INTEGER_FORMULAS, "pow"]
    uses: list[Use] = []
    for name in names:
        count = sum(argument.is_tensor for argument in OPS[name].arguments)
        uses.append((name, {}, [(a, dtype), (b, dtype)][:count]))
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    for name, found in zip(names, computed(uses, device=device), strict=True):
        if name == "pow":
            want = [python_pow(x, y, kind) for x, y in pairs]
        else:
            want = [INTEGER_FORMULAS[name](x, y) for x, y in pairs]
        if found.dtype != np.bool_:
            want = [(n - low) % 2 ** (8 * kind.itemsize) + low for n in want]
        assert found.tolist() == want, name


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_bools_compare_for_equality(device: str) -> None:
    a, b = np.array([0, 0, 1, 1], np.bool_), np.array([0, 1, 0, 1], np.bool_)
    inputs = [(a, "bool"), (b, "bool")]
    same, other = computed([("equal", {}, inputs), ("not_equal", {}, inputs)], device=device)
    assert same.tolist() == [True, False, False, True]
    assert other.tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_nan_wins_and_signs_of_zero_stay(device: str, dtype: str) -> None:
    special = np.array([np.nan, -np.inf, -1.5, -0.0, 0.0, 2.0, np.inf]).astype(DTYPES[dtype].numpy)
    a, b = (part.ravel() for part in np.meshgrid(special, special))
    pair = [(a, dtype), (b, dtype)]
    uses: list[Use] = [("maximum", {}, pair), ("minimum", {}, pair)]
    uses += [("neg", {}, pair[:1]), ("abs", {}, pair[:1])]
    most, least, negative, size = (x.astype(np.float64) for x in computed(uses, device=device))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_array_equal(most, np.maximum(wide_a, wide_b))
    np.testing.assert_array_equal(least, np.minimum(wide_a, wide_b))
    numbers = ~np.isnan(wide_a)
    for found, want in ((negative, -wide_a), (size, np.abs(wide_a))):
        np.testing.assert_array_equal(found, want)
        assert np.array_equal(np.signbit(found)[numbers], np.signbit(want)[numbers])


def nearest_float(value: int, dtype: str) -> float:
    """Round an integer to a float's significand, halves to even, by exact arithmetic."""
    digits = BITS[dtype][0]
    unit = Fraction(2) ** max(abs(value).bit_length() - digits, 0)
    rounded = round(Fraction(value) / unit) * unit
    return float("inf" if rounded > 0 else "-inf") if _overflows(rounded, dtype) else float(rounded)


def _overflows(value: Fraction, dtype: str) -> bool:
    return dtype == "fp16" and abs(value) >= 65536


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_casts_of_integers_round_once(device: str, source: str) -> None:
    """Around every half between neighbours: fp32 in between would take it for the half itself."""
    low, high = DTYPES[source].limits
    values = {0, 1, low, high, low + 1, high - 1}
    for digits, _ in BITS.values():
        for bits in range(digits, 33):
            half = 1 << (bits - digits - 1) if bits > digits else 0
            for step in (0, 1, 2, 5):
                middle = (1 << (bits - 1)) + half * (2 * step + 1)
                values |= {sign * (middle + d) for sign in (1, -1) for d in (-1, 0, 1)}
    rng = np.random.default_rng(8)
    values |= set(rng.integers(low, high, 2000, np.int64, endpoint=True).tolist())
    chosen = sorted(v for v in values if low <= v <= high)
    x = np.array(chosen, DTYPES[source].numpy)
    uses: list[Use] = [("cast", {"dtype": dtype}, [(x, source)]) for dtype in FLOATS]
    for dtype, found in zip(FLOATS, computed(uses, device=device), strict=True):
        want = [nearest_float(v, dtype) for v in chosen]
        assert found.astype(np.float64).tolist() == want, dtype


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_chooses_and_broadcasts(dtype: str, device: str) -> None:
    rng = np.random.default_rng(9)
    shapes = [((3, 1, 5), (4, 5), (3, 4, 1)), ((), (7,), ()), ((70,), (1,), (70,)), ((0, 2),) * 3]
    uses: list[Use] = []
    for condition, a, b in shapes:
        one, two = (rng.integers(0, 100, s).astype(DTYPES[dtype].numpy) for s in (a, b))
        chosen = np.asarray(rng.random(condition) < 0.5)
        uses.append(("where", {}, [(chosen, "bool"), (one, dtype), (two, dtype)]))
    for (_, _, inputs), found in zip(uses, computed(uses, device=device, workers=2), strict=True):
        c, one, two = (array for array, _ in inputs)
        want = np.where(c, one, two)
        assert found.shape == want.shape
        assert np.array_equal(found, want)


def test_numbers_in_where_have_the_dtype_of_the_tensor_beside_them() -> None:
    model = ark.Model()
    c = model.tensor((4,), ark.BOOL)
    x = model.tensor((4,), ark.FP16)
    assert model.where(c, x, 0).dtype is ark.FP16
    assert model.where(c, 1.5, x).dtype is ark.FP16
    assert model.where(x > 0, c, True).dtype is ark.BOOL
    with pytest.raises(TypeError, match="where: input 1 is int; wanted a tensor of this model"):
        model.where(c, 1, 0)
    with pytest.raises(TypeError, match="where: condition is fp16; it must be bool: compare"):
        model.where(x, x, 0)
    with pytest.raises(TypeError, match="where: dtypes differ, fp16 and bool; cast"):
        model.where(c, x, c)
    with pytest.raises(
        TypeError, match=r"where: 1.5 does not fit|where: 1.5 can't|out of the range"
    ):
        model.where(c, model.tensor((4,), ark.INT32), 1.5)
    with pytest.raises(ValueError, match=r"where: .*shapes"):
        model.where(c, x, model.tensor((3,), ark.FP16))


def test_python_operators_compute_what_they_say(device: str) -> None:
    with ark.Runtime(device=device) as runtime:
        x, y = ark.tensor([6], ark.FP32), ark.tensor([6], ark.FP32)
        # The reflected ones too, which ruff would turn round.
        powers = [x**2, 2**x, x**y, -x, abs(x)]
        orders = [x < y, x <= y, x > y, x >= y, x < 1, 1 < x, 1 <= x, 2.0 > x]  # noqa: SIM300
        scaled = x.scale(0.1)
        runtime.launch()
        a = np.array([-2, -1, 0.5, 1, 2, 3], np.float32)
        b = np.array([2, -1, 2, 1, 0.5, 4], np.float32)
        x.from_numpy(a)
        y.from_numpy(b)
        runtime.run()
        for found, want in zip(powers, [a**2, 2**a, a**b, -a, abs(a)], strict=True):
            got = found.to_numpy().astype(np.float64)
            assert np.all(np.abs(got - want) <= 2.0**-23 * np.abs(want))
        wanted = [a < b, a <= b, a > b, a >= b, a < 1, a > 1, a >= 1, a < 2]
        for found, order in zip(orders, wanted, strict=True):
            assert found.dtype is ark.BOOL
            assert np.array_equal(found.to_numpy(), order)
        np.testing.assert_array_equal(scaled.to_numpy(), a * np.float32(0.1))
    assert x != y  # tensors are compared as objects; x.not_equal(y) compares elements


@pytest.mark.parametrize("val", [0.1, -3, 1e-42, np.inf, -np.inf, np.nan, 0.0])
def test_scale_multiplies_with_fp32(device: str, val: float) -> None:
    with ark.Runtime(device=device) as runtime:
        x, half = ark.tensor([5], ark.FP32), ark.tensor([5], ark.FP16)
        results = [ark.scale(x, val), ark.scale(half, val=val)]
        runtime.launch()
        a = np.array([1.0, -2.5, 3e38, 0.0, np.inf], np.float32)
        with np.errstate(all="ignore"):
            x.from_numpy(a)
            half.from_numpy(a)
            runtime.run()
            wide = a.astype(np.float16).astype(np.float64)
            wants = (a * np.float32(val), (wide * np.float32(val)).astype(np.float16))
        for found, want in zip(results, wants, strict=True):
            np.testing.assert_array_equal(found.to_numpy(), want)


def test_what_operators_can_not_do_is_refused() -> None:
    model = ark.Model()
    whole, x = model.tensor((4,), ark.INT32), model.tensor((4,), ark.FP32)
    with pytest.raises(TypeError, match=r"div: dtype int32 is not supported; use fp32.* or cast"):
        whole / 2
    with pytest.raises(TypeError, match="exp: dtype int32 is not supported; use fp32"):
        model.exp(whole)
    with pytest.raises(TypeError, match="scale: dtype int32 is not supported"):
        model.scale(whole, 2)
    with pytest.raises(ValueError, match=r"scale: val is 1e\+300; it must fit fp32"):
        model.scale(x, 1e300)
    with pytest.raises(TypeError, match="scale: val is '2'; it must be a number"):
        model.scale(x, "2")  # type: ignore[arg-type]  # the point
    with pytest.raises(
        ValueError, match="gelu: approximate is 'erf'; it must be one of none, tanh"
    ):
        model.gelu(x, "erf")
    with pytest.raises(TypeError, match="less: dtype bool is not supported"):
        model.less(model.tensor((4,), ark.BOOL), True)
    with pytest.raises(TypeError, match="pow: dtypes differ, fp32 and int32; cast"):
        model.pow(x, whole)
