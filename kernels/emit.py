"""Turn a plan into one C++ source file and the tables its kernel walks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.graph import describe_node, quoted
from ark_dist.core.op import OPS
from ark_dist.core.plan import ARENAS, Method, Plan
from ark_dist.core.shape import Box, Shape
from ark_dist.core.source import Source
from ark_dist.core.task import Group
from ark_dist.kernels.frames import Call, call_key, offsets, write_call
from ark_dist.kernels.lower import Lowered, lower

Table = npt.NDArray[np.void]
BEFORE_OPS = ("base.h", "team.h", "abi.h", "loop.h", "tile.h", "worker.h", "control.h")
AFTER_FUNCTIONS = ("host.h",)
# ARK_MAX_METHODS in worker.h.
MAX_METHODS = 64
FLAGS = {"none": 0, "effect": abi.EFFECT, "stop": abi.STOP}


@dataclass(frozen=True, slots=True)
class Tables:
    """What the kernel walks; rows are laid out by `core/abi.py`."""

    tasks: Table
    params: npt.NDArray[np.int64]
    operands: Table
    waits: Table
    queues: Table
    methods: Table
    counter_count: int
    scratch_elems: int
    scalar_slots: tuple[dict[str, int], ...]


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
    scratch_elems: int = 0

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
        queues += _emit_method(program, plan, method, first_counter, method_slots)
        kinds = {counter.kind for counter in method.counters}
        methods.append(
            (
                int(method.stop_task is not None),
                method.depth,
                sum(1 for queue in method.queues if queue),
                int(kinds == {"group"}),
            )
        )
        first_counter += len(method.counters)
    tables = Tables(
        tasks=_table(abi.TASK, program.tasks),
        params=np.array(program.param_values or [0], np.int64),
        operands=_table(abi.OPERAND, program.operands),
        waits=_table(abi.WAIT, program.wait_values),
        queues=_table(abi.QUEUE, queues),
        methods=_table(abi.METHOD, methods),
        counter_count=first_counter,
        scratch_elems=program.scratch_elems,
        scalar_slots=slots,
    )
    return Source(plan.name, "c++", _text(plan, program)), tables


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
    program: _Program, plan: Plan, method: Method, first_counter: int, slots: dict[str, int]
) -> list[tuple[int, int]]:
    lowered = [lower(group, method.nodes) for group in method.groups]
    calls = _emit_calls(program, plan, method, lowered, slots)
    queues = []
    for queue in method.queues:
        queues.append((len(program.tasks), len(queue)))
        for task_id in queue:
            task = method.tasks[task_id]
            waits = _wait_rows(method, task_id, first_counter)
            program.tasks.append(
                (
                    *calls[task.group, call_key(lowered[task.group], task.box)],
                    len(program.operands),
                    program.wait_index(waits),
                    len(waits),
                    FLAGS[task.effect],
                    first_counter + method.signals[task_id],
                    task_id,
                )
            )
            program.operands += _operand_rows(plan, lowered[task.group], task.box)
    return queues


def _emit_calls(
    program: _Program, plan: Plan, method: Method, lowered: Sequence[Lowered], slots: dict[str, int]
) -> dict[tuple[int, Box | Shape], tuple[int, int]]:
    """Function and parameters for each group and tile shape, in an order that no queue changes."""
    calls: dict[tuple[int, Box | Shape], tuple[int, int]] = {}
    for task in method.tasks:
        key = (task.group, call_key(lowered[task.group], task.box))
        if key not in calls:
            group = method.groups[task.group]
            calls[key] = _emit_call(
                program, plan, method, group, lowered[group.id], task.box, slots
            )
    return calls


def _wait_rows(
    method: Method, task_id: int, first_counter: int
) -> tuple[tuple[int, int, int], ...]:
    rows = []
    for wait in method.waits[task_id]:
        signals = method.counters[wait.counter].signals
        need = wait.threshold - wait.turns_back * signals
        rows.append((first_counter + wait.counter, signals, need))
    return tuple(rows)


def _emit_call(
    program: _Program,
    plan: Plan,
    method: Method,
    group: Group,
    lowered: Lowered,
    box: Box,
    slots: dict[str, int],
) -> tuple[int, int]:
    call: Call = write_call(lowered, box, slots)
    program.scratch_elems = max(program.scratch_elems, call.scratch_elems)
    name = "_".join(method.nodes[n].op for n in group.nodes)[:80]
    comment = "\n".join(f"// {describe_node(method.nodes[n], plan.buffers)}" for n in group.nodes)
    return program.function(call.body, name, comment), program.param_index(call.params)


def _operand_rows(plan: Plan, lowered: Lowered, box: Box) -> list[tuple[int, int, int]]:
    rows = []
    for operand, offset in zip(lowered.operands, offsets(lowered, box), strict=True):
        place = plan.places[operand.view.buffer]
        size = operand.view.dtype.itemsize
        rows.append((ARENAS.index(place.arena), 0, place.offset + offset * size))
    return rows


def _text(plan: Plan, program: _Program) -> str:
    headers = [(name, _header("include", name)) for name in BEFORE_OPS if name != "abi.h"]
    headers.insert(2, ("abi.h", abi.c_header()))
    headers += [(f"{op}.h", _header("ops", f"{op}.h")) for op in _used_ops(plan)]
    functions = "\n\n".join(
        f"{program.comments[body]}\nvoid {name}{body}" for body, name in program.functions.items()
    )
    table = ",\n    ".join(program.functions.values())
    tail = [(name, _header("include", name)) for name in AFTER_FUNCTIONS]
    parts = [f"// ----- {name}\n{text}" for name, text in headers]
    parts.append(f"// ----- task functions\n{functions}")
    parts.append(f"const ark_function ark_functions[] = {{\n    {table}\n}};")
    parts.append("}  // namespace")
    parts += [f"// ----- {name}\n{text}" for name, text in tail]
    system, body = _hoist_includes("\n\n".join(parts))
    title = (
        f"// Persistent kernel of {quoted(plan.name)}, made by ark_dist {plan.target.kind} plan."
    )
    return f"{title}\n\n{system}\n\nnamespace {{\n\n{body}\n"


def _used_ops(plan: Plan) -> list[str]:
    used = {node.op for method in plan.methods for node in method.nodes}
    # A norm's header comes before the matmul that may use it as a prologue.
    return sorted(used, key=lambda op: (op == "matmul", op))


def _header(folder: str, name: str) -> str:
    return (resources.files("ark_dist.kernels") / folder / name).read_text("utf-8").strip()


def _hoist_includes(text: str) -> tuple[str, str]:
    pattern = re.compile(r"^#include <[^>]+>$", re.MULTILINE)
    system: Iterable[str] = dict.fromkeys(pattern.findall(text))
    return "\n".join(system), pattern.sub("", text)
