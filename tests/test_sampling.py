"""Sampling draws with the right probabilities, and the same tokens on every device."""

from math import log, log2

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.op import OPS
from ark_dist.core.target import cpu_target
from ark_dist.kernels.ops import sample
from ark_dist.launch.cpuinfo import LADDER, best_isa, can_run
from tests.plan_models import eager
from tests.running import launched, run_once

Floats = npt.NDArray[np.float64]
# Of the Random123 distribution: counter, key, result of philox4x32-10.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], wanted: tuple[int, ...]
) -> None:
    words = tuple(np.array([word], np.uint32) for word in counter)
    assert tuple(int(word[0]) for word in sample.philox(words, key)) == wanted


def uniform(bits: int) -> float:
    """The number in (0, 1) that 32 random bits stand for."""
    return (bits >> 1 | 1) / 2**31


def test_noise_is_gumbel_to_eight_digits() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 20000, np.uint32, endpoint=False)
    ends = [0, 1, 2, 3, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 2, 2**32 - 1, 2**32 - 2]
    bits = np.array([*bits, *ends, *(2**i for i in range(32)), *(2**i - 1 for i in range(32))])
    found = sample.gumbel(bits.astype(np.uint32)) / sample.ONE
    for u, noise in zip(map(uniform, bits.tolist()), found, strict=True):
        # -log(1 - u) as a sum where u is small.
        amount = -np.log1p(-u) / log(2)
        assert abs(noise + log2(amount)) < 1e-7, u


def test_weights_are_powers_to_nine_digits() -> None:
    rng = np.random.default_rng(2)
    x = np.array([0.0, -1e-9, -1.0, -31.0, -40.0, *rng.uniform(-33, 0, 10000)])
    fixed = np.floor(x * sample.ONE).astype(np.int64)
    error = np.abs(sample.exp2(fixed) / 2**31 - 2.0 ** (fixed / sample.ONE))
    assert error.max() < 2**-31 + 1e-8


def test_keys_have_the_order_of_the_floats() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 2**32, 5000, np.uint32, endpoint=False).view(np.float32)
    x = np.array([*x[~np.isnan(x)], 0, -0.0, np.inf, -np.inf, 1e-45, -1e-45], np.float32)
    keys = sample.order_keys(x)
    for a, b in rng.integers(0, len(x), (20000, 2)):
        assert (x[a] < x[b]) == (keys[a] < keys[b]) and (x[a] == x[b]) == (keys[a] == keys[b])
    assert (sample.order_keys(np.array([np.nan], np.float32)) > keys).all()


def probabilities(logits: Floats, temperature: float, k: int, p: float) -> tuple[Floats, Floats]:
    """What is left by top-k and top-p, by sorting in float64, and how near p each token's sum is.

    A token stays if those that are larger have less than p of what top-k leaves.
    """
    values = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-logits, kind="stable")
    if 0 < k < len(logits):
        values[logits < logits[order[k - 1]]] = 0
    values /= values.sum()
    larger = np.array([values[logits > x].sum() for x in logits])
    kept = np.where((larger < p) | (logits == logits.max()) | (p >= 1), values, 0.0)
    return kept / kept.sum(), np.abs(larger - p)


@pytest.mark.parametrize("seed", range(40))
def test_what_may_be_drawn_is_what_sorting_leaves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 2, 3, 17, 100, 1000]))
    logits = (rng.normal(size=n) * rng.choice([0.1, 1, 5])).astype(np.float32)
    if seed % 3 == 0:
        logits = np.round(logits, 1)  # with equals
    if seed % 5 == 0:
        logits[rng.random(n) < 0.3] = -np.inf
        logits[0] = 0.5
    heat = float(np.float32(rng.choice([0.3, 1.0, 2.5])))
    k = int(rng.choice([0, -1, 1, 2, 7, 50, 2000]))
    p = float(np.float32(rng.choice([1.0, 0.0, 1e-3, 0.3, 0.9, 0.999, 2.0])))
    wanted, distance = probabilities(logits.astype(np.float64), heat, k, p)
    keys = sample.order_keys(logits)
    far = sample.distances(logits, logits.max(), np.float32(heat))
    kept = keys >= sample.threshold(keys, far, k, np.float32(p))
    # Weights are rounded to 2^-31 of the largest, p to 2^-24.
    clear = distance > 2e-7 + n * 2.0**-31
    ties = np.isin(logits, logits[~clear]) if p < 1 else np.zeros(n, bool)
    assert np.array_equal((wanted > 0)[~ties], kept[~ties])
    assert kept.any() and ties.sum() <= 2 + n // 10


