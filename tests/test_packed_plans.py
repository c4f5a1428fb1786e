"""Which weights are packed, and what plans say of it and refuse."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import msgpack
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import INT32
from ark_dist.core.errors import MemoryLimitError, PlanError, PlanFormatError
from ark_dist.core.graph import Graph
from ark_dist.core.plan import Plan
from ark_dist.core.planfile import MAGIC, fingerprint, plan_from_bytes, plan_to_bytes
from ark_dist.core.shape import Shape
from ark_dist.core.target import Target, cpu_target, topology_of, wide_target
from ark_dist.core.verify_plan import verify_plan
from ark_dist.core.view import View
from ark_dist.launch.memory_limit import check_fits
from ark_dist.plan_report import report, uncut
from ark_dist.report_text import plain_text
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import eager
from tests.test_packing import PLAIN, TURNED

PACKED = PlanOptions(is_packed=True)


# --- the choice ---------------------------------------------------------------------------------


def packings(graph: Graph, target: Target | None = None) -> Mapping[str, str]:
    """The weights' packings in a plan."""
    plan = make_plan(graph, target or cpu_target(2), PACKED)
    return {b.name: b.packing for b in plan.buffers if b.kind == "weight"}


def built(*lines: Callable[[GraphBuilder, Value, Value], object], shape: Shape = (48, 64)) -> Graph:
    """A graph of uses of one weight `w`, and an input `x` of (3, 48)."""
    builder = GraphBuilder("uses")
    x = builder.tensor((3, 48), "fp32", name="x")
    w = builder.parameter(shape, "fp32", name="w")
    for number, line in enumerate(lines):
        if number:
            builder.select_method(f"method_{number}")
            x = builder.tensor((3, 48), "fp32", name=f"x_{number}")
        line(builder, x, w)
    return builder.freeze()


def narrowed(builder: GraphBuilder, w: Value, axis: int, start: int, length: int) -> Value:
    return builder.apply("narrow", [w], {"axis": axis, "start": start, "length": length})


def turned(builder: GraphBuilder, w: Value) -> Value:
    return builder.apply("transpose", [w], {"axes": (1, 0)})


def columns(start: int, length: int) -> Callable[[GraphBuilder, Value, Value], object]:
    return lambda g, x, w: g.apply("matmul", [x, narrowed(g, w, 1, start, length)], PLAIN)


def product(g: GraphBuilder, x: Value, w: Value) -> Value:
    return g.apply("matmul", [x, w], PLAIN)


def test_weights_of_products_are_packed() -> None:
    assert packings(built(product)) == {"w": "panels"}
    graph = built(lambda g, x, w: g.apply("matmul", [x, w], TURNED), shape=(64, 48))
    assert packings(graph) == {"w": "panels_t"}


def test_only_plans_for_a_cpu_that_ask_for_it_are_packed() -> None:
    graph = built(product)
    assert packings(graph, wide_target(8, kind="cuda")) == {"w": ""}
    assert packings(graph, cpu_target(2, kind="numpy")) == {"w": ""}
    plan = make_plan(graph, cpu_target(2), PlanOptions(is_packed=False))
    assert not any(buffer.packing for buffer in plan.buffers)


def test_a_table_that_is_also_the_head_is_packed() -> None:
    builder = GraphBuilder("tied")
    index = builder.tensor((5,), "int32", name="index")
    table = builder.parameter((40, 24), "bf16", name="table")
    attrs = {"first_row": 0, "rows": None}
    builder.apply(
        "matmul", [builder.apply("embedding", [index, table], attrs), table], TURNED, name="y"
    )
    assert packings(builder.freeze()) == {"table": "panels_t"}
    # A head that is not turned wants its rows to be K.
    builder.apply("matmul", [builder.tensor((3, 40), "bf16"), table], PLAIN)
    assert packings(builder.freeze()) == {"table": ""}


def test_a_part_of_a_table_is_not_packed() -> None:
    builder = GraphBuilder("part")
    index = builder.tensor((5,), "int32", name="index")
    table = builder.parameter((40, 24), "fp32", name="table")
    builder.apply(
        "embedding", [index, narrowed(builder, table, 0, 16, 16)], {"first_row": 0, "rows": None}
    )
    assert packings(builder.freeze()) == {"table": ""}


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 16, "panels"), (16, 32, "panels"), (32, 9, "panels"), (8, 16, ""), (60, 4, "")],
)
def test_slices_of_columns_begin_with_a_panel(start: int, length: int, expected: str) -> None:
    assert packings(built(columns(start, length))) == {"w": expected}


