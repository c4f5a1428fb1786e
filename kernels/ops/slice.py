"""Take every so many elements of an interval of some dimensions of a tensor."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import Shape
from ark_dist.core.view import Spec, View
from ark_dist.kernels.rules import INPUT, view_op

SUMMARY = """Take elements `start:stop:step` of each dimension, without copying.

There is one start, stop and step for each dimension from the first on; those that are left over
stay whole. Numbers mean what they mean in Python: negative ones count from the end, those beyond
it are cut. Steps are 1 or more."""


def _ints(attrs: Attrs, name: str) -> Shape:
    value = attrs[name]
    assert isinstance(value, tuple), f"{name} is {value!r}"
    return value


def _ranges(shape: Shape, attrs: Attrs) -> list[range]:
    """The indices to take of each dimension."""
    starts, stops = _ints(attrs, "starts"), _ints(attrs, "stops")
    steps = (1,) * len(starts) if attrs["steps"] is None else _ints(attrs, "steps")
    if not len(starts) == len(stops) == len(steps) <= len(shape):
        raise ValueError(
            f"slice: found {len(starts)} starts, {len(stops)} stops and {len(steps)} steps; each "
            f"must have one number per dimension of {shape}, or of its first dimensions"
        )
    if any(step < 1 for step in steps):
        raise ValueError(f"slice: steps are {steps}; they must be 1 or more")
    rest = len(shape) - len(starts)
    cuts = [slice(*cut) for cut in zip(starts, stops, steps, strict=True)] + [slice(None)] * rest
    return [range(size)[cut] for size, cut in zip(shape, cuts, strict=True)]


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    ranges = _ranges(specs[0].shape, attrs)
    return Spec(tuple(len(indices) for indices in ranges), specs[0].dtype)


def _view(view: View, attrs: Attrs) -> View:
    ranges = _ranges(view.shape, attrs)
    starts = [indices.start if indices else 0 for indices in ranges]
    return View(
        view.buffer,
        view.dtype,
        view.offset + sum(a * s for a, s in zip(starts, view.strides, strict=True)),
        tuple(len(indices) for indices in ranges),
        tuple(s * (r.step if len(r) > 1 else 1) for s, r in zip(view.strides, ranges, strict=True)),
    )


view_op(
    "slice",
    SUMMARY,
    (
        INPUT,
        Argument("starts", "Sequence[int]", "first index of each dimension", None),
        Argument("stops", "Sequence[int]", "the index after the last one", None),
        Argument("steps", "Sequence[int] | None", "from one index to the next; 1 if None", "None"),
    ),
    _infer,
    _view,
    None,
)
