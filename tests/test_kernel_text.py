"""The generated source is stable, small, safe whatever users call things, and fits its tables."""

import ctypes
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ark_dist.core import abi
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.graph import Graph
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.core.target import cpu_target
from ark_dist.kernels.emit import emit_cpu
from ark_dist.kernels.tables import Tables
from ark_dist.launch.compile import compile_source, load_library
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import block, eager, loop, two_methods
from tests.random_graphs import random_model

HOSTILE = (
    '"; system("x',
    "a\nint injected;",
    "*/ int injected; /*",
    "trailing\\",
    "??/",
    "\r\x0bint injected;",
    "\u2028int injected;",
    "\u202e\u05d8\u05e7 文字 🦆",
    "\ud800",
    "%s%n",
    "n" * 512,
    '")"; #include "/etc/passwd',
    "\n#include </etc/passwd>\n",
)


def functions(text: str) -> list[str]:
    """Names of the task functions, in the order they stand in."""
    part = text[
        text.index("// ----- task functions") : text.index("const ark_function ark_functions[] = {")
    ]
    return re.findall(r"^void (\w+)\(const ark_call& call\) \{", part, re.MULTILINE)


def plans() -> list[Plan]:
    graphs = [block(), loop(), two_methods(), *(random_model(seed).graph for seed in range(6))]
    return [
        make_plan(graph, eager(cpu_target(workers)), PlanOptions(depth=1 + workers % 3))
        for graph in graphs
        for workers in (1, 2, 3)
    ]


def test_the_same_plan_gives_the_same_source_and_tables() -> None:
    for plan in plans():
        (one, tables), (two, others) = emit_cpu(plan), emit_cpu(plan)
        assert one == two
        for name in ("tasks", "params", "operands", "waits", "queues", "methods"):
            assert getattr(tables, name).tobytes() == getattr(others, name).tobytes()


def test_a_graph_built_anew_gives_the_same_source() -> None:
    texts = [emit_cpu(make_plan(random_model(5).graph, cpu_target(2)))[0].text for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_functions_count_kinds_of_work_and_not_tasks(workers: int) -> None:
    builder = GraphBuilder("deep")
    x = builder.tensor((64, 64), "fp32")
    attrs = {"transpose_input": False, "transpose_other": False, "is_relu": False}
    for _ in range(20):
        x = builder.apply("matmul", [x, builder.parameter((64, 64), "fp32")], attrs)
        x = builder.apply("softmax", [builder.apply("add", [x, 1.0])], {"axis": -1})
    source, tables = emit_cpu(make_plan(builder.freeze(), eager(cpu_target(workers))))
    assert len(tables.tasks) > 40
    assert len(functions(source.text)) == 2
    assert len(set(functions(source.text))) == 2


def test_a_dtype_and_a_way_to_walk_memory_each_need_a_function() -> None:
    def count(shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], dtype: str) -> int:
        builder = GraphBuilder()
        for a, b in shapes:
            builder.apply("add", [builder.tensor(a, dtype), builder.tensor(b, dtype)])
        return len(functions(emit_cpu(make_plan(builder.freeze(), cpu_target(1)))[0].text))

    same = [((4, 8), (4, 8)), ((7, 9), (7, 9)), ((2, 3, 4), (2, 3, 4)), ((100,), (100,))]
    assert count(same, "fp32") == 1
    assert count([*same, ((4, 8), (4, 1))], "fp32") == 2
    builder = GraphBuilder()
    for dtype in ("fp32", "fp16", "int8"):
        builder.apply("relu", [builder.tensor((8,), dtype)])
    turned = builder.apply("transpose", [builder.tensor((8, 4), "fp32")], {"perm": (1, 0)})
    builder.apply("relu", [turned])
    text = emit_cpu(make_plan(builder.freeze(), cpu_target(1)))[0].text
    assert len(functions(text)) == 4


