"""Write the task function of a matrix product as CUDA C++: which product, on which tiles."""

from dataclasses import dataclass
from math import prod

from ark_dist.core.graph import Node
from ark_dist.core.op import OPS
from ark_dist.core.shape import Box, Shape, box_shape
from ark_dist.kernels.chain import chain_lines, literals
from ark_dist.kernels.cpu_nest import Call, Stretch
from ark_dist.kernels.cuda_nest import (
    Element,
    block,
    function_text,
    head_lines,
    inner_text,
    nest_of_loops,
    row_lines,
)
from ark_dist.kernels.frames import offsets
from ark_dist.kernels.lower import Lowered, matmul_loops, matrix_strides
from ark_dist.kernels.ops.matmul import GPU_FEW_BYTES, GPU_FEW_ROWS
from ark_dist.kernels.stream import COPY_BYTES, cut_weights, segments
from ark_dist.kernels.text import SLOT_BYTES

# Rows of A that one warp multiplies from registers, and the columns whose sums it holds then.
ROW_COUNTS = (1, 2, 4, 8)
FEW_ROWS, FEW_COLUMNS = ROW_COUNTS[-1], 4
assert FEW_ROWS == GPU_FEW_ROWS
# What ark_matvec_direct needs beside the rows.
FEW_EXTRA_BYTES = 16 * 1024
EXTRAS = 7  # integers of the shape
AFFINE_BYTES = 8
# Warps that compute.
WARPS = 8
# Scratch is aligned to 16 bytes, the operands of warp groups to 1024.
SCRATCH_SLACK_BYTES = 1008


@dataclass(frozen=True, slots=True)
class TensorTile:
    """`ark_tensor_tile` of kernels/device/panels.h."""

    m: int
    n: int
    warps_m: int
    stages: int

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all stages: 64 elements along k of both operands, from a multiple of 1024."""
        return self.stages * (self.m + self.n) * 64 * 2 + SCRATCH_SLACK_BYTES

    def __str__(self) -> str:
        return f"ark_tensor_tile<{self.m}, {self.n}, {self.warps_m}, {self.stages}>"


@dataclass(frozen=True, slots=True)
class Product:
    """One tile of a matmul: its sizes, and strides in elements."""

    m: int
    n: int
    k: int
    a: tuple[int, int]
    b: tuple[int, int]

    @property
    def params(self) -> tuple[int, ...]:
        """What `ark_matmul_shape` takes."""
        return (self.m, self.n, self.k, *self.a, *self.b)


def tensor_tile(m: int, n: int, *, has_groups: bool) -> TensorTile:
    """The tile that suits a product of this size; `has_groups`: warp groups can multiply it."""
    if m <= 16:
        return TensorTile(16, 128, 1, 4)
    if m <= 64:
        return TensorTile(64, 64, 4, 4) if n <= 64 else TensorTile(64, 128, 2, 3)
    if has_groups:
        return TensorTile(128, 64 if n <= 64 else 128, 8, 3)
    return TensorTile(128, 128, 2, 3)


def product_of(lowered: Lowered, box: Box) -> Product:
    """Sizes and strides of one tile."""
    anchor = _anchor(lowered)
    a, b = lowered.operands[0].view, anchor.inputs[1]
    is_turned = anchor.attributes["transpose_input"]
    loops, n = matmul_loops(lowered, box), box_shape(box)[-1]
    k = a.shape[-2] if is_turned else a.shape[-1]
    a_strides = (loops.steps[0], matrix_strides(a, is_turned)[1])
    b_strides = matrix_strides(b, anchor.attributes["transpose_other"])
    return Product(loops.rows, n, k, a_strides, b_strides)


def is_streamed(lowered: Lowered, box: Box) -> bool:
    """Whether the tile's weights can come through the ring: constant, in lines of 16 bytes."""
    product = product_of(lowered, box)
    view = lowered.operands[1].view
    itemsize = view.dtype.itemsize
    k_stride, n_stride = product.b
    start = offsets(lowered, box)[1]
    lines = (start, n_stride, product.k)
    return (
        view.buffer in lowered.read_only
        and _rows_bytes(product) <= GPU_FEW_BYTES
        and product.m <= FEW_ROWS
        and product.k > 0
        and k_stride == 1
        and n_stride >= product.k
        and all(line * itemsize % COPY_BYTES == 0 for line in lines)
        and prod(matmul_loops(lowered, box).nest.extents) == 1
    )


