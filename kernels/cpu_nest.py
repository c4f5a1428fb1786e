"""What the frames of CPU task functions share: a call, loops around tiles, operands' pointers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ark_dist.core.dtype import FP32, DType
from ark_dist.core.graph import Node
from ark_dist.core.shape import Box, Shape, box_shape
from ark_dist.kernels.chain import CONTIGUOUS, STRIDED, Pointer, chain_lines, stride_kind
from ark_dist.kernels.lower import Lowered, Operand

# Loops of fewer steps than a vector has elements are not worth a piece.
FEWEST_STEPS = 16
# No cache keeps all of an output of this size until somebody reads it.
PAST_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Call:
    """One task as its function sees it.

    Attributes:
        body: the C++ body of the function, without its name.
        params: the integers it reads.
        scratch_elems: fp32 elements of scratch memory it needs.
        shared_bytes: bytes of a CTA's shared memory it needs.
        stream: what comes to it through a GPU's ring of weights, a slot each; on a CPU what a
            waiting worker reads ahead.
    """

    body: str
    params: tuple[int, ...]
    scratch_elems: int
    shared_bytes: int = 0
    stream: tuple["Stretch", ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pieces of an operand that fill one slot of the weight ring, or are read ahead.

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


def function(
    operand_count: int, lines: Sequence[str], *, before: Sequence[str] = (), is_past: bool = False
) -> str:
    """The body of a function that runs `lines` at each position of the outer loops.

    `before` comes before the first; `is_past` says that the output is written past the caches.
    """
    body = [
        f"ark_loop<{operand_count}> loop(call);",
        *before,
        "do {",
        *(f"  {line}" for line in lines),
        "} while (loop.next());",
        *(["ark_settle();"] if is_past else []),
    ]
    return "(const ark_call& call) {\n" + "".join(f"  {line}\n" for line in body) + "}"


def loop(lines: Sequence[str], extent: str, *, start: str = "0") -> list[str]:
    """A loop over j whose steps do not depend on each other."""
    return [
        "ARK_INDEPENDENT",
        f"for (int64_t j = {start}; j < {extent}; ++j) {{",
        *(f"  {line}" for line in lines),
        "}",
    ]


@dataclass(frozen=True, slots=True)
class PackedRow(Pointer):
    """A row of a table that is stored in panels."""

    def element(self, position: str) -> str:
        """The element at a position of the row."""
        return f"{self.name}[ark_panel_place<{self.dtype.c_name}>({position})]"


@dataclass(frozen=True, slots=True)
class Piece(Pointer):
    """An operand that a loop sees through a piece of it, in the type of arithmetic."""

    @property
    def name(self) -> str:
        """Its C++ name."""
        return f"x{self.index}"

    def element(self, position: str) -> str:
        """The element at step j of the piece, wherever in the operand that is."""
        return f"{self.name}[j]"


def arithmetic_dtype(dtype: DType) -> DType:
    """The dtype that arithmetic on a dtype uses."""
    return FP32 if dtype.is_float else dtype


def is_narrow(dtype: DType) -> bool:
    """Whether elements are widened before any arithmetic."""
    return dtype != arithmetic_dtype(dtype)


def goes_past(lowered: Lowered, pointers: Sequence[Pointer]) -> bool:
    """Whether the output is written past the caches: it is large, and not there already."""
    output = lowered.output
    is_large = prod(output.shape) * output.dtype.itemsize >= PAST_BYTES
    is_read = any(o.view.buffer == output.buffer for o in lowered.operands[:-1])
    return is_large and not is_read and pointers[-1].kind == CONTIGUOUS


def chain_loop(
    lowered: Lowered,
    pointers: Mapping[Operand, Pointer],
    value: Callable[[str], str] | None,
    steps: int,
    *,
    extent: str = "n",
    start: str = "0",
    before: Sequence[str] = (),
) -> list[str]:
    """A loop that takes the anchor's values through the chain and stores them.

    Args:
        lowered: the group.
        pointers: its operands along the loop.
        value: C++ of a position -> of the anchor's value there; None where there is none.
        steps: how many the loop has; `extent` and `start` say so in C++.
        extent: where it ends.
        start: where it begins.
        before: what comes before each piece, which has `count` steps from `first` on. Without it,
            there are pieces only where they help.
    """
    in_order = list(pointers.values())
    is_past = goes_past(lowered, in_order)
    pieces = {
        operand: Piece(p.index, arithmetic_dtype(p.dtype), CONTIGUOUS)
        for operand, p in pointers.items()
        if p.index >= lowered.chain_start and p.kind == CONTIGUOUS and steps >= FEWEST_STEPS
        if is_narrow(p.dtype) or (is_past and operand.is_output)
    }
    if not pieces and not before:
        lines = chain_lines(lowered, pointers, value and value("j"), "j")
        return loop(lines, extent, start=start)
    position = "first + j"
    lines = chain_lines(lowered, {**pointers, **pieces}, value and value(position), position)
    store = "ark_narrow_past" if is_past else "ark_narrow"
    reads = [p for operand, p in pieces.items() if not operand.is_output]
    writes = [p for operand, p in pieces.items() if operand.is_output]
    body = [
        f"const int64_t count = ark_piece({extent} - first);",
        *before,
        *(f"alignas(64) {p.dtype.c_name} {p.name}[ARK_PIECE];" for p in pieces.values()),
        *(f"ark_widen({p.name}, a{p.index} + first, count);" for p in reads),
        *loop(lines, "count"),
        *(f"{store}(a{p.index} + first, {p.name}, count);" for p in writes),
    ]
    head = f"for (int64_t first = {start}; first < {extent}; first += ARK_PIECE) {{"
    return [head, *(f"  {line}" for line in body), "}"]


def anchor_of(lowered: Lowered) -> Node:
    """The node that decides the loop nest; there must be one."""
    assert lowered.anchor is not None
    return lowered.anchor
