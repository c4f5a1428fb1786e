"""Write the task function of a lowered group as CUDA C++: loops spread over threads and warps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from ark_dist.core.graph import Node, frame_of
from ark_dist.core.op import OPS
from ark_dist.core.shape import Box, Shape, box_shape
from ark_dist.kernels.chain import (
    BROADCAST,
    CONTIGUOUS,
    STRIDED,
    Pointer,
    chain_lines,
    compute_type,
    literals,
)
from ark_dist.kernels.cpu_nest import Call
from ark_dist.kernels.cuda_matmul import is_streamed, matmul_call
from ark_dist.kernels.cuda_nest import (
    Element,
    block,
    function_text,
    head_lines,
    nest_of,
    row_lines,
)
from ark_dist.kernels.frames import (
    offsets,
    part_of_table,
    reduced_loops,
    tile_lines,
    with_absent,
)
from ark_dist.kernels.lower import Lowered, Nest, Operand, row_axis
from ark_dist.kernels.text import scratch_limit

PACK_BYTES = 16
# Packs that one thread has under way: enough bytes in flight, within its registers.
PACKS = 2
# Rows up to this many elements go to a warp each, longer ones to the whole CTA.
WARP_ROW_ELEMENTS = 1024
WARPS, THREADS = 8, 256
# Rows that one thread folds faster than a warp.
SHORT_ROW = 16


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Scratch memory of a task: shared, or global where it does not fit."""

    elems: int
    arch: str

    @property
    def is_shared(self) -> bool:
        return self.elems * 4 <= scratch_limit(self.arch)

    @property
    def text(self) -> str:
        return "ark_scratch()" if self.is_shared else "ark_global_scratch()"

    @property
    def shared_bytes(self) -> int:
        return self.elems * 4 if self.is_shared else 0

    @property
    def global_elems(self) -> int:
        return 0 if self.is_shared else self.elems


def write_cuda_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int], *, arch: str) -> Call:
    """Return the function body and the parameters of one tile for an architecture."""
    if lowered.anchor is None:
        return _map_call(lowered, box)
    frame = frame_of(lowered.anchor)
    if frame == "matmul":
        return matmul_call(lowered, box, arch)
    return _FRAMES[frame](lowered, box, scalar_slots, arch)


def cuda_call_key(lowered: Lowered, box: Box) -> object:
    """What of a tile decides its function and parameters."""
    if lowered.anchor is None:
        return box_shape(box), _pack_elements(lowered, box)
    frame = frame_of(lowered.anchor)
    if frame == "matmul":
        return box_shape(box), is_streamed(lowered, box)
    return box if frame == "tile" else box_shape(box)


# Elementwise chains.


def _pack_elements(lowered: Lowered, box: Box) -> int:
    """Elements that move in one piece; 1 where some operand's are not side by side and aligned."""
    nest = nest_of(lowered, box)
    inner = nest.strides[-1]
    sizes = [o.view.dtype.itemsize for o, s in zip(lowered.operands, inner, strict=True) if s == 1]
    if not sizes or inner[-1] != 1 or any(s not in (0, 1) for s in inner):
        return 1
    count = PACK_BYTES // max(sizes)
    starts = offsets(lowered, box)
    for k, (start, stride) in enumerate(zip(starts, inner, strict=True)):
        steps = (start, *(outer[k] for outer in nest.strides[:-1]))
        if stride == 1 and any(step % count for step in steps):
            return 1
    return count if nest.extents[-1] % count == 0 else 1


def _map_call(lowered: Lowered, box: Box) -> Call:
    nest = nest_of(lowered, box)
    width = _pack_elements(lowered, box)
    count = len(lowered.operands)
    loads, pointers = _map_loads(lowered, nest.strides[-1], width)
    lines = head_lines(lowered, nest)
    lines += [f"constexpr uint32_t width = {width}, packs = {PACKS};"]
    lines.append("const uint32_t count = nest.count() / width;")
    lines += ["#pragma unroll 1"]
    output = lowered.output.dtype.c_name
    values = [f"{text} x{k}[packs];" for k, text, _ in loads]
    store = [
        f"ark_elements<{output}, width> y;",
        "#pragma unroll",
        *block("for (uint32_t j = 0; j < width; ++j)", chain_lines(lowered, pointers, None, "j")),
        f"ark_store_elements(p{count - 1} + to[u], y);",
    ]
    reads = [
        # Past the end the first one again: what only some turns load would take its registers
        # from all other functions of the kernel, as its old value has to be kept.
        "const uint32_t at = first + u * ARK_CONSUMERS;",
        "const uint32_t e = at < count ? at : first;",
        f"int64_t offset[{count}];",
        "nest.offsets(e * width, offset);",
        *(f"x{k}[u] = {text};" for k, _, text in loads),
        f"to[u] = offset[{count - 1}];",
    ]
    writes = ["if (first + u * ARK_CONSUMERS >= count) continue;", *store]
    body = [
        *values,
        "int64_t to[packs];",
        "#pragma unroll",
        *block("for (uint32_t u = 0; u < packs; ++u)", reads),
        "#pragma unroll",
        *block("for (uint32_t u = 0; u < packs; ++u)", writes),
    ]
    step = "first += packs * ARK_CONSUMERS"
    lines += block(f"for (uint32_t first = gpu_thread(); first < count; {step})", body)
    return Call(function_text(lines), tuple(nest.params), 0)


