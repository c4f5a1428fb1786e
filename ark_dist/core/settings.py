"""Read every environment variable of ark_dist into one frozen record."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.errors import ConfigError

# MAX_WORKERS of core/abi.py, and one.
MAX_COUNT = 1025
ISAS = ("portable", "avx2", "avx512", "amx")

# Who starts ranks, and the variables in which each says which rank a process is, in the order in
# which they are believed: rank, number of ranks, rank within the host, ranks of the host. The first
# of a tuple that is set counts.
Names = tuple[str, ...]
LAUNCHERS: dict[str, tuple[Names, Names, Names, Names]] = {
    "mpich": (("PMI_RANK",), ("PMI_SIZE",), ("MPI_LOCALRANKID",), ("MPI_LOCALNRANKS",)),
    "pmix": (
        ("PMIX_RANK",),
        ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    "openmpi": (
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    "ark-dist": (
        ("ARK_DIST_RANK",),
        ("ARK_DIST_WORLD_SIZE",),
        ("ARK_DIST_LOCAL_RANK",),
        ("ARK_DIST_LOCAL_SIZE",),
    ),
    "slurm": (
        ("SLURM_PROCID",),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        ("SLURM_LOCALID",),
        (),
    ),
    "torchrun": (("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",)),
}
JOB_MARK = "ARK_DIST_JOB"  # processes of one run share its value
# Slurm sets its variables for a batch script too, which is no rank: these are set by srun alone.
SLURM_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS")
# What a launcher leaves for its ranks' MPI library; a launcher started by a rank must not see it.
LAUNCHED = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDI_", "MPI_LOCAL")
KEPT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_")

FAULT_POINTS = ("init", "load", "save", "compile", "run", "op")
FAULT_KINDS = (
    *("sigkill", "sigstop", "sigsegv", "abort", "exit0", "sysexit0", "raise"),
    *("sleep", "spin", "delay", "truncate"),
)
FAULT_SYNTAX = "op=all_reduce:3,rank=1,kind=sigkill"


class SettingsError(ConfigError, ValueError):
    """An environment variable holds what can't be used."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something to break on purpose, for tests.

    Attributes:
        point: where: "init", "load", "save:<phase>", "compile", "run" or "op=<name>".
        count: at which pass of that point, from 1; a delay is made at every pass.
        rank: on which rank; None means on all.
        kind: what to do, one of FAULT_KINDS.
        amount: seconds of a sleep, milliseconds of a delay.
    """

    point: str
    count: int
    rank: int | None
    kind: str
    amount: float


@dataclass(frozen=True, slots=True)
class LaunchVariables:
    """What one launcher's variables say, as text; None where nothing is set.

    Attributes:
        launcher: its name in LAUNCHERS.
        rank_name: the variable that holds the rank, or would.
        size_name: the variable that holds the number of ranks, or would.
        is_job: whether this process is one that the launcher started as a rank.
    """

    launcher: str
    rank_name: str
    size_name: str
    rank: str | None
    size: str | None
    local_rank: str | None
    local_size: str | None
    is_job: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for; `docs/environment.md` lists each variable.

    Attributes:
        cache_dir: folder of compiled kernels and of the demo's model; None is the user's cache.
        compiler: command of the C++ compiler; None means the first one found.
        compile_timeout_s: limit for one compilation, in seconds.
        isa: instruction set the CPU kernel is made for; None means the machine's best.
        worker_count: threads of a CPU kernel; None means one per available core.
        timeout_s: limit for every wait of a running kernel, in seconds.
        device: device used where the caller says "auto"; None means the best one found.
        log_level: level of the logger `ark_dist`.
        trace_path: file that every kernel adds the trace of its tasks to; None is off.
        log_dir: folder of the ranks' error files and logs; None means one in the temporary folder.
        memory_bytes: what a rank's arenas may take; None means its share of the machine's memory.
        faults: what to break on purpose, for tests.
        nccl: NCCL's library file; None means the one that is installed.
        has_plan_cache: whether plans are kept in the cache's folder, and taken from there.
    """

    cache_dir: Path | None
    compiler: str | None
    compile_timeout_s: float
    isa: str | None
    worker_count: int | None
    timeout_s: float
    device: str | None
    log_level: str
    trace_path: Path | None = None
    log_dir: Path | None = None
    faults: tuple[Fault, ...] = ()
    nccl: str | None = None
    memory_bytes: int | None = None
    has_plan_cache: bool = True


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment; a value that can't be used raises SettingsError naming it."""
    env = os.environ if environ is None else environ
    isa = env.get("ARK_DIST_ISA") or None
    if isa is not None and isa not in ISAS:
        raise SettingsError(f"ARK_DIST_ISA is {isa!r}; it must be one of {', '.join(ISAS)}")
    cache_dir = env.get("ARK_DIST_CACHE_DIR")
    return Settings(
        cache_dir=Path(cache_dir) if cache_dir else None,
        compiler=env.get("ARK_DIST_CXX") or None,
        compile_timeout_s=_positive(env, "ARK_DIST_COMPILE_TIMEOUT_S", 300.0),
        isa=isa,
        worker_count=_count(env, "ARK_DIST_WORKERS"),
        timeout_s=_positive(env, "ARK_DIST_TIMEOUT_S", 60.0),
        device=env.get("ARK_DIST_DEVICE") or None,
        log_level=(env.get("ARK_DIST_LOG") or "INFO").upper(),
        trace_path=Path(env["ARK_DIST_TRACE"]) if env.get("ARK_DIST_TRACE") else None,
        log_dir=Path(env["ARK_DIST_LOG_DIR"]) if env.get("ARK_DIST_LOG_DIR") else None,
        faults=read_faults(env),
        nccl=env.get("ARK_DIST_NCCL") or None,
        memory_bytes=_bytes(env, "ARK_DIST_MEMORY"),
        has_plan_cache=_switch(env, "ARK_DIST_PLAN_CACHE"),
    )


