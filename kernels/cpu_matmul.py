"""Write the CPU task function of a matmul with its norm before and its chain behind."""

from collections.abc import Sequence

from ark_dist.core.op import OPS
from ark_dist.core.packing import PANEL_WIDTH
from ark_dist.core.shape import Box, box_shape
from ark_dist.kernels.chain import STRIDED, literals, stride_kind
from ark_dist.kernels.cpu_nest import (
    Call,
    Stretch,
    anchor_of,
    chain_loop,
    function,
    goes_past,
    pointers_of,
)
from ark_dist.kernels.lower import Lowered, MatmulLoops, matmul_loops, matrix_strides

# Integers that ark_matmul_params reads, before the operands' strides.
MATMUL_EXTRAS = 8
# What matmul.h calls ARK_COLUMNS, ARK_COPIED_DEPTH, ARK_MICRO_ROWS and ARK_MATMUL_MOST_ROWS; a
# static_assert there holds them together.
COLUMNS, COPIED_DEPTH, MICRO_ROWS, MOST_ROWS = 64, 256, 6, 240
# Elements of A in a block of rows: they stay in the second cache beside a block of B.
BLOCK_ELEMS = 128 * 1024
# Copies of A end with whole groups of what lies side by side in a panel: 4 of int8 at most.
PADDED_DEPTH = 4
# Rows of a product that waits for its weights more than it computes; and what a worker reads ahead
# of them: a part of the second cache.
FEW_ROWS, AHEAD_BYTES = 16, 256 * 1024
# As many rows of sums as one row of a matrix-vector product fills.
FEWEST_ROWS = 18


def matmul_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int]) -> Call:
    """The function of a tile of a matmul, and its parameters."""
    anchor = anchor_of(lowered)
    loops, n = matmul_loops(lowered, box), box_shape(box)[-1]
    count = len(lowered.operands)
    a, b = lowered.operands[0].view, anchor.inputs[1]
    is_turned = anchor.attributes["transpose_input"]
    a_k = matrix_strides(a, is_turned)[1]
    b_k, b_n = matrix_strides(b, anchor.attributes["transpose_other"])
    k = a.shape[-2] if is_turned else a.shape[-1]
    columns = [o.strides[-1] for o in lowered.operands]
    lines = _matmul_epilogue(lowered, columns, n)
    prologue_lines, prologue = _matmul_prologue(lowered)
    lines += prologue_lines
    a_type, b_type = a.dtype.c_name, b.dtype.c_name
    is_packed = "true" if b.buffer in lowered.packed else "false"
    left_type = anchor.inputs[0].dtype.c_name
    lines += [
        f"const ark_matmul_b<{left_type}, {b_type}, {is_packed}> "
        f"b{{loop.at<const {b_type}>(call, 1)}};",
        f"ark_matmul(call.scratch, loop.at<const {a_type}>(call, 0), b,",
        f"           ark_matmul_params(loop.extra), {prologue}, epilogue);",
    ]
    norm_inputs = lowered.prologue.inputs[1:] if lowered.prologue is not None else ()
    along = (view.strides[0] for view in norm_inputs)
    block = block_rows(k)
    sizes = (loops.rows, n, k, loops.steps[0], a_k, b_k, b_n, block)
    params = (*loops.nest.params, *sizes, *loops.steps, *columns, *along)
    depth = -(-k // PADDED_DEPTH) * PADDED_DEPTH
    scratch = block * COLUMNS + COPIED_DEPTH * COLUMNS + block * depth
    columns_of = pointers_of(lowered, columns, n)[1]
    body = function(count, lines, is_past=goes_past(lowered, columns_of))
    return Call(body, params, scratch, stream=_stream(lowered, loops, n, b_n))


def _stream(lowered: Lowered, loops: MatmulLoops, n: int, b_n: int) -> tuple[Stretch, ...]:
    """The panels that the tile begins with: weights of few rows are worth reading ahead."""
    b = lowered.operands[1].view
    size = -(-n // PANEL_WIDTH) * PANEL_WIDTH * b_n * b.dtype.itemsize
    if b.buffer not in lowered.packed or loops.nest.extents or not 0 < loops.rows <= FEW_ROWS:
        return ()
    return (Stretch(1, 0, min(size, AHEAD_BYTES), 1, 0),) if size else ()


def block_rows(depth: int) -> int:
    """How many rows of A, of this depth, go through the columns of B together."""
    rows = BLOCK_ELEMS // max(depth, 1) // MICRO_ROWS * MICRO_ROWS
    return min(max(rows, FEWEST_ROWS), MOST_ROWS)


def _matmul_epilogue(lowered: Lowered, columns: Sequence[int], n: int) -> list[str]:
    """A lambda that takes a piece of one finished row through the chain."""
    by_operand, pointers = pointers_of(lowered, columns, n)
    is_relu = anchor_of(lowered).attributes["is_relu"]
    value = "ark_matmul_relu(sums[{} - j0])" if is_relu else "sums[{} - j0]"
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
    body = chain_loop(lowered, by_operand, value.format, n, extent="j0 + n", start="j0")
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
