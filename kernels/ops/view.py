"""Look at the memory of a tensor in another shape."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.view import Spec, View
from ark_dist.kernels.ops.reshape import reshaped_strides, wanted_shape
from ark_dist.kernels.rules import INPUT, view_op

SUMMARY = """Look at a tensor's memory in another shape, never copying; one size may be -1.

The elements stay in their order. A tensor whose memory can't be seen that way, such as most
transposed ones, is refused; `reshape` copies it."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return Spec(wanted_shape("view", specs[0], attrs), specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    shape = wanted_shape("view", view.spec, attrs)
    strides = reshaped_strides(view.shape, view.strides, shape)
    if strides is None:
        raise ValueError(
            f"view: the memory of {view.shape}, with strides {view.strides}, can't be seen as "
            f"{shape}; use reshape, which copies it"
        )
    return View(view.buffer, view.dtype, view.offset, shape, strides)


view_op(
    "view",
    SUMMARY,
    (INPUT, Argument("shape", "Sequence[int]", "the new sizes", None)),
    _infer,
    _view,
    None,
)
