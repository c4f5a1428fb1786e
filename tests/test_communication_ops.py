"""Communication operators: what is built, with which shapes, and in which order."""

import re
from dataclasses import replace

import pytest

import ark_dist as ark
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import ALL_DTYPES, FLOATS, NUMBERS, UINT8
from ark_dist.core.errors import PlanError
from ark_dist.core.groups import cuts_of, even_cuts, flat_parts, members, mine, parts_of
from ark_dist.core.op import OPS, Attrs
from ark_dist.core.shape import Box
from ark_dist.core.verify_graph import graph_problems, method_problems, verify_graph
from ark_dist.core.view import Spec

WORLD = 4
OPERATORS = (
    *("all_gather", "all_reduce", "all_to_all", "barrier", "broadcast"),
    *("recv", "redistribute", "reduce_scatter", "send", "send_done"),
)
# The part of an (8, 6) tensor that each of four ranks has: rows, then columns.
ROWS: tuple[Box, ...] = tuple(((2 * r, 2 * r + 2), (0, 6)) for r in range(WORLD))
COLUMNS: tuple[Box, ...] = (
    *(((0, 8), (0, 1)), ((0, 8), (1, 3))),
    *(((0, 8), (3, 5)), ((0, 8), (4, 6))),
)


TOKEN = Spec((1,), UINT8)


def builder(rank: int = 1, world_size: int = WORLD) -> GraphBuilder:
    return GraphBuilder("m", rank=rank, world_size=world_size)


def result(op: str, attrs: Attrs, shape: tuple[int, ...] = (8, 6), rank: int = 1) -> Value:
    """The result of an operator on an fp32 tensor; its graph obeys all rules."""
    made = builder(rank)
    value = made.apply(op, [made.tensor(shape, "fp32")], attrs)
    verify_graph(made.freeze())
    return value


# --- records ----------------------------------------------------------------------------------


def test_the_operators_that_ranks_do_together_are_these() -> None:
    found = {name for name, op in OPS.items() if op.effect == "communication"}
    assert found == set(OPERATORS)
    assert {name for name in found if not OPS[name].is_public} == {"redistribute"}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_record_knows_rank_and_world_and_has_no_tasks(name: str) -> None:
    op = OPS[name]
    filled = {a.name for a in op.arguments if a.source != "caller"}
    assert filled >= {"rank", "world"}
    assert op.kernel is None and op.view is None and op.sharding is None and op.localize is None
    for rule in (
        lambda: op.in_boxes((), TOKEN, {}, ()),
        lambda: op.reference((), {}, ()),
        lambda: op.tiles((), TOKEN, {}, None),  # type: ignore[arg-type]  # not looked at
        lambda: op.cost((), TOKEN, {}, ()),
    ):
        with pytest.raises(AssertionError, match="communication has no tasks"):
            rule()


# --- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["all_reduce", "broadcast", "all_to_all"])
def test_these_keep_the_shape(op: str) -> None:
    assert result(op, {}).view.shape == (8, 6)
    assert result(op, {"ranks": (0, 1)}).view.shape == (8, 6)


@pytest.mark.parametrize(
    ("attrs", "rank", "shape"),
    [
        ({}, 1, (2, 6)),
        ({"axis": -1, "ranks": (1, 3)}, 3, (8, 3)),
        ({"axis": 1, "cuts": (0, 4, 4, 5, 6)}, 0, (8, 4)),
        ({"axis": 1, "cuts": (0, 4, 4, 5, 6)}, 1, (8, 0)),
        ({"axis": 1, "cuts": (0, 6), "ranks": (2,)}, 2, (8, 6)),
    ],
)
def test_reduce_scatter_gives_each_rank_its_part(
    attrs: Attrs, rank: int, shape: tuple[int, ...]
) -> None:
    assert result("reduce_scatter", attrs, rank=rank).view.shape == shape


@pytest.mark.parametrize(
    ("attrs", "rank", "shape"),
    [
        ({}, 1, (32, 6)),
        ({"axis": -1, "ranks": (0, 1)}, 1, (8, 12)),
        ({"axis": 1, "cuts": (0, 1, 7, 7, 9)}, 1, (8, 9)),
    ],
)
def test_all_gather_puts_the_pieces_together(
    attrs: Attrs, rank: int, shape: tuple[int, ...]
) -> None:
    assert result("all_gather", attrs, rank=rank).view.shape == shape


