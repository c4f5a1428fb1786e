"""Write the task function of a lowered group as C++, one text per loop nest and chain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ark_dist.core.graph import Node, frame_of
from ark_dist.core.op import OPS
from ark_dist.core.shape import Box, Shape, box_shape
from ark_dist.kernels.chain import (
    STRIDED,
    Pointer,
    chain_lines,
    compute_type,
    literals,
    stride_kind,
)
from ark_dist.kernels.lower import (
    Lowered,
    Operand,
    collapse,
    element_offset,
    matrix_strides,
    reduced_axes,
    row_axis,
    tile_parts,
)

# Integers that ark_matmul_params reads, before the operands' strides.
MATMUL_EXTRAS = 7
# ARK_MATMUL_SCRATCH in matmul.h, where a static_assert holds the two together.
MATMUL_SCRATCH_ELEMS = 72 * 256 + 256 * 128 + 72 * 128


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


def write_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    """Return the function body and the parameters of one tile."""
    if lowered.anchor is None:
        return _map_call(lowered, box)
    writer = _FRAMES[frame_of(lowered.anchor)]
    return writer(lowered, box, scalar_slots)


def call_key(lowered: Lowered, box: Box) -> Box | Shape:
    """What of a tile decides its function and parameters: the shape, or for "tile" all of it."""
    is_tile = lowered.anchor is not None and frame_of(lowered.anchor) == "tile"
    return box if is_tile else box_shape(box)


def offsets(lowered: Lowered, box: Box) -> tuple[int, ...]:
    """Element offset of each operand for one tile."""
    if lowered.anchor is not None and frame_of(lowered.anchor) == "tile":
        return tuple(
            view.offset + sum(a * s for (a, _), s in zip(part, view.strides, strict=True))
            for view, part in tile_parts(lowered, box)
        )
    return tuple(element_offset(operand, box) for operand in lowered.operands)


def _outer(lowered: Lowered, box: Box, inner: Sequence[int]) -> tuple[list[int], list[Shape]]:
    """Extents of the output dimensions outside `inner`, and the operands' strides along them."""
    sizes = box_shape(box)
    dims = [d for d in range(len(sizes)) if d not in inner]
    strides = [tuple(o.strides[d] for o in lowered.operands) for d in dims]
    return [sizes[d] for d in dims], strides


def _pointers(
    lowered: Lowered, strides: Sequence[int], extent: int
) -> tuple[dict[Operand, Pointer], list[Pointer]]:
    pointers = [
        Pointer(k, operand.view.dtype, stride_kind(strides[k], extent))
        for k, operand in enumerate(lowered.operands)
    ]
    return dict(zip(lowered.operands, pointers, strict=True)), pointers


def _declare(pointers: Sequence[Pointer], last: int, first_stride: int) -> list[str]:
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


def _function(operand_count: int, lines: Sequence[str]) -> str:
    inside = "\n".join(f"    {line}" for line in lines)
    return (
        "(const ark_call& call) {\n"
        f"  ark_loop<{operand_count}> loop(call);\n"
        "  do {\n"
        f"{inside}\n"
        "  } while (loop.next());\n"
        "}"
    )


def _loop(lines: Sequence[str], extent: str, *, start: str = "0") -> list[str]:
    return [
        "ARK_INDEPENDENT",
        f"for (int64_t j = {start}; j < {extent}; ++j) {{",
        *(f"  {line}" for line in lines),
        "}",
    ]


def _team_loop(lines: Sequence[str], extent: str) -> list[str]:
    return [f"team.each({extent}, [&](int64_t j) {{", *(f"  {line}" for line in lines), "});"]


