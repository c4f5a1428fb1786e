"""Turn a plan into one C++ source file and the tables its kernel walks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ark_dist.core import abi
from ark_dist.core.graph import Node, Raise, describe_node
from ark_dist.core.op import OPS
from ark_dist.core.plan import ARENAS, Method, Plan, own_flags, peer_buffers
from ark_dist.core.shape import Box
from ark_dist.core.source import Source
from ark_dist.core.task import Group, Task
from ark_dist.kernels.cpu_nest import Call, Stretch
from ark_dist.kernels.cuda_frames import cuda_call_key, write_cuda_call
from ark_dist.kernels.frames import call_key, offsets, write_call
from ark_dist.kernels.lower import Lowered, lower
from ark_dist.kernels.tables import Table, Tables
from ark_dist.kernels.text import SHARED_BYTES, Parts, cpu_text, cuda_text

# ARK_MAX_METHODS in device/shared.h.
MAX_METHODS = 64
FLAGS = {"none": 0, "effect": abi.EFFECT, "stop": abi.STOP}


@dataclass(frozen=True, slots=True)
class _Language:
    """How one language writes task functions and whole programs.

    Attributes:
        name: "c++" or "cuda".
        write: a lowered group, a tile, slots of scalars -> the function and its parameters.
        key: a lowered group and a tile -> what decides its function and parameters.
        text: the parts of a program -> its source.
    """

    name: str
    write: Callable[[Lowered, Box, dict[str, int]], Call]
    key: Callable[[Lowered, Box], object]
    text: Callable[[Parts], str]


@dataclass(slots=True)
class _Program:
    """What has been emitted so far."""

    functions: dict[str, str] = field(default_factory=dict)
    indices: dict[str, int] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    params: dict[tuple[int, ...], int] = field(default_factory=dict)
    param_values: list[int] = field(default_factory=list)
    wait_rows: dict[tuple[tuple[int, int, int], ...], int] = field(default_factory=dict)
    wait_values: list[tuple[int, int, int]] = field(default_factory=list)
    tasks: list[tuple[int, ...]] = field(default_factory=list)
    operands: list[tuple[int, int, int]] = field(default_factory=list)
    streams: list[tuple[int, int]] = field(default_factory=list)
    segments: list[tuple[int, ...]] = field(default_factory=list)
    raises: list[Raise] = field(default_factory=list)
    flags: dict[str, int] = field(default_factory=dict)
    scratch_elems: int = 0
    shared_bytes: int = 0

    def function(self, body: str, name: str, comment: str) -> int:
        """Index of the function with this body, adding it if it is new."""
        if body not in self.functions:
            self.indices[body] = len(self.functions)
            self.functions[body] = f"{name}_{len(self.functions)}"
            self.comments[body] = comment
        return self.indices[body]

    def param_index(self, values: tuple[int, ...]) -> int:
        """Where these integers stand in the parameter table."""
        if values not in self.params:
            self.params[values] = len(self.param_values)
            self.param_values += values
        return self.params[values]

    def wait_index(self, rows: tuple[tuple[int, int, int], ...]) -> int:
        """Where this list of waits stands in the wait table."""
        if rows not in self.wait_rows:
            self.wait_rows[rows] = len(self.wait_values)
            self.wait_values += rows
        return self.wait_rows[rows]


def emit_cpu(plan: Plan) -> tuple[Source, Tables]:
    """Return the C++ source of a plan's kernel and its tables."""
    return _emit(plan, _Language("c++", write_call, call_key, cpu_text))


def emit_cuda(plan: Plan) -> tuple[Source, Tables]:
    """Return the CUDA C++ source of a plan's kernel and its tables.

    The source includes `ark_gpu.h`: that of `kernels/device/gpu`, or of `emulated`.
    """
    arch = plan.target.arch
    if arch not in SHARED_BYTES:
        known = ", ".join(SHARED_BYTES)
        raise ValueError(
            f"program {plan.name!r} is planned for {arch!r}; CUDA source is for {known}"
        )
    write = partial(write_cuda_call, arch=arch)
    return _emit(plan, _Language("cuda", write, cuda_call_key, cuda_text))


# By the name of the language.
EMITTERS = {"c++": emit_cpu, "cuda": emit_cuda}


