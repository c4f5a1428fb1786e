"""Give a tensor another shape with the same elements in the same order."""

from math import prod

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import Shape
from ark_dist.core.view import Spec, View
from ark_dist.kernels.rules import INPUT, view_op


def wanted_shape(name: str, spec: Spec, attrs: Attrs) -> Shape:
    """The attribute `shape` of operator `name`, with its -1 filled in."""
    wanted = attrs["shape"]
    assert isinstance(wanted, tuple)
    count = prod(spec.shape)
    known = prod(size for size in wanted if size != -1)
    if any(size < -1 for size in wanted) or wanted.count(-1) > 1:
        raise ValueError(f"{name}: shape {wanted} may have one -1 and no other negative size")
    if -1 in wanted and known and count % known == 0:
        return tuple(count // known if size == -1 else size for size in wanted)
    if -1 in wanted or known != count:
        raise ValueError(
            f"{name}: {spec.shape} has {count} elements, {wanted} has {known}; "
            "the numbers of elements must be equal"
        )
    return wanted


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return Spec(wanted_shape("reshape", specs[0], attrs), specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View | None:
    shape = wanted_shape("reshape", view.spec, attrs)
    strides = reshaped_strides(view.shape, view.strides, shape)
    if strides is None:
        return None
    return View(view.buffer, view.dtype, view.offset, shape, strides)


def reshaped_strides(old: Shape, strides: Shape, new: Shape) -> Shape | None:
    """Strides of the new shape over the same memory, or None if there are none.

    Walks both shapes from the right in runs of equal element counts; a run of the old
    shape must be contiguous in itself.
    """
    if prod(old) == 0:
        return (1,) * len(new)
    old_dims = [(n, s) for n, s in zip(old, strides, strict=True) if n != 1]
    result = [0] * len(new)
    i = len(new) - 1
    while old_dims:
        count, step = old_dims.pop()
        expected = step * count
        run = 1
        inner = step
        while run < count or (i >= 0 and new[i] == 1):
            if i < 0:
                return None
            result[i] = inner
            run *= new[i]
            inner *= new[i]
            i -= 1
            while run > count and old_dims and old_dims[-1][1] == expected:
                size, _ = old_dims.pop()
                count *= size
                expected *= size
            if run > count:
                return None
        if run != count:
            return None
    while i >= 0:
        result[i] = result[i + 1] if i + 1 < len(new) else 1
        i -= 1
    return tuple(result)


view_op(
    "reshape",
    "Give a tensor another shape with the same elements in the same order; one size may be -1.",
    (INPUT, Argument("shape", "Sequence[int]", "the new sizes", None)),
    _infer,
    _view,
    None,
)