def _map_loads(
    lowered: Lowered, inner: Shape, width: int
) -> tuple[list[tuple[int, str, str]], dict[Operand, Pointer]]:
    """Per operand that is read: type and text of what is loaded; and how the chain sees it."""
    loads = []
    pointers: dict[Operand, Pointer] = {}
    for k, (operand, stride) in enumerate(zip(lowered.operands, inner, strict=True)):
        dtype = operand.view.dtype
        if operand.is_output:
            pointers[operand] = Element(k, dtype, CONTIGUOUS, "y.value[j]")
        elif stride == 1 and width > 1:
            text = f"ark_load_elements<width>(p{k} + offset[{k}])"
            loads.append((k, f"ark_elements<{dtype.c_name}, width>", text))
            pointers[operand] = Element(k, dtype, CONTIGUOUS, f"x{k}[u].value[j]")
        else:
            loads.append((k, dtype.c_name, f"p{k}[offset[{k}]]"))
            pointers[operand] = Element(k, dtype, BROADCAST, f"x{k}[u]")
    return loads, pointers


# Rows, and what is found out about them.


def _strided(lowered: Lowered, strides: Sequence[int], first_extra: int) -> dict[Operand, Pointer]:
    """Operands along an inner loop over j, their rows at a0, a1, ..."""
    pointers: dict[Operand, Pointer] = {}
    for k, (operand, stride) in enumerate(zip(lowered.operands, strides, strict=True)):
        kind = {0: BROADCAST, 1: CONTIGUOUS}.get(stride, STRIDED)
        text = {
            BROADCAST: f"a{k}[0]",
            CONTIGUOUS: f"a{k}[j]",
            STRIDED: f"a{k}[j * nest.extra({first_extra + k})]",
        }[kind]
        pointers[operand] = Element(k, operand.view.dtype, kind, text)
    return pointers


def over_rows(team: str, body: Sequence[str]) -> list[str]:
    """A loop over positions r, shared out among the teams of a CTA."""
    start, step = {
        "ark_alone": ("gpu_thread()", "ARK_CONSUMERS"),
        "ark_warp": ("gpu_warp()", "ARK_WARPS"),
        "ark_team": ("0", "1"),
    }[team]
    head = f"for (uint32_t r = {start}; r < nest.count(); r += {step})"
    return [f"const {team} team;", "#pragma unroll 1", *block(head, body)]


def _put_lines(
    lowered: Lowered, pointers: dict[Operand, Pointer], value: str, count: str
) -> list[str]:
    """Take elements j of a row through the chain and store them, several at a time."""
    last, dtype = lowered.operands[-1], lowered.output.dtype
    place = pointers[last].element("j")
    made = {**pointers, last: Element(len(pointers) - 1, dtype, CONTIGUOUS, "y")}
    lines = [f"{dtype.c_name} y;", *chain_lines(lowered, made, value, "j"), "return y;"]
    return [
        *block("const auto make = [&](int64_t j)", lines, "};"),
        f"ark_put_row(team, {count}, make, [&](int64_t j) -> auto& {{ return {place}; }});",
    ]


def _gather_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int], arch: str) -> Call:
    last = len(box) - 1
    nest = nest_of(lowered, box, (last,))
    n = box_shape(box)[last]
    inner = [o.strides[last] for o in lowered.operands]
    table = _anchor(lowered).inputs[1]
    pointers = _strided(lowered, inner, 1)
    c_name = table.dtype.c_name
    # The row starts where the index says.
    row = "row[j]" if inner[1] == 1 else "row[j * nest.extra(2)]"
    count = len(lowered.operands)
    part, is_here, extra = part_of_table(_anchor(lowered))
    if part:
        row = f"is_here ? {row} : {c_name}{{}}"
    body = [
        *row_lines(lowered),
        *(["bool is_here;"] if part else []),
        f"const {c_name}* const found = ark_embedding{part}(call, a1, a0[0], "
        f"nest.extents + {_extras(nest, count) + 1 + count}{is_here});",
        "if (found == nullptr) continue;",
        f"const {c_name}* const row = gpu_global(found);",
        *_put_lines(lowered, pointers, f"ark_load<{c_name}>({row})", "nest.extra(0)"),
    ]
    lines = [*head_lines(lowered, nest), *over_rows("ark_warp", body)]
    params = (*nest.params, n, *inner, table.shape[0], table.strides[0], *extra)
    return Call(function_text(lines), params, 0)


