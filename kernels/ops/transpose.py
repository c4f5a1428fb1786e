"""Reorder the dimensions of a tensor."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import Shape, normalize_axis
from ark_dist.core.view import Spec, View
from ark_dist.kernels.rules import INPUT, view_op


def _perm(ndim: int, attrs: Attrs) -> Shape:
    perm = attrs["perm"]
    if perm is None:
        return tuple(reversed(range(ndim)))
    assert isinstance(perm, tuple)
    axes = tuple(normalize_axis("transpose", axis, ndim) for axis in perm)
    if len(set(axes)) != ndim:
        raise ValueError(
            f"transpose: perm {perm} must name each of the {ndim} dimensions exactly once"
        )
    return axes


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    shape = specs[0].shape
    return Spec(tuple(shape[axis] for axis in _perm(len(shape), attrs)), specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    perm = _perm(len(view.shape), attrs)
    return View(
        view.buffer,
        view.dtype,
        view.offset,
        tuple(view.shape[axis] for axis in perm),
        tuple(view.strides[axis] for axis in perm),
    )


view_op(
    "transpose",
    "Reorder the dimensions as `perm` says; without it, reverse them.",
    (INPUT, Argument("perm", "Sequence[int] | None", "old dimension for each new one", "None")),
    _infer,
    _view,
    None,
)
