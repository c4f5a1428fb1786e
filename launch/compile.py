"""Compile generated C++ into a shared library, through the cache."""

import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.errors import CacheError, CompileError, CompilerNotFoundError
from ark_dist.core.settings import Settings
from ark_dist.core.source import Binary, Source
from ark_dist.core.version import VERSION
from ark_dist.launch import cache, cpuinfo

# Not -ffast-math: results must not depend on how the compiler reorders sums.
BASE_FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-fno-exceptions", "-fno-rtti"),
    *("-fwrapv", "-fno-math-errno", "-ffp-contract=fast", "-nostdlib++"),
    # Nobody reads the flags of floating point exceptions; to keep them, GCC would not vectorize
    # what a `?:` needs on one side only.
    "-fno-trapping-math",
)
LINK_FLAGS = ("-lm",)  # after the source; -nostdlib++ leaves it out
# Without -mcpu zig takes the CPU it finds.
KIND_FLAGS = {"gcc": (), "clang": (), "zig": ("-mcpu=baseline",)}
# A compiler too old for one of these does without: -nostdlib++ needs g++ 13.
DISPENSABLE = {"-nostdlib++"}.union(*(flags.values() for flags in cpuinfo.OPTIONAL_FLAGS.values()))
REFUSALS = ("unrecognized", "unknown", "unsupported")
ENV = "/usr/bin/env"  # sets variables for the compiler alone; the rest of the environment passes
OUTPUT_LINES = 30
OUTPUT_LIMIT_BYTES = 1 << 16
NAME_LIMIT = 80
VERSION_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 10.0
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine, from elf.h
ELF_HEADER_BYTES = 64


@dataclass(frozen=True, slots=True)
class Compiler:
    """One C++ compiler.

    Attributes:
        command: the program and its first arguments.
        version: path, size and modification time of the files in the command: they change with
            the compiler, and looking costs less than asking it.
        kind: "gcc", "clang" or "zig".
    """

    command: tuple[str, ...]
    version: str
    kind: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that goes into one compilation: equal recipes share one cache entry.

    Attributes:
        text: the source code.
        language: "c++" or "cuda".
        isa: instruction set or GPU architecture.
        machine: kind of machine the product runs on, as `os.uname().machine`.
        compiler: identity of the compiler.
        flags: all flags, in order.
        features: CPU features that the flags were chosen by.
        ark_version: version of ark_dist.
        cache_format: version of the layout of an entry.
    """

    text: str
    language: str
    isa: str
    machine: str
    compiler: str
    flags: tuple[str, ...]
    features: tuple[str, ...]
    ark_version: str
    cache_format: int = cache.FORMAT

    def key(self) -> str:
        """Return the sha256 of all fields, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode("ascii")).hexdigest()


def find_compiler(settings: Settings) -> Compiler:
    """Find the C++ compiler: the one asked for, else g++, clang++, or the zig wheel.

    Raises:
        ValueError: ARK_DIST_CXX is no command line.
        CompilerNotFoundError: there is none, or not the one asked for.
    """
    if settings.compiler is not None:
        return _asked_compiler(settings.compiler)
    for name in ("g++", "clang++"):
        if (path := shutil.which(name)) is not None:
            return _compiler((str(Path(path).absolute()),))
    for zig in _zig():  # what `python -m ziglang c++` runs, without a Python in between
        return _compiler((str(zig), "c++"))
    raise CompilerNotFoundError(
        "no C++ compiler: neither g++ nor clang++ is on PATH and ziglang is not installed; "
        'install g++, or `pip install "ark_dist[toolchain]"`, or use device="numpy"'
    )


