"""Take elements by their index along one dimension."""

import numpy as np

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, box_shape, box_size, normalize_axis
from ark_dist.core.target import Cost
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import INPUT, cut_letters, map_tiles

SUMMARY = """Take for each element of `index` the one it names along dimension `axis`.

For `axis` 1 of three, result[i, j, k] = input[i, index[i, j, k], k]. `index` is int32 with as many
dimensions as `input`, and no larger than it but along `axis`. An index outside [0, size of `axis`)
ends the run with a TaskError that names it. Whole rows of a table: `embedding`."""
FAILURE = "index {value} is outside a dimension of size {limit}"
# What the sharding rule calls dimensions of `input` that ranks have all of.
WHOLE = "STUVWXYZ"


def _axis(shape: tuple[int, ...], attrs: Attrs) -> int:
    return normalize_axis("gather", attrs["axis"], len(shape))


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    source, index = specs
    if index.dtype.name != "int32":
        raise TypeError(f"gather: indices are {index.dtype}; cast them to int32")
    axis = _axis(source.shape, attrs)
    if len(index.shape) != len(source.shape) or any(
        wanted > size
        for d, (wanted, size) in enumerate(zip(index.shape, source.shape, strict=True))
        if d != axis
    ):
        raise ValueError(
            f"gather: index is {index.shape}, input is {source.shape}; index must have as many "
            f"dimensions, none larger than the input's but dimension {axis}"
        )
    return Spec(index.shape, source.dtype)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    # Which elements are read is known at run time only: the whole dimension counts as read.
    shape = specs[0].shape
    axis = _axis(shape, attrs)
    return (*box[:axis], (0, shape[axis]), *box[axis + 1 :]), box


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    source, index = tiles[0], tiles[1].astype(np.int64)
    axis = _axis(source.shape, attrs)
    outside = index[(index < 0) | (index >= source.shape[axis])]
    if outside.size:
        raise IndexError(FAILURE.format(value=int(outside[0]), limit=source.shape[axis]))
    places = list(np.ix_(*(range(size) for size in box_shape(box))))
    places[axis] = index
    return np.asarray(source[tuple(places)])


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    count = box_size(box)
    return Cost(count * (2 * out.dtype.itemsize + specs[1].dtype.itemsize), count)


def _sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
    source, index = (spec.shape for spec in specs)
    axis = _axis(source, attrs)
    uneven = [d for d, size in enumerate(index) if d != axis and size != source[d]]
    which = cut_letters(len(index), uneven)
    given = (WHOLE[d] if d == axis or d in uneven else c for d, c in enumerate(which))
    return f"{''.join(given)},{which}->{which}"


register(
    Op(
        name="gather",
        summary=SUMMARY,
        arguments=(
            INPUT,
            Argument("index", "Tensor", "int32 indices", None, dtype="int32"),
            Argument("axis", "int", "the dimension they count along; negative from the end", None),
        ),
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=map_tiles,
        cost=_cost,
        sharding=_sharding,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("tile", "ark_gather", params=("axis",), failure=FAILURE),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
