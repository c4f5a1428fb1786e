"""Take an interval of one dimension of a tensor."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import normalize_axis
from ark_dist.core.view import Spec, View
from ark_dist.kernels.rules import INPUT, int_attr, view_op


def _part(shape: tuple[int, ...], attrs: Attrs) -> tuple[int, int, int]:
    axis = normalize_axis("narrow", attrs["axis"], len(shape))
    start, length = int_attr(attrs, "start"), int_attr(attrs, "length")
    if start < 0:
        start += shape[axis]
    if length < 0 or not 0 <= start <= shape[axis] - length:
        raise ValueError(
            f"narrow: {length} elements from {start} do not fit dimension {axis} of "
            f"{shape}; choose a part inside it"
        )
    return axis, start, length


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    shape = specs[0].shape
    axis, _, length = _part(shape, attrs)
    return Spec((*shape[:axis], length, *shape[axis + 1 :]), specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    return narrowed(view, *_part(view.shape, attrs))


def narrowed(view: View, axis: int, start: int, length: int) -> View:
    """The part of a view from `start` on along a dimension."""
    return View(
        view.buffer,
        view.dtype,
        view.offset + start * view.strides[axis] * (length > 0),
        (*view.shape[:axis], length, *view.shape[axis + 1 :]),
        view.strides,
    )


view_op(
    "narrow",
    "Take `length` elements from `start` on along dimension `axis`, without copying.",
    (
        INPUT,
        Argument("axis", "int", "the dimension to cut; negative counts from the end", None),
        Argument("start", "int", "first index; negative counts from the end", None),
        Argument("length", "int", "number of elements", None),
    ),
    _infer,
    _view,
    None,
)