def _emit(plan: Plan, language: _Language) -> tuple[Source, Tables]:
    if len(plan.methods) > MAX_METHODS:
        raise ValueError(
            f"program {plan.name!r} has {len(plan.methods)} methods; {MAX_METHODS} work"
        )
    program = _Program()
    queues: list[tuple[int, int]] = []
    methods: list[tuple[int, ...]] = []
    first_counter = 0
    slots = tuple(_scalar_slots(method) for method in plan.methods)
    for method, method_slots in zip(plan.methods, slots, strict=True):
        first_flag = first_counter + len(method.counters)
        flags = own_flags(method)
        program.flags.update((flag, first_flag + i) for i, flag in enumerate(flags))
        queues += _emit_method(program, plan, language, method, first_counter, method_slots)
        kinds = {counter.kind for counter in method.counters}
        methods.append(
            (
                int(method.stop_task is not None),
                method.depth,
                sum(1 for queue in method.queues if queue),
                int(kinds == {"group"}),
            )
        )
        first_counter = first_flag + len(flags)
    tables = Tables(
        tasks=_table(abi.TASK, program.tasks),
        params=np.array(program.param_values or [0], np.int64),
        operands=_table(abi.OPERAND, program.operands),
        waits=_table(abi.WAIT, program.wait_values),
        queues=_table(abi.QUEUE, queues),
        methods=_table(abi.METHOD, methods),
        counter_count=first_counter,
        scratch_elems=program.scratch_elems,
        shared_bytes=program.shared_bytes,
        scalar_slots=slots,
        streams=_table(abi.QUEUE, program.streams),
        segments=_table(abi.SEGMENT, program.segments),
        flags=program.flags,
        raises=tuple(program.raises),
        peers=peer_buffers(plan),
    )
    return Source(plan.name, language.name, language.text(_parts(plan, program))), tables


def _table(record: abi.Record, rows: Sequence[tuple[int, ...]]) -> Table:
    # One spare row, so that an empty table has an address.
    return np.array([*rows, (0,) * len(record.fields)], record.dtype)


def _scalar_slots(method: Method) -> dict[str, int]:
    names = sorted(str(n.attributes["name"]) for n in method.nodes if OPS[n.op].effect == "command")
    if len(names) > abi.MAX_SCALARS:
        raise ValueError(
            f"method {method.name!r} takes {len(names)} scalars; at most {abi.MAX_SCALARS} work"
        )
    return {name: slot for slot, name in enumerate(names)}


def _emit_method(
    program: _Program,
    plan: Plan,
    language: _Language,
    method: Method,
    first_counter: int,
    slots: dict[str, int],
) -> list[tuple[int, int]]:
    lowered = [lower(group, method.nodes, plan.buffers) for group in method.groups]
    peers = {buffer: index for index, buffer in enumerate(peer_buffers(plan))}
    calls = _emit_calls(program, plan, language, method, lowered, slots)
    silent = _silent(method)
    queues = []
    for queue in method.queues:
        queues.append((len(program.tasks), len(queue)))
        first_row = len(program.segments)
        for task_id in queue:
            task = method.tasks[task_id]
            call = calls[task.group, language.key(lowered[task.group], task.box)]
            operands = _operand_rows(plan, lowered[task.group], task.box, peers)
            is_silent = method.signals[task_id] in silent
            _emit_task(program, method, task, first_counter, call, operands, is_silent)
            program.segments += [_segment(operands, stretch) for stretch in call.stream]
        program.streams.append((first_row, len(program.segments) - first_row))
    return queues


def _silent(method: Method) -> frozenset[int]:
    """Counters of groups that nobody waits for.

    Who comes later on the same worker needs no signal, and for others its next one tells of all
    before.
    """
    awaited = {wait.counter for waits in method.waits for wait in waits}
    counters = enumerate(method.counters)
    return frozenset(i for i, c in counters if c.kind == "group" and i not in awaited)


@dataclass(frozen=True, slots=True)
class _Emitted:
    """Where a call's function and parameters stand, and what it streams."""

    function: int
    params: int
    param_count: int
    stream: tuple[Stretch, ...]


