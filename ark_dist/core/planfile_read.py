"""Make a plan from the decoded body of a plan file, checking each field on the way."""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from ark_dist.core.dtype import DTYPES, DType
from ark_dist.core.errors import PlanFormatError
from ark_dist.core.graph import Buffer, Node, Raise
from ark_dist.core.layout import P
from ark_dist.core.op import AttrValue
from ark_dist.core.packed import Limits, Reader, described
from ark_dist.core.packing import PACKINGS
from ark_dist.core.plan import Counter, Method, Place, Plan, Wait
from ark_dist.core.shape import Box
from ark_dist.core.target import Cost, Target
from ark_dist.core.task import Group, Task
from ark_dist.core.view import Region, View

MAX_METHODS = 4096

_T = TypeVar("_T")
_Attrs = tuple[tuple[str, AttrValue], ...]


def read_plan(body: object, version: int, limits: Limits) -> Plan:
    """Return the plan that the body of a file describes; types and references are right.

    Raises PlanFormatError naming the field, what was found, and what it must be.
    """
    top = Reader(body, "", limits)
    tables = _Tables(top.reader("tables"))
    buffers, places = _buffers(top.reader("buffers"), tables)
    methods = top.items("methods")
    if len(methods) > MAX_METHODS:
        raise PlanFormatError(f"methods has {len(methods)} items; at most {MAX_METHODS} are read")
    plan = Plan(
        version,
        top.text("name"),
        top.integer("rank"),
        top.integer("world_size"),
        _target(top.reader("target")),
        buffers,
        places,
        tuple(top.column("arena_bytes")),
        tuple(
            _method(Reader(item, f"methods[{index}]", limits), tables)
            for index, item in enumerate(methods)
        ),
    )
    top.finish()
    return plan


class _Tables:
    """The values that columns refer to by number."""

    def __init__(self, reader: Reader) -> None:
        """Decode every table."""
        self.strings = _each(reader, "strings", _string)
        self.numbers = reader.ragged("numbers", count=None)
        self.blobs = _each(reader, "blobs", _blob)
        self.attrs = _each(reader, "attrs", _attrs)
        self.shards = _each(reader, "shards", _shard)
        self.views = self._read_views(reader.reader("views"))
        self.regions = self._read_regions(reader.reader("regions"))
        self.waits = self._read_waits(reader.reader("waits"))
        self.raises = self._read_raises(reader.reader("raises"))
        self.region_lists = [
            tuple(self.regions[r] for r in ids)
            for ids in reader.ragged("region_lists", count=None, below=len(self.regions))
        ]
        self.wait_lists = [
            tuple(self.waits[w] for w in ids)
            for ids in reader.ragged("wait_lists", count=None, below=len(self.waits))
        ]
        # What tasks may still refer to: lists are stored once but walked at every use.
        self._entries = reader.limits.entries
        reader.finish()

    def pick(self, reader: Reader, name: str, table: Sequence[_T], count: int | None) -> list[_T]:
        """A column of positions in a table, as the values there."""
        return [table[i] for i in reader.column(name, count=count, below=len(table))]

    def pick_optional(
        self, reader: Reader, name: str, table: Sequence[_T], count: int
    ) -> list[_T | None]:
        """A column of positions in a table from 1 on, with 0 for None."""
        numbers = reader.column(name, count=count, below=len(table) + 1)
        return [table[i - 1] if i else None for i in numbers]

    def pick_lists(
        self, reader: Reader, name: str, table: Sequence[tuple[_T, ...]], count: int
    ) -> list[tuple[_T, ...]]:
        """A column of positions in a table of lists; the lists' total length is limited."""
        found = self.pick(reader, name, table, count)
        self._entries -= sum(map(len, found))
        if self._entries < 0:
            raise PlanFormatError(
                f"{reader.name(name)} refers to too much: at most {reader.limits.entries} "
                "entries in all"
            )
        return found

    def dtypes(self, reader: Reader, name: str, count: int | None) -> list[DType]:
        """A column of names of dtypes."""
        names = self.pick(reader, name, self.strings, count)
        for found in set(names) - DTYPES.keys():
            raise PlanFormatError(f"{reader.name(name)}: {described(found)} is no dtype")
        return [DTYPES[found] for found in names]

    def boxes(self, reader: Reader, name: str, count: int | None) -> list[Box]:
        """A column of boxes, flattened in the table of numbers."""
        made: dict[tuple[int, ...], Box] = {}
        result = []
        for flat in self.pick(reader, name, self.numbers, count):
            if flat not in made:
                if len(flat) % 2:
                    raise PlanFormatError(f"{reader.name(name)}: {len(flat)} numbers are no box")
                made[flat] = tuple(zip(flat[::2], flat[1::2], strict=True))
            result.append(made[flat])
        return result

    def _read_views(self, reader: Reader) -> list[View]:
        buffers = reader.column("buffer")
        count = len(buffers)
        columns = zip(
            buffers,
            self.dtypes(reader, "dtype", count),
            reader.column("offset", count=count),
            self.pick(reader, "shape", self.numbers, count),
            self.pick(reader, "strides", self.numbers, count),
            strict=True,
        )
        reader.finish()
        return [View(*row) for row in columns]

    def _read_regions(self, reader: Reader) -> list[Region]:
        buffers = reader.column("buffer")
        boxes = self.boxes(reader, "box", len(buffers))
        reader.finish()
        return [Region(*row) for row in zip(buffers, boxes, strict=True)]

    def _read_raises(self, reader: Reader) -> list[Raise]:
        ranks = [number - 1 for number in reader.column("rank")]
        flags = self.pick(reader, "flag", self.strings, len(ranks))
        reader.finish()
        return [Raise(*row) for row in zip(ranks, flags, strict=True)]

    def _read_waits(self, reader: Reader) -> list[Wait]:
        counters = reader.column("counter")
        thresholds = reader.column("threshold", count=len(counters))
        turns = reader.column("turns_back", count=len(counters))
        reader.finish()
        return [Wait(*row) for row in zip(counters, thresholds, turns, strict=True)]