def build(
    shape: tuple[int, int], dtype: str, *, is_per_row: bool = False
) -> tuple[GraphBuilder, list[Value], Value]:
    builder = GraphBuilder("sampling")
    one = (shape[0],) if is_per_row else (1,)
    leaves = [builder.tensor(shape, dtype, name="logits")]
    for name, kind in (("position", "int32"), ("temperature", "fp32"), ("top_k", "int32")):
        leaves.append(builder.tensor(one, kind, name=name))
    leaves += [
        builder.tensor(one, "fp32", name="top_p"),
        builder.tensor(one, "uint32", name="seed"),
    ]
    return builder, leaves, builder.apply("sample", leaves, name="token")


def reference_tokens(arrays: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.int32]:
    tiles = [a.astype(np.float64) if a.dtype.kind in "fV" else a for a in arrays]
    box = ((0, len(arrays[0])),)
    return OPS["sample"].reference(tuple(tiles), {}, box).astype(np.int32)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("device", ["numpy", *(isa for isa in LADDER if can_run(isa))])
def test_every_device_draws_the_same_tokens(device: str, dtype: str) -> None:
    """Bit for bit, equal logits and wide and narrow distributions included."""
    rng = np.random.default_rng(4)
    shape = (6, 1003)
    builder, leaves, token = build(shape, dtype, is_per_row=True)
    target = eager(cpu_target(3, "portable" if device == "numpy" else device))
    counts = 0
    with launched(builder.freeze(), target, "numpy" if device == "numpy" else "cpu") as session:
        for turn in range(40):
            scale = rng.choice([0.0, 0.01, 1, 8], (6, 1))
            logits = np.asarray(rng.normal(size=shape) * scale).astype(leaves[0].view.dtype.numpy)
            if turn % 4 == 1:
                logits[rng.random(shape) < 0.5] = -np.inf
            if turn == 9:
                logits[0, 5], logits[1, 7:9], logits[2] = np.nan, np.inf, -np.inf
            arrays = [
                logits,
                rng.integers(-5, 2**31 - 1, 6, np.int32),
                rng.choice([0.0, 0.5, 1, 3, 1e-30, 1e30], 6).astype(np.float32),
                rng.choice([0, -3, 1, 5, 500, 5000], 6).astype(np.int32),
                rng.choice([0.0, 1e-4, 0.5, 0.95, 1.0, 7.0], 6).astype(np.float32),
                rng.integers(0, 2**32, 6, np.uint32, endpoint=False),
            ]
            for leaf, array in zip(leaves, arrays, strict=True):
                session.write(leaf.view, array)
            session.run(1, "forward", {})
            session.wait()
            assert np.array_equal(session.read(token.view), reference_tokens(arrays)), turn
            counts += 1
    assert counts == 40


def test_without_heat_the_first_of_the_largest_is_taken() -> None:
    rng = np.random.default_rng(5)
    for heat in (0.0, -1.0):
        builder = GraphBuilder()
        logits = builder.tensor((9, 70), "fp32")
        token = builder.apply("sample", [logits, 3, heat, 0, 1.0, 1])
        data = rng.integers(-2, 3, (9, 70)).astype(np.float32)
        for device in ("numpy", "cpu"):
            target = cpu_target(2, best_isa())
            (found,) = run_once(builder.freeze(), target, device, {logits: data}, [token])
            assert np.array_equal(found, data.argmax(axis=1))


def test_no_rows_give_no_tokens() -> None:
    builder = GraphBuilder()
    token = builder.apply("sample", [builder.tensor((0, 7), "fp32"), 0, 1.0, 5, 0.9, 0])
    for device in ("numpy", "cpu"):
        (found,) = run_once(builder.freeze(), cpu_target(2, best_isa()), device, {}, [token])
        assert found.shape == (0,)


# Quantile of the chi-square distribution, by Wilson and Hilferty: 4.8 standard deviations, one
# in a million.
def chi_square_limit(freedom: int) -> float:
    return freedom * float(1 - 2 / (9 * freedom) + 4.8 * (2 / (9 * freedom)) ** 0.5) ** 3