def _row_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int], arch: str) -> Call:
    anchor = _anchor(lowered)
    axis = row_axis(anchor)
    nest = nest_of(lowered, box, (axis,))
    n = box_shape(box)[axis]
    inner = [o.strides[axis] for o in lowered.operands]
    pointers = _strided(lowered, inner, 1)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    team = "ark_warp" if n <= WARP_ROW_ELEMENTS else "ark_team"
    elems = n * WARPS if team == "ark_warp" else n
    scratch = _Scratch(elems, arch)
    start = f"{scratch.text} + gpu_warp() * {n}" if team == "ark_warp" else scratch.text
    along = [
        f"ark_row<{o.view.dtype.c_name}>{{a{k}, {inner[k]}}}"
        for k, o in enumerate(lowered.operands[: lowered.chain_start])
    ][1:]
    row = "ark_row<float>{row, 1}"
    along = with_absent(anchor, along)
    arguments = ", ".join(["team", row, "row", "n", *along, *literals(anchor)])
    source = (
        f"ark_load<{anchor.inputs[0].dtype.c_name}>({pointers[lowered.operands[0]].element('j')})"
    )
    body = [
        *row_lines(lowered),
        f"float* const row = {start};",
        f"ark_bring_row(team, row, n, [&](int64_t j) {{ return {source}; }});",
        f"const auto value = {kernel.function}({arguments});",
        *_put_lines(lowered, pointers, "value(j)", "n"),
    ]
    lines = [*head_lines(lowered, nest), "const int64_t n = nest.extra(0);", *over_rows(team, body)]
    params = (*nest.params, n, *inner)
    return Call(function_text(lines), params, scratch.global_elems, scratch.shared_bytes)


def _reduce_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int], arch: str) -> Call:
    anchor = _anchor(lowered)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    nest = nest_of(lowered, box)
    source = anchor.inputs[0]
    sizes, strides = reduced_loops(anchor)
    n, count = prod(sizes), prod(nest.extents)
    is_short = n <= SHORT_ROW or (strides[-1] != 1 and count >= THREADS)
    team = "ark_alone" if is_short else "ark_warp" if count >= WARPS else "ark_team"
    c_name = source.dtype.c_name
    if len(sizes) > 1:
        first = _extras(nest, len(lowered.operands)) + 1
        row = f"ark_grid<{c_name}, {len(sizes)}>{{a0, nest.extents + {first}}}"
    else:
        stride = "1" if strides[0] == 1 else "nest.extra(2)"
        row = f"ark_row<{c_name}>{{a0, {stride}}}"
    pointers = _strided(lowered, (0,) * len(lowered.operands), 1)
    function = f"{kernel.function}<{compute_type(source.dtype)}>"
    body = [
        *row_lines(lowered),
        f"const auto value = {function}(team, {row}, nest.extra(0));",
        *block("if (team.rank() == 0)", chain_lines(lowered, pointers, "value", "0")),
    ]
    lines = [*head_lines(lowered, nest), *over_rows(team, body)]
    return Call(function_text(lines), (*nest.params, n, *sizes, *strides), 0)


def _extras(nest: Nest, count: int) -> int:
    """How many integers after the extents' start a frame's own begin."""
    return len(nest.extents) * (1 + count)


def _tile_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int], arch: str) -> Call:
    """A function that gets each operand as a tile and loops by itself."""
    lines, params, elems = tile_lines(lowered, box)
    anchor = _anchor(lowered)
    kernel = OPS[anchor.op].kernel
    assert kernel is not None
    if kernel.cuda is not None:
        numbers, elems = kernel.cuda(anchor.inputs, anchor.output, anchor.attributes, box)
        arguments = f"<{', '.join(map(str, numbers))}>" if numbers else ""
        lines[-1] = lines[-1].replace("(", f"{arguments}(", 1)
    scratch = _Scratch(elems, arch)
    head = ["ark_call call = given;", f"call.scratch = {scratch.text};"] if elems else []
    body = "\n".join(f"  {line}" for line in [*head, "const ark_team team;", *lines])
    name = "given" if elems else "call"
    text = f"(const ark_call& {name}) {{\n{body}\n}}"
    return Call(text, params, scratch.global_elems, scratch.shared_bytes)


def _control_call(lowered: Lowered, box: Box, scalar_slots: dict[str, int], arch: str) -> Call:
    anchor = _anchor(lowered)
    params: tuple[int, ...] = ()
    if anchor.op == "command_scalar":
        slot = scalar_slots[str(anchor.attributes["name"])]
        params = (slot, anchor.output.dtype.itemsize)
        text = "ark_command_scalar(call);"
    elif OPS[anchor.op].effect == "handshake":
        text = "ark_handshake(call);"
    else:
        text = f"ark_stop_when<{anchor.inputs[0].dtype.c_name}>(call);"
    return Call(function_text([f"if (gpu_thread() == 0) {text}"]), params, 0)


def _anchor(lowered: Lowered) -> Node:
    assert lowered.anchor is not None
    return lowered.anchor


_FRAMES: dict[str, Callable[[Lowered, Box, dict[str, int], str], Call]] = {
    "row": _row_call,
    "reduce": _reduce_call,
    "gather": _gather_call,
    "control": _control_call,
    "tile": _tile_call,
}
