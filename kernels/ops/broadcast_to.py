"""Repeat a tensor along dimensions of size 1, without copying."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import Shape, as_shape, broadcast_shapes
from ark_dist.core.view import Spec, View
from ark_dist.kernels.lower import spread_strides
from ark_dist.kernels.rules import INPUT, view_op


def _wanted(attrs: Attrs) -> Shape:
    try:
        return as_shape(attrs["shape"])
    except ValueError as error:
        raise ValueError(f"broadcast_to: {error}") from None


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    shape = _wanted(attrs)
    if broadcast_shapes("broadcast_to", specs[0].shape, shape) != shape:
        raise ValueError(f"broadcast_to: {specs[0].shape} can't be spread over {shape}")
    return Spec(shape, specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    shape = _wanted(attrs)
    return View(view.buffer, view.dtype, view.offset, shape, spread_strides(view, shape))


view_op(
    "broadcast_to",
    "Repeat a tensor along new dimensions and dimensions of size 1, without copying.",
    (INPUT, Argument("shape", "Sequence[int]", "the sizes to spread over", None)),
    _infer,
    _view,
    None,
)
