"""Compute what a model must give in float64, node by node, from formulas written for tests."""

import numpy as np
import numpy.typing as npt

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.data import as_array
from ark_dist.core.graph import Graph, Node
from ark_dist.core.op import Array, Attrs
from ark_dist.core.view import View
from tests.operator_formulas import EPSILON, FORMULAS, Inputs

Floats = npt.NDArray[np.float64]
# Half an epsilon from each of a few operations in a row; most of what makes errors halves them.
MOST_EPSILONS = 8
# Rounding of larger numbers than this would hide errors of the size of the inputs, which is 1.
LARGEST = 32


class Oracle:
    """Computes a graph's methods node by node in float64; knows nothing of plans or records."""

    def __init__(self, graph: Graph, data: dict[int, Array]) -> None:
        """Start from the inputs and the states' first values."""
        self.graph = graph
        self.memory: dict[int, Array] = {}
        for buffer in graph.buffers:
            if buffer.id in data:
                value = data[buffer.id]
            elif buffer.initial is not None:
                value = as_array(buffer.initial, buffer.dtype, buffer.shape)
            else:
                value = np.zeros(buffer.shape, buffer.dtype.numpy)
            is_float = buffer.dtype.is_float
            self.memory[buffer.id] = value.astype(np.float64) if is_float else value.copy()

    def run(self, method: str, iterations: int) -> None:
        """Run a method; states carry over."""
        nodes = next(m for m in self.graph.methods if m.name == method).nodes
        for _ in range(iterations):
            for node in nodes:
                self._compute(node)

    def _compute(self, node: Node) -> None:
        tiles = tuple(_widened(self.view(view)) for view in node.inputs)
        formula = _attention if node.op == "attention" else FORMULAS[node.op]
        value = formula(tiles, node.attributes)
        found = self.view(node.output)
        found[...] = value.astype(found.dtype)  # integers wrap
        if node.output.dtype.is_float and found.size:
            assert np.isfinite(found).all(), f"{node.name}: not a number"
            largest = np.abs(found).max()
            assert largest <= LARGEST, f"{node.name}: {largest}, the model must scale it"

    def view(self, view: View) -> Array:
        """What a view holds."""
        flat = self.memory[view.buffer].reshape(-1)
        if 0 in view.shape:
            return np.empty(view.shape, flat.dtype)
        strides = tuple(s * flat.itemsize for s in view.strides)
        return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)


def tolerance(dtype: str, largest: float) -> float:
    """Allowed absolute error of a result whose largest element this is."""
    return MOST_EPSILONS * EPSILON.get(dtype, 0.0) * max(1.0, largest)


def _widened(array: Array) -> Floats:
    """A copy; integers as int64, so that they wrap in the result's dtype only."""
    # Formulas read integers under the same name.
    return np.array(array, np.int64 if array.dtype.kind in "iu" else array.dtype)


def _attention(inputs: Inputs, attrs: Attrs) -> Floats:
    """Row by row: the weighted mean of the values that a query sees."""
    q, k, v = inputs[:3]
    batch, times, heads, depth = q.shape
    keys, groups = k.shape[1:3]
    lengths = np.broadcast_to(inputs[3].reshape(-1) if len(inputs) == 4 else keys, batch)
    scale = depth**-0.5 if attrs["scale"] is None else float(str(attrs["scale"]))
    result = np.zeros((batch, times, heads, v.shape[3]))
    for b, t, h in np.ndindex(batch, times, heads):
        seen = int(lengths[b]) - (times - 1 - t if attrs["causal"] else 0)
        if seen > 0:
            group = h * groups // heads
            weights = np.exp(k[b, :seen, group] @ q[b, t, h] * scale)
            result[b, t, h] = weights @ v[b, :seen, group] / weights.sum()
    return result
