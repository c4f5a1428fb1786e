"""Read the CPU's features and turn an instruction set's name into compiler flags."""

import ctypes
import functools
import os
from collections.abc import Iterable
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Features, by their names in /proc/cpuinfo, without which a body of this instruction set can't run.
NEEDS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "amx": ("amx_tile", "amx_bf16"),
}
REQUIRED_FLAGS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mprefer-vector-width=512",
    ),
    "amx": ("-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}
# Feature -> flag: used only where the CPU has the feature; a compiler too old for it goes without.
OPTIONAL_FLAGS: dict[str, dict[str, str]] = {
    "portable": {},
    "avx2": {
        "bmi1": "-mbmi",
        "bmi2": "-mbmi2",
        "abm": "-mlzcnt",
        "popcnt": "-mpopcnt",
        "movbe": "-mmovbe",
    },
    "avx512": {
        "avx512_bf16": "-mavx512bf16",
        "avx512_fp16": "-mavx512fp16",
        "avx512_vnni": "-mavx512vnni",
        "avx512vbmi": "-mavx512vbmi",
    },
    "amx": {},
}
# From asm/prctl.h: the system call arch_prctl, its request, and the tile registers' data.
SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18
LADDER = tuple(NEEDS)  # each step includes those before it


def parse_features(lines: Iterable[str]) -> frozenset[str]:
    """Take the features of the first CPU out of the lines of /proc/cpuinfo."""
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip() in ("flags", "Features"):  # x86, aarch64
            return frozenset(value.split())
    return frozenset()


@functools.cache
def cpu_features() -> frozenset[str]:
    """Return this CPU's features by their /proc/cpuinfo names; empty where they can't be read."""
    try:
        with CPUINFO.open(encoding="ascii", errors="replace") as lines:
            return parse_features(lines)
    except OSError:
        return frozenset()


@functools.cache
def is_amx_granted() -> bool:
    """Ask Linux for the tile registers of AMX, which a process has to, once for all threads."""
    if os.uname().machine != "x86_64":
        return False
    request = (SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    failed: int = ctypes.CDLL(None).syscall(*map(ctypes.c_long, request))
    return failed == 0


def can_run(isa: str, *, features: frozenset[str] | None = None) -> bool:
    """Tell whether this process can run a body of `isa`; for "amx", Linux has to agree.

    Args:
        isa: one of "portable", "avx2", "avx512", "amx".
        features: features to judge by; None means this CPU's.

    Raises:
        ValueError: the instruction set is unknown.
    """
    have = cpu_features() if features is None else features
    steps = _steps(isa)
    if not all(feature in have for step in steps for feature in NEEDS[step]):
        return False
    return features is not None or "amx" not in steps or is_amx_granted()


def best_isa(*, features: frozenset[str] | None = None) -> str:
    """Return the highest instruction set this CPU can run: "portable" on anything but x86-64."""
    return [isa for isa in LADDER if can_run(isa, features=features)][-1]


def used_features(isa: str, *, features: frozenset[str] | None = None) -> tuple[str, ...]:
    """Return the CPU's features that `isa_flags` looked at and found, for the cache's key."""
    have = cpu_features() if features is None else features
    asked = [name for step in _steps(isa) for name in (*NEEDS[step], *OPTIONAL_FLAGS[step])]
    return tuple(sorted(set(asked) & have))


def isa_flags(isa: str, *, features: frozenset[str] | None = None) -> tuple[str, ...]:
    """Return the explicit -m flags for `isa`; the CPU need not be able to run it.

    Args:
        isa: one of "portable", "avx2", "avx512", "amx".
        features: features that decide on the optional flags; None means this CPU's.

    Raises:
        ValueError: the instruction set is unknown, or does not exist on this machine.
    """
    have = cpu_features() if features is None else features
    steps = _steps(isa)
    if isa != "portable" and (machine := os.uname().machine) != "x86_64":
        raise ValueError(f"isa {isa!r} needs an x86_64 machine, this is {machine}; use 'portable'")
    flags: list[str] = []
    for step in steps:
        flags += REQUIRED_FLAGS[step]
        flags += [flag for feature, flag in OPTIONAL_FLAGS[step].items() if feature in have]
    return tuple(flags)


def _steps(isa: str) -> tuple[str, ...]:
    if isa not in NEEDS:
        raise ValueError(f"isa is {isa!r}; it must be one of {', '.join(NEEDS)}")
    return LADDER[: LADDER.index(isa) + 1]
