"""Cut a tensor into parts of one size along one dimension."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import Shape, normalize_axis
from ark_dist.core.view import Spec, View
from ark_dist.kernels.ops.narrow import narrowed
from ark_dist.kernels.rules import INPUT, check_part_count, int_attr, view_op


def _cut(shape: Shape, attrs: Attrs) -> tuple[int, int]:
    """The dimension to cut and the size of each part."""
    axis = normalize_axis("sharding", attrs["axis"], len(shape))
    size = int_attr(attrs, "dim_per_shard")
    if size < 1 or shape[axis] % size:
        raise ValueError(
            f"sharding: dim_per_shard is {size}; it must divide dimension {axis} of {shape}, or "
            "use split, whose last part may be smaller"
        )
    return axis, size


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    shape = specs[0].shape
    axis, size = _cut(shape, attrs)
    return Spec((*shape[:axis], size, *shape[axis + 1 :]), specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    axis, size = _cut(view.shape, attrs)
    return narrowed(view, axis, int_attr(attrs, "part") * size, size)


def _parts(specs: Specs, attrs: Attrs) -> int:
    axis, size = _cut(specs[0].shape, attrs)
    return check_part_count("sharding", specs[0].shape[axis] // size)


view_op(
    "sharding",
    "Cut a tensor into parts of `dim_per_shard` along dimension `axis`, without copying.",
    (
        INPUT,
        Argument("axis", "int", "the dimension to cut; negative counts from the end", None),
        Argument("dim_per_shard", "int", "the size of each part; it must divide", None),
    ),
    _infer,
    _view,
    None,
    parts=_parts,
)