@pytest.mark.parametrize("rank", range(WORLD))
def test_redistribute_turns_one_part_into_another(rank: int) -> None:
    attrs = {"source": flat_parts(ROWS), "target": flat_parts(COLUMNS)}
    value = result("redistribute", attrs, (2, 6), rank)
    assert value.view.shape == (8, (1, 2, 2, 2)[rank])


def test_a_barrier_gives_a_token() -> None:
    token = result("barrier", {"ranks": (1, 2)})
    assert token.view.spec == TOKEN


def test_empty_tensors_and_tensors_without_dimensions_are_sent_too() -> None:
    for shape in ((), (0, 3)):
        assert result("send", {"dst": 0}, shape).view.shape == (1,)
        assert result("all_reduce", {}, shape).view.shape == shape
    flat = {"source": (), "target": ()}
    assert result("redistribute", flat, ()).view.shape == ()


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"recv", "send_done"}))
def test_dtypes_are_those_of_the_record(name: str) -> None:
    more: dict[str, Attrs] = {
        "send": {"dst": 0},
        "redistribute": {"source": (0, 4) * WORLD, "target": (0, 4) * WORLD},
    }
    for dtype in ALL_DTYPES:
        made = builder()
        x = made.tensor(4, dtype)
        attrs = {"reduce": "max"} if "reduce" in name else more.get(name, {})
        if dtype in OPS[name].dtypes:
            value = made.apply(name, [x], attrs)
            assert value.view.dtype == (UINT8 if name in ("send", "barrier") else x.view.dtype)
        else:
            with pytest.raises(TypeError, match=f"{name}: dtype {dtype} is not supported; use"):
                made.apply(name, [x], attrs)


@pytest.mark.parametrize("op", ["all_reduce", "reduce_scatter"])
@pytest.mark.parametrize(
    ("reduce", "allowed"),
    [
        ("sum", NUMBERS),
        ("mean", FLOATS),
        ("max", (*NUMBERS, "bool")),
        ("min", (*NUMBERS, "bool")),
    ],
)
def test_a_reduction_takes_the_dtypes_it_makes_sense_for(
    op: str, reduce: str, allowed: tuple[str, ...]
) -> None:
    for dtype in (*NUMBERS, "bool"):
        made = builder()
        x = made.tensor((8, 6), dtype)
        if dtype in allowed:
            assert made.apply(op, [x], {"reduce": reduce}).view.dtype == x.view.dtype
        else:
            with pytest.raises(TypeError, match=f'{op}: there is no "{reduce}" of {dtype}; use'):
                made.apply(op, [x], {"reduce": reduce})


# --- sends are completed ----------------------------------------------------------------------


def test_a_send_done_takes_receiver_and_tag_from_its_token() -> None:
    made = builder()
    x = made.tensor(4, "fp32")
    token = made.apply("send", [x], {"dst": 3, "tag": 7})
    assert token.view.spec.dtype == UINT8 and token.view.shape == (1,)
    made.apply("send_done", [token])
    sent = made.freeze().methods[0].nodes[-1].attributes
    assert sent == {"dst": 3, "tag": 7, "rank": 1, "world": 4}


def test_a_send_is_completed_once() -> None:
    made = builder()
    token = made.apply("send", [made.tensor(4, "fp32")], {"dst": 0})
    done = made.apply("send_done", [token])
    for value in (token, done):
        with pytest.raises(ValueError, match="send_done: the tensor is not the token of a send"):
            made.apply("send_done", [value])


def test_sends_on_one_way_are_completed_in_order() -> None:
    made = builder()
    x = made.tensor(4, "fp32")
    first, second, third = (
        made.apply("send", [x], {"dst": 0, "tag": tag}, name=name)
        for tag, name in ((0, "first"), (0, "second"), (1, "third"))
    )
    made.apply("send_done", [third])
    with pytest.raises(ValueError, match="'first' was sent before 'second' to the same rank"):
        made.apply("send_done", [second])
    made.apply("send_done", [first])
    made.apply("send_done", [second])
    verify_graph(made.freeze())


def test_what_comes_after_a_send_done_is_ordered_after_it() -> None:
    made = builder()
    x, s = made.tensor(4, "fp32"), made.state(4, "fp32")
    done = made.apply("send_done", [made.apply("send", [s], {"dst": 0})])
    late = made.apply("identity", [x], deps=[done])
    made.apply("copy", [late], output=s)
    assert made.freeze().methods[0].nodes[-1].after == (done.view,)


