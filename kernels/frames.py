"""Write the task function of a lowered group as C++, one text per loop nest and chain."""

from collections.abc import Callable, Sequence
from math import prod

from ark_dist.core.graph import Node, frame_of
from ark_dist.core.op import OPS
from ark_dist.core.shape import Box, Shape, box_shape
from ark_dist.kernels.chain import (
    CONTIGUOUS,
    STRIDED,
    Pointer,
    chain_lines,
    compute_type,
    literals,
)
from ark_dist.kernels.cpu_matmul import matmul_call
from ark_dist.kernels.cpu_nest import (
    FEWEST_STEPS,
    Call,
    PackedRow,
    anchor_of,
    chain_loop,
    declare,
    function,
    goes_past,
    is_narrow,
    loop,
    outer_loops,
    pointers_of,
)
from ark_dist.kernels.lower import (
    Lowered,
    collapse,
    element_offset,
    reduced_axes,
    row_axis,
    tile_parts,
)


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


def _map_call(lowered: Lowered, box: Box) -> Call:
    extents, strides = outer_loops(lowered, box, ())
    nest = collapse(extents, strides)
    count = len(lowered.operands)
    # The innermost loop of what is left is the one that vectorizes.
    if nest.extents:
        outer = collapse(nest.extents[:-1], nest.strides[:-1])
        extent, inner = nest.extents[-1], nest.strides[-1]
    else:
        outer, extent, inner = nest, 1, (0,) * count
    by_operand, pointers = pointers_of(lowered, inner, extent)
    lines = ["const int64_t n = loop.extra[0];"]
    lines += declare(pointers, count - 1, 1)
    lines += chain_loop(lowered, by_operand, None, extent)
    body = function(count, lines, is_past=goes_past(lowered, pointers))
    return Call(body, (*outer.params, extent, *inner), 0)


def _row_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = anchor_of(lowered)
    axis = row_axis(anchor)
    extents, strides = outer_loops(lowered, box, (axis,))
    nest = collapse(extents, strides)
    n = box_shape(box)[axis]
    inner = [o.strides[axis] for o in lowered.operands]
    by_operand, pointers = pointers_of(lowered, inner, n)
    count = len(lowered.operands)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    lines = declare(pointers, count - 1, 1)
    row = "a0"
    if pointers[0].kind != CONTIGUOUS or is_narrow(pointers[0].dtype):
        row = "kept"
        lines.append("ark_load_row(kept, a0, n, loop.extra[1]);")
    vectors = pointers[1 : lowered.chain_start]
    widened = [p for p in vectors if p.kind == CONTIGUOUS and is_narrow(p.dtype)]
    along = with_absent(anchor, [_row_of(p, p in widened) for p in vectors])
    row = f"ark_row<float>{{{row}, 1}}"
    arguments = ", ".join(["team", row, "kept", "n", *along, *literals(anchor)])
    lines.append(f"const auto value = {kernel.function}({arguments});")
    lines += chain_loop(lowered, by_operand, lambda j: f"value({j})", n)
    before = ["const ark_team team;", "const int64_t n = loop.extra[0];"]
    before.append("float* const kept = call.scratch;")
    for k, p in enumerate(widened):
        before.append(f"float* const x{p.index} = kept + {k + 1} * n;")
        source = f"loop.at<const {p.dtype.c_name}>(call, {p.index})"
        before.append(f"ark_widen(x{p.index}, {source}, n);")
    body = function(count, lines, before=before, is_past=goes_past(lowered, pointers))
    return Call(body, (*nest.params, n, *inner), n * (1 + len(widened)))


def _row_of(pointer: Pointer, is_widened: bool) -> str:
    """A vector along the rows that a norm works on, as its function takes it."""
    if is_widened:
        return f"ark_row<float>{{x{pointer.index}, 1}}"
    stride = f"s{pointer.index}" if pointer.kind == STRIDED else pointer.kind
    return f"ark_row<{pointer.dtype.c_name}>{{{pointer.name}, {stride}}}"


