"""Repeat a tensor along dimensions of size 1, without copying."""

from ark_dist.core.graph import View
from ark_dist.core.op import Argument, Attrs, Spec, Specs
from ark_dist.core.shape import as_shape, broadcast_shapes
from ark_dist.kernels.rules import INPUT, view_op


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    shape = as_shape(attrs["shape"])
    if broadcast_shapes("broadcast_to", specs[0].shape, shape) != shape:
        raise ValueError(f"broadcast_to: {specs[0].shape} can't be spread over {shape}")
    return Spec(shape, specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    shape = as_shape(attrs["shape"])
    return spread_view(view, shape)


def spread_view(view: View, shape: tuple[int, ...]) -> View:
    """The view broadcast to a shape it is known to fit."""
    skipped = len(shape) - len(view.shape)
    strides = (0,) * skipped + tuple(
        0 if size == 1 else stride for size, stride in zip(view.shape, view.strides, strict=True)
    )
    return View(view.buffer, view.dtype, view.offset, shape, strides)


view_op(
    "broadcast_to",
    "Repeat a tensor along new dimensions and dimensions of size 1, without copying.",
    (INPUT, Argument("shape", "Sequence[int]", "the sizes to spread over", None)),
    _infer,
    _view,
    None,
)
