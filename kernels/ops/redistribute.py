"""Change which part of a tensor each rank has."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.groups import mine, parts_of
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import Box, box_shape
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import RANKS, check_group, communication
from ark_dist.kernels.rules import INPUT

SUMMARY = """Give each rank the part `target` of a tensor whose parts `source` the ranks have.

Parts may be uneven and empty. They may overlap: the ranks' values are equal there, and the lowest
rank that has an element gives it."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    count = check_group("redistribute", attrs)
    place, shape = mine(attrs), specs[0].shape
    held = _parts(attrs, "source", len(shape), count)[place]
    if box_shape(held) != shape:
        raise ValueError(
            f"redistribute: the tensor is {shape}; this rank's part of source is {held}"
        )
    wanted = _parts(attrs, "target", len(shape), count)[place]
    return Spec(box_shape(wanted), specs[0].dtype)


def _parts(attrs: Attrs, name: str, ndim: int, count: int) -> tuple[Box, ...]:
    """The ranks' parts; ValueError unless there is an interval per rank and dimension."""
    flat = attrs[name]
    if not isinstance(flat, tuple) or len(flat) != 2 * ndim * count:
        raise ValueError(
            f"redistribute: {name} is {flat}; {count} ranks' parts of {ndim} dimensions are "
            f"{2 * ndim * count} numbers"
        )
    parts = parts_of(flat, ndim, count)
    if any(not 0 <= start <= stop for box in parts for start, stop in box):
        raise ValueError(f"redistribute: {name} has {parts}; intervals are 0 <= start <= stop")
    return parts


communication(
    "redistribute",
    SUMMARY,
    (
        INPUT,
        Argument("source", "Sequence[int]", "per rank and dimension, start and stop", None),
        Argument("target", "Sequence[int]", "per rank and dimension, start and stop", None),
        RANKS,
    ),
    ALL_DTYPES,
    _infer,
    is_public=False,
)
