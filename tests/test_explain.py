"""`ark-dist explain` says what each rank of a program would do, from one process."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import PlanMismatchError
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape, P
from ark_dist.core.plan import Plan
from ark_dist.core.target import cpu_target, topology_of
from ark_dist.explain import Question, explain_script, mesh_of
from ark_dist.launch.exit_codes import BAD_CONFIG
from ark_dist.plan_report import Exchange, Report, report, uncut
from ark_dist.report_text import plain_text, print_tables, size_text, time_text
from ark_dist.scheduler.partition import partition
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.rank_threads import on_ranks
from tests.test_cli import run

MLP = """
import sys
import ark_dist as ark

print("not for the report")
model = ark.Model("mlp")
x = model.tensor((4, 8), name="x")
up = model.parameter((8, 12), name="up", shard=ark.P(None, "tp"))
down = model.parameter((12, 8), name="down", shard=ark.P("tp", None))
total = model.state((4, 8), name="total")
y = model.matmul(model.relu(model.matmul(x, up)), down)
model.add(total, y, output=total)
mesh = ark.Mesh({"tp": -1})
with ark.Executor(model=model, device="cpu", workers=2, mesh=mesh) as exe:
    exe.compile()
    raise AssertionError("nothing runs")
"""
STAGES = """
import ark_dist as ark

x = ark.tensor((4, 8), ark.FP32, name="x")
with ark.stage(0):
    h = x @ ark.parameter((8, 8), ark.FP32, name="first")
with ark.stage(1):
    y = ark.relu(h) @ ark.parameter((8, 8), ark.FP32, name="second")
try:
    with ark.Runtime(device="numpy") as runtime:
        runtime.launch()
except Exception:
    print("programs may handle what they like")
raise AssertionError("nothing runs")
"""
RING = """
import ark_dist as ark
import neighbour

rank, size = ark.rank(), ark.world_size()
model = ark.Model("ring")
x = model.tensor((64, 128), name="x")
token = model.send(x, dst=neighbour.AFTER)
got = model.recv((64, 128), ark.FP32, src=neighbour.BEFORE)
got = model.identity(got, deps=[model.send_done(token)])
total = model.all_reduce(x, name="total")
ark.Executor(model=model, device="numpy")
"""
NEIGHBOUR = """
import ark_dist as ark

AFTER, BEFORE = (ark.rank() + 1) % ark.world_size(), (ark.rank() - 1) % ark.world_size()
"""


def saved(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path


def reported(folder: Path, text: str, size: int, mesh: str = "") -> list[Report]:
    asked = mesh_of(mesh) if mesh else None
    return explain_script(Question(saved(folder, text), world_size=size, mesh=asked))


def test_a_cut_mlp_has_one_all_reduce_and_says_why(tmp_path: Path) -> None:
    first, second = reported(tmp_path, MLP, 2)
    assert (first.rank, second.rank, second.place) == (0, 1, {"tp": 1})
    [exchange] = second.exchanges
    assert (exchange.op, exchange.ranks) == ("all_reduce", (0, 1))
    assert (exchange.transport, exchange.algorithm) == ("peer", "one-shot")
    assert exchange.sent_bytes == exchange.received_bytes == 4 * 8 * 4
    assert exchange.reason == "matmul_1 is partial over 'tp' after matmul 'matmul_1'"
    pieces = {piece.name: piece for piece in second.pieces}
    assert list(pieces) == ["x", "up", "down", "total"]
    assert pieces["up"].part == ((0, 8), (6, 12))
    assert pieces["up"].axes == ((), ("tp",))
    # Six columns are stored as a panel of 16.
    assert (pieces["up"].bytes, pieces["up"].packing) == (8 * 16 * 4, "panels")
    assert pieces["x"].part == ((0, 4), (0, 8)) and pieces["x"].axes == ((), ())
    [work] = second.work
    assert len(work.tasks) == 2 and work.predicted_s > 0
    assert second.arenas["weights"] == 2 * 512


def test_stages_send_and_receive(tmp_path: Path) -> None:
    first, second = reported(tmp_path, STAGES, 2, "pp=2")
    [sent], [received] = first.exchanges, second.exchanges
    assert (sent.op, sent.sent_bytes, sent.received_bytes) == ("send", 128, 0)
    assert (received.op, received.sent_bytes, received.received_bytes) == ("recv", 0, 128)
    assert sent.reason == received.reason == "matmul of stage 0 is needed in stage 1"
    here = {piece.name: piece.part is not None for piece in first.pieces}
    assert here["first"] and not here["second"] and here["x"]
    assert [piece.bytes for piece in second.pieces if piece.name == "first"] == [0]


def test_in_the_local_view_each_rank_builds_its_own(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    reports = reported(tmp_path, RING, 3)
    size = 64 * 128 * 4
    for rank, found in enumerate(reports):
        sent, received, total = found.exchanges
        assert sent.ranks == tuple(sorted((rank, (rank + 1) % 3)))
        assert received.ranks == tuple(sorted((rank, (rank - 1) % 3)))
        assert (sent.sent_bytes, received.received_bytes) == (size, size)
        assert (total.op, total.algorithm) == ("all_reduce", "two-shot")
        # A slice of each of the others' parts and the others' sums; the parts were three times it.
        assert size < total.received_bytes < 2 * size
        assert total.reason == "the program says so"


def test_a_program_that_runs_each_rank_alone_is_not_run_either(tmp_path: Path) -> None:
    text = """