def with_absent(node: Node, arguments: Sequence[str]) -> list[str]:
    """The arguments for a node's inputs after the first, with those that were left out."""
    wanted = sum(argument.is_tensor for argument in OPS[node.op].arguments) - 1
    return [*arguments, *["ark_absent{}"] * (wanted - len(arguments))]


def _reduce_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = anchor_of(lowered)
    axis = _column_axis(lowered)
    if axis is not None:
        return _columns_call(lowered, box, axis)
    nest = collapse(*outer_loops(lowered, box, ()))
    source = anchor.inputs[0]
    count = len(lowered.operands)
    by_operand, pointers = pointers_of(lowered, (0,) * count, 1)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    sizes, strides = reduced_loops(anchor)
    lines = ["const ark_team team;", "const int64_t n = loop.extra[0];"]
    lines += declare(pointers, count - 1, 1)
    c_name = source.dtype.c_name
    folding = f"{kernel.function}<{compute_type(source.dtype)}>"
    if len(sizes) > 1:
        row = f"ark_grid<{c_name}, {len(sizes)}>{{a0, loop.extra + 1}}"
        lines.append(f"const auto value = {folding}(team, {row}, n);")
    else:
        # A literal stride of 1 lets the loop over the row vectorize.
        lines.append("const int64_t stride = loop.extra[2];")
        lines.append(
            f"const auto value = stride == 1 ? {folding}(team, ark_row<{c_name}>{{a0, 1}}, n) :"
        )
        lines.append(f"    {folding}(team, ark_row<{c_name}>{{a0, stride}}, n);")
    store = chain_lines(lowered, by_operand, "value", "0")
    lines += ["if (team.rank() == 0) {", *(f"  {line}" for line in store), "}"]
    return Call(function(count, lines), (*nest.params, prod(sizes), *sizes, *strides), 0)


def _column_axis(lowered: Lowered) -> int | None:
    """The output's dimension along which columns to reduce are side by side, if any."""
    anchor = anchor_of(lowered)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    strides = lowered.operands[0].strides
    # By the whole output, not the tile: a sum's order must not depend on how it is cut.
    sizes = lowered.output.shape
    wide = [d for d, size in enumerate(sizes) if strides[d] == 1 and size >= FEWEST_STEPS]
    is_row = reduced_loops(anchor)[1][-1] == 1
    return wide[0] if kernel.has_columns and wide and not is_row else None


def _columns_call(lowered: Lowered, box: Box, axis: int) -> Call:
    anchor = anchor_of(lowered)
    nest = collapse(*outer_loops(lowered, box, (axis,)))
    extent = box_shape(box)[axis]
    inner = [o.strides[axis] for o in lowered.operands]
    by_operand, pointers = pointers_of(lowered, inner, extent)
    count = len(pointers)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    dtype = anchor.inputs[0].dtype
    sizes, strides = reduced_loops(anchor)
    rows = f"{{a0 + first, loop.extra + {count + 2}}}"
    columns = f"ark_columns<{dtype.c_name}, {len(sizes)}>{{{rows}, loop.extra[{count + 1}], count}}"
    before = [
        f"{compute_type(dtype)} totals[ARK_PIECE];",
        f"{kernel.function}_columns({columns}, totals);",
    ]
    lines = ["const int64_t n = loop.extra[0];", *declare(pointers, count - 1, 1)]
    lines += chain_loop(lowered, by_operand, lambda _: "totals[j]", extent, before=before)
    body = function(count, lines, is_past=goes_past(lowered, pointers))
    return Call(body, (*nest.params, extent, *inner, prod(sizes), *sizes, *strides), 0)