def _map_call(lowered: Lowered, box: Box) -> Call:
    extents, strides = _outer(lowered, box, ())
    nest = collapse(extents, strides)
    count = len(lowered.operands)
    # The innermost loop of what is left is the one that vectorizes.
    if nest.extents:
        outer = collapse(nest.extents[:-1], nest.strides[:-1])
        extent, inner = nest.extents[-1], nest.strides[-1]
    else:
        outer, extent, inner = nest, 1, (0,) * count
    by_operand, pointers = _pointers(lowered, inner, extent)
    lines = ["const int64_t n = loop.extra[0];"]
    lines += _declare(pointers, count - 1, 1)
    lines += _loop(chain_lines(lowered, by_operand, None, "j"), "n")
    return Call(_function(count, lines), (*outer.params, extent, *inner), 0)


def _row_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = _anchor(lowered)
    axis = row_axis(anchor)
    extents, strides = _outer(lowered, box, (axis,))
    nest = collapse(extents, strides)
    n = box_shape(box)[axis]
    inner = [o.strides[axis] for o in lowered.operands]
    by_operand, pointers = _pointers(lowered, inner, n)
    count = len(lowered.operands)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    c_name = anchor.inputs[0].dtype.c_name
    lines = ["const ark_team team;", "const int64_t n = loop.extra[0];"]
    lines += ["float* row = call.scratch;", *_declare(pointers, count - 1, 1)]
    lines.append(f"ark_load_row<{c_name}>(team, row, a0, n, loop.extra[1]);")
    along = with_absent(anchor, [_row_of(p) for p in pointers[1 : lowered.chain_start]])
    arguments = ", ".join(["team", "row", "n", *along, *literals(anchor)])
    lines.append(f"{kernel.function}({arguments});")
    lines += _team_loop(chain_lines(lowered, by_operand, "row[j]", "j"), "n")
    params = (*nest.params, n, *inner)
    return Call(_function(count, lines), params, n)


def _row_of(pointer: Pointer) -> str:
    """A vector along the rows that a norm works on, as its function takes it."""
    stride = f"s{pointer.index}" if pointer.kind == STRIDED else pointer.kind
    return f"ark_row<{pointer.dtype.c_name}>{{{pointer.name}, {stride}}}"


def with_absent(node: Node, arguments: Sequence[str]) -> list[str]:
    """The arguments for a node's inputs after the first, with those that were left out."""
    wanted = sum(argument.is_tensor for argument in OPS[node.op].arguments) - 1
    return [*arguments, *["ark_absent{}"] * (wanted - len(arguments))]


def _reduce_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = _anchor(lowered)
    nest = collapse(*_outer(lowered, box, ()))
    source = anchor.inputs[0]
    count = len(lowered.operands)
    by_operand, pointers = _pointers(lowered, (0,) * count, 1)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    sizes, strides = reduced_loops(anchor)
    lines = ["const ark_team team;", "const int64_t n = loop.extra[0];"]
    lines += _declare(pointers, count - 1, 1)
    c_name = source.dtype.c_name
    function = f"{kernel.function}<{compute_type(source.dtype)}>"
    if len(sizes) > 1:
        row = f"ark_grid<{c_name}, {len(sizes)}>{{a0, loop.extra + 1}}"
        lines.append(f"const auto value = {function}(team, {row}, n);")
    else:
        # A literal stride of 1 lets the loop over the row vectorize.
        lines.append("const int64_t stride = loop.extra[2];")
        lines.append(
            f"const auto value = stride == 1 ? {function}(team, ark_row<{c_name}>{{a0, 1}}, n) :"
        )
        lines.append(f"    {function}(team, ark_row<{c_name}>{{a0, stride}}, n);")
    store = chain_lines(lowered, by_operand, "value", "0")
    lines += ["if (team.rank() == 0) {", *(f"  {line}" for line in store), "}"]
    return Call(_function(count, lines), (*nest.params, prod(sizes), *sizes, *strides), 0)


def reduced_loops(node: Node) -> tuple[Shape, Shape]:
    """Sizes and strides of as few loops as walk what a reduction folds, one at least."""
    source = node.inputs[0]
    axes = reduced_axes(node)
    nest = collapse([source.shape[d] for d in axes], [(source.strides[d],) for d in axes])
    if prod(nest.extents) in (0, 1):
        return (prod(nest.extents),), (1,)
    return nest.extents, tuple(stride for (stride,) in nest.strides)


