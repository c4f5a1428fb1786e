"""Write a plan as compact bytes that are equal for equal plans, and read such bytes safely."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgpack

from ark_dist.core.errors import PlanError, PlanFormatError
from ark_dist.core.packed import Limits, Table, column, ragged, unpack
from ark_dist.core.plan import PLAN_VERSION, Method, Plan
from ark_dist.core.planfile_read import read_plan
from ark_dist.core.typed import type_problem
from ark_dist.core.verify_plan import verify_plan

# Then 2 bytes of PLAN_VERSION, little-endian, then one msgpack map.
MAGIC = b"ark_dist plan\n"
VERSION_BYTES = 2


def plan_to_bytes(plan: Plan) -> bytes:
    """Encode a plan that `verify_plan` accepts; equal plans give equal bytes.

    Everything countable is a column: one packed integer per buffer, node or task. Strings,
    shapes, views, regions and waits are stored once and referred to by number. Ids are
    positions and are not stored.
    """
    problem = type_problem(plan, Plan)
    if problem is not None:
        raise PlanError(f"the plan can't be written: {problem}")
    body = msgpack.packb(_Writer(plan).body(), unicode_errors="surrogatepass")
    return MAGIC + plan.version.to_bytes(VERSION_BYTES, "little") + body


def plan_from_bytes(data: bytes, *, limits: Limits | None = None) -> Plan:
    """Decode and verify a plan.

    Raises PlanFormatError for bytes that are no plan of this version or exceed the limits,
    PlanError for a plan that breaks a rule.
    """
    limits = limits or Limits()
    if len(data) > limits.size_bytes:
        raise PlanFormatError(
            f"the plan has {len(data)} bytes; at most {limits.size_bytes} are read, "
            "raise limits.size_bytes if you trust it"
        )
    start = len(MAGIC) + VERSION_BYTES
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise PlanFormatError(f"these {len(data)} bytes are no ark_dist plan")
    version = int.from_bytes(data[len(MAGIC) : start], "little")
    if version != PLAN_VERSION:
        raise PlanFormatError(
            f"the plan has format version {version}, this ark_dist reads version {PLAN_VERSION}; "
            "make the plan anew"
        )
    plan = read_plan(unpack(bytes(data[start:]), limits), version, limits)
    verify_plan(plan)
    return plan


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan to a file; the file appears under its name when it is complete."""
    data = plan_to_bytes(plan)
    target = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_plan(path: str | os.PathLike[str], *, limits: Limits | None = None) -> Plan:
    """Read a plan from a file; raises as `plan_from_bytes` does, and OSError."""
    limits = limits or Limits()
    with Path(path).open("rb") as file:
        # One byte more than allowed tells a file that is too long, however long it is.
        return plan_from_bytes(file.read(limits.size_bytes + 1), limits=limits)


def fingerprint(plan: Plan) -> str:
    """SHA-256 of the plan's bytes, in hexadecimal: equal for equal plans."""
    return hashlib.sha256(plan_to_bytes(plan)).hexdigest()


class _Writer:
    """Collects the tables that the columns of a plan refer to."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._strings = Table()
        self._numbers = Table()
        self._blobs = Table()
        self._attrs = Table()
        self._shards = Table()
        self._views = Table()
        self._regions = Table()
        self._region_lists = Table()
        self._waits = Table()
        self._wait_lists = Table()

    def body(self) -> Mapping[str, object]:
        """The whole plan. Tables come last: writing the rest fills them."""
        plan, target = self._plan, self._plan.target
        _check_ids("buffer", [b.id for b in plan.buffers])
        body: dict[str, object] = {
            "name": plan.name,
            "rank": plan.rank,
            "world_size": plan.world_size,
            "target": [
                target.kind, target.worker_count, target.arch, target.counters,
                target.cache_bytes, float(target.bytes_per_s), float(target.ops_per_s),
                float(target.task_s), float(target.hop_s),
            ],
            "arena_bytes": column(plan.arena_bytes),
            "buffers": self._buffer_columns(),
            "methods": [self._method(method) for method in plan.methods],
        }
        return body | {"tables": self._tables()}

    def _tables(self) -> Mapping[str, object]:
        return {
            "region_lists": ragged([r for r in self._region_lists.ids]),  # type: ignore[misc]
            "regions": ragged([r for r in self._regions.ids]),  # type: ignore[misc]
        }
