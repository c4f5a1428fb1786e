"""Compile CUDA source into a cubin with NVRTC, through the cache, and report what it needs."""

import contextlib
import ctypes
import functools
import importlib.util
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ark_dist.core.errors import CacheError, CompileError, CompilerNotFoundError
from ark_dist.core.settings import Settings
from ark_dist.core.source import Binary, Source
from ark_dist.core.version import VERSION
from ark_dist.launch import cache
from ark_dist.launch.compile import Recipe

FLAGS = (
    "--std=c++17",
    "--device-as-default-execution-space",  # lambdas too run on the device
    "--diag-suppress=177",  # headers have constants that not every program uses
    "--diag-suppress=186",  # templates ask of unsigned numbers too whether they are below 0
    "--ptxas-options=-v",
    "--ptxas-options=--warn-on-local-memory-usage",
)
ARCH = re.compile(r"sm_\d+[af]?")
LOG_NAME = "kernel.log"  # beside the product: what the compiler said about its kernels
LOG_LINES = 30
SUCCESS, CANCELLED = 0, 16  # of enum nvrtcResult
PROGRAM_NAME = b"kernel.cu"
# The lowest version first: a driver runs the cubins of older toolkits.
LIBRARY_PATTERNS = (
    "cuda_nvrtc/lib/libnvrtc.so.*",  # the wheel nvidia-cuda-nvrtc-cu12
    "cu13/lib/libnvrtc.so.*",  # the wheel nvidia-cuda-nvrtc, of CUDA 13
)
SYSTEM_LIBRARIES = ("libnvrtc.so.12", "libnvrtc.so.13")
TOOLKIT = Path("/usr/local/cuda")


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What one kernel needs, as the assembler says.

    Attributes:
        name: the entry function.
        registers: registers per thread.
        stack_bytes: local memory per thread, spills included.
        spill_store_bytes: bytes of registers that are stored to local memory.
        spill_load_bytes: bytes of registers that are loaded from it.
        shared_bytes: static shared memory per CTA.
        constant_bytes: constant memory of the kernel and its module; 0 from sm_90 on, where the
            assembler does not say.
        barriers: named barriers in use.
    """

    name: str
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    constant_bytes: int
    barriers: int


@dataclass(frozen=True, slots=True)
class Report:
    """What all kernels of a cubin need, by name, and the whole log of the compiler."""

    kernels: tuple[KernelReport, ...]
    log: str

    def kernel(self, name: str) -> KernelReport:
        """Return one kernel's figures; KeyError if there is none of that name."""
        for kernel in self.kernels:
            if kernel.name == name:
                return kernel
        raise KeyError(f"{name!r} is no kernel of {[kernel.name for kernel in self.kernels]}")


class Nvrtc:
    """The NVRTC library."""

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        """Take an open library and where it came from."""
        self.library = library
        self.path = path
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
        self.version = f"{major.value}.{minor.value}"

    def check(self, code: int, what: str) -> None:
        """Raise CompileError unless a call went well."""
        if code != SUCCESS:
            text = self.library.nvrtcGetErrorString(code).decode()
            raise CompileError(f"{what} of NVRTC ({self.path}) failed: {text}")

    def text(self, program: ctypes.c_void_p, kind: str) -> bytes:
        """Return the "ProgramLog" or the "CUBIN" of a program."""
        size = ctypes.c_size_t()
        size_of = getattr(self.library, f"nvrtcGet{kind}Size")
        self.check(size_of(program, ctypes.byref(size)), f"nvrtcGet{kind}Size")
        data = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.library, f"nvrtcGet{kind}")(program, data), f"nvrtcGet{kind}")
        return data.raw


@functools.cache
def find_nvrtc() -> Nvrtc:
    """Open NVRTC: of the wheels first, then where libraries are looked for, then of a toolkit.

    Raises:
        CompilerNotFoundError: it is not installed.
    """
    wheels, toolkits = wheel_files(LIBRARY_PATTERNS), _toolkit_files()
    for name in (*map(str, wheels), *SYSTEM_LIBRARIES, *map(str, toolkits)):
        with contextlib.suppress(OSError):
            return _open(name)
    raise CompilerNotFoundError(
        "no CUDA compiler: libnvrtc can't be loaded; "
        '`pip install "ark_dist[cuda12]"`, or use device="cpu"'
    )