def _gather_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = _anchor(lowered)
    last = len(box) - 1
    nest = collapse(*_outer(lowered, box, (last,)))
    n = box_shape(box)[last]
    inner = [o.strides[last] for o in lowered.operands]
    count = len(lowered.operands)
    by_operand, pointers = _pointers(lowered, inner, n)
    table = anchor.inputs[1]
    # The row starts where the index says; only its stride matters along the inner loop.
    row = Pointer(1, table.dtype, pointers[1].kind)
    lines = ["const int64_t n = loop.extra[0];"]
    lines += _declare(pointers, count - 1, 1)
    lines.append(f"a1 = ark_embedding(call, a1, a0[0], loop.extra + {1 + count});")
    lines.append("if (a1 == nullptr) return;")
    value = f"ark_load<{table.dtype.c_name}>({row.element('j')})"
    lines += _loop(chain_lines(lowered, by_operand, value, "j"), "n")
    params = (*nest.params, n, *inner, table.shape[0], table.strides[0])
    return Call(_function(count, lines), params, 0)


def _matmul_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = _anchor(lowered)
    m_dim, n_dim = len(box) - 2, len(box) - 1
    nest = collapse(*_outer(lowered, box, (m_dim, n_dim)))
    m, n = box_shape(box)[m_dim:]
    count = len(lowered.operands)
    a, b = lowered.operands[0].view, anchor.inputs[1]
    is_turned = anchor.attributes["transpose_input"]
    a_m, a_k = matrix_strides(a, is_turned)
    b_k, b_n = matrix_strides(b, anchor.attributes["transpose_other"])
    k = a.shape[-2] if is_turned else a.shape[-1]
    rows = [o.strides[m_dim] for o in lowered.operands]
    columns = [o.strides[n_dim] for o in lowered.operands]
    lines = _matmul_epilogue(lowered, columns, n)
    prologue_lines, prologue = _matmul_prologue(lowered)
    lines += prologue_lines
    a_type, b_type = a.dtype.c_name, b.dtype.c_name
    lines += [
        f"ark_matmul(call.scratch, loop.at<const {a_type}>(call, 0),",
        f"           loop.at<const {b_type}>(call, 1), ark_matmul_params(loop.extra),",
        f"           {prologue}, epilogue);",
    ]
    norm_inputs = lowered.prologue.inputs[1:] if lowered.prologue is not None else ()
    along = (view.strides[0] for view in norm_inputs)
    params = (*nest.params, m, n, k, a_m, a_k, b_k, b_n, *rows, *columns, *along)
    return Call(_function(count, lines), params, MATMUL_SCRATCH_ELEMS)


def _matmul_epilogue(lowered: Lowered, columns: Sequence[int], n: int) -> list[str]:
    """A lambda that takes a piece of one finished row through the chain."""
    by_operand, pointers = _pointers(lowered, columns, n)
    is_relu = _anchor(lowered).attributes["is_relu"]
    value = "ark_matmul_relu(sums[j - j0])" if is_relu else "sums[j - j0]"
    count = len(pointers)
    lines = ["const auto epilogue = [&](int64_t i, int64_t j0, const float* sums, int64_t n) {"]
    for pointer in pointers[lowered.chain_start :]:
        const = "" if pointer.index == count - 1 else "const "
        c_name = pointer.dtype.c_name
        lines.append(
            f"  {const}{c_name}* {pointer.name} = loop.at<{const}{c_name}>(call, "
            f"{pointer.index}) + i * loop.extra[{MATMUL_EXTRAS + pointer.index}];"
        )
        if pointer.kind == STRIDED:
            stride = MATMUL_EXTRAS + count + pointer.index
            lines.append(f"  const int64_t s{pointer.index} = loop.extra[{stride}];")
    body = _loop(chain_lines(lowered, by_operand, value, "j"), "j0 + n", start="j0")
    return [*lines, *(f"  {line}" for line in body), "};"]


