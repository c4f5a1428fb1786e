"""Say who takes part in a communication operator, and which part of a tensor each has."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ark_dist.core.op import Attrs, AttrValue
from ark_dist.core.shape import Box

# More than any machine has; bounds the lists of ranks that a damaged file can ask for.
MAX_WORLD_SIZE = 2**24
# MPI promises tags up to this.
MAX_TAG = 32767


def check_world(call: str, rank: object, world_size: object) -> None:
    """Raise TypeError or ValueError unless `rank` is one of `world_size` ranks."""
    for name, value in (("rank", rank), ("world_size", world_size)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{call}: {name} is {value!r}; it must be an integer")
    assert isinstance(rank, (int, np.integer)) and isinstance(world_size, (int, np.integer))
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"{call}: rank is {rank} and world_size is {world_size}; "
            "rank must be 0 to world_size - 1"
        )
    if world_size > MAX_WORLD_SIZE:
        raise ValueError(f"{call}: world_size is {world_size}; at most {MAX_WORLD_SIZE} ranks work")


def members(attrs: Attrs) -> Sequence[int]:
    """The ranks that take part, in the order of their pieces: all, or those of `ranks`."""
    return _integers(attrs["ranks"]) or range(_integer(attrs["world"]))


def mine(attrs: Attrs) -> int:
    """This rank's place among the members."""
    return members(attrs).index(_integer(attrs["rank"]))


def even_cuts(total: int, count: int) -> tuple[int, ...]:
    """Where `count` equal pieces of `total` positions begin, and where the last one ends."""
    assert total % count == 0, f"{total} positions in {count} pieces"
    return tuple(total // count * k for k in range(count + 1))


def cuts_of(attrs: Attrs, total: int) -> tuple[int, ...]:
    """Where the members' pieces of `total` positions begin, and where the last one ends."""
    return _integers(attrs["cuts"]) or even_cuts(total, len(members(attrs)))


def parts_of(flat: AttrValue, ndim: int, count: int) -> tuple[Box, ...]:
    """The members' parts of a tensor, from `source` or `target` of a redistribute."""
    numbers = _integers(flat)
    assert len(numbers) == 2 * ndim * count, f"{len(numbers)} numbers for {count} parts"
    intervals = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return tuple(intervals[k * ndim : (k + 1) * ndim] for k in range(count))


def flat_parts(parts: Sequence[Box]) -> tuple[int, ...]:
    """The members' parts of a tensor as `source` and `target` have them."""
    return tuple(position for box in parts for interval in box for position in interval)


def cuts_problem(cuts: Sequence[int], count: int, total: int | None) -> str | None:
    """What is wrong with the cuts of `count` pieces, or None; `total` is None if they tell it."""
    if len(cuts) != count + 1:
        return f"has {len(cuts)} positions; {count} ranks need {count + 1}"
    if cuts[0] != 0 or any(b < a for a, b in pairwise(cuts)):
        return "must begin with 0 and never decrease"
    if total is not None and cuts[-1] != total:
        return f"ends at {cuts[-1]}; the dimension has {total} positions"
    return None


def _integer(value: AttrValue) -> int:
    assert isinstance(value, int), f"{value!r} is no integer"
    return value


def _integers(value: AttrValue) -> tuple[int, ...]:
    assert isinstance(value, tuple), f"{value!r} is no list of integers"
    return value