def test_only_the_operators_that_are_used_are_in_the_source() -> None:
    builder = GraphBuilder()
    builder.apply("relu", [builder.tensor((8,), "fp32")])
    text = emit_cpu(make_plan(builder.freeze(), cpu_target(1)))[0].text
    assert "ark_relu" in text
    for name in ("ark_softmax", "ark_matmul", "ark_embedding"):
        assert name not in text
    assert '#include "' not in text


def test_the_worker_count_changes_tables_but_hardly_the_source() -> None:
    texts = {emit_cpu(make_plan(block(), cpu_target(n)))[0].text for n in (1, 2, 3)}
    assert len(texts) <= 2


def hostile_graph(name: str) -> Graph:
    builder = GraphBuilder(name)
    x = builder.tensor((8,), "fp32", name=name)
    step = builder.state((1,), "fp32", name=f"{name[:500]} step", init=1)
    builder.command_scalar(step)
    builder.select_method(name)
    builder.apply("mul", [builder.apply("relu", [x], name=name), step], name=name)
    return builder.freeze()


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_stay_inside_comments(name: str) -> None:
    source, _ = emit_cpu(make_plan(hostile_graph(name), cpu_target(1)))
    clean, _ = emit_cpu(make_plan(hostile_graph("plain"), cpu_target(1)))
    assert uncommented(source.text) == uncommented(clean.text)
    source.text.encode("utf-8")
    for line in source.text.splitlines():
        if line.lstrip().startswith("//"):
            assert not line.endswith("\\") and not line.endswith("??/")
            assert line.isprintable(), ascii(line)
    assert source.text.split("\n") == [*source.text.splitlines(), ""]


def uncommented(text: str) -> str:
    return "\n".join(re.sub(r"//.*", "", line).rstrip() for line in text.split("\n"))


def test_a_program_of_hostile_names_compiles_and_runs() -> None:
    builder = GraphBuilder("".join(HOSTILE)[:512])
    inputs = [builder.tensor((8,), "fp32", name=name) for name in HOSTILE]
    outputs = [builder.apply("relu", [x], name=f"{x.view.buffer}{n}"[:512])
               for x, n in zip(inputs, HOSTILE, strict=True)]  # fmt: skip
    plan = make_plan(builder.freeze(), cpu_target(1))
    session = Session(plan, CpuDevice(plan, read_settings()), SessionOptions())
    session.compile(lambda path: None)
    for number, x in enumerate(inputs):
        session.write(x.view, np.full(8, number - 3, np.float32))
    session.launch()
    session.run(1, "forward", {})
    session.wait()
    for number, y in enumerate(outputs):
        assert (session.read(y.view) == max(number - 3, 0)).all()
    session.close()


def check_queues(plan: Plan, tables: Tables) -> None:
    """Rows of the task table are the queues, one after the other, with their waits."""
    rows = tables.queues[: len(plan.methods) * plan.target.worker_count]
    position = first_counter = 0
    for number, method in enumerate(plan.methods):
        for worker, queue in enumerate(method.queues):
            row = rows[number * plan.target.worker_count + worker]
            assert (row["first"], row["count"]) == (position, len(queue))
            for task_id in queue:
                check_task(plan, tables, number, task_id, position, first_counter)
                position += 1
        first_counter += len(method.counters)
    assert tables.counter_count == first_counter
    assert len(tables.tasks) == position + 1  # a spare row, so that an empty table has an address


def check_task(
    plan: Plan, tables: Tables, number: int, task_id: int, position: int, first_counter: int
) -> None:
    method, row = plan.methods[number], tables.tasks[position]
    task = method.tasks[task_id]
    assert row["id"] == task_id
    assert row["counter"] == first_counter + method.signals[task_id]
    kind = int(row["flags"]) & ((1 << abi.SLOTS_SHIFT) - 1)
    assert kind == {"none": 0, "effect": abi.EFFECT, "stop": abi.STOP}[task.effect]
    first, count = int(row["waits"]), int(row["wait_count"])
    found = [tuple(int(v) for v in w) for w in tables.waits[first : first + count].tolist()]
    wanted = []
    for wait in method.waits[task_id]:
        counter = method.counters[wait.counter]
        need = wait.threshold - wait.turns_back * counter.signals
        wanted.append((first_counter + wait.counter, counter.signals, need))
    assert found == wanted


