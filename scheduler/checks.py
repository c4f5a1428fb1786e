"""Add checks to a rank's graph: that results are finite, and equal on all ranks."""

from collections.abc import Sequence
from dataclasses import replace

from ark_dist.core.dtype import DTYPES, NUMBERS, UINT8
from ark_dist.core.graph import Buffer, Graph, GraphMethod, Node, freeze_attrs
from ark_dist.core.names import Names
from ark_dist.core.op import AttrValue
from ark_dist.core.shape import row_major_strides
from ark_dist.core.view import View

# How the ranks' results are compared: the largest and the smallest are the same.
EXTREMES = ("max", "min")


def add_checks(graph: Graph, *, is_finite: bool, is_equal: bool) -> Graph:
    """Return the graph with checks after its nodes.

    `is_finite` checks every floating point result, `is_equal` what each all_reduce gives.
    """
    if not (is_finite or is_equal):
        return graph
    buffers = list(graph.buffers)
    methods = []
    for method in graph.methods:
        checks = _Checks(method.name, buffers)
        for node in method.nodes:
            checks.nodes.append(node)
            if is_equal and node.op == "all_reduce":
                checks.compare(node)
            if is_finite and node.output.dtype.is_float and 0 not in node.output.shape:
                checks.add("check_finite", (node.output,), (1,), UINT8.name, node, {})
        nodes = tuple(replace(node, id=i) for i, node in enumerate(checks.nodes))
        methods.append(GraphMethod(method.name, nodes))
    return Graph(graph.name, tuple(buffers), tuple(methods))


class _Checks:
    """Builds the nodes of one method; methods share a list of buffers."""

    def __init__(self, method: str, buffers: list[Buffer]) -> None:
        self.nodes: list[Node] = []
        self._method = method
        self._buffers = buffers
        self._names = Names()
        for buffer in buffers:
            self._names.unique(buffer.name)

    def compare(self, node: Node) -> None:
        """Compare the results of an all_reduce over its ranks."""
        view = node.output
        if view.dtype.name not in NUMBERS or 0 in view.shape:
            return
        extremes = [
            self.add(
                "all_reduce",
                (view,),
                view.shape,
                view.dtype.name,
                node,
                {**node.attributes, "reduce": reduce},
            )
            for reduce in EXTREMES
        ]
        self.add("check_equal", extremes, (1,), UINT8.name, node, {})

    def add(
        self,
        op: str,
        inputs: Sequence[View],
        shape: tuple[int, ...],
        dtype: str,
        node: Node,
        attrs: dict[str, AttrValue],
    ) -> View:
        """Append a node that looks at what `node` made; returns its own result."""
        name = self._names.unique(f"{op} of {node.op} {node.name}")
        buffer = Buffer(len(self._buffers), name, shape, DTYPES[dtype], "activation", self._method)
        self._buffers.append(buffer)
        made = View(buffer.id, buffer.dtype, 0, shape, row_major_strides(shape))
        self.nodes.append(
            Node(0, op, name, tuple(inputs), made, freeze_attrs(attrs), (), node.stage)
        )
        return made