@functools.cache
def compiler_version(compiler: Compiler) -> str:
    """Ask a compiler for the first line of its `--version`; "unknown" if it does not say."""
    command = [*compiler.command, "--version"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    lines = done.stdout.decode(errors="replace").splitlines()
    return lines[0] if lines else "unknown"


def compile_source(
    source: Source,
    *,
    isa: str,
    settings: Settings,
    on_compile: Callable[[Path], None] | None = None,
) -> Binary:
    """Compile a C++ program for this machine, or find it compiled in the cache.

    Args:
        source: the program; `tables` and `name` do not go in.
        isa: one of "portable", "avx2", "avx512", "amx"; the CPU need not be able to run it.
        settings: compiler, cache folder and time limit; a wait for another process that
            compiles the same, and the compilation itself, may take `compile_timeout_s` each.
        on_compile: called with the generated source file, in its final place, before each
            compilation and on each hit; it must not raise.

    Raises:
        ValueError: the language or the isa is not one of ours.
        CompilerNotFoundError: there is no compiler.
        CompileError: the compiler failed; the message has its command and last lines.
        CacheError: no folder can take the product.
    """
    if source.language != "c++":
        raise ValueError(f"language is {source.language!r}; compile_source takes 'c++'")
    compiler = find_compiler(settings)
    flags = (*BASE_FLAGS, *KIND_FLAGS[compiler.kind], *cpuinfo.isa_flags(isa))
    recipe = Recipe(
        text=source.text,
        language=source.language,
        isa=isa,
        machine=os.uname().machine,
        compiler=compiler.version,
        flags=(*flags, *LINK_FLAGS),
        features=cpuinfo.used_features(isa),
        ark_version=VERSION,
    )

    def build(source_path: Path, product: Path, scratch: Path) -> None:
        limit_s = settings.compile_timeout_s
        run = _compile(compiler, flags, source_path, product, scratch, limit_s)
        problem = run.problem or _elf_problem(product)
        if problem is not None:
            raise CompileError(_report(source.name, isa, problem, run, source_path))

    job = cache.Job(recipe.key(), source, isa, build, settings.compile_timeout_s, on_compile)
    return cache.open_cache(settings.cache_dir).get_or_build(job)


def load_library(binary: Binary) -> ctypes.CDLL:
    """Open a compiled program; it stays valid when the cache is cleared afterwards.

    Raises:
        CacheError: the file is gone or can't be loaded.
    """
    try:
        return ctypes.CDLL(str(binary.path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        raise CacheError(f"{binary.path} can't be loaded: {error}; compile it again") from error


def _asked_compiler(text: str) -> Compiler:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"ARK_DIST_CXX is {text!r}: {error}") from error
    if not words:
        raise ValueError(f"ARK_DIST_CXX is {text!r}; it must be a compiler's command")
    path = shutil.which(words[0])
    if path is None:
        raise CompilerNotFoundError(
            f"ARK_DIST_CXX is {text!r}, but {words[0]!r} is no program on PATH; "
            'correct it, unset it to have one found, or use device="numpy"'
        )
    return _compiler((str(Path(path).absolute()), *words[1:]))


def _zig() -> list[Path]:
    """Find the program inside the zig wheel: none or one."""
    spec = importlib.util.find_spec("ziglang")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return [zig for folder in folders if (zig := Path(folder, "zig").absolute()).is_file()][:1]


def _compiler(command: tuple[str, ...]) -> Compiler:
    """Describe a compiler without running it: by its files, and by how these are called."""
    # every word: in `ccache g++` the second one decides what comes out
    paths = [Path(path).resolve() for word in command if (path := shutil.which(word))]
    if "ziglang" in command:  # a module: no word is its file
        paths += _zig()
    stats = [(path, path.stat()) for path in paths]
    facts = [f"{path} {info.st_size} {info.st_mtime_ns}" for path, info in stats]
    names = " ".join([*(Path(word).name for word in command), *(path.name for path in paths)])
    kind = "zig" if "zig" in names else "clang" if "clang" in names else "gcc"
    return Compiler(command, "; ".join([shlex.join(command), *facts]), kind)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of a compiler: its command, what went wrong, the end of what it wrote."""

    command: tuple[str, ...]
    problem: str | None
    output: str


def _compile(
    compiler: Compiler,
    flags: tuple[str, ...],
    source_path: Path,
    product: Path,
    scratch: Path,
    timeout_s: float,
) -> _Run:
    """Run the compiler, again without the dispensable flags that it refuses."""
    deadline = time.monotonic() + timeout_s
    while True:
        files = (str(source_path), *LINK_FLAGS, "-o", str(product))
        # tools: source_path is root/<key>/kernel.cpp
        tools = source_path.parent.parent / cache.TOOLS
        variables = ("LC_ALL=C", f"TMPDIR={scratch}", f"ZIG_GLOBAL_CACHE_DIR={tools}/zig")
        run = _run((*compiler.command, *flags, *files), variables, scratch, deadline, timeout_s)
        if run.problem is not None and os.strerror(errno.ENOSPC) in run.output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(product))
        refused = _refused(run.output) if run.problem is not None else set()
        if not refused & set(flags):
            return run
        flags = tuple(flag for flag in flags if flag not in refused)


def _run(
    command: tuple[str, ...],
    variables: tuple[str, ...],
    scratch: Path,
    deadline: float,
    timeout_s: float,
) -> _Run:
    log = scratch / "output.txt"
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                (ENV, *variables, *command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return _Run(command, f"the compiler can't be started: {error}", "")
        problem = _wait(process, deadline, timeout_s)
    with log.open("rb") as written:
        written.seek(max(0, os.fstat(written.fileno()).st_size - OUTPUT_LIMIT_BYTES))
        return _Run(command, problem, written.read().decode("utf-8", "replace"))


def _wait(process: subprocess.Popen[bytes], deadline: float, timeout_s: float) -> str | None:
    """Wait for a process that leads its group; whatever ends the wait early ends the group."""
    try:
        code = process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except BaseException as error:
        if process.returncode is None:  # not reaped: the number is still its own
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=KILL_TIMEOUT_S)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return f"the compiler did not end in {timeout_s:g} s (ARK_DIST_COMPILE_TIMEOUT_S)"
    if code < 0:
        return f"the compiler was killed by {signal.Signals(-code).name}"
    return f"the compiler ended with exit code {code}" if code else None


def _refused(output: str) -> set[str]:
    lines = [line for line in output.splitlines() if any(word in line for word in REFUSALS)]
    return {flag for flag in DISPENSABLE if any(_names(line, flag) for line in lines)}


def _names(line: str, flag: str) -> bool:
    # what stands after "did you mean" is a proposal
    return flag in (word.strip("'\"`;:,") for word in line.partition("did you mean")[0].split())


def _elf_problem(path: Path) -> str | None:
    """Say why a file is no shared library of this machine, or None."""
    try:
        with path.open("rb") as file:
            header = file.read(ELF_HEADER_BYTES)
    except OSError as error:
        return f"the compiler reported success but left no library ({error.strerror})"
    machine = int.from_bytes(header[18:20], "little")  # e_machine; 16 is e_type, 4 is ei_class
    is_library = header[:6] == b"\x7fELF\x02\x01" and header[16:18] == b"\x03\x00"
    if len(header) < ELF_HEADER_BYTES or not is_library:
        return "the compiler reported success but what it left is not a shared library (64-bit ELF)"
    wanted = ELF_MACHINES.get(os.uname().machine, machine)
    if machine != wanted:
        return f"the library is for another machine (ELF machine {machine}, this one is {wanted})"
    return None


def _report(name: str, isa: str, problem: str, run: _Run, source_path: Path) -> str:
    shown = repr(name if len(name) <= NAME_LIMIT else name[:NAME_LIMIT] + "...")
    tail = run.output.splitlines()[-OUTPUT_LINES:]
    lines = [f"program {shown}, isa {isa}: {problem}"]
    lines += [f"  command: {shlex.join(run.command)}", f"  source: {source_path}"]
    lines += [f"  output (last {OUTPUT_LINES} lines):", *(f"    {line}" for line in tail)]
    return "\n".join(lines if tail else [*lines[:-1], "  output: none"])