# --- graphs and plans -------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["all_reduce", "all_to_all", "broadcast"])
def test_a_result_written_over_its_input_goes_through_memory_of_its_own(op: str) -> None:
    made = builder()
    state = made.state((8, 6), "fp32")
    made.apply(op, [state], output=state)
    graph = made.freeze()
    moved, copied = graph.methods[0].nodes
    assert (moved.op, copied.op) == (op, "copy")
    assert moved.output.buffer != state.view.buffer
    assert (copied.inputs, copied.output) == ((moved.output,), state.view)
    verify_graph(graph)


def test_a_graph_may_communicate_and_a_plan_has_what_that_became() -> None:
    made = builder()
    made.apply("all_reduce", [made.tensor(4, "fp32")])
    graph = made.freeze()
    assert list(graph_problems(graph)) == []
    (problem,) = method_problems(graph.buffers, graph.methods[0], is_plan=True)
    assert "(all_reduce 'all_reduce'): it moves data between ranks; a plan has the" in problem


@pytest.mark.parametrize(
    ("attrs", "text"),
    [
        ({"rank": 4}, "rank is 4 and world_size is 4"),
        ({"world": 2**60}, "at most 16777216 ranks work"),
        ({"ranks": (0, 2)}, "only ranks that take part"),
        ({"ranks": ("0",)}, "ranks is"),
        ({"rank": None}, "attribute 'rank' is None; it must be int"),
    ],
)
def test_attributes_of_a_damaged_graph_are_refused(attrs: dict[str, object], text: str) -> None:
    made = builder()
    made.apply("all_reduce", [made.tensor(4, "fp32")])
    graph = made.freeze()
    (node,) = graph.methods[0].nodes
    changed = tuple(sorted({**node.attributes, **attrs}.items()))
    broken = replace(node, attrs=changed)  # type: ignore[arg-type]  # on purpose
    method = replace(graph.methods[0], nodes=(broken,))
    with pytest.raises(PlanError, match=re.escape(text)):
        verify_graph(replace(graph, methods=(method,)))


def test_helpers_say_who_has_what() -> None:
    some: Attrs = {"ranks": (1, 3), "rank": 3, "world": 4, "cuts": (0, 1, 6)}
    everyone: Attrs = {"ranks": (), "rank": 3, "world": 4, "cuts": ()}
    assert (list(members(some)), mine(some), cuts_of(some, 6)) == ([1, 3], 1, (0, 1, 6))
    assert (list(members(everyone)), mine(everyone)) == ([0, 1, 2, 3], 3)
    assert cuts_of(everyone, 8) == even_cuts(8, 4) == (0, 2, 4, 6, 8)
    assert parts_of(flat_parts(COLUMNS), 2, WORLD) == COLUMNS
    assert parts_of((), 0, 3) == ((), (), ())


# --- the public face --------------------------------------------------------------------------


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> ark.Model:
    """A model of rank 0 of 2."""
    monkeypatch.setattr("ark_dist.model.world_size", lambda: 2)
    return ark.Model("m")


def test_a_model_is_built_for_the_rank_of_its_process(two_ranks: ark.Model) -> None:
    assert (two_ranks.builder.rank, two_ranks.builder.world_size) == (0, 2)
    x = two_ranks.tensor((2, 3), ark.BF16)
    assert x.all_gather(axis=1).shape == (2, 6)
    assert ark.reduce_scatter(x, "max").shape == (1, 3)
    assert two_ranks.recv((2, 3), ark.BF16, 1, tag=5).dtype == ark.BF16
    done = ark.send_done(ark.send(x, 1, tag=5))
    assert ark.identity(x, deps=[done]).relu().shape == (2, 3)
    verify_graph(two_ranks.freeze())


def test_one_rank_may_communicate_with_itself() -> None:
    x = ark.Model("m").tensor((2, 3))
    for y in (x.all_reduce("mean"), x.all_gather(), x.reduce_scatter(), x.broadcast()):
        assert y.shape == x.shape


def test_a_recv_without_a_model_goes_into_the_current_one() -> None:
    ark.init(reset=True)
    with pytest.raises(ValueError, match="recv: src is 0, which is this rank"):
        ark.recv((2,), ark.FP32, 0)
