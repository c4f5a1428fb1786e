"""Draw one index per row with the probabilities that logits give."""

from collections.abc import Callable
from math import prod

import numpy as np
import numpy.typing as npt

from ark_dist.core.dtype import FLOATS, INT32
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, box_size
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec, View
from ark_dist.kernels.per_row import check_per_row, per_row, per_row_box
from ark_dist.kernels.rules import INPUT, check_dtypes, share

SUMMARY = """Draw the next token: for each row of logits (B, V) an index, as int32 (B,).

As elsewhere, logits are first divided by `temperature`, then all but the `top_k` largest are left
out, then all but the largest whose probabilities add up to `top_p`; equals stay together. A
temperature of 0 or less takes the largest, the first of equals. A `top_k` of 0 or less and a
`top_p` of 1 or more leave nothing out. Where a logit is NaN or infinite the first such is taken.

Noise is a function of seed, row, `position` and index alone (Philox4x32-10, Salmon et al. 2011),
so that a result can be had again. With `top_p` this is nucleus sampling (Holtzman et al. 2020). All
but the logits may change from iteration to iteration: numbers, or one-element tensors, or tensors
of shape (B,) with one value for each row."""

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]
# The names are those of sample.h and random.h, which do the same; the comments are there.
FRACTION = 30
ONE = 1 << FRACTION
LOG2_E = 1549082005
RANGE = np.float32(64)
KEY_INFINITY, KEY_LOWEST = 0xFF800000, 0x00800000
LOG2 = (1, 1549081648, -774526479, 516126118, -385288495, 299774478,
        -225143025, 146784139, -72886067, 23321972, -3502467)  # fmt: skip
EXP2 = (ONE, 744260852, 257945486, 59571873, 10398316, 1330509, 234782)
LOG2_REST = (567758568, 774541526, 322691224, 194491605, 124250947,
             178518149, -240367337, 874905434, -1078265318, 776382390)  # fmt: skip
SHARE_BITS = 24
# ARK_SAMPLE_BINS and ARK_SAMPLE_KEPT in sample.cuh, and the threads that have them.
BINS, KEPT, THREADS = 16, 8, 256
# Passes over a row to find a threshold, and operations per element of one.
SEARCHES, SEARCH_OPS = 64, 2
PER_ROW = (
    Argument(
        "position", "Operand", "int32, what the noise depends on besides the row", None, "int32"
    ),
    Argument("temperature", "Operand", "what divides the logits", "1.0", "fp32"),
    Argument("top_k", "Operand", "how many logits to draw from", "0", "int32"),
    Argument("top_p", "Operand", "the probability to draw from", "1.0", "fp32"),
    Argument("seed", "Operand", "int32 or uint32, another seed is another sequence", "0", "uint32"),
)
DTYPES = (("int32",), ("fp32",), ("int32",), ("fp32",), ("int32", "uint32"))


def philox(counter: tuple[Keys, ...], key: tuple[int, int]) -> tuple[Keys, ...]:
    """Philox4x32-10: four words for each counter of four words."""
    c = [np.asarray(word, np.uint64) for word in counter]
    low, high = key
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        even, odd = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = [
            (odd >> shift) ^ c[1] ^ np.uint64(low),
            odd & mask,
            (even >> shift) ^ c[3] ^ np.uint64(high),
            even & mask,
        ]
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in c)


def order_keys(x: npt.NDArray[np.float32]) -> Keys:
    """Integers in the order of the floats; zeros are equal, all NaN are one and the largest."""
    bits = np.where(x == 0, np.float32(0), x).view(np.uint32)
    bits = np.where(np.isnan(x), np.uint32(0x7FC00000), bits)
    flip = np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))
    keys: Keys = np.bitwise_xor(bits, flip, dtype=np.uint32)
    return keys