def test_tables_say_what_the_plan_says() -> None:
    for plan in plans():
        source, tables = emit_cpu(plan)
        check_queues(plan, tables)
        count = len(functions(source.text))
        live = tables.tasks[:-1]
        assert set(live["function"].tolist()) == set(range(count))
        assert (live["params"] <= len(tables.params)).all()
        assert tables.params.dtype == np.int64
        for row, method in zip(tables.methods, plan.methods, strict=False):
            assert row["has_stop"] == (method.stop_task is not None)
            assert row["depth"] == method.depth
            assert row["participants"] == sum(1 for q in method.queues if q)


def test_operands_lie_in_the_arenas_at_their_places() -> None:
    for plan in plans():
        _, tables = emit_cpu(plan)
        sizes = dict(zip(ARENAS, plan.arena_bytes, strict=True))
        for row in tables.operands[:-1]:
            assert row["offset"] < sizes[ARENAS[int(row["arena"])]]
        position = 0
        for method in plan.methods:
            for task_id in (t for queue in method.queues for t in queue):
                task, row = method.tasks[task_id], tables.tasks[position]
                last = int(tables.tasks[position + 1]["operands"]) - 1
                position += 1
                if position == len(tables.tasks) - 1:
                    last = len(tables.operands) - 2
                (write,) = task.writes
                place, buffer = plan.places[write.buffer], plan.buffers[write.buffer]
                if method.nodes[method.groups[task.group].nodes[-1]].op == "command_scalar":
                    continue
                operand = tables.operands[last]
                assert last >= row["operands"]
                assert ARENAS[int(operand["arena"])] == place.arena
                assert 0 <= operand["offset"] - place.offset < max(buffer.size_bytes, 1)


def test_too_many_methods_are_refused() -> None:
    plan = make_plan(loop(), cpu_target(1))
    many = tuple(replace(plan.methods[0], name=f"m{i}") for i in range(65))
    with pytest.raises(ValueError, match="program 'loop' has 65 methods; 64 work"):
        emit_cpu(replace(plan, methods=many))


def test_too_many_scalars_are_refused() -> None:
    builder = GraphBuilder("scalars")
    for number in range(17):
        state = builder.state((1,), "fp32", name=f"s{number}")
        builder.command_scalar(state)
        builder.apply("relu", [state])
    with pytest.raises(ValueError, match="method 'forward' takes 17 scalars; at most 16 work"):
        emit_cpu(make_plan(builder.freeze(), cpu_target(1)))


def test_every_record_is_as_large_in_c_as_in_numpy() -> None:
    text = abi.c_header()
    for record in abi.RECORDS:
        size = record.dtype.itemsize
        assert f"static_assert(sizeof(ark_{record.name}) == {size}," in text
        assert not record.is_line or size % abi.LINE_BYTES == 0


def test_every_field_lies_in_c_where_it_lies_in_numpy() -> None:
    fields = [(r, name) for r in abi.RECORDS for name, *_ in r.fields]
    offsets = ", ".join(f"__builtin_offsetof(ark_{r.name}, {name})" for r, name in fields)
    text = (
        f"#include <stdint.h>\n{abi.c_header()}\n"
        f"static const uint64_t offsets[] = {{{offsets}}};\n"
        'extern "C" __attribute__((visibility("default"))) '
        "uint64_t ark_offset(uint64_t i) { return offsets[i]; }\n"
    )
    binary = compile_source(
        Source("offsets", "c++", text), isa="portable", settings=read_settings(),
        on_compile=lambda path: None,
    )  # fmt: skip
    offset = load_library(binary).ark_offset
    offset.restype, offset.argtypes = ctypes.c_uint64, (ctypes.c_uint64,)
    for number, (record, name) in enumerate(fields):
        assert record.dtype.fields is not None
        assert offset(number) == record.dtype.fields[name][1], (record.name, name)
