"""Wait for other ranks' flags, take memory over, and raise flags of other ranks."""

from ark_dist.core.dtype import UINT8
from ark_dist.core.op import Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec

SUMMARY = """Wait for `Node.waits`, then take `Node.takes` over, then raise `Node.raises`.

It moves no data: all that ranks tell each other is when memory may be read or written."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return Spec((1,), UINT8)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    return ()


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    raise AssertionError("a handshake computes nothing")


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    return (tuple((0, size) for size in out.shape),)


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    return Cost(0, 0)


register(
    Op(
        name="handshake",
        summary=SUMMARY,
        arguments=(),
        dtypes=("uint8",),
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=_tiles,
        cost=_cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="handshake",
        kernel=Kernel("control", "ark_handshake"),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)