@pytest.mark.parametrize("width", [32, 24])
def test_heads_of_one_projection_share_its_panels(width: int) -> None:
    parts = [columns(part * width, width) for part in range(3)]
    graph = built(
        lambda g, x, w: [part(g, x, w) for part in parts],
        shape=(48, 3 * width),
    )
    assert packings(graph) == {"w": "panels" if width % 16 == 0 else ""}


@pytest.mark.parametrize(
    ("start", "length", "is_packed"),
    [(0, 48, True), (2, 46, True), (2, 44, True), (1, 47, False), (2, 45, False)],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_parts_of_k_have_whole_groups(start: int, length: int, is_packed: bool, dtype: str) -> None:
    builder = GraphBuilder("inner")
    x = builder.tensor((3, length), dtype, name="x")
    w = builder.parameter((48, 32), dtype, name="w")
    builder.apply("matmul", [x, narrowed(builder, w, 0, start, length)], PLAIN)
    is_packed = is_packed or dtype == "fp32"
    assert packings(builder.freeze()) == {"w": "panels" if is_packed else ""}


def test_an_odd_end_of_k_is_a_group_too() -> None:
    builder = GraphBuilder("odd")
    w = builder.parameter((47, 32), "fp16", name="w")
    builder.apply("matmul", [builder.tensor((3, 7), "fp16"), narrowed(builder, w, 0, 40, 7)], PLAIN)
    assert packings(builder.freeze()) == {"w": "panels"}


@pytest.mark.parametrize(
    "use",
    [
        lambda g, x, w: g.apply("add", [w, 1.0]),
        lambda g, x, w: g.apply("matmul", [x, turned(g, w)], TURNED),
        lambda g, x, w: g.apply("matmul", [turned(g, w), g.tensor((48, 3), "fp32")], PLAIN),
        lambda g, x, w: g.apply(
            "matmul", [x, g.apply("reshape", [w], {"shape": (2, 48, 32)})], PLAIN
        ),
        lambda g, x, w: g.tensor((1,), "fp32"),
    ],
    ids=["elementwise", "turned view", "left operand", "other rows", "nobody"],
)
def test_what_others_read_stays_row_major(
    use: Callable[[GraphBuilder, Value, Value], object],
) -> None:
    def line(g: GraphBuilder, x: Value, w: Value) -> None:
        use(g, x, w)
        g.apply("relu", [x])

    assert packings(built(line)) == {"w": ""}


def test_all_methods_have_to_agree() -> None:
    assert packings(built(product, columns(16, 16))) == {"w": "panels"}
    assert packings(built(product, columns(8, 16))) == {"w": ""}
    assert packings(built(product, lambda g, x, w: g.apply("relu", [w]))) == {"w": ""}


def test_parts_of_k_that_a_target_makes_are_packed() -> None:
    builder = GraphBuilder("split")
    attrs = {**PLAIN, "splitk": 4}
    x = builder.tensor((2, 3, 1000), "bf16", name="x")
    w = builder.parameter((1000, 40), "bf16", name="w")
    builder.apply("matmul", [x, w], attrs)
    odd = builder.parameter((1, 44, 40), "bf16", name="odd")
    builder.apply("matmul", [builder.tensor((3, 44), "bf16"), odd], attrs)
    plan = make_plan(builder.freeze(), cpu_target(2), PACKED)
    assert "matmul_part" in {node.op for node in plan.methods[0].nodes}
    # Four parts of 44 are 11 each.
    assert {b.name: b.packing for b in plan.buffers if b.kind == "weight"} == {
        "w": "panels",
        "odd": "",
    }


def test_batches_of_matrices_are_packed() -> None:
    builder = GraphBuilder("batch")
    w = builder.parameter((4, 2, 20, 33), "fp16", name="w")
    x = builder.tensor((3, 20), "fp16", name="x")
    builder.apply("matmul", [x, w], PLAIN)
    builder.apply("matmul", [x, builder.apply("reshape", [w], {"shape": (8, 20, 33)})], PLAIN)
    builder.apply("matmul", [x, narrowed(builder, w, 0, 1, 2)], PLAIN)
    assert packings(builder.freeze()) == {"w": "panels"}


# --- plans --------------------------------------------------------------------------------------


def packed_plan() -> Plan:
    """A packed weight of 50 x 17, one that is not, and a table."""
    builder = GraphBuilder("packed")
    x = builder.tensor((3, 17), "fp16", name="x")
    w = builder.parameter((50, 17), "fp16", name="w")
    bias = builder.parameter((50,), "fp16", name="bias")
    builder.apply("add", [builder.apply("matmul", [x, w], TURNED), bias], name="y")
    return make_plan(builder.freeze(), eager(cpu_target(2)), PACKED)


def test_plans_count_padded_bytes_and_say_how_weights_are_stored() -> None:
    plan = packed_plan()
    w, bias = (next(b for b in plan.buffers if b.name == name) for name in ("w", "bias"))
    assert w.size_bytes == 2 * 64 * 18
    assert plan.arena_bytes[0] == 2304 + 256  # multiples of 256
    assert plan.places[bias.id].offset == 2304
    line = next(line for line in str(plan).splitlines() if '"w"' in line)
    assert line.endswith("weight weights+0 panels_t")
    with pytest.raises(MemoryLimitError, match=r"2\.2 KiB +weight +'w' fp16\[50, 17\] panels_t"):
        check_fits(plan, 100)


def test_reports_show_packings() -> None:
    builder = GraphBuilder("packed")
    w = builder.parameter((48, 20), "fp32", name="w")
    builder.apply("matmul", [builder.tensor((3, 48), "fp32", name="x"), w], PLAIN)
    graph = builder.freeze()
    plan = make_plan(graph, cpu_target(1), PACKED)
    found = report(graph, uncut(graph, 0, 1), plan, None, topology_of((0,)))
    piece = next(p for p in found.pieces if p.name == "w")
    assert (piece.packing, piece.bytes) == ("panels", 4 * 48 * 32)
    assert "6.0 KiB panels" in plain_text([found]) or "6.1 kB panels" in plain_text([found])


def test_packings_come_back_from_plan_files() -> None:
    plan = packed_plan()
    again = plan_from_bytes(plan_to_bytes(plan))
    assert again == plan
    assert fingerprint(plan) != fingerprint(with_buffer(plan, "w", packing=""))


def test_a_packing_that_nobody_knows_is_refused_in_a_plan_file() -> None:
    data = plan_to_bytes(packed_plan())
    head = len(MAGIC) + 2  # and the version
    body = msgpack.unpackb(data[head:])
    strings = body["tables"]["strings"]
    strings[strings.index("panels_t")] = "panels_x"
    with pytest.raises(PlanFormatError, match=r"buffers\.packing: 'panels_x' is no packing"):
        plan_from_bytes(data[:head] + msgpack.packb(body))


def with_buffer(plan: Plan, name: str, **changes: object) -> Plan:
    buffers = tuple(
        replace(b, **changes) if b.name == name else b  # type: ignore[arg-type]  # on purpose
        for b in plan.buffers
    )
    return replace(plan, buffers=buffers)


def with_weight_view(plan: Plan, **changes: object) -> Plan:
    """The plan with another view of the packed weight."""
    method = plan.methods[0]
    w = next(b.id for b in plan.buffers if b.name == "w")

    def changed(view: View) -> View:
        return replace(view, **changes) if view.buffer == w else view  # type: ignore[arg-type]

    nodes = tuple(replace(n, inputs=tuple(map(changed, n.inputs))) for n in method.nodes)
    return replace(plan, methods=(replace(method, nodes=nodes),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: with_buffer(p, "w", packing="rows"), "packing 'rows' is not one of"),
        (lambda p: with_buffer(p, "bias", packing="panels"), "is for matrices of fp32, fp16, bf16"),
        (lambda p: with_buffer(p, "w", dtype=INT32), "is for matrices of fp32, fp16, bf16"),
        (lambda p: with_buffer(p, "w", kind="constant"), "is for weights; it is constant"),
        (lambda p: with_buffer(p, "w", slots=2), "is for weights"),
        (lambda p: with_buffer(p, "w", export="w"), "is not for what other ranks reach"),
        (lambda p: with_buffer(p, "x", packing="panels"), "is for weights; it is input"),
        (lambda p: with_buffer(p, "w", packing="panels"), "reads 'w', which is packed as 'panels'"),
        (
            lambda p: replace(p, target=replace(p.target, kind="numpy")),
            "is packed for a CPU, the target is 'numpy'",
        ),
        (lambda p: with_weight_view(p, strides=(1, 50)), "are no parts of its matrices"),
        (lambda p: with_weight_view(p, strides=(0, 1)), "are no parts of its matrices"),
    ],
)
def test_a_plan_that_packs_what_kernels_do_not_find_is_refused(
    change: Callable[[Plan], Plan], message: str
) -> None:
    plan = packed_plan()
    verify_plan(plan)
    with pytest.raises(PlanError, match=message):
        verify_plan(change(plan))
