"""Disassemble a cubin: count what each function does and find slow memory accesses."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.errors import CompileError, CompilerNotFoundError
from ark_dist.launch.nvrtc import wheel_files

# One wheel for all versions of CUDA; older ones had a folder of their own.
TOOL_PATTERNS = ("cu13/bin/nvdisasm", "cuda_nvdisasm/bin/nvdisasm")
TIMEOUT_S = 120.0
SECTION = re.compile(r"^\s*\.section\s+\.text\.(\S+?),")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.ASCII)
# Without a G, S or L after it, an access asks the hardware at run time what memory it meets.
GENERIC = frozenset({"LD", "ST", "ATOM", "QSPC"})
LOCAL = frozenset({"LDL", "STL"})


@dataclass(frozen=True, slots=True)
class Function:
    """What one function of a cubin consists of.

    Attributes:
        name: the kernel, or a device function that was not inlined.
        opcodes: how often each instruction appears, with its modifiers: "LDG.E.128".
    """

    name: str
    opcodes: Mapping[str, int]

    def count(self, opcode: str) -> int:
        """Count the instructions of this opcode, with these modifiers or more: "LDG.E.128"."""
        name, *modifiers = opcode.split(".")
        total = 0
        for found, times in self.opcodes.items():
            found_name, *found_modifiers = found.split(".")
            if found_name == name and set(modifiers) <= set(found_modifiers):
                total += times
        return total

    @property
    def generic(self) -> dict[str, int]:
        """Accesses to memory of unknown kind."""
        return self._named(GENERIC)

    @property
    def local(self) -> dict[str, int]:
        """Accesses to local memory: spilled registers, and arrays that got no registers."""
        return self._named(LOCAL)

    def _named(self, names: frozenset[str]) -> dict[str, int]:
        return {op: n for op, n in sorted(self.opcodes.items()) if op.split(".")[0] in names}


def find_nvdisasm() -> Path:
    """Find the disassembler: in its wheel, else on PATH.

    Raises:
        CompilerNotFoundError: it is not installed.
    """
    for path in wheel_files(TOOL_PATTERNS):
        return path
    found = shutil.which("nvdisasm")
    if found is None:
        raise CompilerNotFoundError(
            "nvdisasm is neither in a wheel nor on PATH; `pip install nvidia-cuda-nvdisasm`"
        )
    return Path(found)


def disassemble(cubin: Path) -> str:
    """Return the text of a cubin's code.

    Raises:
        CompilerNotFoundError: there is no disassembler.
        CompileError: it can't read the file.
    """
    command = [str(find_nvdisasm()), "-c", str(cubin)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{command[0]} can't be run: {error}") from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise CompileError(f"{cubin} can't be disassembled: {''.join(last) or done.returncode}")
    return done.stdout


def parse(text: str) -> dict[str, Function]:
    """Count the opcodes of each function in what `nvdisasm -c` writes."""
    counts: dict[str, Counter[str]] = {}
    name = ""
    for line in text.splitlines():
        if section := SECTION.match(line):
            name = section[1]
            counts[name] = Counter()
        elif name and (instruction := INSTRUCTION.match(line)):
            counts[name][instruction[1]] += 1
    return {name: Function(name, dict(sorted(c.items()))) for name, c in counts.items()}


def functions(cubin: Path) -> dict[str, Function]:
    """Disassemble a cubin into functions by name.

    Raises:
        CompilerNotFoundError: there is no disassembler.
        CompileError: it can't read the file.
    """
    return parse(disassemble(cubin))
