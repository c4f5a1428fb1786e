"""Return a tensor as it is, ordered after others."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.view import Spec, View
from ark_dist.kernels.rules import INPUT, view_op


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return specs[0]


def _view(view: View, attrs: Attrs) -> View:
    return view


view_op(
    "identity",
    "Return `input` as it is; whatever uses the result also comes after all of `deps`.",
    (INPUT, Argument("deps", "Sequence[Tensor]", "tensors that must be computed before", "()")),
    _infer,
    _view,
    "...",
)