def _values(keys: Keys) -> npt.NDArray[np.float32]:
    """The floats of keys, -0 as 0."""
    flip = np.where(keys >> 31, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    bits: Keys = np.bitwise_xor(keys, flip, dtype=np.uint32)
    return bits.view(np.float32)


def _series(x: Ints, factors: tuple[int, ...]) -> Ints:
    value = np.full(x.shape, factors[-1], np.int64)
    for factor in factors[-2::-1]:
        value = factor + ((value * x) >> FRACTION)
    return value


def _log2(x: Ints) -> Ints:
    exponent = (x.astype(np.float32).view(np.uint32) >> 23).astype(np.int64) - 127
    down = np.maximum(exponent - FRACTION, 0)
    mantissa = (x << np.maximum(FRACTION - exponent, 0)) >> down
    return exponent * ONE + _series(mantissa - ONE, LOG2)


def exp2(x: Ints) -> Ints:
    """2^x for fixed-point x <= 0, in steps of 2^-31."""
    shift = -(x >> FRACTION)
    power = _series(x & (ONE - 1), EXP2)
    return np.where(shift > 32, 0, (((power << 2) >> np.minimum(shift, 33)) + 1) >> 1)


def gumbel(bits: Keys) -> Ints:
    """-log2(-log2(1 - u)) in fixed point, u being an odd number of 31 bits over 2^31."""
    u = (bits >> np.uint32(1) | np.uint32(1)).astype(np.int64)
    low = np.minimum(u, ONE)
    near = 31 * ONE - _log2(low) - _series(low >> 1, LOG2_REST)
    amount = 31 * ONE - _log2(np.maximum((1 << 31) - u, 1))
    return np.where(u <= ONE, near, FRACTION * ONE - _log2(amount))


def distances(x: npt.NDArray[np.float32], top: np.float32, temperature: np.float32) -> Ints:
    """How far logits are below the largest one, in units of ln 2 over the temperature."""
    with np.errstate(all="ignore"):
        d = (x - top) / temperature
        near = np.where(d > -RANGE, d, -RANGE).astype(np.float32)
    fixed: Ints = ((near * np.float32(1 << 26)).astype(np.int64) * LOG2_E) >> 26
    return fixed


def _search(low: int, high: int, wanted: int, measure: Callable[[int], int]) -> int:
    """The largest key from `low` to `high` whose measure reaches `wanted`, else `low`."""
    while low < high:
        middle = low + (high - low) // 2 + 1
        if measure(middle) >= wanted:
            low = middle
        else:
            high = middle - 1
    return low


def threshold(keys: Keys, distance: Ints, k: int, p: np.float32) -> int:
    """The smallest key that may be drawn."""
    top, low = int(keys.max()), KEY_LOWEST
    if 0 < k < len(keys):
        low = _search(low, top, k, lambda key: int((keys >= key).sum()))
    if p < 1:
        weights = np.where(keys >= low, exp2(distance), 0)
        total = int(weights.sum())
        share = int(p * np.float32(1 << SHARE_BITS)) if p > 0 else 0
        wanted = (total >> SHARE_BITS) * share
        wanted += ((total & ((1 << SHARE_BITS) - 1)) * share) >> SHARE_BITS
        low = _search(low, top, max(wanted, 1), lambda key: int(weights[keys >= key].sum()))
    return low


def _draw(
    x: npt.NDArray[np.float32], row: int, position: int, heat: np.float32, k: int, p: np.float32,
    seed: int,
) -> int:  # fmt: skip
    keys = order_keys(x)
    top = int(keys.max())
    if not heat > 0 or top >= KEY_INFINITY or top < KEY_LOWEST:
        return int(np.argmax(keys))
    distance = distances(_values(keys), _values(keys).max(), heat)
    low = threshold(keys, distance, k, p)
    blocks = np.arange(-(-len(x) // 4), dtype=np.uint32)
    fixed = [np.full_like(blocks, word & 0xFFFFFFFF) for word in (row, position, 0)]
    noise = np.stack(philox((blocks, *fixed), (seed & 0xFFFFFFFF, 0)), axis=1).reshape(-1)[: len(x)]
    never = -(1 << 62)
    return int(np.argmax(np.where(keys >= low, distance + gumbel(noise), never)))


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    start, stop = box[0]
    position, heat, k, p, seed = (per_row(values, stop - start) for values in tiles[1:])
    return np.array(
        [
            _draw(
                np.asarray(tiles[0][i], np.float32), start + i, int(position[i]),
                np.float32(heat[i]), int(k[i]), np.float32(p[i]), int(seed[i]),
            )
            for i in range(stop - start)
        ],
        np.int32,
    )  # fmt: skip


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_dtypes("sample", FLOATS, specs[:1])
    shape = specs[0].shape
    if len(shape) != 2 or (shape[0] and not 0 < shape[1] <= 2**31):
        raise ValueError(
            f"sample: the logits are {shape}; they must be (rows, vocabulary), and not empty"
        )
    for argument, spec, dtypes in zip(PER_ROW, specs[1:], DTYPES, strict=True):
        check_per_row("sample", argument.name, spec, shape[0], dtypes)
    return Spec(shape[:1], INT32)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    rows = box[0]
    return (rows, (0, specs[0].shape[1])), *(per_row_box(spec, rows) for spec in specs[1:])


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    return tuple(((row, row + 1),) for row in range(out.shape[0]))


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    count = prod(specs[0].shape)
    ops = count * SEARCHES * SEARCH_OPS
    return Cost(share(count * specs[0].dtype.itemsize, box, out), share(ops, box, out))


def _scratch(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> int:
    return 2 * specs[0].shape[1] if box_size(box) else 0


def _cuda(
    inputs: tuple[View, ...], out: View, attrs: Attrs, box: Box
) -> tuple[tuple[int, ...], int]:
    """What `ark_sample_memory` takes: bins and their sums of 8 bytes, maxima, three lists."""
    return (), 2 * BINS * (THREADS + 1) + THREADS + 3 * KEPT * THREADS


register(
    Op(
        name="sample",
        summary=SUMMARY,
        arguments=(INPUT, *PER_ROW),
        dtypes=FLOATS,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("tile", "ark_sample", scratch=_scratch, cuda=_cuda),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