def _open(name: str) -> Nvrtc:
    """Open a library by its path, or by its name alone."""
    if (path := Path(name)).is_absolute():
        # It opens them by name when it compiles, and that of CUDA 13.0 does not look beside itself.
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
    return Nvrtc(ctypes.CDLL(name), name)


def _toolkit_files() -> list[Path]:
    """Find NVRTC in the toolkit of the nvcc on PATH, and in the usual one."""
    nvcc = shutil.which("nvcc")
    folders = (*([Path(nvcc).resolve().parent.parent] if nvcc else ()), TOOLKIT)
    return [path for folder in folders for path in sorted((folder / "lib64").glob("libnvrtc.so.*"))]


def device_headers() -> dict[str, str]:
    """Return the headers of the primitives on a GPU, by the names that sources include."""
    folder = resources.files("ark_dist.kernels") / "device" / "gpu"
    return {
        file.name: file.read_text(encoding="utf-8")
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".h")
    }


def compile_cuda(
    source: Source,
    *,
    arch: str,
    settings: Settings,
    headers: Mapping[str, str] | None = None,
    on_compile: Callable[[Path], None] | None = None,
) -> tuple[Binary, Report]:
    """Compile a CUDA program for one architecture, or find it compiled in the cache.

    Args:
        source: the program.
        arch: "sm_80", "sm_90a", ...: NVRTC must know it; no GPU is needed.
        settings: cache folder and time limit.
        headers: text by the name that the source includes; None means `device_headers()`.
        on_compile: called with the generated source file, in its final place, before each
            compilation and on each hit; it must not raise.

    Raises:
        ValueError: the language or the architecture is not one of ours.
        CompilerNotFoundError: NVRTC is not installed.
        CompileError: the compiler failed; the message ends with the last lines of its log.
        CacheError: no folder can take the product.
    """
    if source.language != "cuda":
        raise ValueError(f"language is {source.language!r}; compile_cuda takes 'cuda'")
    if ARCH.fullmatch(arch) is None:
        raise ValueError(f"arch is {arch!r}; it must be like 'sm_80' or 'sm_90a'")
    nvrtc = find_nvrtc()
    included = dict(device_headers() if headers is None else headers)
    flags = (f"--gpu-architecture={arch}", *FLAGS)
    text = source.text + "".join(f"\n// {name}\n{included[name]}" for name in sorted(included))
    recipe = Recipe(
        text=text,
        language=source.language,
        isa=arch,
        machine="gpu",
        compiler=f"nvrtc {nvrtc.version}",
        flags=flags,
        features=(),
        ark_version=VERSION,
    )

    def build(source_path: Path, product: Path, scratch: Path) -> None:
        limit_s = settings.compile_timeout_s
        cubin, log, problem = _compile(nvrtc, source.text, included, flags, limit_s)
        if problem is not None:
            raise CompileError(_message(source.name, arch, problem, log, source_path))
        product.write_bytes(cubin)
        product.with_name(LOG_NAME).write_text(log, encoding="utf-8")

    job = cache.Job(recipe.key(), source, arch, build, settings.compile_timeout_s, on_compile)
    binary = cache.open_cache(settings.cache_dir).get_or_build(job)
    try:
        log = binary.path.with_name(LOG_NAME).read_text(encoding="utf-8")
    except OSError as error:
        raise CacheError(f"{binary.path} has lost its log: {error}; clear the cache") from error
    return binary, parse_report(log)


