"""Write a plan as compact bytes that are equal for equal plans, and read such bytes safely."""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgpack

from ark_dist.core.errors import PlanError, PlanFormatError
from ark_dist.core.graph import Buffer, Node, Raise
from ark_dist.core.op import AttrValue
from ark_dist.core.packed import Limits, Table, column, ragged, unpack
from ark_dist.core.plan import PLAN_VERSION, Counter, Method, Plan, Wait
from ark_dist.core.planfile_read import read_plan
from ark_dist.core.shape import Box
from ark_dist.core.task import Group, Task
from ark_dist.core.typed import type_problem
from ark_dist.core.verify_plan import verify_plan
from ark_dist.core.view import Region, View

_T = TypeVar("_T")

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
    _check_positions(plan)
    try:
        body = msgpack.packb(_Writer().body(plan), unicode_errors="surrogatepass")
        head = MAGIC + plan.version.to_bytes(VERSION_BYTES, "little")
    except (OverflowError, ValueError) as error:
        # Columns hold numbers from 0 on; a plan that verifies has no others.
        raise PlanError(f"the plan can't be written: {error}") from None
    return head + bytes(body)


def plan_from_bytes(
    data: bytes, *, limits: Limits | None = None, is_verified: bool = False
) -> Plan:
    """Decode and verify a plan.

    Of bytes that are known to be those of a plan that was verified, `is_verified` checks types
    and references alone.

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
    if not is_verified:
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

    def __init__(self) -> None:
        self._strings: Table[str] = Table()
        self._numbers: Table[tuple[int, ...]] = Table()
        self._blobs: Table[bytes] = Table()
        self._attrs: Table[tuple[tuple[str, AttrValue, type], ...]] = Table()
        self._shards: Table[tuple[str | None, ...]] = Table()
        self._views: Table[View] = Table()
        self._regions: Table[Region] = Table()
        self._region_lists: Table[tuple[Region, ...]] = Table()
        self._waits: Table[Wait] = Table()
        self._wait_lists: Table[tuple[Wait, ...]] = Table()
        self._raises: Table[Raise] = Table()

    def body(self, plan: Plan) -> Mapping[str, object]:
        """The whole plan. Tables come last: writing the rest fills them."""
        target = plan.target
        body: dict[str, object] = {
            "name": plan.name,
            "rank": plan.rank,
            "world_size": plan.world_size,
            "target": {
                "kind": target.kind,
                "worker_count": target.worker_count,
                "arch": target.arch,
                "counters": target.counters,
                "cache_bytes": target.cache_bytes,
                "bytes_per_s": float(target.bytes_per_s),
                "ops_per_s": float(target.ops_per_s),
                "task_s": float(target.task_s),
                "hop_s": float(target.hop_s),
            },
            "arena_bytes": column(plan.arena_bytes),
            "buffers": self._buffers(plan),
            "methods": [self._method(method) for method in plan.methods],
        }
        body["tables"] = self._tables()
        return body

    def _buffers(self, plan: Plan) -> Mapping[str, bytes]:
        buffers = plan.buffers
        return {
            "name": self._words([b.name for b in buffers]),
            "shape": column([self._numbers.index(b.shape) for b in buffers]),
            "dtype": self._words([b.dtype.name for b in buffers]),
            "kind": self._words([b.kind for b in buffers]),
            "method": self._optional(self._strings, [b.method for b in buffers]),
            "slots": column([b.slots for b in buffers]),
            "packing": self._words([b.packing for b in buffers]),
            "initial": self._optional(self._blobs, [b.initial for b in buffers]),
            "shard": self._optional(
                self._shards, [None if b.shard is None else tuple(b.shard) for b in buffers]
            ),
            "export": self._words([b.export for b in buffers]),
            # From 1 on; 0 is none.
            "peer": column([b.peer + 1 for b in buffers]),
            "arena": self._words([p.arena for p in plan.places]),
            "offset": column([p.offset for p in plan.places]),
        }

    def _method(self, method: Method) -> Mapping[str, object]:
        counters = method.counters
        return {
            "name": method.name,
            "nodes": self._nodes(method.nodes),
            "groups": {
                "nodes": ragged([g.nodes for g in method.groups]),
                "effect": self._words([g.effect for g in method.groups]),
            },
            "tasks": self._tasks(method.tasks),
            "queues": ragged(method.queues),
            "counters": {
                "kind": self._words([c.kind for c in counters]),
                "owner": column([c.owner for c in counters]),
                "signals": column([c.signals for c in counters]),
            },
            "signals": column(method.signals),
            "waits": column([self._wait_lists.index(w) for w in method.waits]),
            "stop_task": method.stop_task,
            "depth": method.depth,
        }

    def _nodes(self, nodes: Sequence[Node]) -> Mapping[str, object]:
        return {
            "op": self._words([n.op for n in nodes]),
            "name": self._words([n.name for n in nodes]),
            "inputs": ragged([[self._views.index(v) for v in n.inputs] for n in nodes]),
            "output": column([self._views.index(n.output) for n in nodes]),
            "attrs": column([self._attrs.index(_typed_attrs(n)) for n in nodes]),
            "after": ragged([[self._views.index(v) for v in n.after] for n in nodes]),
            "stage": column([n.stage for n in nodes]),
            "takes": ragged([[self._views.index(v) for v in n.takes] for n in nodes]),
            "waits": ragged([[self._strings.index(f) for f in n.waits] for n in nodes]),
            "raises": ragged([[self._raises.index(r) for r in n.raises] for n in nodes]),
        }

    def _tasks(self, tasks: Sequence[Task]) -> Mapping[str, object]:
        return {
            "group": column([t.group for t in tasks]),
            "box": column([self._numbers.index(_flat(t.box)) for t in tasks]),
            "reads": column([self._region_lists.index(t.reads) for t in tasks]),
            "writes": column([self._region_lists.index(t.writes) for t in tasks]),
            "bytes": column([t.cost.bytes for t in tasks]),
            "ops": column([t.cost.ops for t in tasks]),
            "effect": self._words([t.effect for t in tasks]),
        }

    def _tables(self) -> Mapping[str, object]:
        """A table is written after all that adds to it."""
        region_lists = ragged(
            [[self._regions.index(r) for r in regions] for regions in self._region_lists]
        )
        wait_lists = ragged([[self._waits.index(w) for w in waits] for waits in self._wait_lists])
        views = {
            "buffer": column([v.buffer for v in self._views]),
            "dtype": self._words([v.dtype.name for v in self._views]),
            "offset": column([v.offset for v in self._views]),
            "shape": column([self._numbers.index(v.shape) for v in self._views]),
            "strides": column([self._numbers.index(v.strides) for v in self._views]),
        }
        regions = {
            "buffer": column([r.buffer for r in self._regions]),
            "box": column([self._numbers.index(_flat(r.box)) for r in self._regions]),
        }
        waits = {
            "counter": column([w.counter for w in self._waits]),
            "threshold": column([w.threshold for w in self._waits]),
            "turns_back": column([w.turns_back for w in self._waits]),
        }
        raises = {
            # From 1 on; 0 is the host.
            "rank": column([r.rank + 1 for r in self._raises]),
            "flag": self._words([r.flag for r in self._raises]),
        }
        return {
            "strings": list(self._strings),
            "numbers": ragged(list(self._numbers)),
            "blobs": list(self._blobs),
            "attrs": [[[name, value] for name, value, _ in attrs] for attrs in self._attrs],
            "shards": [list(shard) for shard in self._shards],
            "views": views,
            "regions": regions,
            "region_lists": region_lists,
            "waits": waits,
            "wait_lists": wait_lists,
            "raises": raises,
        }

    def _words(self, words: Sequence[str]) -> bytes:
        return column([self._strings.index(word) for word in words])

    @staticmethod
    def _optional(table: Table[_T], values: Sequence[_T | None]) -> bytes:
        """Positions in a table from 1 on; 0 is None."""
        return column([0 if v is None else table.index(v) + 1 for v in values])


def _typed_attrs(node: Node) -> tuple[tuple[str, AttrValue, type], ...]:
    # Python holds 1, 1.0 and True for equal: the type keeps them apart in the table.
    return tuple((name, value, type(value)) for name, value in node.attrs)


def _flat(box: Box) -> tuple[int, ...]:
    return tuple(edge for interval in box for edge in interval)


def _check_positions(plan: Plan) -> None:
    """Raise PlanError unless ids are positions: the file does not hold them."""
    sequences: list[tuple[str, Sequence[Buffer | Node | Group | Task | Counter]]] = [
        ("buffer", plan.buffers)
    ]
    for method in plan.methods:
        sequences += [
            ("node", method.nodes),
            ("group", method.groups),
            ("task", method.tasks),
            ("counter", method.counters),
        ]
    for what, sequence in sequences:
        for position, item in enumerate(sequence):
            if item.id != position:
                raise PlanError(f"the plan can't be written: {what} {position} has id {item.id}")
    if len(plan.places) != len(plan.buffers):
        raise PlanError(
            f"the plan can't be written: {len(plan.places)} places, {len(plan.buffers)} buffers"
        )
