"""Find the machine's mpirun, tell which MPI it is of, and say how it wants to be called."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.errors import ConfigError
from ark_dist.core.settings import launcher_environment

NAMES = ("mpirun", "mpiexec", "mpiexec.hydra", "mpirun.mpich", "mpirun.openmpi")
KINDS = ("mpich", "openmpi")
# What `mpirun --version` says -> which MPI it is; Intel's is a Hydra too.
SIGNS = {"HYDRA": "mpich", "Open MPI": "openmpi", "Intel(R) MPI": "mpich", "OpenRTE": "openmpi"}
VERSION_LIMIT_S = 20.0
# Open MPI looks for fast networks for a second otherwise, and says so where there is none.
ONE_HOST = ("--mca", "pml", "ob1", "--mca", "btl", "self,sm", "--mca", "osc", "^ucx")
# For ranks on other hosts: Open MPI passes on what it is told to, mpich everything.
EXPORTED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Mpirun:
    """A launcher.

    Attributes:
        path: the program.
        kind: "mpich" or "openmpi".
        version: the line that it says of itself.
    """

    path: Path
    kind: str
    version: str


def find_mpirun(kind: str = "auto") -> Mpirun | None:
    """Find a launcher: beside the interpreter first, then on PATH.

    Args:
        kind: "mpich", "openmpi", or "auto" for the first of either.
    """
    folders = [str(Path(sys.executable).parent), None]
    for folder in folders:
        for name in NAMES:
            path = shutil.which(name, path=folder)
            if path is None:
                continue
            found = identify(Path(path))
            if found is not None and kind in ("auto", found.kind):
                return found
    return None


def require_mpirun(kind: str) -> Mpirun:
    """Find a launcher.

    Raises:
        ConfigError: there is none, with how to get one.
    """
    if kind not in (*KINDS, "auto"):
        raise ConfigError(f"--launcher is {kind!r}; it must be auto, {' or '.join(KINDS)}")
    found = find_mpirun(kind)
    if found is None:
        wanted = "mpirun" if kind == "auto" else f"mpirun of {kind}"
        package = "mpich" if kind == "auto" else kind
        raise ConfigError(
            f"there is no {wanted} beside {sys.executable} or on PATH; `pip install {package}`, or "
            "load your cluster's MPI module"
        )
    return found


def identify(path: Path) -> Mpirun | None:
    """Ask a launcher which MPI it is of; None if it can't be asked or is of another."""
    try:
        done = subprocess.run(
            [path, "--version"],
            env=launcher_environment(**root_variables()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    kind = next((kind for sign, kind in SIGNS.items() if sign in text), None)
    return Mpirun(path, kind, version_line(text)) if kind else None


def version_line(text: str) -> str:
    """The line of `mpirun --version` that has the number."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("Version:"):
            return f"MPICH {line.partition(':')[2].strip()}"
    return lines[0] if lines else ""


def mpirun_command(
    mpirun: Mpirun, count: int, hosts: Path | None, command: Sequence[str]
) -> list[str]:
    """The full command that starts `command` on `count` ranks."""
    if mpirun.kind == "mpich":
        where = ["-f", str(hosts)] if hosts else []
        return [str(mpirun.path), *where, "-n", str(count), *command]
    where = ["--hostfile", str(hosts)] if hosts else ["--oversubscribe", *ONE_HOST]
    there = [name for name in EXPORTED if name in launcher_environment()]
    exported = [word for name in there for word in ("-x", name)] if hosts else []
    # Ranks pin their own threads: Open MPI would keep each on one core.
    options = ["--bind-to", "none", *where, *exported]
    return [str(mpirun.path), *options, "-n", str(count), *command]


def mpirun_environment(mpirun: Mpirun, count: int, **changes: str) -> dict[str, str]:
    """The environment that the launcher wants."""
    variables = {**root_variables(), **changes} if mpirun.kind == "openmpi" else changes
    environment = launcher_environment(**variables)
    if count > len(os.sched_getaffinity(0)):
        # mpich's waits must let the rank run that they wait for.
        environment.setdefault("MPIR_CVAR_POLLS_BEFORE_YIELD", "0")
    return environment


def root_variables() -> dict[str, str]:
    """What Open MPI wants to see before it starts for root, as in containers."""
    if os.geteuid() != 0:
        return {}
    return {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