def read_faults(environ: Mapping[str, str] | None = None) -> tuple[Fault, ...]:
    """Read what tests want broken: faults as in FAULT_SYNTAX, separated by semicolons."""
    env = os.environ if environ is None else environ
    text = env.get("ARK_DIST_FAULT") or ""
    return tuple(_fault(part.strip()) for part in text.split(";")) if text else ()


def read_launch_variables(environ: Mapping[str, str] | None = None) -> tuple[LaunchVariables, ...]:
    """Read what launchers say of ranks, those that say something, the most believed first."""
    env = os.environ if environ is None else environ
    found = []
    for launcher, names in LAUNCHERS.items():
        (rank_name, rank), (size_name, size), *local = (_first_set(env, each) for each in names)
        if rank is None and (size is None or launcher == "pmix"):
            continue  # the sizes of pmix belong to others
        is_job = launcher != "slurm" or any(env.get(name) for name in SLURM_STEP)
        said = (rank, size, local[0][1], local[1][1])
        found.append(LaunchVariables(launcher, rank_name, size_name, *said, is_job))
    return tuple(found)


def launcher_environment(**changes: str) -> dict[str, str]:
    """The environment for a launcher: this one's, without what another launcher left, and changes.

    Slurm's variables stay: launchers take the allocation from them.
    """
    ranks = {n for k, names in LAUNCHERS.items() if k != "slurm" for each in names for n in each}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(KEPT)
        or not (name.startswith(LAUNCHED) or (name in ranks and not name.startswith("SLURM_")))
    }
    return {**kept, **changes}


def prefer_variable(name: str, value: str) -> None:
    """Set a variable that a library reads when it is loaded, unless it is set already."""
    os.environ.setdefault(name, value)


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: this one's, with changes."""
    return {**os.environ, **changes}


def _bytes(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"{name} is {text!r}; it must be a whole number of bytes, 1 or more")
    return int(text)


def _switch(env: Mapping[str, str], name: str) -> bool:
    text = env.get(name) or "1"
    if text not in ("0", "1"):
        raise SettingsError(f"{name} is {text!r}; it must be 0 (off) or 1 (on)")
    return text == "1"


def _count(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < MAX_COUNT:
        raise SettingsError(
            f"{name} is {text!r}; it must be a whole number from 1 to {MAX_COUNT - 1}"
        )
    return int(text)


def _positive(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise SettingsError(f"{name} is {text!r}; it must be a number above 0")
    return value


def _first_set(env: Mapping[str, str], names: Names) -> tuple[str, str | None]:
    """The first of the variables that is set, with its value; else the first, with None."""
    for name in names:
        if env.get(name):
            return name, env[name]
    return (names[0] if names else ""), None


def _fault(text: str) -> Fault:
    """Read one fault: the point, then rank=<r>, kind=<kind>, in any order."""
    head, *rest = text.split(",")
    point, count = _fault_point(head, text)
    rank, kind, amount = None, "", 0.0
    for field in rest:
        key, _, value = field.partition("=")
        if key == "rank" and value.isdecimal():
            rank = int(value)
        elif key == "kind" and value.partition("=")[0] in FAULT_KINDS:
            kind, amount = _fault_kind(value, text)
        else:
            raise _bad_fault(text, f"{field!r} is not rank=<number> or kind=<kind>")
    if not kind:
        raise _bad_fault(text, "it has no kind=")
    return Fault(point, count, rank, kind, amount)


def _fault_point(head: str, text: str) -> tuple[str, int]:
    name, _, count = head.partition(":")
    if name.startswith("op=") and len(name) > len("op="):
        if count and not (count.isdecimal() and int(count) > 0):
            raise _bad_fault(text, f"{count!r} is not a count from 1")
        return name, int(count or 1)
    if name not in FAULT_POINTS or name == "op" or bool(count) != (name == "save"):
        raise _bad_fault(
            text, f"{head!r} is no point; choose init, load, save:<phase>, compile, run, op=<name>"
        )
    return head, 1


def _fault_kind(value: str, text: str) -> tuple[str, float]:
    kind, _, amount = value.partition("=")
    if (kind in ("sleep", "delay")) != bool(amount):
        raise _bad_fault(text, "sleep=<seconds> and delay=<milliseconds> take a number, no other")
    try:
        number = float(amount or 0)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise _bad_fault(text, f"{amount!r} is not a number, 0 or more")
    return kind, number


def _bad_fault(text: str, reason: str) -> SettingsError:
    return SettingsError(
        f"ARK_DIST_FAULT has {text!r}: {reason}; write it like {FAULT_SYNTAX}, with a kind of "
        f"{', '.join(FAULT_KINDS)}"
    )
