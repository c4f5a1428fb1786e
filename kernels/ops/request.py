"""Ask the host to move data between ranks: the proxy transport."""

from ark_dist.core.dtype import ALL_DTYPES, UINT8
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec

SUMMARY = """Let the host's thread run the communication operator `op` on `input`.

The kernel raises the flag `<key>.ask`; the host moves the data, into the view that the node takes
over, and raises `<key>.done`, which a handshake waits for."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    return Spec((1,), UINT8)


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    return tuple(full_box(spec.shape) for spec in specs)


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    raise AssertionError("a request computes nothing")


def _tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    return (tuple((0, size) for size in out.shape),)


def _cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    return Cost(0, 0)


register(
    Op(
        name="request",
        summary=SUMMARY,
        arguments=(
            Argument("input", "Tensor | None", "what this rank gives", "None"),
            Argument("axis", "int", "of the operator; 0 where it has none", None),
            Argument("cuts", "Sequence[int]", "of the operator", None),
            Argument("key", "str", "the message's name on all ranks", None),
            Argument("op", "str", "the communication operator", None),
            Argument("peer", "int", "the other rank, or the root", None),
            Argument("ranks", "Sequence[int]", "the group", None),
            Argument("reduce", "str", "of the operator", None),
            Argument("source", "Sequence[int]", "of the operator", None),
            Argument("tag", "int", "of a send or recv", None),
            Argument("target", "Sequence[int]", "of the operator", None),
        ),
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
        effect="handshake",
        kernel=Kernel("control", "ark_handshake"),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)
