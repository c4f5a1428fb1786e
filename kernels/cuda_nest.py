"""What the frames of CUDA functions share: loops over positions, pointers, blocks of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ark_dist.core.shape import Box, box_shape
from ark_dist.kernels.chain import Pointer
from ark_dist.kernels.lower import Lowered, Nest, collapse

# Positions are numbered in 32 bits.
MAX_POSITIONS = 2**31


@dataclass(frozen=True, slots=True)
class Element(Pointer):
    """An operand whose element has a text of its own, such as one of a pack in registers."""

    text: str = ""

    def element(self, position: str) -> str:
        """The element, wherever the loop is."""
        return self.text


def nest_of(lowered: Lowered, box: Box, inner: Sequence[int] = ()) -> Nest:
    """The loops over a tile, without the dimensions in `inner`."""
    sizes = box_shape(box)
    dims = [d for d in range(len(sizes)) if d not in inner]
    strides = [tuple(o.strides[d] for o in lowered.operands) for d in dims]
    return nest_of_loops(collapse([sizes[d] for d in dims], strides), len(lowered.operands))


def nest_of_loops(nest: Nest, operands: int) -> Nest:
    """The same loops for a GPU: at least one of one step, and not too many."""
    if prod(nest.extents) > MAX_POSITIONS:
        raise ValueError(
            f"a tile has {prod(nest.extents)} positions; at most {MAX_POSITIONS} work on a GPU: "
            "use more workers"
        )
    # A nest of one step, rather than none, for tensors without dimensions.
    return nest if nest.extents else Nest((1,), ((0,) * operands,))


def head_lines(lowered: Lowered, nest: Nest) -> list[str]:
    """The nest, and where each operand starts: p0, p1, ..."""
    count = len(lowered.operands)
    lines = [f"const ark_nest<{len(nest.extents)}, {count}> nest(call);"]
    for k, operand in enumerate(lowered.operands):
        const = "" if operand.is_output else "const "
        name = f"{const}{operand.view.dtype.c_name}"
        lines.append(f"{name}* const p{k} = ark_operand<{name}>(call, {k});")
    return lines


def function_text(lines: Sequence[str]) -> str:
    """A task function of these lines, without its name."""
    inside = "\n".join(f"  {line}" for line in lines)
    return f"(const ark_call& call) {{\n{inside}\n}}"


def block(head: str, lines: Sequence[str], tail: str = "}") -> list[str]:
    """Lines in braces."""
    return [f"{head} {{", *(f"  {line}" for line in lines), tail]


def row_lines(lowered: Lowered) -> list[str]:
    """Where each operand's row starts at position r."""
    count = len(lowered.operands)
    lines = [f"int64_t offset[{count}];", "nest.offsets(r, offset);"]
    for k, operand in enumerate(lowered.operands):
        const = "" if operand.is_output else "const "
        lines.append(f"{const}{operand.view.dtype.c_name}* const a{k} = p{k} + offset[{k}];")
    return lines


def inner_text(stride: int, stride_name: str, index: str) -> str:
    """An index times its stride; empty where that is 0."""
    return {0: "", 1: index}.get(stride, f"{index} * {stride_name}")