def _each(reader: Reader, name: str, convert: Callable[[object, str], _T]) -> list[_T]:
    where = reader.name(name)
    return [convert(item, f"{where}[{i}]") for i, item in enumerate(reader.items(name))]


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PlanFormatError(f"{where} is {described(value)}; it must be a string")
    return value


def _blob(value: object, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise PlanFormatError(f"{where} is {described(value)}; it must be bytes")
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise PlanFormatError(f"{where} is {described(value)}; it must be an array")
    return value


def _shard(value: object, where: str) -> P:
    items = _list(value, where)
    return P(*(None if item is None else _string(item, where) for item in items))


def _attrs(value: object, where: str) -> _Attrs:
    result = []
    for index, pair in enumerate(_list(value, where)):
        items = _list(pair, f"{where}[{index}]")
        if len(items) != 2:
            raise PlanFormatError(f"{where}[{index}] has {len(items)} items; it must have 2")
        name = _string(items[0], f"{where}[{index}][0]")
        result.append((name, _attr_value(items[1], f"{where}[{index}][1]")))
    return tuple(result)


def _attr_value(value: object, where: str) -> AttrValue:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    items = _list(value, where)
    if not all(type(item) is int for item in items):
        raise PlanFormatError(f"{where} is {described(value)}; it must hold integers only")
    return cast(tuple[int, ...], tuple(items))


def _target(reader: Reader) -> Target:
    target = Target(
        reader.text("kind"),
        reader.integer("worker_count"),
        reader.text("arch"),
        reader.text("counters"),
        reader.integer("cache_bytes"),
        reader.number("bytes_per_s"),
        reader.number("ops_per_s"),
        reader.number("task_s"),
        reader.number("hop_s"),
    )
    reader.finish()
    return target


def _buffers(reader: Reader, tables: _Tables) -> tuple[tuple[Buffer, ...], tuple[Place, ...]]:
    names = tables.pick(reader, "name", tables.strings, None)
    count = len(names)
    columns = zip(
        range(count),
        names,
        tables.pick(reader, "shape", tables.numbers, count),
        tables.dtypes(reader, "dtype", count),
        tables.pick(reader, "kind", tables.strings, count),
        tables.pick_optional(reader, "method", tables.strings, count),
        reader.column("slots", count=count),
        _packings(reader, tables, count),
        tables.pick_optional(reader, "initial", tables.blobs, count),
        tables.pick_optional(reader, "shard", tables.shards, count),
        tables.pick(reader, "export", tables.strings, count),
        [number - 1 for number in reader.column("peer", count=count)],
        strict=True,
    )
    arenas = tables.pick(reader, "arena", tables.strings, count)
    offsets = reader.column("offset", count=count)
    reader.finish()
    places = tuple(Place(*row) for row in zip(arenas, offsets, strict=True))
    return tuple(Buffer(*row) for row in columns), places


def _packings(reader: Reader, tables: _Tables, count: int) -> list[str]:
    packings = tables.pick(reader, "packing", tables.strings, count)
    for found in set(packings) - {"", *PACKINGS}:
        raise PlanFormatError(f"{reader.name('packing')}: {described(found)} is no packing")
    return packings


def _method(reader: Reader, tables: _Tables) -> Method:
    nodes = _nodes(reader.reader("nodes"), tables)
    groups = _groups(reader.reader("groups"), tables)
    tasks = _tasks(reader.reader("tasks"), tables)
    stop_task = None if reader.raw("stop_task") is None else reader.integer("stop_task")
    method = Method(
        reader.text("name"),
        nodes,
        groups,
        tasks,
        tuple(reader.ragged("queues", count=None)),
        _counters(reader.reader("counters"), tables),
        tuple(reader.column("signals", count=len(tasks))),
        tuple(tables.pick_lists(reader, "waits", tables.wait_lists, len(tasks))),
        stop_task,
        reader.integer("depth"),
    )
    reader.finish()
    return method


def _nodes(reader: Reader, tables: _Tables) -> tuple[Node, ...]:
    ops = tables.pick(reader, "op", tables.strings, None)
    count, views = len(ops), tables.views
    inputs = reader.ragged("inputs", count=count, below=len(views))
    after = reader.ragged("after", count=count, below=len(views))
    takes = reader.ragged("takes", count=count, below=len(views))
    waits = reader.ragged("waits", count=count, below=len(tables.strings))
    raises = reader.ragged("raises", count=count, below=len(tables.raises))
    columns = zip(
        range(count),
        ops,
        tables.pick(reader, "name", tables.strings, count),
        [tuple(views[v] for v in ids) for ids in inputs],
        tables.pick(reader, "output", views, count),
        tables.pick(reader, "attrs", tables.attrs, count),
        [tuple(views[v] for v in ids) for ids in after],
        reader.column("stage", count=count),
        [tuple(views[v] for v in ids) for ids in takes],
        [tuple(tables.strings[f] for f in ids) for ids in waits],
        [tuple(tables.raises[r] for r in ids) for ids in raises],
        strict=True,
    )
    reader.finish()
    return tuple(Node(*row) for row in columns)


def _groups(reader: Reader, tables: _Tables) -> tuple[Group, ...]:
    effects = tables.pick(reader, "effect", tables.strings, None)
    nodes = reader.ragged("nodes", count=len(effects))
    reader.finish()
    return tuple(Group(i, *row) for i, row in enumerate(zip(nodes, effects, strict=True)))


def _tasks(reader: Reader, tables: _Tables) -> tuple[Task, ...]:
    groups = reader.column("group")
    count = len(groups)
    costs = zip(reader.column("bytes", count=count), reader.column("ops", count=count), strict=True)
    columns = zip(
        range(count),
        groups,
        tables.boxes(reader, "box", count),
        tables.pick_lists(reader, "reads", tables.region_lists, count),
        tables.pick_lists(reader, "writes", tables.region_lists, count),
        [Cost(*cost) for cost in costs],
        tables.pick(reader, "effect", tables.strings, count),
        strict=True,
    )
    reader.finish()
    return tuple(Task(*row) for row in columns)


def _counters(reader: Reader, tables: _Tables) -> tuple[Counter, ...]:
    kinds = tables.pick(reader, "kind", tables.strings, None)
    owners = reader.column("owner", count=len(kinds))
    signals = reader.column("signals", count=len(kinds))
    reader.finish()
    rows = zip(kinds, owners, signals, strict=True)
    return tuple(Counter(i, *row) for i, row in enumerate(rows))
