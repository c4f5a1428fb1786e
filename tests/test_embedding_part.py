"""Parts of a table give the rows that they have, and zeros, which add up to the whole table's."""

from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.errors import TaskError
from ark_dist.core.graph import Graph
from ark_dist.core.shape import Shape
from ark_dist.core.target import cpu_target
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.session import Session
from ark_dist.scheduler.plan import make_plan
from tests.emulated import emulated, gpu_plan
from tests.operator_cases import random_data
from tests.plan_models import eager
from tests.running import launched

ROWS, CUTS = 11, (0, 0, 4, 5, 11)
SIZES: tuple[tuple[Shape, int], ...] = (
    *(((), 5), ((7,), 33), ((2, 3), 1), ((3, 0), 4), ((1, 2, 5), 300)),
)
# An index, the parts of the table along its columns, and their results.
Added = list[tuple[Value, list[Value], list[Value]]]


def build(dtype: str) -> tuple[Graph, Added]:
    builder = GraphBuilder("parts")
    added: Added = []
    for shape, width in SIZES:
        index = builder.tensor(shape, "int32")
        tables = [builder.tensor((width, stop - start), dtype) for start, stop in pairwise(CUTS)]
        outputs = [
            builder.apply(
                "embedding",
                [index, builder.apply("transpose", [table])],
                {"first_row": start, "rows": ROWS},
            )
            for table, start in zip(tables, CUTS, strict=False)
        ]
        for output in outputs:
            builder.keep(output)
        added.append((index, tables, outputs))
    return builder.freeze(), added


def run(opened: AbstractContextManager[Session], added: Added) -> None:
    rng = np.random.default_rng(4)
    with opened as session:
        for index, tables, _ in added:
            session.write(index.view, rng.integers(0, ROWS, index.view.shape, np.int32))
            for table in tables:
                shape, dtype = table.view.shape, table.view.dtype
                data = random_data(rng, shape, dtype, is_special=True, is_wide=False)
                session.write(table.view, data.astype(dtype.numpy))
        session.run(1, "forward", {})
        session.wait()
        for index, tables, outputs in added:
            which = session.read(index.view)
            for table, output, (start, stop) in zip(tables, outputs, pairwise(CUTS), strict=True):
                whole = np.zeros((ROWS, table.view.shape[0]), table.view.dtype.numpy)
                whole[start:stop] = session.read(table.view).T
                assert session.read(output.view).tobytes() == whole[which].tobytes()


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_rows_of_other_parts_are_zeros(dtype: str, device: str) -> None:
    graph, added = build(dtype)
    run(launched(graph, eager(cpu_target(3, best_isa())), device), added)


@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_gpu_gives_the_same(dtype: str, race: bool) -> None:
    graph, added = build(dtype)
    run(emulated(gpu_plan(graph, workers=3), seed=1, race=race), added)


@pytest.mark.parametrize("device", ["numpy", "cpu", "gpu"])
@pytest.mark.parametrize("bad", [-1, ROWS, 2**31 - 1])
def test_an_index_outside_of_the_whole_table_ends_the_run(bad: int, device: str) -> None:
    builder = GraphBuilder("outside")
    index, table = builder.tensor((3,), "int32"), builder.tensor((4, 5), "fp32")
    builder.apply("embedding", [index, table], {"first_row": 3, "rows": ROWS}, name="rows")
    graph = builder.freeze()
    opened = launched(graph, cpu_target(1, best_isa()), device)
    with emulated(gpu_plan(graph, workers=1)) if device == "gpu" else opened as session:
        session.write(index.view, np.array([0, bad, 5], np.int32))
        session.run(1, "forward", {})
        with pytest.raises(TaskError, match=f"index {bad} is outside the table of {ROWS} rows"):
            session.wait()


def test_a_whole_table_is_looked_up_as_before() -> None:
    builder = GraphBuilder("whole")
    index, table = builder.tensor((3,), "int32"), builder.tensor((4, 5), "fp32")
    for rows in (None, 4):
        builder.keep(builder.apply("embedding", [index, table], {"rows": rows}))
    plan = make_plan(builder.freeze(), cpu_target(1))
    assert [node.op for node in plan.methods[0].nodes] == ["embedding", "embedding"]


@pytest.mark.parametrize(
    ("first", "rows"), [(1, None), (-1, 9), (6, 9), (0, 3), ("0", 9), (0, 9.0)]
)
def test_a_part_that_does_not_lie_inside_is_refused(first: int, rows: int | None) -> None:
    builder = GraphBuilder()
    index, table = builder.tensor((3,), "int32"), builder.tensor((4, 5), "fp32")
    with pytest.raises(ValueError, match=r"^embedding: first_row is .*; the 4 rows of the table"):
        builder.apply("embedding", [index, table], {"first_row": first, "rows": rows})


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_part_that_a_matmul_reads_too_is_packed(dtype: str) -> None:
    first, height, width = 21, 35, 37
    builder = GraphBuilder("packed")
    index = builder.tensor((9,), "int32")
    table = builder.parameter((height, width), dtype)
    part = builder.apply("embedding", [index, table], {"first_row": first, "rows": 60})
    builder.keep(part)
    builder.apply("matmul", [builder.tensor((2, width), dtype), table], {"transpose_other": True})
    graph = builder.freeze()
    plan = make_plan(graph, cpu_target(2))
    assert [b.packing for b in plan.buffers if b.kind == "weight"] == ["panels_t"]
    rows = np.array([0, 20, 21, 22, 36, 37, 55, 56, 59], np.int32)
    with launched(graph, cpu_target(2, best_isa()), "cpu") as session:
        data = np.random.default_rng(6).normal(size=(height, width)).astype(table.view.dtype.numpy)
        session.write(table.view, data)
        session.write(index.view, rows)
        session.run(1, "forward", {})
        session.wait()
        whole = np.zeros((60, width), data.dtype)
        whole[first : first + height] = data
        assert session.read(part.view).tobytes() == whole[rows].tobytes()