def matmul_call(lowered: Lowered, box: Box, arch: str) -> Call:
    """Return the function body and the parameters of one tile."""
    product = product_of(lowered, box)
    loops = matmul_loops(lowered, box)
    nest = nest_of_loops(loops.nest, len(lowered.operands))
    text, scratch_bytes, extra, stream = _variant(lowered, box, product, arch)
    prologue_bytes = 0
    prologue: list[str] = ["const ark_matmul_no_prologue prologue;"]
    if lowered.prologue is not None:
        prologue_bytes = -(-product.m * AFFINE_BYTES // 16) * 16
        prologue = _prologue(lowered, lowered.prologue, product)
    body = [
        *row_lines(lowered),
        *_epilogue(lowered, loops.steps),
        *prologue,
        f"{text};",
    ]
    scratch_lines = [
        "char* const base = reinterpret_cast<char*>(ark_scratch());",
        f"char* const scratch = base + {prologue_bytes};",
        "const ark_matmul_shape shape = {nest.extra(0), nest.extra(1), nest.extra(2), "
        "nest.extra(3), nest.extra(4), nest.extra(5), nest.extra(6)};",
    ]
    loop = block("for (uint32_t r = 0; r < nest.count(); ++r)", body)
    lines = [*head_lines(lowered, nest), *scratch_lines, "#pragma unroll 1", *loop]
    columns = [o.strides[-1] for o in lowered.operands]
    params = (*nest.params, *product.params, *loops.steps, *columns, *extra)
    return Call(function_text(lines), params, 0, scratch_bytes + prologue_bytes, stream)


def _variant(
    lowered: Lowered, box: Box, product: Product, arch: str
) -> tuple[str, int, tuple[int, ...], tuple[Stretch, ...]]:
    """The call of one of the products, its scratch bytes, extra parameters and its stream."""
    a, b = (o.view.dtype for o in lowered.operands[:2])
    types = f"{a.c_name}, {b.c_name}"
    if product.m <= FEW_ROWS and _rows_bytes(product) <= GPU_FEW_BYTES:
        rows = next(m for m in ROW_COUNTS if m >= product.m)
        scratch_bytes = _rows_bytes(product) + FEW_EXTRA_BYTES
        head = f"{types}, {rows}, {FEW_COLUMNS}>"
        if not is_streamed(lowered, box):
            text = f"ark_matvec_direct<{head}(scratch, {scratch_bytes}, a0, a1, shape, prologue, "
            return f"{text}epilogue)", scratch_bytes, (), ()
        cut, stream = _stream(product, b.itemsize, SLOT_BYTES[arch])
        at = EXTRAS + 2 * len(lowered.operands)
        pair = f"ark_few_cut{{int(nest.extra({at})), int(nest.extra({at + 1}))}}"
        text = (
            f"ark_matvec_stream<{head}(ark_here().ring, call.slot, scratch, {scratch_bytes}, a0, "
            f"shape, {pair}, prologue, epilogue)"
        )
        return text, scratch_bytes, cut, stream
    if a.itemsize == 2:
        along = [s[0] > s[1] or s[1] == 1 for s in (product.a, product.b[::-1])]
        tile = tensor_tile(product.m, product.n, has_groups=arch == "sm_90a" and all(along))
        truths = ", ".join(map(_truth, along))
        text = f"ark_matmul_tensor<{types}, {tile}, {truths}>"
        return f"{text}(scratch, a0, a1, shape, prologue, epilogue)", tile.scratch_bytes, (), ()
    rows = 8 if product.m > 64 and product.n > 64 else 4
    # 64 sums and what they are made of are more registers than sm_80 has to give.
    columns = 4 if arch == "sm_80" else rows
    # Two stages of 16 lines of both operands, each line a little longer.
    scratch_bytes = 2 * 16 * (16 * (rows + columns) + 8) * 4
    text = f"ark_matmul_plain<{types}, ark_plain_tile<{rows}, {columns}>>"
    return f"{text}(scratch, a0, a1, shape, prologue, epilogue)", scratch_bytes, (), ()


def _stream(
    product: Product, itemsize: int, slot_bytes: int
) -> tuple[tuple[int, int], tuple[Stretch, ...]]:
    cut = cut_weights(product.n, product.k, itemsize, slot_bytes=slot_bytes, held=FEW_COLUMNS)
    rows = segments(0, product.n, product.k, itemsize, product.b[1] * itemsize, cut)
    stretches = (
        Stretch(1, int(r["source"]), int(r["bytes"]), int(r["count"]), int(r["pitch"]))
        for r in rows
    )
    return (cut.columns, cut.depth), tuple(stretches)


def _rows_bytes(product: Product) -> int:
    """Bytes of the rows of A as fp32, padded to whole chunks of weights, 16 int8 at most."""
    rows = next((m for m in ROW_COUNTS if m >= product.m), product.m)
    return rows * (-(-product.k // COPY_BYTES) * COPY_BYTES) * 4


def _epilogue(lowered: Lowered, rows: Shape) -> list[str]:
    """A lambda that takes one finished element through the chain."""
    count = len(lowered.operands)
    pointers = {}
    for k, operand in enumerate(lowered.operands[lowered.chain_start :], lowered.chain_start):
        parts = [
            inner_text(rows[k], f"nest.extra({EXTRAS + k})", "i"),
            inner_text(operand.strides[-1], f"nest.extra({EXTRAS + count + k})", "j"),
        ]
        index = " + ".join(part for part in parts if part) or "0"
        pointers[operand] = Element(k, operand.view.dtype, "", f"a{k}[{index}]")
    is_relu = _anchor(lowered).attributes["is_relu"]
    value = "ark_matmul_relu(sum)" if is_relu else "sum"
    lines = chain_lines(lowered, pointers, value, "j")
    return block("const auto epilogue = [&](int i, int j, float sum)", lines, "};")


def _prologue(lowered: Lowered, norm: Node, product: Product) -> list[str]:
    """Find out about the rows of A and say how their elements are normalized.

    A warp looks at a row, or where there are fewer rows than warps all threads at one after the
    other: the way to memory and back decides then.
    """
    kernel = OPS[norm.op].kernel
    assert kernel is not None
    a = lowered.operands[0].view
    arguments = ", ".join(["team", "row", "shape.k", *literals(norm)])
    vectors = [
        f"ark_row<{view.dtype.c_name}>{{a{k}, {view.strides[0]}}}"
        for k, view in enumerate(norm.inputs[1:], 2)
    ]
    along = ["ark_absent{}", "ark_absent{}"]
    along[: len(vectors)] = vectors
    stride = "1" if product.a[1] == 1 else "shape.a_k"
    body = [
        f"const ark_row<{a.dtype.c_name}> row = {{a0 + i * shape.a_m, {stride}}};",
        f"const ark_affine affine = {kernel.function}_prologue({arguments});",
        "if (team.rank() == 0) rows[i] = affine;",
    ]
    is_few = product.m < WARPS
    first, step = ("0", "1") if is_few else ("gpu_warp()", "ARK_WARPS")
    return [
        "ark_affine* const rows = reinterpret_cast<ark_affine*>(base);",
        f"const {'ark_team' if is_few else 'ark_warp'} team;",
        "#pragma unroll 1",
        *block(f"for (uint32_t i = {first}; i < shape.m; i += {step})", body),
        "gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);",
        f"const auto weight = {along[0]};",
        f"const auto bias = {along[1]};",
        "const ark_matmul_norm<const ark_affine*, decltype(weight), decltype(bias)> prologue = "
        "{rows, weight, bias};",
    ]


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _anchor(lowered: Lowered) -> Node:
    assert lowered.anchor is not None
    return lowered.anchor
