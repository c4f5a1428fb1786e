"""Name all that a program's plan and source are made from by one hash."""

import functools
import hashlib
import importlib.util
import os
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape
from ark_dist.core.target import Target, Topology
from ark_dist.core.version import VERSION
from ark_dist.scheduler.plan import PlanOptions

# The code that plans and emits, and the headers that emitted text includes.
PACKAGES = ("ark_dist.core", "ark_dist.scheduler", "ark_dist.kernels", "ark_dist.launch")
BYTE_CODE = "__pycache__"
POLICIES = "ark_dist.scheduler.order"
NS_PER_S = 1_000_000_000
# In a process made by fork() this is earlier than its start.
_IMPORTED_NS = time.time_ns()


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Everything that goes into the plan of one rank, and into its source.

    Attributes:
        graph: as it was built: with a mesh the global one, without this rank's.
        mesh: how ranks share the graph; None where it is this rank's alone.
        rank: whose plan.
        topology: which rank is on which node.
        target: the device.
        options: the caller's choices.
        language: of the source, "c++" or "cuda".
    """

    graph: Graph
    mesh: MeshShape | None
    rank: int
    topology: Topology
    target: Target
    options: PlanOptions
    language: str


def plan_key(request: PlanRequest) -> str | None:
    """Return the sha256 of a request and of the code that serves it, 64 hexadecimal digits.

    None where that can't be told: the caller's own code decides something, or a file of ours
    may be newer than what this process has loaded.
    """
    if request.options.policy.__module__ != POLICIES:
        return None
    code = code_digest()
    if code is None:
        return None
    options = [
        (field.name, getattr(request.options, field.name))
        for field in fields(request.options)
        if field.name != "policy"
    ]
    # Representations of frozen data: two are equal only where all values and types are.
    facts = (
        *(VERSION, sys.version, np.__version__, code, request.language),
        *(request.mesh, request.rank, request.topology, request.target),
        *(options, request.options.policy.__qualname__),
        *(request.graph.name, request.graph.buffers, request.graph.methods),
    )
    text = "\n".join(repr(fact) for fact in facts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def code_digest() -> str | None:
    """Return the sha256 of the files of `PACKAGES`; None if one has changed since the start."""
    started_ns = _started_ns()
    total = hashlib.sha256()
    try:
        for folder in (_folder(package) for package in PACKAGES):
            for path in _files(folder):
                with path.open("rb") as file:
                    # A file's own clock can be set back; that of its entry can't.
                    if os.fstat(file.fileno()).st_ctime_ns >= started_ns:
                        return None
                    data = file.read()
                name = f"{folder.name}/{path.relative_to(folder)}"
                total.update(f"{name} {len(data)}\n".encode("utf-8", "surrogateescape"))
                total.update(data)
    except OSError:
        return None
    return total.hexdigest()


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        return Path(place)
    raise FileNotFoundError(package)


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != BYTE_CODE]
        found += [Path(place, name) for name in names]
    return sorted(found)


def _started_ns() -> int:
    """When this process can have loaded code at the earliest, as time.time_ns(); 0: not known."""
    try:
        line = Path("/proc/self/stat").read_text(errors="replace")
    except OSError:
        return 0
    # proc(5): starttime is field 22, in ticks since the machine's start.
    ticks = int(line.rpartition(")")[2].split()[19])
    age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    age_ns -= ticks * NS_PER_S // os.sysconf("SC_CLK_TCK")
    return min(_IMPORTED_NS, time.time_ns() - age_ns)