def parse_report(log: str) -> Report:
    """Take the figures of each kernel out of what `ptxas -v` wrote."""
    module = sum(int(count) for count in re.findall(r"gmem(?:, (\d+) bytes cmem\[3\])", log))
    kernels = []
    for name, body in _kernel_texts(log):
        kernels.append(
            KernelReport(
                name=name,
                registers=_number(r"Used (\d+) registers", body),
                stack_bytes=_number(r"(\d+) bytes stack frame", body),
                spill_store_bytes=_number(r"(\d+) bytes spill stores", body),
                spill_load_bytes=_number(r"(\d+) bytes spill loads", body),
                shared_bytes=_number(r"(\d+) bytes smem", body),
                constant_bytes=module + sum(map(int, re.findall(r"(\d+) bytes cmem", body))),
                barriers=_number(r"used (\d+) barriers", body),
            )
        )
    return Report(tuple(kernels), log)


def _kernel_texts(log: str) -> Iterator[tuple[str, str]]:
    """Yield (name, what is said about it) for each entry function."""
    pieces = re.split(r"Compiling entry function '([^']+)' for '[^']+'", log)
    yield from zip(pieces[1::2], pieces[2::2], strict=True)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def wheel_files(patterns: tuple[str, ...]) -> list[Path]:
    """Find files inside the wheels that share the folder `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return [
        path
        for pattern in patterns
        for folder in folders
        for path in sorted(Path(folder).glob(pattern))
        if ".alt." not in path.name
    ]


def _compile(
    nvrtc: Nvrtc, text: str, headers: Mapping[str, str], flags: tuple[str, ...], limit_s: float
) -> tuple[bytes, str, str | None]:
    """Return the cubin, the log, and what went wrong."""
    with _program(nvrtc, text, headers) as program:
        stop = _Stop(limit_s)
        if hasattr(nvrtc.library, "nvrtcSetFlowCallback"):  # since 12.9
            code = nvrtc.library.nvrtcSetFlowCallback(program, stop.callback, None)
            nvrtc.check(code, "nvrtcSetFlowCallback")
        words = [flag.encode() for flag in flags]
        code = nvrtc.library.nvrtcCompileProgram(
            program, len(words), (ctypes.c_char_p * len(words))(*words)
        )
        if stop.error is not None:
            raise stop.error
        log = nvrtc.text(program, "ProgramLog").rstrip(b"\0").decode("utf-8", "replace")
        if code == SUCCESS:
            return nvrtc.text(program, "CUBIN"), log, None
        problem = nvrtc.library.nvrtcGetErrorString(code).decode()
        if code == CANCELLED:
            problem = f"it took longer than {limit_s:g} s (ARK_DIST_COMPILE_TIMEOUT_S)"
        return b"", log, problem


class _Stop:
    """Ends a compilation in time, and on Ctrl-C, which reaches Python in the callback."""

    def __init__(self, limit_s: float) -> None:
        self.error: BaseException | None = None
        self._deadline = time.monotonic() + limit_s
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self.callback = kind(self._is_over)

    def _is_over(self, payload: object, reserved: object) -> int:
        try:
            return int(self.error is not None or time.monotonic() > self._deadline)
        except BaseException as error:  # no exception crosses C: it is raised again afterwards
            self.error = error
            return 1


@contextlib.contextmanager
def _program(nvrtc: Nvrtc, text: str, headers: Mapping[str, str]) -> Iterator[ctypes.c_void_p]:
    program = ctypes.c_void_p()
    count = len(headers)
    strings = ctypes.c_char_p * count
    code = nvrtc.library.nvrtcCreateProgram(
        ctypes.byref(program),
        text.encode("utf-8", "backslashreplace"),
        PROGRAM_NAME,
        count,
        strings(*(body.encode() for body in headers.values())),
        strings(*(name.encode() for name in headers)),
    )
    nvrtc.check(code, "nvrtcCreateProgram")
    try:
        yield program
    finally:
        nvrtc.library.nvrtcDestroyProgram(ctypes.byref(program))


def _message(name: str, arch: str, problem: str, log: str, source_path: Path) -> str:
    lines = log.splitlines()[-LOG_LINES:]
    head = f"compiling {name!r} for {arch} failed: {problem}; the source is {source_path}"
    return "\n".join([head, *lines])
