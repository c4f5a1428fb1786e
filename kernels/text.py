"""Put a program's text together: headers, task functions, and the kernel around them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from ark_dist.core import abi
from ark_dist.core.graph import quoted
from ark_dist.core.target import Target

ABI = "core/abi.py"
# Files of ark_dist.kernels, and the records; the operators' own headers come in between.
CPU_HEADERS = (
    "include/base.h",
    "include/math.h",
    "include/random.h",
    "include/team.h",
    "include/piece.h",
    ABI,
    "include/call.h",
    "include/loop.h",
    "include/tile.h",
    "include/row.h",
    "include/columns.h",
    "include/worker.h",
    "include/control.h",
)
CPU_TAIL = ("include/host.h",)
# How a header names one that not all programs have.
INCLUDED = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
CUDA_HEADERS = (
    "include/base.h",
    "include/math.h",
    "include/random.h",
    ABI,
    "device/ring.h",
    "include/call.h",
    "device/shared.h",
    "device/control.h",
    "device/team.h",
    "device/nest.h",
    "device/elements.h",
    "device/panels.h",
    "device/matvec.h",
    "include/tile.h",
    "include/row.h",
    "device/attention.h",
    "device/attention_tensor.h",
)
CUDA_TAIL = ("device/waits.h", "device/packet.h", "device/worker.h", "device/kernel.h")
# Shared memory of a CTA that a kernel may have, by architecture.
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024, "sm_100a": 227 * 1024}
# ARK_SHARED_BYTES in device/shared.h.
LEADER_BYTES = 2048
# What a task may have and still be fetched into the CTA's memory; the latter is
# ARK_PACKET_OPERANDS in device/shared.h.
PACKET_PARAMS, PACKET_OPERANDS = 96, 16
# One slot for each warp that computes (ARK_RING_WARPS in device/ring.h), as large as lets
# everything else be in shared memory too.
SLOTS = 8
SLOT_BYTES = {"sm_80": 7 * 1024, "sm_90a": 12 * 1024, "sm_100a": 12 * 1024}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a program is made of.

    Attributes:
        name: the program's name.
        target: what the plan was made for.
        functions: comment, name and body of each task function.
        ops: names of the operators it uses.
        shared_bytes: scratch memory that a task may need of a CTA's shared memory.
        has_stream: whether weights come through the ring.
        most: parameters and operands that one task has at most.
    """

    name: str
    target: Target
    functions: tuple[tuple[str, str, str], ...]
    ops: tuple[str, ...]
    shared_bytes: int
    has_stream: bool
    most: tuple[int, int]


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """How a CTA's shared memory is used.

    Attributes:
        slots: slots of the weight ring.
        slot_bytes: bytes of each.
        scratch_bytes: scratch memory.
    """

    slots: int
    slot_bytes: int
    scratch_bytes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return LEADER_BYTES + self.slots * self.slot_bytes + self.scratch_bytes


def scratch_limit(arch: str) -> int:
    """Bytes of scratch memory that a task may have in shared memory, with the ring beside it."""
    return SHARED_BYTES[arch] - LEADER_BYTES - SLOTS * SLOT_BYTES[arch]


def shared_layout(arch: str, shared_bytes: int, has_stream: bool) -> SharedLayout:
    """Divide the shared memory of a CTA; `shared_bytes` is what tasks need at most."""
    assert shared_bytes <= scratch_limit(arch)
    slot_bytes = SLOT_BYTES[arch] if has_stream else 16
    return SharedLayout(SLOTS, slot_bytes, -(-shared_bytes // 16) * 16)


def cpu_text(parts: Parts) -> str:
    """The C++ of a program: threads walk the queues."""
    texts = _headers(with_included((*CPU_HEADERS, *_op_headers(parts, ".h"))))
    names = ",\n    ".join(name for _, name, _ in parts.functions)
    texts.append(_functions(parts, "void"))
    texts.append(f"const ark_function ark_functions[] = {{\n    {names}\n}};")
    texts.append("}  // namespace")
    texts += _headers(CPU_TAIL)
    system, body = _hoist_includes("\n\n".join(texts))
    return f"{_title(parts)}\n\n{system}\n\nnamespace {{\n\n{body}\n"


def cuda_text(parts: Parts) -> str:
    """The CUDA C++ of a program: CTAs walk the queues."""
    layout = shared_layout(parts.target.arch, parts.shared_bytes, parts.has_stream)
    constants = (
        f"constexpr uint32_t ARK_RING_SLOTS = {layout.slots};\n"
        f"constexpr uint32_t ARK_SLOT_BYTES = {layout.slot_bytes};\n"
        f"constexpr uint32_t ARK_PACKET_PARAMS = {_packet_params(parts)};"
    )
    names = with_included((*CUDA_HEADERS, *_op_headers(parts, ".cuh", ".h")))
    texts = [constants, *_headers(names)]
    texts.append(_functions(parts, "GPU_TASK void"))
    cases = [
        f"    case {i}: return {name}(call);" for i, (_, name, _) in enumerate(parts.functions)
    ]
    inside = "\n".join(cases)
    texts.append(
        "GPU_FN void ark_dispatch(uint32_t function, const ark_call& call) {\n"
        f"  switch (function) {{\n{inside}\n  }}\n}}"
    )
    texts += _headers(CUDA_TAIL)
    _, body = _hoist_includes("\n\n".join(texts))
    return f'{_title(parts)}\n\n#include "ark_gpu.h"\n\n{body}\n'


def _packet_params(parts: Parts) -> int:
    """Parameters that a packet has room for; 0 where a task has more than fit."""
    params, operands = parts.most
    fits = params <= PACKET_PARAMS and operands <= PACKET_OPERANDS
    return -(-max(params, 1) // 32) * 32 if fits else 0


def _functions(parts: Parts, result: str) -> str:
    texts = (f"{comment}\n{result} {name}{body}" for comment, name, body in parts.functions)
    return "// ----- task functions\n" + "\n\n".join(texts)


def _title(parts: Parts) -> str:
    return (
        f"// Persistent kernel of {quoted(parts.name)}, made by ark_dist {parts.target.kind} plan."
    )


def _headers(names: Iterable[str]) -> list[str]:
    return [f"// ----- {name}\n{INCLUDED.sub('', _read(name)).strip()}" for name in names]


def with_included(names: Iterable[str]) -> list[str]:
    """These files of ark_dist.kernels, each once and behind those that it includes."""
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys([*with_included(INCLUDED.findall(_read(name))), name])
    return list(found)


def _op_headers(parts: Parts, *endings: str) -> list[str]:
    # A norm's header comes before the matmul that may use it as a prologue.
    ops = sorted(parts.ops, key=lambda op: (op == "matmul", op))
    return [_op_header(op, endings) for op in ops]


def _op_header(op: str, endings: tuple[str, ...]) -> str:
    folder = resources.files("ark_dist.kernels")
    names = [f"ops/{op}{ending}" for ending in endings]
    return next((name for name in names if (folder / name).is_file()), names[-1])


def _read(name: str) -> str:
    if name == ABI:
        return abi.c_header()
    text: str = (resources.files("ark_dist.kernels") / name).read_text("utf-8")
    return text.strip()


def _hoist_includes(text: str) -> tuple[str, str]:
    pattern = re.compile(r"^#include <[^>]+>$", re.MULTILINE)
    system: Iterable[str] = dict.fromkeys(pattern.findall(text))
    return "\n".join(system), pattern.sub("", text)
