"""Cut attention into tiles that keep all workers of a CPU busy."""

from bisect import bisect_left
from functools import partial
from itertools import pairwise

from ark_dist.core.shape import Box, Shape
from ark_dist.kernels.rules import spread

# What turning keys around costs, in rows that are multiplied with them, and the fewest rows of a
# tile of its own.
TURN_ROWS, MIN_ROWS = 8, 32
# Tiles that each worker may have.
TILES_PER_PART = 8


def keys_seen(ahead: int, times: int) -> int:
    """Keys that the first `times` queries see, where query t sees ahead + t + 1 if that is any."""
    first = max(ahead, 0)
    some = max(times + min(ahead, 0), 0)
    return some * first + some * (some + 1) // 2


def even_cuts(
    shape: Shape, first: int, group: int, parts: int, ahead: int | None
) -> tuple[Box, ...]:
    """Batch, heads and times of tiles that keep `parts` workers busy to the end.

    `ahead` is how many keys come before the first query, None if all are seen.
    """
    batch, times, heads, _ = shape
    whole = spread((batch, first + heads), parts, (1, group))
    if len(whole) < parts or len({(b - a) * (e - h) for (a, b), (h, e) in whole}) > 1:
        whole = spread((batch, first + heads), TILES_PER_PART * parts, (1, group))
    rows = times * group

    def makespan(pieces: int) -> float:
        return -(-len(whole) * pieces // parts) * (rows / pieces + TURN_ROWS)

    most = min(rows // MIN_ROWS, TILES_PER_PART * parts)
    pieces = min(range(1, max(most, 1) + 1), key=makespan)
    if ahead is None:
        edges = [times * i // pieces for i in range(pieces + 1)]
    else:
        total, seen = keys_seen(ahead, times), partial(keys_seen, ahead)
        goals = (total * i // pieces for i in range(1, pieces))
        edges = [0, *(bisect_left(range(times), goal, key=seen) for goal in goals), times]
    return tuple((*box, (t, e)) for box in whole for t, e in pairwise(edges) if t < e)