def _flags(task: Task, last: Node, call: _Emitted, is_silent: bool) -> int:
    is_handshake = bool(last.waits or last.raises)
    flags = FLAGS[task.effect] | len(call.stream) << abi.SLOTS_SHIFT
    return flags | is_handshake * abi.HANDSHAKE | is_silent * abi.SILENT


def _emit_task(
    program: _Program,
    method: Method,
    task: Task,
    first_counter: int,
    call: _Emitted,
    operands: Sequence[tuple[int, int, int]],
    is_silent: bool,
) -> None:
    handshake = method.nodes[method.groups[task.group].nodes[-1]]
    waits = _wait_rows(method, task.id, first_counter)
    waits += tuple((program.flags[flag], 1, 1) for flag in handshake.waits)
    program.tasks.append(
        (
            call.function,
            call.params,
            len(program.operands),
            program.wait_index(waits),
            len(waits),
            _flags(task, handshake, call, is_silent),
            first_counter + method.signals[task.id],
            task.id,
            len(program.raises),
            len(handshake.raises),
            call.param_count,
            len(operands),
        )
    )
    program.raises += handshake.raises
    program.operands += operands


def _emit_calls(
    program: _Program,
    plan: Plan,
    language: _Language,
    method: Method,
    lowered: Sequence[Lowered],
    slots: dict[str, int],
) -> dict[tuple[int, object], _Emitted]:
    """Function and parameters for each group and kind of tile, in an order no queue changes."""
    calls: dict[tuple[int, object], _Emitted] = {}
    for task in method.tasks:
        key = (task.group, language.key(lowered[task.group], task.box))
        if key not in calls:
            group = method.groups[task.group]
            call = language.write(lowered[task.group], task.box, slots)
            calls[key] = _emit_call(program, plan, method, group, call)
    return calls


def _segment(operands: Sequence[tuple[int, int, int]], stretch: Stretch) -> tuple[int, ...]:
    # The arena's number in the last field, until its address is known.
    arena, _, offset = operands[stretch.operand]
    source = offset + stretch.offset_bytes
    return (source, stretch.pitch_bytes, stretch.bytes, stretch.segments, arena)


def _wait_rows(
    method: Method, task_id: int, first_counter: int
) -> tuple[tuple[int, int, int], ...]:
    rows = []
    for wait in method.waits[task_id]:
        signals = method.counters[wait.counter].signals
        need = wait.threshold - wait.turns_back * signals
        rows.append((first_counter + wait.counter, signals, need))
    return tuple(rows)


def _emit_call(program: _Program, plan: Plan, method: Method, group: Group, call: Call) -> _Emitted:
    program.scratch_elems = max(program.scratch_elems, call.scratch_elems)
    program.shared_bytes = max(program.shared_bytes, call.shared_bytes)
    name = "_".join(method.nodes[n].op for n in group.nodes)[:80]
    comment = "\n".join(f"// {describe_node(method.nodes[n], plan.buffers)}" for n in group.nodes)
    function = program.function(call.body, name, comment)
    params = call.params
    return _Emitted(function, program.param_index(params), len(params), call.stream)


def _operand_rows(
    plan: Plan, lowered: Lowered, box: Box, peers: dict[int, int]
) -> list[tuple[int, int, int]]:
    rows = []
    for operand, offset in zip(lowered.operands, offsets(lowered, box), strict=True):
        place = plan.places[operand.view.buffer]
        size = operand.view.dtype.itemsize
        if operand.view.buffer in peers:
            rows.append((len(ARENAS) + peers[operand.view.buffer], 0, offset * size))
        else:
            rows.append((ARENAS.index(place.arena), 0, place.offset + offset * size))
    return rows


def _parts(plan: Plan, program: _Program) -> Parts:
    functions = tuple(
        (program.comments[body], name, body) for body, name in program.functions.items()
    )
    # A function's header has its name: some operators share one.
    kernels = (OPS[node.op].kernel for method in plan.methods for node in method.nodes)
    used = {kernel.function.removeprefix("ark_") for kernel in kernels if kernel is not None}
    counts = [task[-2:] for task in program.tasks]
    most = (max((n for n, _ in counts), default=0), max((n for _, n in counts), default=0))
    return Parts(
        plan.name,
        plan.target,
        functions,
        tuple(used),
        program.shared_bytes,
        bool(program.segments),
        most,
    )
