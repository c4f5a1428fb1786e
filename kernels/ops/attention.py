"""Mix values by the softmax of queries times keys, with grouped heads."""

import numpy as np
import numpy.typing as npt

from ark_dist.core.dtype import FLOATS
from ark_dist.core.op import (
    Argument,
    Array,
    Attrs,
    AttrValue,
    Kernel,
    Op,
    Specs,
    Step,
    register,
)
from ark_dist.core.shape import Box, box_shape, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec, View
from ark_dist.kernels.cpu_attention import even_cuts, keys_seen
from ark_dist.kernels.per_row import check_per_row, per_row, per_row_box
from ark_dist.kernels.rules import (
    check_dtypes,
    int_attr,
    is_fp32,
    parts_worth,
    per_row_term,
    spread,
)

SUMMARY = """softmax(query key^T * scale) value, for H query heads in groups that share G key heads.

`query` is (B, T, H, D), `key` (B, S, G, D) and `value` (B, S, G, Dv), where H is a multiple of G;
the result is (B, T, H, Dv) (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023). Sums are
fp32, and nothing overflows.

`length`, int32 of shape (), (1,) or (B,), says how many keys are valid in each row of the batch,
those of these queries included: after an append to a cache it is position + T. Without it all S
are. A length outside 0 to S ends the run with a TaskError.

If `causal`, query t sees the keys 0 to length - T + t, else it sees all that are valid. A query
that sees no key gives zeros.

Where the heads are only some of a model's, groups may be cut: with `heads_per_key`, query head h
has key head (h + first_head) // heads_per_key."""
FAILURE = "length {value} is outside 0 to {limit}"
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
# ARK_ATTENTION_KEYS and ARK_ATTENTION_ROWS in attention.h.
BLOCK_KEYS = 64
BLOCK_ROWS = 192
# What rows in its scratch memory are padded to, in fp32 elements.
ROW_UNIT = 16
# Query rows that a GPU's tensor cores take at once: the most, and the most that read keys without
# shared memory. ROWS and sizes of attention.cuh.
MOST_ROWS, FEW_ROWS = 128, 8
MOST_DEPTH, DEPTH_UNIT = 128, 16
# Rows at once elsewhere on a GPU.
PLAIN_ROWS = 8
WARPS = 8
COPY_BYTES = 16
# Exponential, maximum and sums of one score.
SCORE_OPS = 12
# Fewer keys than this are not worth a part of their own.
MIN_PART_KEYS = 2 * BLOCK_KEYS
SCALE = Argument("scale", "float | None", "factor of the scores; None is 1 / sqrt(D)", "None")
ARGUMENTS = (
    Argument("query", "Tensor", "the queries, (B, T, H, D)", None),
    Argument("key", "Tensor", "the keys, (B, S, G, D)", None),
    Argument("value", "Tensor", "the values, (B, S, G, Dv)", None),
    Argument("length", "Tensor | None", "int32, valid keys in each row of the batch", "None"),
    Argument("causal", "bool", "let a query see no key after its own", "True"),
    SCALE,
    Argument("heads_per_key", "int | None", "heads that share a key; None is H / G", "None"),
    Argument("first_head", "int", "heads of the first key's group that are not here", "0"),
)


def result_spec(specs: Specs, attrs: Attrs) -> Spec:
    """Shape and dtype of the result; raises ValueError or TypeError."""
    q, k, v = specs[:3]
    check_dtypes("attention", FLOATS, (q, k, v))
    shapes = f"query {q.shape}, key {k.shape} and value {v.shape}"
    if not len(q.shape) == len(k.shape) == len(v.shape) == 4:
        raise ValueError(f"attention: {shapes} must have 4 dimensions: batch, time, head, depth")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: {shapes} must be (B, T, H, D), (B, S, G, D), (B, S, G, Dv)")
    _check_heads(q, k, attrs, shapes)
    scale = attrs["scale"]
    if scale is not None and not is_fp32(scale):
        raise ValueError(
            f"attention: scale is {scale!r}; it must be a finite number of fp32, or None"
        )
    if len(specs) == 4:
        check_per_row("attention", "length", specs[3], q.shape[0], ("int32",))
    return Spec((*q.shape[:3], v.shape[3]), q.dtype)


