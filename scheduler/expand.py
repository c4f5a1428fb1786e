"""Replace operators by the steps that compute them on a target."""

from collections.abc import Sequence
from dataclasses import replace

from ark_dist.core.graph import Buffer, GraphMethod, Node, freeze_attrs
from ark_dist.core.names import Names
from ark_dist.core.op import OPS, Step
from ark_dist.core.shape import row_major_strides
from ark_dist.core.target import Target
from ark_dist.core.view import View


def expand(
    method: GraphMethod, buffers: Sequence[Buffer], target: Target
) -> tuple[GraphMethod, tuple[Buffer, ...]]:
    """Return the method with its operators' steps, and the buffers with those between steps.

    The buffers that were there keep their ids. Steps are not expanded again.
    """
    made = _Made(method.name, buffers)
    nodes: list[Node] = []
    for node in method.nodes:
        op = OPS[node.op]
        steps: tuple[Step, ...] = ()
        if op.expand is not None:
            steps = op.expand(node.input_specs, node.output.spec, node.attributes, target)
        for one in _step_nodes(node, steps, made) if steps else (node,):
            nodes.append(replace(one, id=len(nodes)))
    return GraphMethod(method.name, tuple(nodes)), tuple(made.buffers)


class _Made:
    """Buffers so far; new ones are activations of the method."""

    def __init__(self, method: str, buffers: Sequence[Buffer]) -> None:
        self.buffers = list(buffers)
        self._method = method
        self._names = Names()
        for buffer in buffers:
            self._names.unique(buffer.name)

    def add(self, base: str, step: Step, inputs: Sequence[View]) -> View:
        """A buffer for the result of a step, seen as a whole."""
        spec = OPS[step.op].infer(tuple(view.spec for view in inputs), dict(step.attrs))
        name = self._names.unique(base)
        self.buffers.append(
            Buffer(len(self.buffers), name, spec.shape, spec.dtype, "activation", self._method)
        )
        strides = row_major_strides(spec.shape)
        return View(len(self.buffers) - 1, spec.dtype, 0, spec.shape, strides)


def _step_nodes(node: Node, steps: Sequence[Step], made: _Made) -> list[Node]:
    """One node per step; the last one writes what the whole operator writes."""
    nodes: list[Node] = []
    for number, step in enumerate(steps):
        inputs = tuple(node.inputs[i] if i >= 0 else nodes[-1 - i].output for i in step.inputs)
        if step.looks:
            inputs = tuple(look(view) for look, view in zip(step.looks, inputs, strict=True))
        is_last = number == len(steps) - 1
        output = node.output if is_last else made.add(f"{node.name}.{step.op}", step, inputs)
        # A step that reads an earlier one's result comes after whatever that one does.
        after = node.after if all(i >= 0 for i in step.inputs) else ()
        name = made.buffers[output.buffer].name
        nodes.append(
            Node(
                0, step.op, name, inputs, output, freeze_attrs(dict(step.attrs)), after, node.stage
            )
        )
    return nodes