def reduced_loops(node: Node) -> tuple[Shape, Shape]:
    """Sizes and strides of as few loops as walk what a reduction folds, one at least."""
    source = node.inputs[0]
    axes = reduced_axes(node)
    nest = collapse([source.shape[d] for d in axes], [(source.strides[d],) for d in axes])
    if prod(nest.extents) in (0, 1):
        return (prod(nest.extents),), (1,)
    return nest.extents, tuple(stride for (stride,) in nest.strides)


def _gather_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    anchor = anchor_of(lowered)
    last = len(box) - 1
    nest = collapse(*outer_loops(lowered, box, (last,)))
    n = box_shape(box)[last]
    inner = [o.strides[last] for o in lowered.operands]
    count = len(lowered.operands)
    by_operand, pointers = pointers_of(lowered, inner, n)
    table = anchor.inputs[1]
    # The row starts where the index says; only its stride matters along the inner loop.
    row = Pointer(1, table.dtype, pointers[1].kind)
    suffix = ""
    if table.buffer in lowered.packed:
        row, suffix = PackedRow(1, table.dtype, CONTIGUOUS), "_packed"
    lines = ["const int64_t n = loop.extra[0];"]
    lines += declare(pointers, count - 1, 1)
    part, is_here, extra = part_of_table(anchor)
    if part:
        lines.append("bool is_here;")
    lines.append(
        f"a1 = ark_embedding{part}{suffix}(call, a1, a0[0], loop.extra + {1 + count}{is_here});"
    )
    lines.append("if (a1 == nullptr) return;")
    c_name = table.dtype.c_name

    def element(j: str) -> str:
        return f"is_here ? {row.element(j)} : {c_name}{{}}" if part else row.element(j)

    if lowered.chain:
        lines += chain_loop(lowered, by_operand, lambda j: f"ark_load<{c_name}>({element(j)})", n)
    else:
        lines += loop([f"{pointers[-1].element('j')} = {element('j')};"], "n")
    params = (*nest.params, n, *inner, table.shape[0], table.strides[0], *extra)
    return Call(function(count, lines), params, 0)


def part_of_table(embedding: Node) -> tuple[str, str, tuple[int, ...]]:
    """What a look-up in a part of a table adds: to its function's name, arguments, parameters."""
    rows, height = embedding.attributes["rows"], embedding.inputs[1].shape[0]
    if rows in (None, height):
        return "", "", ()
    first = embedding.attributes["first_row"]
    assert isinstance(rows, int)
    assert isinstance(first, int)
    return "_part", ", &is_here", (first, rows)


def _tile_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    """A function that gets each operand as a tile and loops by itself."""
    lines, params, scratch = tile_lines(lowered, box)
    inside = "\n".join(f"  {line}" for line in ["const ark_team team;", *lines])
    return Call(f"(const ark_call& call) {{\n{inside}\n}}", params, scratch)


def tile_lines(lowered: Lowered, box: Box) -> tuple[list[str], tuple[int, ...], int]:
    """Lines that call a "tile" function, its parameters, and the fp32 elements of its scratch."""
    anchor = anchor_of(lowered)
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
    anchor = anchor_of(lowered)
    if anchor.op == "command_scalar":
        slot = scalar_slots[str(anchor.attributes["name"])]
        body = "(const ark_call& call) {\n  ark_command_scalar(call);\n}"
        return Call(body, (slot, anchor.output.dtype.itemsize), 0)
    if OPS[anchor.op].effect == "handshake":
        return Call("(const ark_call& call) {\n  ark_handshake(call);\n}", (), 0)
    c_name = anchor.inputs[0].dtype.c_name
    body = f"(const ark_call& call) {{\n  ark_stop_when<{c_name}>(call);\n}}"
    return Call(body, (), 0)


_FRAMES: dict[str, Callable[[Lowered, Box, dict[str, int]], Call]] = {
    "row": _row_call,
    "reduce": _reduce_call,
    "gather": _gather_call,
    "matmul": matmul_call,
    "control": _control_call,
    "tile": _tile_call,
}
