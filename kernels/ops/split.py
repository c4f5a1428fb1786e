"""Cut a tensor into parts along one dimension."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import Shape, normalize_axis
from ark_dist.core.view import Spec, View
from ark_dist.kernels.ops.narrow import narrowed
from ark_dist.kernels.rules import INPUT, check_part_count, int_attr, view_op

SUMMARY = """Cut a tensor into parts along dimension `axis`, without copying.

An integer `split_size` is the size of every part; the last one is smaller where it does not divide
the dimension. A sequence lists the sizes of the parts; they must add up."""


def _sizes(shape: Shape, attrs: Attrs) -> tuple[int, list[int]]:
    """The dimension to cut and the sizes of the parts."""
    axis = normalize_axis("split", attrs["axis"], len(shape))
    total, wanted = shape[axis], attrs["split_size"]
    if isinstance(wanted, tuple):
        if any(size < 0 for size in wanted) or sum(wanted) != total or not wanted:
            raise ValueError(
                f"split: parts {wanted} have {sum(wanted)} elements, dimension {axis} of {shape} "
                f"has {total}; sizes must be 0 or more and add up"
            )
        check_part_count("split", len(wanted))
        return axis, list(wanted)
    size = int_attr(attrs, "split_size")
    if size < 1:
        raise ValueError(f"split: split_size is {size}; it must be 1 or more")
    # Of an empty dimension there is one part, as empty.
    starts = range(0, max(total, 1), size)
    check_part_count("split", len(starts))
    return axis, [min(size, total - start) for start in starts]


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    shape = specs[0].shape
    axis, sizes = _sizes(shape, attrs)
    size = sizes[int_attr(attrs, "part")]
    return Spec((*shape[:axis], size, *shape[axis + 1 :]), specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    axis, sizes = _sizes(view.shape, attrs)
    part = int_attr(attrs, "part")
    return narrowed(view, axis, sum(sizes[:part]), sizes[part])


def _parts(specs: Specs, attrs: Attrs) -> int:
    return len(_sizes(specs[0].shape, attrs)[1])


view_op(
    "split",
    SUMMARY,
    (
        INPUT,
        Argument("split_size", "int | Sequence[int]", "the size of a part, or of each", None),
        Argument("axis", "int", "the dimension to cut; negative counts from the end", "0"),
    ),
    _infer,
    _view,
    None,
    parts=_parts,
)