@pytest.mark.parametrize(
    ("temperature", "k", "p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8), (2.0, 9, 0.9)]
)
def test_frequencies_are_the_probabilities(temperature: float, k: int, p: float) -> None:
    rng = np.random.default_rng([6, k])
    rows, turns, n = 2000, 15, 13
    logits = rng.normal(size=n).astype(np.float32)
    builder = GraphBuilder("frequencies")
    leaf = builder.tensor((n,), "fp32", name="logits")
    wide = builder.apply("broadcast_to", [leaf], {"shape": (rows, n)})
    position = builder.state((1,), "int32", name="position")
    token = builder.apply("sample", [wide, position, temperature, k, p, 20 + k], name="token")
    builder.apply("add", [position, 1], output=position)
    counts = np.zeros(n)
    with launched(builder.freeze(), cpu_target(2, best_isa()), "cpu") as session:
        session.write(leaf.view, logits)
        for _ in range(turns):
            session.run(1, "forward", {})
            session.wait()
            counts += np.bincount(session.read(token.view), minlength=n)
    wanted, _ = probabilities(logits.astype(np.float64), temperature, k, p)
    assert counts[wanted == 0].sum() == 0
    expected = wanted[wanted > 0] * rows * turns
    chi_square = ((counts[wanted > 0] - expected) ** 2 / expected).sum()
    assert chi_square < chi_square_limit(int((wanted > 0).sum()) - 1)


def test_rows_positions_and_seeds_draw_independently() -> None:
    rng = np.random.default_rng(7)
    builder, leaves, token = build((400, 8), "fp32")
    draws: dict[tuple[int, int], npt.NDArray[np.generic]] = {}
    with launched(builder.freeze(), cpu_target(2, best_isa()), "cpu") as session:
        for position, seed in ((1, 1), (2, 1), (1, 2), (1, 1)):
            arrays = [np.zeros((400, 8)), position, 1.0, 0, 1.0, seed]
            for leaf, array in zip(leaves, arrays, strict=True):
                session.write(leaf.view, np.asarray(array))
            session.run(1, "forward", {})
            session.wait()
            found = session.read(token.view)
            assert (position, seed) not in draws or np.array_equal(draws[position, seed], found)
            draws[position, seed] = found
    # Two sequences of 400 draws from 8 agree 50 times, 6.6 being the standard deviation.
    values = [*draws.values(), rng.integers(0, 8, 400)]
    for i, a in enumerate(values):
        for b in values[:i]:
            assert 15 < (a == b).sum() < 85
    assert 15 < (draws[1, 1][1:] == draws[1, 1][:-1]).sum() < 85


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({0: ((4,), "fp32")}, r"^sample: the logits are \(4,\); they must be \(rows, vocabulary\)"),
        ({0: ((4, 0), "fp32")}, r"^sample: the logits are \(4, 0\).*not empty"),
        ({1: ((3,), "int32")}, r"^sample: position is \(3,\); it must be \(\), \(1,\) or \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    inputs: dict[int, tuple[tuple[int, ...], str]], text: str
) -> None:
    builder = GraphBuilder()
    specs: list[tuple[tuple[int, ...], str]] = [((4, 8), "fp32"), ((1,), "int32")]
    values = [builder.tensor(*inputs.get(i, spec)) for i, spec in enumerate(specs)]
    with pytest.raises(ValueError, match=text):
        builder.apply("sample", [*values, 1.0, 0, 1.0, 0])


@pytest.mark.parametrize(
    ("position", "name", "dtype", "wanted"),
    [
        (1, "position", "fp32", "int32"),
        (2, "temperature", "fp16", "fp32"),
        (3, "top_k", "uint32", "int32"),
        (4, "top_p", "int32", "fp32"),
        (5, "seed", "int8", "int32 or uint32"),
    ],
)
def test_dtypes_that_do_not_fit_are_refused(
    position: int, name: str, dtype: str, wanted: str
) -> None:
    builder = GraphBuilder()
    values: list[Value | float] = [builder.tensor((4, 8), "fp32"), 0, 1.0, 0, 1.0, 0]
    values[position] = builder.tensor((1,), dtype)
    with pytest.raises(TypeError, match=rf"^sample: {name} is {dtype}; it must be {wanted}, cast"):
        builder.apply("sample", values)
    with pytest.raises(TypeError, match=r"^sample: 0.5 does not fit a tensor of int32"):
        builder.apply("sample", [values[0], 0.5, 1.0, 0, 1.0, 0])
