"""End a run early when a flag is set."""

from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec

SUMMARY = """End the run after this iteration if `input`, one element of bool or int32, is not 0.

The iteration completes entirely; `wait()` returns how many were done, and the next run goes
on as if there had been no interruption. A method has at most one."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    if specs[0].dtype.name not in ("bool", "int32"):
        raise TypeError(f"stop_when: the flag is {specs[0].dtype}; cast it to bool or int32")
    if specs[0].shape not in ((), (1,)):
        raise ValueError(f"stop_when: the flag is {specs[0].shape}; it must be one element")
    return specs[0]


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    return (box,)


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    return tiles[0]


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    return (tuple((0, size) for size in out.shape),)


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    return Cost(2 * out.dtype.itemsize, 1)


register(
    Op(
        name="stop_when",
        summary=SUMMARY,
        arguments=(Argument("input", "Tensor", "the flag", None),),
        dtypes=("bool", "int32"),
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="stop",
        kernel=Kernel("control", "ark_stop_when"),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
