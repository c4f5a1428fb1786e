"""Each rule of verify_graph is broken once."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ark_dist.core.dtype import FP16, FP32, DType
from ark_dist.core.errors import PlanError
from ark_dist.core.graph import Buffer, Graph, Node
from ark_dist.core.verify_graph import verify_graph
from ark_dist.core.view import View
from tests.plan_models import RandomGraph, addition, loop, mlp, two_methods

Break = Callable[[Graph], Graph]


def with_buffer(graph: Graph, index: int, **changes: object) -> Graph:
    buffers = list(graph.buffers)
    buffers[index] = replace(buffers[index], **changes)  # type: ignore[arg-type]  # on purpose
    return replace(graph, buffers=tuple(buffers))


def with_node(graph: Graph, index: int, change: Callable[[Node], Node]) -> Graph:
    method = graph.methods[-1]
    nodes = list(method.nodes)
    nodes[index] = change(nodes[index])
    return replace(graph, methods=(*graph.methods[:-1], replace(method, nodes=tuple(nodes))))


def with_view(node: Node, **changes: object) -> Node:
    view = replace(node.inputs[0], **changes)  # type: ignore[arg-type]  # on purpose
    return replace(node, inputs=(view, *node.inputs[1:]))


def with_output(node: Node, **changes: object) -> Node:
    view = replace(node.output, **changes)  # type: ignore[arg-type]  # on purpose
    return replace(node, output=view)


def find(graph: Graph, name: str) -> Buffer:
    return next(b for b in graph.buffers if b.name == name)


def twice(graph: Graph) -> Graph:
    return replace(graph, methods=(graph.methods[0], graph.methods[0]))


def two_stops(graph: Graph) -> Graph:
    method = graph.methods[0]
    last = method.nodes[-1]
    copy = replace(last, id=len(method.nodes))
    return replace(graph, methods=(replace(method, nodes=(*method.nodes, copy)),))


def read_back(node: Node) -> Node:
    """Make the node read a shifted part of what it writes."""
    part = View(node.output.buffer, FP16, 0, (32,), (0,))
    return replace(node, inputs=(part, part))


def swap_first_nodes(graph: Graph) -> Graph:
    method = graph.methods[0]
    first, second, *rest = method.nodes
    nodes = (replace(second, id=0), replace(first, id=1), *rest)
    return replace(graph, methods=(replace(method, nodes=nodes),))


def write_elsewhere(graph: Graph) -> Graph:
    scores = find(graph, "scores")
    return with_buffer(graph, scores.id, method="prefill")


UNKNOWN = DType("fp64", "float", 8, "double", "float64")
BUFFERS: dict[str, tuple[Break, str]] = {
    "id": (lambda g: with_buffer(g, 1, id=7), r"buffer 1 \('other'\): its id is 7"),
    "name": (lambda g: with_buffer(g, 1, name="input"), r"buffer 1 .*: the name is taken"),
    "kind": (lambda g: with_buffer(g, 0, kind="scratch"), "kind 'scratch' is not one of"),
    "dtype": (lambda g: with_buffer(g, 0, dtype=UNKNOWN), "dtype fp64 is unknown"),
    "negative size": (lambda g: with_buffer(g, 0, shape=(-1,)), r"shape \(-1,\) is out of range"),
    "dimensions": (lambda g: with_buffer(g, 0, shape=(1,) * 9), "shape .* is out of range"),
    "elements": (lambda g: with_buffer(g, 0, shape=(2**30, 2**30)), "in 1 slots are too many"),
    "no slot": (lambda g: with_buffer(g, 0, slots=0), "in 0 slots are too many"),
    "slots": (lambda g: with_buffer(g, 0, slots=65), "in 65 slots are too many"),
    "initial": (lambda g: with_buffer(g, 0, initial=b"xyz"), "3 initial bytes for 64"),
    "method names": (twice, "two methods have one name"),
}
NODES: dict[str, tuple[Callable[[Node], Node], str]] = {
    "id": (lambda n: replace(n, id=3), "node 0 .*: its id is 3"),
    "operator": (lambda n: replace(n, op="nope"), "node 0 .*: the operator is unknown"),
    "view": (lambda n: replace(n, op="reshape"), "node 0 .*: the operator is unknown"),
    "buffer": (lambda n: with_view(n, buffer=9), "buffer 9 does not exist"),
    "negative buffer": (lambda n: with_view(n, buffer=-1), "buffer -1 does not exist"),
    "view's dtype": (lambda n: with_view(n, dtype=FP32), "views 'input' of fp16 as fp32"),
    "ranks": (lambda n: with_view(n, strides=(1, 1)), "has shape .* and strides"),
    "negative offset": (lambda n: with_view(n, offset=-1), "a negative offset, size or stride"),
    "negative stride": (lambda n: with_view(n, strides=(-1,)), "a negative offset, size or stride"),
    "end": (lambda n: with_view(n, offset=1), "reaches element 32 of 32"),
    "far end": (lambda n: with_view(n, strides=(2**40,)), "reaches element .* of 32"),
    "inputs": (lambda n: replace(n, inputs=n.inputs[:1]), "it has 1 inputs; add takes 2"),
    "no inputs": (lambda n: replace(n, inputs=()), "it has 0 inputs; add takes 2"),
    "shapes": (lambda n: with_view(n, shape=(31,)), "the operator refuses its inputs"),
    "attributes": (lambda n: replace(n, attrs=(("x", 1),)), r"attributes are \['x'\]; add takes"),
    "result": (lambda n: with_output(n, shape=(16,)), "writes .* where the operator makes"),
    "target": (lambda n: replace(n, output=n.inputs[0]), "writes 'input', which is input"),
    "broadcast": (lambda n: with_output(n, strides=(0,)), "writes a broadcast view of 'output'"),
    "early read": (read_back, "reads 'output' before anything wrote it|reads and writes"),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_broken_buffer_is_refused(name: str) -> None:
    change, text = BUFFERS[name]
    with pytest.raises(PlanError, match=text):
        verify_graph(change(addition()))


@pytest.mark.parametrize("name", NODES)
def test_a_broken_node_is_refused(name: str) -> None:
    change, text = NODES[name]
    with pytest.raises(PlanError, match=text):
        verify_graph(with_node(addition(), 0, change))


def test_attributes_have_their_arguments_types() -> None:
    attrs = (("axis", True), ("eps", 1e-5))
    with pytest.raises(PlanError, match="attribute 'axis' is True; it must be int"):
        verify_graph(with_node(mlp(64), 3, lambda n: replace(n, attrs=attrs)))


def test_a_read_before_the_write_is_refused() -> None:
    with pytest.raises(PlanError, match=r"reads .* before anything wrote it"):
        verify_graph(swap_first_nodes(mlp(64)))


def test_writing_into_another_method_is_refused() -> None:
    with pytest.raises(PlanError, match="writes 'scores' of method 'prefill'"):
        verify_graph(write_elsewhere(two_methods()))


def test_two_stops_in_one_method_are_refused() -> None:
    with pytest.raises(PlanError, match="has 2 stop operators; one may decide"):
        verify_graph(two_stops(loop()))


def test_overlapping_input_and_output_are_refused() -> None:
    graph = loop()
    total = find(graph, "total")
    broadcast = View(total.id, FP32, 0, (8, 4), (0, 1))
    change = {node.output.buffer: node for node in graph.methods[0].nodes}[total.id]
    with pytest.raises(PlanError, match="reads and writes overlapping parts of 'total'"):
        verify_graph(
            with_node(graph, change.id, lambda n: replace(n, inputs=(broadcast, n.inputs[1])))
        )


@pytest.mark.parametrize("seed", range(20))
def test_graphs_of_the_builder_obey_all_rules(seed: int) -> None:
    verify_graph(RandomGraph(seed).grow(has_stop=seed % 2 == 0))
