"""The fp32 functions keep the errors that their header states, over all floats."""

from collections.abc import Callable
from fractions import Fraction
from math import erfc

import numpy as np
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.dtype import DTYPES, FLOATS
from ark_dist.core.op import Array, AttrValue
from ark_dist.core.settings import read_settings
from ark_dist.core.target import cpu_target
from ark_dist.kernels.emit import emit_cpu
from ark_dist.launch.compile import compile_source
from ark_dist.launch.cpuinfo import LADDER, can_run
from ark_dist.scheduler.plan import make_plan
from tests.elementwise_cases import (
    BITS,
    COUNT,
    SPECIAL,
    Floats,
    any_floats,
    computed,
    ulps,
    widened,
)

# The largest errors, in units of the result's last place, that kernels/include/math.h states.
ULPS = {
    **{"exp": 1.0, "log": 1.0, "sqrt": 0.5, "rsqrt": 1.5, "sin": 2.5, "cos": 2.5},
    **{"tanh": 2.75, "sigmoid": 2.5, "silu": 3.5, "gelu": 7.0},
}
POW_ULPS = 1.0


def logistic(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def gelu(x: Floats) -> Floats:
    return np.asarray(x * np.vectorize(erfc, otypes=[np.float64])(-x / 2**0.5) / 2)


def gelu_tanh(x: Floats) -> Floats:
    return np.asarray(x * logistic((8 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


FORMULAS: dict[str, Callable[[Floats], Floats]] = {
    **{"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos},
    **{"tanh": np.tanh, "rsqrt": lambda x: 1 / np.sqrt(x), "sigmoid": logistic},
    **{"silu": lambda x: x * logistic(x), "gelu": gelu},
}
# Where x times 0 is NaN, but the limit is 0.
WITH_LIMIT = ("silu", "gelu")


def exact(name: str, x: Floats) -> Floats:
    """A function in float64; the limit at -inf where the formula has none."""
    with np.errstate(all="ignore"):
        value = FORMULAS[name](x)
    return np.where(np.isneginf(x) & (name in WITH_LIMIT), -0.0, value)


def check_ulps(name: str, x: Array, found: Array, most: float | Floats, dtype: str) -> None:
    want = exact(name, widened(x))
    error = ulps(found, want, dtype)
    i = int(np.argmax(np.where(np.isnan(error), np.inf, error - most)))
    assert np.all(error <= most), (
        f"{name}({x[i]!r}) is {found[i]!r} instead of {want[i]!r}: {error[i]} ulp"
    )


@pytest.mark.parametrize("isa", LADDER)
def test_functions_keep_their_ulps_over_all_floats(isa: str) -> None:
    if not can_run(isa):
        pytest.skip(f"this machine has no {isa}")
    x = any_floats(LADDER.index(isa))
    found = computed([(name, _default(name), [(x, "fp32")]) for name in ULPS], isa=isa)
    for name, result in zip(ULPS, found, strict=True):
        check_ulps(name, x, result, ULPS[name], "fp32")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 130))
def test_functions_keep_their_ulps_for_more_floats(seed: int) -> None:
    x = any_floats(seed, 1 << 21)
    for name, result in zip(
        ULPS, computed([(name, _default(name), [(x, "fp32")]) for name in ULPS]), strict=True
    ):
        check_ulps(name, x, result, ULPS[name], "fp32")


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_functions_of_every_16_bit_float_round_once(dtype: str) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype].numpy)
    found = computed([(name, _default(name), [(x, dtype)]) for name in ULPS], workers=2)
    for name, result in zip(ULPS, found, strict=True):
        # Half a unit, and what fp32 loses before: a 2^13th part of a unit of fp16 at most.
        lost = ULPS[name] * 2.0 ** (BITS[dtype][0] - BITS["fp32"][0])
        with np.errstate(invalid="ignore"):
            check_ulps(name, x, result, 0.5 + lost, dtype)


def test_angles_are_reduced_exactly_however_large() -> None:
    """The fp32 numbers nearest to multiples of pi/2: what is left of them is 2^-29 at least."""
    rng = np.random.default_rng(5)
    digits = 2 * int(
        "314159265358979323846264338327950288419716939937510582097494459230781640628620"
    )
    quarter = Fraction(digits, 4 * 10**77)
    turns = [int(rng.integers(1, 1 << 62)) << int(n) >> 62 for n in rng.integers(1, 127, 3000)]
    # The last one is known as the fp32 number that comes closest of all.
    x = np.array([*(float(n * quarter) for n in turns), 16367173.0 * 2.0**72]).astype(np.float32)
    sine, cosine = computed([("sin", {}, [(x, "fp32")]), ("cos", {}, [(x, "fp32")])])
    for i, value in enumerate(x.tolist()):
        whole = round(Fraction(value) / quarter)
        rest = float(Fraction(value) - whole * quarter)
        both = (np.sin(rest), np.cos(rest), -np.sin(rest), -np.cos(rest))
        for found, want in ((sine[i], both[whole % 4]), (cosine[i], both[(whole + 1) % 4])):
            assert ulps(found, np.asarray(want), "fp32") <= ULPS["sin"], (value, found, want)


@pytest.mark.parametrize("dtype", FLOATS)
def test_gelu_by_tanh_keeps_the_bound_that_its_header_states(dtype: str) -> None:
    with np.errstate(all="ignore"):
        x = any_floats(11).astype(DTYPES[dtype].numpy)
    (found,) = computed([("gelu", {"approximate": "tanh"}, [(x, dtype)])])
    wide = widened(x)
    with np.errstate(all="ignore"):
        want = np.where(np.isneginf(wide), -0.0, gelu_tanh(wide))
        growth = 3 * np.abs((8 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3))
        lost = (4 + growth) * 2.0 ** (BITS[dtype][0] - 24)
        error = ulps(found, want, dtype)
    # Below 0 the result fades out; where it is the smallest numbers only, one of these is allowed.
    is_good = (error <= lost + 0.5) | ((np.abs(want) < 1e-37) & (error <= 1 + growth))
    assert np.all(is_good | (np.isnan(wide) & np.isnan(widened(found))))


@pytest.mark.parametrize("isa", LADDER)
def test_powers_keep_their_ulps(isa: str) -> None:
    if not can_run(isa):
        pytest.skip(f"this machine has no {isa}")
    rng = np.random.default_rng(LADDER.index(isa))
    special = np.array([*SPECIAL, *(-x for x in SPECIAL), np.nan], np.float32)
    grid = [a.ravel() for a in np.meshgrid(special, special)]
    # Powers that neither vanish nor overflow, of numbers of all sizes and of some near 1.
    base = np.concatenate(
        [
            rng.integers(1, 0x7F800000, COUNT, np.uint32).view(np.float32),
            (1 + rng.uniform(-0.3, 0.4, COUNT) * 2.0 ** -rng.integers(0, 22, COUNT)),
        ]
    ).astype(np.float32)
    with np.errstate(all="ignore"):
        power = rng.uniform(-152, 130, base.size) / np.log2(base.astype(np.float64))
    whole = rng.integers(-40, 41, COUNT)
    x = np.concatenate([grid[0], base, -rng.uniform(0, 10, COUNT)]).astype(np.float32)
    y = np.concatenate([grid[1], power, whole]).astype(np.float32)
    (found,) = computed([("pow", {}, [(x, "fp32"), (y, "fp32")])], isa=isa)
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64))
    error = ulps(found, want, "fp32")
    i = int(np.argmax(error))
    assert error[i] <= POW_ULPS, (
        f"{x[i]!r} to the power {y[i]!r} is {found[i]!r}, not {want[i]!r}: {error[i]} ulp"
    )


def test_generated_code_calls_no_functions_of_the_c_library() -> None:
    """Such a call in a loop keeps it from being vectorized."""
    builder = GraphBuilder("calls")
    x = builder.tensor((64,), "fp32")
    for name in ULPS:
        builder.apply(name, [x], _default(name))
    builder.apply("pow", [x, x])
    plan = make_plan(builder.freeze(), cpu_target(1, "portable"))
    source, _ = emit_cpu(plan)
    binary = compile_source(source, isa="portable", settings=read_settings())
    code = binary.path.read_bytes()
    for name in ("exp", "exp2", "log", "log2", "sin", "cos", "tanh", "erf", "erfc", "pow", "sqrt"):
        for suffix in ("", "f"):
            assert f"\0{name}{suffix}\0".encode() not in code, name


def _default(name: str) -> dict[str, AttrValue]:
    return {"approximate": "none"} if name == "gelu" else {}