import ark_dist as ark
model = ark.Model("alone")
model.add(model.tensor((4,)), 1.0)
ark.Executor(model=model, device="numpy", rank=0, world_size=1)
raise AssertionError("nothing runs")
"""
    assert [found.exchanges for found in reported(tmp_path, text, 2)] == [(), ()]


def test_one_rank_has_all_and_says_nothing_of_communication(tmp_path: Path) -> None:
    [found] = reported(tmp_path, MLP, 1)
    assert found.exchanges == ()
    assert all(piece.part is not None for piece in found.pieces)
    assert "communication" not in plain_text([found])


def test_ranks_on_several_nodes_go_through_the_host(tmp_path: Path) -> None:
    question = Question(saved(tmp_path, MLP), world_size=4, ranks=(3,), ranks_per_node=2)
    [found] = explain_script(question)
    assert [exchange.transport for exchange in found.exchanges] == ["proxy"]
    [near] = explain_script(replace(question, ranks_per_node=0))
    assert found.work[0].predicted_s > near.work[0].predicted_s


def test_ranks_that_do_not_fit_together_are_told(tmp_path: Path) -> None:
    text = """
import ark_dist as ark
model = ark.Model()
model.all_reduce(model.tensor((4,), ark.FP32 if ark.rank() else ark.INT32), name="sum")
ark.Executor(model=model, device="numpy")
"""
    with pytest.raises(PlanMismatchError, match="they must be the same"):
        reported(tmp_path, text, 2)


@pytest.mark.parametrize(
    ("text", "how"), [("x = 1", "ended as rank 0 of 2"), ("exit(3)", "ended with exit code 3")]
)
def test_a_program_without_an_executor_is_named(tmp_path: Path, text: str, how: str) -> None:
    with pytest.raises(ValueError, match=f"script.py {how}.* made no Executor"):
        reported(tmp_path, text, 2)


@pytest.mark.parametrize("text", ["tp", "tp=", "tp=x", "=2", "tp=2,tp=2", "tp=-1"])
def test_meshes_are_axes_and_sizes(text: str) -> None:
    assert mesh_of("pp=2, tp=4") == ark.Mesh({"pp": 2, "tp": 4})
    with pytest.raises(ValueError, match="it must be axes and their sizes"):
        mesh_of(text)


def test_an_executor_explains_its_rank() -> None:
    def work(communicator: Communicator) -> str:
        with world.use(communicator):
            model = ark.Model("cut")
            x = model.tensor((2, 8), name="x", shard=ark.P(None, "tp"))
            model.reduce_sum(x, axis=1, name="sum")
            with ark.Executor(model=model, device="numpy", mesh=ark.Mesh({"tp": -1})) as exe:
                return exe.explain()

    first, second = on_ranks(2, work)
    assert first.startswith("rank 0 of 2 (tp 0): 'cut' on numpy")
    assert "[0:2,4:8]" in second and "dimension 1 over 'tp'" in second
    assert "is partial over 'tp'" in second


def test_an_executor_of_one_rank_explains_itself() -> None:
    model = ark.Model("alone")
    model.add(model.tensor((4,), name="x"), 1.0, name="y")
    with ark.Executor(model=model, device="null", workers=3) as exe:
        text = exe.explain()
    assert text.startswith("rank 0 of 1: 'alone' on null")
    assert text.isascii() and "predicted" in text


def test_a_terminal_gets_tables() -> None:
    from rich.console import Console

    model = ark.Model("alone")
    model.add(model.tensor((4,), name="x"), 1.0, name="y[bold]")
    graph = model.freeze()
    plan = make_plan(graph, cpu_target(20))
    found = report(graph, uncut(graph, 0, 1), plan, None, topology_of((0,)))
    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as capture:
        print_tables([found], console)
    text = capture.get()
    assert "y[bold]" in text and "20 workers" in text and "predicted" in text


def test_sizes_and_times_have_units() -> None:
    assert [size_text(n) for n in (0, 1023, 1536, 5 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
    ]
    assert [time_text(s) for s in (2.5, 1.5e-3, 2e-6)] == ["2.5 s", "1.5 ms", "2 us"]


# --- bytes: what is said against what the plans' nodes do -------------------------------------


def moved(plans: Sequence[Plan]) -> tuple[Counter[int], Counter[int]]:
    """Bytes by rank that nodes read from peers and write to them: (sent, received)."""
    sent, received = Counter[int](), Counter[int]()
    for plan in plans:
        for method in plan.methods:
            for node in method.nodes:
                for views, gives, takes in (
                    (node.inputs, sent, received),
                    ((node.output,), received, sent),
                ):
                    for view in views:
                        peer = plan.buffers[view.buffer].peer
                        if peer >= 0 and node.op != "handshake":
                            count = 1
                            for n in view.shape:
                                count *= n
                            gives[peer] += count * view.dtype.itemsize
                            takes[plan.rank] += count * view.dtype.itemsize
    return sent, received


def check_bytes(plans: Sequence[Plan], reports: Sequence[Report]) -> list[Exchange]:
    sent, received = moved(plans)
    for plan, found in zip(plans, reports, strict=True):
        assert sum(e.sent_bytes for e in found.exchanges) == sent[plan.rank], found
        assert sum(e.received_bytes for e in found.exchanges) == received[plan.rank], found
    return [e for found in reports for e in found.exchanges]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("rows", [7, 700])
@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("all_reduce", {"reduce": "sum"}),
        ("reduce_scatter", {"reduce": "sum", "axis": 0, "cuts": "uneven"}),
        ("all_gather", {"axis": 0, "cuts": "uneven"}),
        ("broadcast", {"root": 0}),
        ("all_to_all", {"axis": 1}),
        ("barrier", {}),
    ],
)
def test_bytes_are_those_that_the_plans_move(
    op: str, attrs: dict[str, str | int], rows: int, count: int
) -> None:
    plans, reports = [], []
    topology = topology_of((0,) * count)
    cuts = (0, *(rows - count + k for k in range(1, count)), rows)
    for rank in range(count):
        builder = GraphBuilder("bytes", rank=rank, world_size=count)
        own = cuts[rank + 1] - cuts[rank] if op == "all_gather" else rows
        x = builder.tensor((own, 6), "fp32", name="x")
        given = {name: cuts if value == "uneven" else value for name, value in attrs.items()}
        builder.apply(op, [x], {**given, "ranks": ()} if op != "send" else given)
        graph = builder.freeze()
        plan = make_plan(graph, cpu_target(2), rank=rank, topology=topology)
        plans.append(plan)
        reports.append(report(graph, uncut(graph, rank, count), plan, None, topology))
    for exchange in check_bytes(plans, reports):
        assert exchange.transport == ("none" if count == 1 else "peer")
        assert (
            op != "all_reduce"
            or count == 1
            or exchange.algorithm == ("one-shot" if rows == 7 else "two-shot")
        )


def cut_graph() -> Graph:
    """A graph whose parts are gathered, reduced, redistributed and sent."""
    builder = GraphBuilder("many")
    x = builder.tensor((12, 10), "fp32", name="x", shard=P("tp", None))
    w = builder.parameter((10, 9), "fp32", name="w", shard=P("tp", None))
    y = builder.apply("matmul", [x, w], {"transpose_input": False, "transpose_other": False})
    soft = builder.apply("softmax", [y], {"axis": -1})
    builder.select_stage(1)
    state = builder.state((12, 9), "fp32", name="state", shard=P(None, "tp"))
    builder.apply("add", [state, soft], output=state)
    builder.apply("reduce_max", [soft], {"axis": 0, "keepdims": False}, name="top")
    return builder.freeze()


@pytest.mark.parametrize("transport", ["peer", "proxy"])
@pytest.mark.parametrize("axes", [(("tp", 3),), (("pp", 2), ("tp", 2))], ids=str)
def test_every_message_of_a_cut_graph_has_a_reason(
    axes: tuple[tuple[str, int], ...], transport: str
) -> None:
    graph, mesh = cut_graph(), MeshShape(axes)
    topology = topology_of((0,) * mesh.world_size)
    plans, reports = [], []
    for rank in range(mesh.world_size):
        cut = partition(graph, mesh, rank, topology)
        options = PlanOptions(transport=transport)
        plan = make_plan(cut.graph, cpu_target(2), options, rank=rank, topology=topology)
        plans.append(plan)
        reports.append(report(graph, cut, plan, mesh, topology))
    exchanges = [e for found in reports for e in found.exchanges]
    if transport == "peer":
        check_bytes(plans, reports)
    assert sum(e.sent_bytes for e in exchanges) == sum(e.received_bytes for e in exchanges) > 0
    assert {e.transport for e in exchanges} == {transport}
    for exchange in exchanges:
        assert exchange.node, exchange
        tensor = exchange.name.rpartition(f".{exchange.op}")[0] or exchange.name
        assert exchange.reason.startswith(f"{tensor} "), exchange


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_plain_columns_into_a_pipe(tmp_path: Path) -> None:
    done = run("explain", str(saved(tmp_path, MLP)), "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rank 0 of 2 (tp 0): 'mlp' on cpu")
    assert done.stdout.count("communication in one iteration: 1 message\n") == 2
    assert done.stdout.isascii()
    assert "not for the report" in done.stderr and "not for" not in done.stdout


def test_the_command_gives_json_of_the_ranks_that_were_asked_for(tmp_path: Path) -> None:
    script = saved(tmp_path, MLP)
    done = run("explain", str(script), "--mesh", "tp=3", "--rank", "2", "--json")
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    [want] = explain_script(Question(script, world_size=3, mesh=mesh_of("tp=3"), ranks=(2,)))
    assert row == json.loads(json.dumps(asdict(want)))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("missing.py",), "missing.py is not a file"),
        ((__file__, "--ranks", "2", "--rank", "2"), "--rank is 2; there are ranks 0 to 1"),
        ((__file__, "--mesh", "tp"), "--mesh is 'tp'"),
        ((__file__, "--ranks", "-1"), "--ranks is -1"),
        (("SCRIPT", "--ranks", "3", "--mesh", "tp=2"), "needs 2 ranks, and there are 3"),
    ],
)
def test_bad_arguments_of_the_command_are_named(
    arguments: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    script = str(saved(tmp_path, MLP))
    done = run("explain", *(script if word == "SCRIPT" else word for word in arguments))
    assert done.returncode == BAD_CONFIG
    assert text in done.stderr
