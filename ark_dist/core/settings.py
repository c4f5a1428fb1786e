"""Read every environment variable of ark_dist into one frozen record."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# MAX_WORKERS of core/abi.py, and one.
MAX_COUNT = 1025
ISAS = ("portable", "avx2", "avx512", "amx")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment asks for; `docs/environment.md` lists each variable.

    Attributes:
        cache_dir: folder of compiled kernels; None means the user's cache folder.
        compiler: command of the C++ compiler; None means the first one found.
        compile_timeout_s: limit for one compilation, in seconds.
        isa: instruction set the CPU kernel is made for; None means the machine's best.
        worker_count: threads of a CPU kernel; None means one per available core.
        timeout_s: limit for every wait of a running kernel, in seconds.
        device: device used where the caller says "auto"; None means the best one found.
        log_level: level of the logger `ark_dist`.
        trace_path: file that every kernel adds the trace of its tasks to; None is off.
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


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment; a value that can't be used raises ValueError naming it."""
    env = os.environ if environ is None else environ
    isa = env.get("ARK_DIST_ISA") or None
    if isa is not None and isa not in ISAS:
        raise ValueError(f"ARK_DIST_ISA is {isa!r}; it must be one of {', '.join(ISAS)}")
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
    )


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: this one's, with changes."""
    return {**os.environ, **changes}


def _count(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name)
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < MAX_COUNT:
        raise ValueError(f"{name} is {text!r}; it must be a whole number from 1 to {MAX_COUNT - 1}")
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
        raise ValueError(f"{name} is {text!r}; it must be a number above 0")
    return value
