"""What the frames of CPU task functions share: a call, loops around tiles, operands' pointers."""

from collections.abc import Sequence
from dataclasses import dataclass

from ark_dist.core.graph import Node
from ark_dist.core.shape import Box, Shape, box_shape
from ark_dist.kernels.chain import STRIDED, Pointer, stride_kind
from ark_dist.kernels.lower import Lowered, Operand


@dataclass(frozen=True, slots=True)
class Call:
    """One task as its function sees it.

    Attributes:
        body: the C++ body of the function, without its name.
        params: the integers it reads.
        scratch_elems: fp32 elements of scratch memory it needs.
        shared_bytes: bytes of a CTA's shared memory it needs.
        stream: what comes to it through the ring of weights, a slot each.
    """

    body: str
    params: tuple[int, ...]
    scratch_elems: int
    shared_bytes: int = 0
    stream: tuple["Stretch", ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pieces of an operand that fill one slot of the weight ring.

    Attributes:
        operand: which one.
        offset_bytes: where the first piece starts, from where the tile does.
        bytes: of each piece, a multiple of 16.
        segments: how many pieces.
        pitch_bytes: from one to the next.
    """

    operand: int
    offset_bytes: int
    bytes: int
    segments: int
    pitch_bytes: int


def outer_loops(lowered: Lowered, box: Box, inner: Sequence[int]) -> tuple[list[int], list[Shape]]:
    """Extents of the output dimensions outside `inner`, and the operands' strides along them."""
    sizes = box_shape(box)
    dims = [d for d in range(len(sizes)) if d not in inner]
    strides = [tuple(o.strides[d] for o in lowered.operands) for d in dims]
    return [sizes[d] for d in dims], strides


def pointers_of(
    lowered: Lowered, strides: Sequence[int], extent: int
) -> tuple[dict[Operand, Pointer], list[Pointer]]:
    """Each operand as a pointer of the inner loop, which takes `strides` over `extent` steps."""
    pointers = [
        Pointer(k, operand.view.dtype, stride_kind(strides[k], extent))
        for k, operand in enumerate(lowered.operands)
    ]
    return dict(zip(lowered.operands, pointers, strict=True)), pointers


def declare(pointers: Sequence[Pointer], last: int, first_stride: int) -> list[str]:
    """Pointer and stride declarations; operand `last` is written."""
    lines = []
    for pointer in pointers:
        const = "" if pointer.index == last else "const "
        c_name = pointer.dtype.c_name
        lines.append(
            f"{const}{c_name}* {pointer.name} = loop.at<{const}{c_name}>(call, {pointer.index});"
        )
        if pointer.kind == STRIDED:
            lines.append(
                f"const int64_t s{pointer.index} = loop.extra[{first_stride + pointer.index}];"
            )
    return lines


def function(operand_count: int, lines: Sequence[str]) -> str:
    """The body of a function that runs `lines` at each position of the outer loops."""
    inside = "\n".join(f"    {line}" for line in lines)
    return (
        "(const ark_call& call) {\n"
        f"  ark_loop<{operand_count}> loop(call);\n"
        "  do {\n"
        f"{inside}\n"
        "  } while (loop.next());\n"
        "}"
    )


def loop(lines: Sequence[str], extent: str, *, start: str = "0") -> list[str]:
    """A loop over j whose steps do not depend on each other."""
    return [
        "ARK_INDEPENDENT",
        f"for (int64_t j = {start}; j < {extent}; ++j) {{",
        *(f"  {line}" for line in lines),
        "}",
    ]


def team_loop(lines: Sequence[str], extent: str) -> list[str]:
    """The same, spread over a team."""
    return [f"team.each({extent}, [&](int64_t j) {{", *(f"  {line}" for line in lines), "});"]


def anchor_of(lowered: Lowered) -> Node:
    """The node that decides the loop nest; there must be one."""
    assert lowered.anchor is not None
    return lowered.anchor
