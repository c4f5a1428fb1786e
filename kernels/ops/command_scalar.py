"""Set a scalar state from the command that started the run."""

from ark_dist.core.dtype import ALL_DTYPES, INT32
from ark_dist.core.op import Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return Spec((1,), INT32)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    return ()


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    raise AssertionError("the session stores command scalars itself")


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    return (tuple((0, size) for size in out.shape),)


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    return Cost(out.dtype.itemsize, 1)


register(
    Op(
        name="command_scalar",
        summary="Store the scalar `name` of the command, in the command's first iteration.",
        arguments=(),
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="command",
        kernel=Kernel("control", "ark_command_scalar"),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)