def _check_heads(q: Spec, k: Spec, attrs: Attrs, shapes: str) -> None:
    """Raise ValueError unless the key heads are those of the query heads."""
    heads, depth = q.shape[2:]
    groups, group, first = k.shape[2], attrs["heads_per_key"], attrs["first_head"]
    if depth == 0 or (group is None and (groups == 0 or heads % groups)):
        raise ValueError(
            f"attention: {shapes} have {heads} query heads, {groups} key heads and depth {depth}; "
            "heads must be a multiple of key heads, and depth at least 1"
        )
    most = 1 if group is None else group
    if not isinstance(most, int) or not isinstance(first, int) or not 0 <= first < most:
        raise ValueError(
            f"attention: heads_per_key is {group!r} and first_head {first!r}; both must be "
            "integers, 0 <= first_head < heads_per_key"
        )
    wanted = -(-(first + heads) // most) if heads else 0
    if group is not None and groups != wanted:
        raise ValueError(
            f"attention: {shapes} have {heads} query heads and {groups} key heads; with "
            f"heads_per_key {group} and first_head {first} there must be {wanted} key heads"
        )


def group_of(specs: Specs, attrs: Attrs) -> tuple[int, int]:
    """How many query heads share a key head, and how many of the first of these are not here."""
    if attrs["heads_per_key"] is not None:
        return int_attr(attrs, "heads_per_key"), int_attr(attrs, "first_head")
    return max(specs[0].shape[2] // specs[1].shape[2], 1), 0


def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    """What a tile reads; a tile has all times' queries, since the last one's place counts."""
    q, k, v = specs[:3]
    batch, _, (start, stop), _ = box
    group, first = group_of(specs, attrs)
    if any((h + first) % group and h not in (0, q.shape[2]) for h in (start, stop)):
        raise ValueError(f"attention: tile {box} cuts a group of {group} heads")
    keys = (batch, (0, k.shape[1]), ((start + first) // group, -(-(stop + first) // group)))
    boxes: tuple[Box, ...] = (
        (batch, (0, q.shape[1]), (start, stop), (0, q.shape[3])),
        (*keys, (0, k.shape[3])),
        (*keys, (0, v.shape[3])),
    )
    return (*boxes, per_row_box(specs[3], batch)) if len(specs) == 4 else boxes


def key_heads(tiles: tuple[Array, ...], attrs: Attrs, start: int) -> Ints:
    """The key head of each query head of a tile that begins at query head `start`."""
    heads, groups = tiles[0].shape[2], tiles[1].shape[2]
    group, before = max(heads // max(groups, 1), 1), 0
    if attrs["heads_per_key"] is not None:
        group = int_attr(attrs, "heads_per_key")
        before = (start + int_attr(attrs, "first_head")) % group
    which: Ints = np.arange(before, before + heads) // group
    return which


def scores(tiles: tuple[Array, ...], attrs: Attrs, times: tuple[int, int], heads: Ints) -> Floats:
    """Scores (B, H, T, S) of the queries of some times; minus infinity where a key isn't seen."""
    q, k = (np.asarray(tile, np.float64) for tile in tiles[:2])
    count, total = k.shape[1], q.shape[1]
    lengths = np.full(len(q), count)
    if len(tiles) == 4:
        lengths = per_row(tiles[3], len(q)).astype(np.int64)
        outside = lengths[(lengths < 0) | (lengths > count)]
        if outside.size:
            raise IndexError(FAILURE.format(value=int(outside[0]), limit=count))
    scale = attrs["scale"]
    if scale is None:
        scale = 1 / np.sqrt(q.shape[3])
    keys = k[:, :, heads]
    seen = np.repeat(lengths[:, None], times[1] - times[0], axis=1)
    if attrs["causal"]:
        seen = seen - total + np.arange(*times) + 1
    with np.errstate(all="ignore"):
        product = np.einsum("bthd,bshd->bhts", q[:, times[0] : times[1]], keys) * scale
    return np.where(np.arange(count) < seen[:, None, :, None], product, -np.inf)


def mix(score: Floats, v: Array, heads: Ints) -> tuple[Floats, Floats, Floats]:
    """Sums over values (B, T, H, Dv), the largest score and the total of each row (B, T, H)."""
    values = np.asarray(v, np.float64)[:, :, heads]
    top = score.max(axis=3, initial=-np.inf)
    with np.errstate(all="ignore"):
        base = np.where(np.isneginf(top), 0, top)
        weight = np.exp(score - base[..., None])
        # What isn't seen has no part in the sum, not even as 0 times NaN.
        is_seen: Flags = np.any(weight > 0, axis=(1, 2), keepdims=True).transpose(0, 3, 1, 2)
        sums = np.einsum("bhts,bshd->bthd", weight, np.where(is_seen, values, 0))
    return sums, top.transpose(0, 2, 1), weight.sum(axis=3).transpose(0, 2, 1)


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    heads = key_heads(tiles, attrs, box[2][0])
    sums, _, totals = mix(scores(tiles, attrs, box[1], heads), tiles[2], heads)
    with np.errstate(all="ignore"):
        return np.where(totals[..., None] == 0, 0.0, sums / totals[..., None])


def cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Keys and values of each group are read once, scored and summed for each of its heads."""
    q, k, v = specs[:3]
    batch, times, heads, _ = box_shape(box)
    keys, scores = k.shape[1], times * k.shape[1]
    if attrs["causal"]:
        # Late queries see more keys; the first of them sees what others have left of S.
        ahead = k.shape[1] - q.shape[1]
        keys = max(ahead + box[1][1], 0)
        scores = keys_seen(ahead, box[1][1]) - keys_seen(ahead, box[1][0])
    depth = q.shape[3] + v.shape[3]
    rows = batch * times * heads
    groups = -(-heads // group_of(specs, attrs)[0])
    elements = batch * keys * groups * depth + rows * depth
    return Cost(elements * q.dtype.itemsize, batch * heads * scores * (2 * depth + SCORE_OPS))


def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    """Cut by batch, then by groups of heads, which share keys, then by time."""
    batch, times, heads, width = out.shape
    parts = parts_worth(cost(specs, out, attrs, full_box(out.shape)), target)
    group, first = group_of(specs, attrs)
    if 0 in out.shape:
        return ()
    if target.kind == "cuda":
        rows = _rows_at_once(batch * heads * times, times * group, parts)
        units = (1, group, max(rows // group, 1))
        cuts = spread((batch, first + heads, times), parts, units)
    else:
        ahead = 0 if len(specs) == 4 else specs[1].shape[1] - times  # a length: most begin at 0
        cuts = even_cuts(out.shape, first, group, parts, ahead if attrs["causal"] else None)
    # Groups count from the first one's first head, which may not be here.
    return tuple((b, t, (max(h - first, 0), e - first), (0, width)) for b, (h, e), t in cuts)


def _rows_at_once(rows: int, rows_of_group: int, parts: int) -> int:
    """Rows of a group that share what they read on a GPU: many, but so that all have work."""
    if rows_of_group <= FEW_ROWS:
        return FEW_ROWS
    count = MOST_ROWS
    while count > 32 and rows < count * parts:
        count //= 2
    return count


def _splits(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> int:
    """How many parts of the keys give the result soonest, at full length."""
    boxes = tiles(specs, out, attrs, target)
    if not boxes:
        return 1
    costs = [cost(specs, out, attrs, box) for box in boxes]
    whole = max(costs, key=target.seconds)
    most = target.worker_count // (len(boxes) if target.kind == "cuda" else 1)
    rows, width = out.shape[0] * out.shape[1] * out.shape[2], out.shape[3]

    def seconds(count: int) -> float:
        part = target.seconds(Cost(whole.bytes // count, whole.ops // count))
        rounds = -(-len(boxes) * count // target.worker_count)
        if count == 1:
            return rounds * part
        moved = rows * (width + 2) * count // target.worker_count
        return rounds * part + target.hop_s + target.seconds(Cost(4 * moved, 2 * moved))

    return min(range(1, max(min(most, specs[1].shape[1] // MIN_PART_KEYS), 1) + 1), key=seconds)


def _expand(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Step, ...]:
    splits = _splits(specs, out, attrs, target)
    if splits == 1:
        return ()
    given: tuple[tuple[str, AttrValue], ...] = tuple(attrs.items())
    return (
        Step("attention_part", tuple(range(len(specs))), (*given, ("splits", splits))),
        Step("attention_merge", (-1,), (("dtype", out.dtype.name),)),
    )


def cuda(
    inputs: tuple[View, ...], out: View, attrs: Attrs, box: Box
) -> tuple[tuple[int, ...], int]:
    """ROWS, DEPTH and WIDTH of `ark_attention_tile` in attention.cuh, and its scratch memory."""
    query, key, value = inputs[:3]
    depth, width = query.shape[3], value.shape[3]
    times = box_shape(box)[-3]  # a part has one more dimension in front
    rows = times * group_of((query.spec, key.spec), attrs)[0]
    line = -(-width // 4) * 4 + 4
    is_aligned = all(map(_is_aligned, (query, key, value)))
    if is_aligned and _is_tensor(query.dtype.itemsize, depth, width):
        if rows <= FEW_ROWS:
            queries = -(-depth // 32) * 32 // 2  # fp32 elements of a row, in whole pieces
            return (FEW_ROWS, depth, width), WARPS * FEW_ROWS * (line + queries)
        count = next(n for n in (32, 64, MOST_ROWS) if n >= rows or n == MOST_ROWS)
        # Two blocks of keys and values and the rows, of 2 bytes and a power of 2 of columns. Then
        # what each of the warps has of 16 rows.
        pitches = [1 << (size - 1).bit_length() for size in (depth, width)]
        staged = (2 * BLOCK_KEYS * sum(pitches) + count * pitches[0]) // 2
        return (count, depth, width), max(staged, WARPS * 16 * line)
    count = next(n for n in (1, 2, 4, PLAIN_ROWS) if n >= rows or n == PLAIN_ROWS)
    side = COPY_BYTES // query.dtype.itemsize if is_aligned else 1
    return (count, 0, side), count * (WARPS * line + -(-depth // 4) * 4)


def _is_tensor(itemsize: int, depth: int, width: int) -> bool:
    sizes = (depth, width)
    return itemsize == 2 and all(0 < n <= MOST_DEPTH and n % DEPTH_UNIT == 0 for n in sizes)


def _is_aligned(view: View) -> bool:
    """Whether each row along the last dimension is made of pieces that load in one go."""
    count = COPY_BYTES // view.dtype.itemsize
    if view.strides[-1] != 1 or view.shape[-1] % count:
        return False
    steps = [s for n, s in zip(view.shape[:-1], view.strides[:-1], strict=True) if n > 1]
    return all(step % count == 0 for step in (view.offset, *steps))


def scratch(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> int:
    """What `ark_attention_memory` takes."""
    depth, width = specs[0].shape[3], specs[2].shape[3]
    whole, columns = (-(-n // ROW_UNIT) * ROW_UNIT for n in (depth, width))
    queries = -(-depth // BLOCK_KEYS) * BLOCK_KEYS
    rows = BLOCK_ROWS * (BLOCK_KEYS + ROW_UNIT + 2 + columns + queries)
    return ROW_UNIT + rows + BLOCK_KEYS * (whole + columns) + ROW_UNIT * whole


def _sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
    group, first = group_of(specs, attrs)
    # Query heads that begin inside of a group have key heads of their own counting.
    query, key = ("H", "G") if first else ("h", f"h/{group}") if group > 1 else ("h", "h")
    length = "," + per_row_term(specs[3], "b") if len(specs) == 4 else ""
    return f"bT{query}D,bS{key}D,bS{key}v{length}->bT{query}v"


def _localize(specs: Specs, out: Spec, attrs: Attrs, boxes: tuple[Box, ...], box: Box) -> Attrs:
    group, first = group_of(specs, attrs)
    start, stop = box[2]
    if first or (start % group == 0 and stop % group == 0 and start < stop):
        return attrs
    return {**attrs, "heads_per_key": group, "first_head": start % group}


register(
    Op(
        name="attention",
        summary=SUMMARY,
        arguments=ARGUMENTS,
        dtypes=FLOATS,
        infer=result_spec,
        view=None,
        in_boxes=in_boxes,
        reference=_reference,
        tiles=tiles,
        cost=cost,
        sharding=_sharding,
        localize=_localize,
        gradient=None,
        effect="none",
        kernel=Kernel(
            "tile",
            "ark_attention",
            params=("causal", "scale", "heads_per_key", "first_head"),
            scratch=scratch,
            failure=FAILURE,
            cuda=cuda,
        ),
        expand=_expand,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