def _matmul_prologue(lowered: Lowered) -> tuple[list[str], str]:
    """Lines, and the prologue's expression."""
    norm = lowered.prologue
    if norm is None:
        return [], "ark_matmul_no_prologue{}"
    kernel = OPS[norm.op].kernel
    assert kernel is not None
    arguments = ", ".join(["team", "row", "n", *literals(norm)])
    lines = [
        "const ark_team team;",
        "const auto norm = [&](const auto& row, int64_t n) {",
        f"  return {kernel.function}_prologue({arguments});",
        "};",
    ]
    first_stride = MATMUL_EXTRAS + 2 * len(lowered.operands)
    along = ["ark_absent{}", "ark_absent{}"]
    for k, view in enumerate(norm.inputs[1:]):
        kind = stride_kind(view.strides[0], view.shape[0])
        stride = f"loop.extra[{first_stride + k}]" if kind == STRIDED else kind
        data = f"loop.at<const {view.dtype.c_name}>(call, {2 + k})"
        along[k] = f"ark_row<{view.dtype.c_name}>{{{data}, {stride}}}"
    for name, vector in zip(("weight", "bias"), along, strict=True):
        lines.append(f"const auto {name} = {vector};")
    types = ", ".join(f"decltype({name})" for name in ("norm", "weight", "bias"))
    return lines, f"ark_matmul_norm<{types}>{{norm, weight, bias}}"


def _tile_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    """A function that gets each operand as a tile and loops by itself."""
    lines, params, scratch = tile_lines(lowered, box)
    inside = "\n".join(f"  {line}" for line in ["const ark_team team;", *lines])
    return Call(f"(const ark_call& call) {{\n{inside}\n}}", params, scratch)


def tile_lines(lowered: Lowered, box: Box) -> tuple[list[str], tuple[int, ...], int]:
    """Lines that call a "tile" function, its parameters, and the fp32 elements of its scratch."""
    anchor = _anchor(lowered)
    op = OPS[anchor.op]
    kernel = op.kernel
    assert kernel is not None
    parts = tile_parts(lowered, box)
    lines: list[str] = []
    params: list[int] = []
    for k, (view, part) in enumerate(parts):
        const = "" if k == len(parts) - 1 else "const "
        dims = len(view.shape)
        lines.append(
            f"const ark_tile<{const}{view.dtype.c_name}, {dims}> a{k}(call, {k}, {len(params)});"
        )
        params += [*(a for a, _ in part), *box_shape(part), *view.strides]
    names = [f"a{k}" for k in range(len(parts) - 1)]
    wanted = sum(argument.is_tensor for argument in op.arguments)
    names += ["ark_absent{}"] * (wanted - len(names))
    arguments = ", ".join(["team", "call", *names, f"a{len(parts) - 1}", *literals(anchor)])
    lines.append(f"{kernel.function}({arguments});")
    scratch = 0
    if kernel.scratch is not None:
        scratch = kernel.scratch(anchor.input_specs, anchor.output.spec, anchor.attributes, box)
    return lines, tuple(params), scratch


def _control_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = _anchor(lowered)
    if anchor.op == "command_scalar":
        slot = scalar_slots[str(anchor.attributes["name"])]
        body = "(const ark_call& call) {\n  ark_command_scalar(call);\n}"
        return Call(body, (slot, anchor.output.dtype.itemsize), 0)
    if OPS[anchor.op].effect == "handshake":
        return Call("(const ark_call& call) {\n  ark_handshake(call);\n}", (), 0)
    c_name = anchor.inputs[0].dtype.c_name
    body = f"(const ark_call& call) {{\n  ark_stop_when<{c_name}>(call);\n}}"
    return Call(body, (), 0)


def _anchor(lowered: Lowered) -> Node:
    assert lowered.anchor is not None
    return lowered.anchor


_FRAMES: dict[str, Callable[[Lowered, Box, dict[str, int]], Call]] = {
    "row": _row_call,
    "reduce": _reduce_call,
    "gather": _gather_call,
    "matmul": _matmul_call,
    "control": _control_call,
    "tile": _tile_call,
}
