"""Run generated CUDA source without a GPU: compile it with the emulation's runtime, drive it."""

import ctypes
import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt

from ark_dist.core.errors import ArkError, CompileError
from ark_dist.core.settings import Settings
from ark_dist.core.source import Binary, Source
from ark_dist.core.version import VERSION
from ark_dist.launch import cache
from ark_dist.launch.compile import Compiler, find_compiler, load_library

ARCHS = (80, 90)
WATCHDOG = 1  # flag of emu_create: waits with a limit end when nothing else can happen

# What emu_resume returns.
IDLE, EXITED = 0, 1
FAULTS: Final = {
    -1: "deadlock",
    -2: "step limit",
    -3: "misaligned",
    -4: "race",
    -5: "bounds",
    -6: "undeclared",
    -7: "barrier",
    -8: "mbarrier",
    -9: "copy",
    -10: "collective",
    -11: "crash",
}

_COMMON_FLAGS = (
    *("-std=c++17", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-fwrapv"),
    *("-fno-math-errno", "-ffp-contract=off", "-Wno-unknown-pragmas"),
)
_RUNTIME_FLAGS = (*_COMMON_FLAGS, "-O2")
# -O1: compiles faster, and runs no slower. Misaligned accesses go to a hook of the runtime.
_PROGRAM_FLAGS = (*_COMMON_FLAGS, "-O1", "-fno-strict-aliasing", "-fsanitize=alignment")
# Every access goes to a hook; loops must not become calls to memset, which has none.
_RACE_FLAGS = {
    "gcc": (
        *("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"),
        "-fno-tree-loop-distribute-patterns",
    ),
    "clang": (
        *("-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0"),
        *("-mllvm", "-tsan-instrument-memintrinsics=1"),
    ),
}
_LINK_FLAGS = ("-shared", "-lm")
_INCLUDE = re.compile(r'^#include "([^"]+)"$', re.MULTILINE)
_OUTPUT_LINES = 30


class EmulationFault(ArkError):
    """The emulated kernel did what a GPU would not forgive; `kind` is a value of FAULTS."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled program with its runtime.

    Attributes:
        library: the program's own copy of the runtime is in it.
        binary: where library and source lie.
        is_race_checked: whether every access is checked.
    """

    library: ctypes.CDLL
    binary: Binary
    is_race_checked: bool


def compile_emulated(
    text: str,
    *,
    settings: Settings,
    name: str = "kernel",
    arch: int = 90,
    race: bool = False,
    defines: Sequence[str] = (),
) -> Program:
    """Compile CUDA source that includes ark_gpu.h and nothing else of ours; use the cache.

    Args:
        text: the source; `#include "ark_gpu.h"` is replaced by the emulation's header.
        settings: compiler, cache folder and time limit.
        name: shown in errors and by `ark-dist cache ls`.
        arch: 80 (cp.async by every lane) or 90 (bulk copies).
        race: check every access against races, buffers and the boxes of tasks.
        defines: macros, as `NAME` or `NAME=VALUE`.

    Raises:
        CompilerNotFoundError, CompileError, CacheError: as `compile_source`.
    """
    if arch not in ARCHS:
        raise ValueError(f"arch is {arch}; the emulation knows {ARCHS}")
    compiler = find_compiler(settings)
    runtime = _runtime(compiler, settings, race)
    flags = (*_PROGRAM_FLAGS, *(_race_flags(compiler) if race else ()))
    flags = (*flags, f"-DGPU_EMULATED_ARCH={arch}", *(f"-D{define}" for define in defines))
    source = Source(name, "c++", _inlined(text, set()))

    def build(source_path: Path, product: Path, scratch: Path) -> None:
        made = scratch / "program.o"
        _call(compiler, (*flags, "-c", str(source_path), "-o", str(made)), source, settings)
        # A step of its own: -fsanitize while linking would bring in the compiler's runtime.
        files = (str(made), str(runtime.path), *_LINK_FLAGS, "-o", str(product))
        _call(compiler, files, source, settings)

    binary = _build(source, build, (*flags, runtime.key), compiler, settings)
    return Program(_declared(load_library(binary)), binary, race)


class Emulation:
    """One run of a kernel on an emulated GPU; a context manager.

    One of a program at a time: they share the program's GPU_CONSTANT memory and its runtime.
    """

    def __init__(
        self,
        program: Program,
        kernel: str,
        *,
        ctas: int,
        smem_bytes: int,
        seed: int = 0,
        threads: int | None = None,
        watchdog: bool = False,
    ) -> None:
        """Prepare a kernel.

        Args:
            program: the compiled source.
            kernel: its name, as in GPU_KERNEL.
            ctas: number of CTAs.
            smem_bytes: dynamic shared memory of each.
            seed: decides the schedule; the same seed replays it.
            threads: of a CTA; by default what GPU_KERNEL says.
            watchdog: let waits with a limit time out when nothing else can happen, instead of
                reporting a deadlock.
        """
        self._library = program.library
        if threads is None:
            threads = ctypes.c_uint32.in_dll(self._library, f"{kernel}_threads").value
        entry = ctypes.cast(getattr(self._library, kernel), ctypes.c_void_p)
        flags = WATCHDOG if watchdog else 0
        self._emu = self._library.emu_create(entry, ctas, threads, smem_bytes, seed, flags)
        if not self._emu:
            raise ValueError(
                f"kernel {kernel!r}: {ctas} CTAs of {threads} threads; at least one CTA, and a "
                "multiple of 32 threads"
            )
        self._kept: list[npt.NDArray[np.generic]] = []

    def __enter__(self) -> "Emulation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the emulated GPU; the buffers stay."""
        if self._emu:
            self._library.emu_destroy(self._emu)
        self._emu = None

    def constant(self, name: str, value: npt.NDArray[np.generic]) -> None:
        """Write a GPU_CONSTANT variable of the program."""
        data = value.tobytes()
        ctypes.memmove((ctypes.c_char * len(data)).in_dll(self._library, name), data, len(data))

    def buffer(
        self, name: str, array: npt.NDArray[np.generic], *, is_writable: bool = False
    ) -> int:
        """Name an array as global memory; return its address. It is kept until close()."""
        self._kept.append(array)
        self.memory(name, array.ctypes.data, array.nbytes, is_writable=is_writable)
        return array.ctypes.data

    def memory(self, name: str, address: int, size_bytes: int, *, is_writable: bool) -> None:
        """Name memory that the caller keeps."""
        shown = name.encode(errors="backslashreplace").replace(b"\0", b"?")
        self._library.emu_buffer(self._emu, shown, address, size_bytes, is_writable)

    def box(
        self,
        method: int,
        task: int,
        address: int,
        itemsize: int,
        extents: Sequence[int],
        strides: Sequence[int],
        *,
        is_write: bool,
    ) -> None:
        """Declare what a task touches; strides in elements.

        A buffer in which any task has a box may be touched only inside boxes.
        """
        shape = np.array(extents, np.int64)
        steps = np.array(strides, np.int64)
        self._library.emu_box(
            *(self._emu, method, task, is_write, address, itemsize, len(shape)),
            *(shape.ctypes.data, steps.ctypes.data),
        )

    def limit_steps(self, steps: int) -> None:
        """Set how many times fibers may run in one resume()."""
        self._library.emu_set_step_limit(self._emu, steps)

    def resume(self) -> bool:
        """Run until all wait for the host; return whether the kernel has exited.

        Raises:
            EmulationFault: a deadlock, a race, a misaligned access, ...
        """
        code = self._library.emu_resume(self._emu)
        if code < 0:
            raise EmulationFault(FAULTS[code], self.report())
        return bool(code == EXITED)

    def report(self) -> str:
        """Say what went wrong or, if nothing did, what every thread waits for."""
        size = self._library.emu_report(self._emu, None, 0) + 1
        text = ctypes.create_string_buffer(size)
        self._library.emu_report(self._emu, text, size)
        return text.value.decode(errors="replace")

    @property
    def digest(self) -> tuple[int, int]:
        """Number of steps so far, and a hash of their order."""
        emu = self._emu
        return int(self._library.emu_steps(emu)), int(self._library.emu_digest(emu))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    functions: Mapping[str, tuple[type | None, tuple[type, ...]]] = {
        "emu_create": (pointer, (pointer, u32, u32, u64, u64, u32)),
        "emu_set_step_limit": (None, (pointer, u64)),
        "emu_buffer": (None, (pointer, ctypes.c_char_p, u64, u64, u32)),
        "emu_box": (None, (pointer, u32, u32, u32, u64, u32, u32, pointer, pointer)),
        "emu_resume": (ctypes.c_int, (pointer,)),
        "emu_report": (u64, (pointer, ctypes.c_char_p, u64)),
        "emu_steps": (u64, (pointer,)),
        "emu_digest": (u64, (pointer,)),
        "emu_destroy": (None, (pointer,)),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _runtime(compiler: Compiler, settings: Settings, race: bool) -> Binary:
    """Compile the runtime into an object file, which the cache keeps as its product."""
    text = _inlined('#include "runtime.h"\n', set())
    source = Source(f"emulation runtime{', race' if race else ''}", "c++", text)
    flags = (*_RUNTIME_FLAGS, f"-DEMU_RACE={int(race)}")

    def build(source_path: Path, product: Path, scratch: Path) -> None:
        _call(compiler, (*flags, "-c", str(source_path), "-o", str(product)), source, settings)

    return _build(source, build, flags, compiler, settings)


def _race_flags(compiler: Compiler) -> tuple[str, ...]:
    return _RACE_FLAGS["gcc" if compiler.kind == "gcc" else "clang"]


def _inlined(text: str, seen: set[str]) -> str:
    """Put the emulation's headers where they are included, each once."""

    def header(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return ""
        seen.add(name)
        file = resources.files("ark_dist.kernels") / "device" / "emulated" / name
        if not file.is_file():
            raise ValueError(f'the source includes "{name}"; of ours only "ark_gpu.h" is there')
        return _inlined(file.read_text("utf-8").replace("#pragma once\n", ""), seen)

    return _INCLUDE.sub(header, text)


def _build(
    source: Source,
    build: cache.Build,
    flags: tuple[str, ...],
    compiler: Compiler,
    settings: Settings,
) -> Binary:
    parts = (source.text, flags, compiler.version, VERSION, cache.FORMAT)
    key = hashlib.sha256(json.dumps(["emulation", *parts]).encode()).hexdigest()
    job = cache.Job(key, source, "emulated", build, settings.compile_timeout_s)
    return cache.open_cache(settings.cache_dir).get_or_build(job)


def _call(
    compiler: Compiler, arguments: tuple[str, ...], source: Source, settings: Settings
) -> None:
    command = (*compiler.command, *arguments)
    limit_s = settings.compile_timeout_s
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        problem, output = f"the compiler did not end in {limit_s:g} s", ""
    except OSError as error:
        problem, output = f"the compiler can't be started: {error}", ""
    else:
        if done.returncode == 0:
            return
        problem = f"the compiler ended with exit code {done.returncode}"
        output = done.stderr.decode(errors="replace")
    lines = [f"program {source.name!r}, emulated: {problem}", f"  command: {shlex.join(command)}"]
    raise CompileError("\n".join([*lines, *output.splitlines()[-_OUTPUT_LINES:]]))
