"""Run the graphs of all ranks node by node in float64, and put what they have together."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.data import as_array
from ark_dist.core.graph import Buffer, Graph, Node
from ark_dist.core.layout import MeshShape, P, Share
from ark_dist.core.message import calls, disagreement
from ark_dist.core.op import OPS, Array
from ark_dist.core.shape import Box, full_box
from ark_dist.core.target import topology_of
from ark_dist.core.verify_graph import verify_graph
from ark_dist.core.view import View
from ark_dist.scheduler.partition import RankGraph, partition

Data = Mapping[int, Array]
Scalars = Mapping[str, float]
REDUCTIONS: dict[str, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class Memory:
    """The buffers of one rank; floats are float64."""

    def __init__(self, graph: Graph, data: Data) -> None:
        """Start from what the host writes, and the states' first values."""
        self.arrays: dict[int, Array] = {}
        for buffer in graph.buffers:
            value = data.get(buffer.id)
            if value is None:
                value = _initial(buffer)
            is_float = buffer.dtype.is_float
            self.arrays[buffer.id] = value.astype(np.float64) if is_float else value.copy()
            assert value.shape == buffer.shape, buffer

    def view(self, view: View) -> Array:
        """What a view shows, not copied."""
        flat = self.arrays[view.buffer].reshape(-1)
        if 0 in view.shape:
            return np.empty(view.shape, flat.dtype)
        strides = tuple(step * flat.itemsize for step in view.strides)
        return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)

    def compute(self, node: Node, scalars: Scalars) -> None:
        """Do one node that does not communicate."""
        if node.op == "command_scalar":
            name = str(node.attributes["name"])
            if name in scalars:
                self.view(node.output)[...] = scalars[name]
            return
        tiles = tuple(self.view(view).copy() for view in node.inputs)
        value = OPS[node.op].reference(tiles, node.attributes, full_box(node.output.shape))
        found = self.view(node.output)
        found[...] = value.astype(found.dtype)


def _initial(buffer: Buffer) -> Array:
    if buffer.initial is not None:
        return as_array(buffer.initial, buffer.dtype, buffer.shape)
    if buffer.kind in ("state", "constant"):
        return np.zeros(buffer.shape, buffer.dtype.numpy)
    # Whoever reads what nobody wrote shall see it.
    value = np.zeros(buffer.shape, buffer.dtype.numpy)
    value[...] = np.nan if buffer.dtype.is_float else 77
    return value


@dataclass
class Ranks:
    """All ranks of a mesh in lockstep."""

    graph: Graph
    mesh: MeshShape
    parts: list[RankGraph]
    memories: list[Memory]
    mail: dict[tuple[int, int, int], deque[Array]] = field(
        default_factory=lambda: defaultdict(deque)
    )

    def run(self, method: str, iterations: int = 1, scalars: Scalars | None = None) -> None:
        """Run a method on all ranks."""
        lists = [
            next(m for m in part.graph.methods if m.name == method).nodes for part in self.parts
        ]
        for iteration in range(iterations):
            self._once(lists, (scalars or {}) if iteration == 0 else {})
        assert not any(self.mail.values()), "a message was not received"

    def _once(self, lists: list[tuple[Node, ...]], scalars: Scalars) -> None:
        at = [0] * len(lists)
        while any(place < len(nodes) for place, nodes in zip(at, lists, strict=True)):
            before = list(at)
            for rank, nodes in enumerate(lists):
                while at[rank] < len(nodes) and self._step(rank, nodes[at[rank]], scalars):
                    at[rank] += 1
                if at[rank] < len(nodes):
                    self._meet(rank, lists, at)
            now = [n[p] if p < len(n) else None for n, p in zip(lists, at, strict=True)]
            assert at != before, f"all ranks wait: {now}"

    def _step(self, rank: int, node: Node, scalars: Scalars) -> bool:
        """Do a node of one rank; whether it could be done alone."""
        memory, attrs = self.memories[rank], node.attributes
        if OPS[node.op].effect != "communication":
            memory.compute(node, scalars)
            return True
        if node.op == "send":
            key = (rank, int(str(attrs["dst"])), int(str(attrs["tag"])))
            self.mail[key].append(memory.view(node.inputs[0]).copy())
            return True
        if node.op == "recv":
            key = (int(str(attrs["src"])), rank, int(str(attrs["tag"])))
            if not self.mail[key]:
                return False
            memory.view(node.output)[...] = self.mail[key].popleft()
            return True
        return False

    def _meet(self, rank: int, lists: list[tuple[Node, ...]], at: list[int]) -> None:
        """Do a collective if all its ranks have come to it."""
        node = lists[rank][at[rank]]
        if node.op in ("send", "recv"):
            return
        group = node.attributes["ranks"]
        assert isinstance(group, tuple), group
        nodes = [lists[r][at[r]] if at[r] < len(lists[r]) else None for r in group]
        if any(n is None or (n.op, n.attributes.get("ranks")) != (node.op, group) for n in nodes):
            return
        found = [n for n in nodes if n is not None]
        given = [self.memories[r].view(n.inputs[0]) for r, n in zip(group, found, strict=True)]
        results = [_result(n, i, group, given).copy() for i, n in enumerate(found)]
        for r, n, value in zip(group, found, results, strict=True):
            self.memories[r].view(n.output)[...] = value
            at[r] += 1

    def value(self, buffer: int) -> Array:
        """A buffer of the global graph, put together from the ranks' parts."""
        shape = self.graph.buffers[buffer].shape
        shares = [part.shares[buffer] for part in self.parts]
        assert len({share.parts for share in shares}) == 1, "ranks disagree"
        found, is_there = None, np.zeros(shape, bool)
        for rank, share in enumerate(shares):
            assert share.is_held_by(rank) <= (share.buffer >= 0), share
            if not share.is_held_by(rank):
                continue
            mine = self.memories[rank].arrays[share.buffer]
            found = np.zeros(shape, mine.dtype) if found is None else found
            place = tuple(slice(a, b) for a, b in share.parts[rank])
            seen = is_there[place]
            held, own = (array.astype(np.float64)[seen] for array in (found[place], mine))
            np.testing.assert_allclose(own, held, rtol=1e-9, atol=1e-9, err_msg="overlap differs")
            found[place] = mine
            is_there[place] = True
        assert is_there.all(), f"nobody has some of {self.graph.buffers[buffer]}"
        return np.zeros(shape) if found is None else found

    def ops(self, rank: int = 0) -> list[str]:
        """The communication operators of a rank, in order."""
        return [
            node.op
            for method in self.parts[rank].graph.methods
            for node in method.nodes
            if OPS[node.op].effect == "communication"
        ]


def _result(node: Node, place: int, group: tuple[int, ...], given: list[Array]) -> Array:
    """What one rank of a group gets."""
    attrs = node.attributes
    if node.op == "all_reduce":
        return _combined(given, str(attrs["reduce"]))
    if node.op == "reduce_scatter":
        total = _combined(given, str(attrs["reduce"]))
        cuts, axis = attrs["cuts"], int(str(attrs["axis"]))
        assert isinstance(cuts, tuple), cuts
        return np.asarray(total.take(range(cuts[place], cuts[place + 1]), axis))
    if node.op == "all_gather":
        return np.concatenate(given, axis=int(str(attrs["axis"])))
    if node.op == "broadcast":
        return given[group.index(int(str(attrs["root"])))]
    assert node.op == "redistribute", node.op
    source, target = (_boxes(attrs[name], len(group)) for name in ("source", "target"))
    result = np.zeros([b - a for a, b in target[place]], given[0].dtype)
    for box, value in reversed(list(zip(source, given, strict=True))):
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, target[place], strict=True)]
        if all(a < b for a, b in common):
            result[_inside(common, target[place])] = value[_inside(common, box)]
    return result


def _combined(given: list[Array], reduce: str) -> Array:
    stacked = np.stack(given)
    return np.asarray(REDUCTIONS[reduce].reduce(stacked, axis=0, dtype=stacked.dtype))


def _boxes(flat: object, count: int) -> list[Box]:
    assert isinstance(flat, tuple), flat
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    ndim = len(pairs) // count
    return [tuple(pairs[i * ndim : (i + 1) * ndim]) for i in range(count)]


def _inside(common: list[tuple[int, int]], box: Box) -> tuple[slice, ...]:
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(common, box, strict=True))


def alone(graph: Graph, data: Data) -> Ranks:
    """The graph on one rank."""
    buffers = tuple(replace(buffer, shard=None) for buffer in graph.buffers)
    return ranks(replace(graph, buffers=buffers), MeshShape(()), data)


def ranks(graph: Graph, mesh: MeshShape, data: Data, nodes: tuple[int, ...] = ()) -> Ranks:
    """The graph on all ranks of a mesh, each with its part of the data.

    Graphs are verified, and so is that they agree on their messages and that nobody gets stuck.
    """
    topology = topology_of(nodes or (0,) * mesh.world_size)
    parts = [partition(graph, mesh, rank, topology) for rank in range(mesh.world_size)]
    world = mesh.world_size
    problem = disagreement({r: calls(part.graph, r, world) for r, part in enumerate(parts)})
    assert problem is None, problem
    memories = []
    for rank, part in enumerate(parts):
        verify_graph(part.graph)
        own = {
            share.buffer: _cut(data[b], share, rank)
            for b, share in part.shares.items()
            if share.buffer >= 0 and b in data
        }
        memories.append(Memory(part.graph, own))
    return Ranks(graph, mesh, parts, memories)


def _cut(array: Array, share: Share, rank: int) -> Array:
    return array[tuple(slice(a, b) for a, b in share.parts[rank])] if array.shape else array


def sharded(graph: Graph, shards: Mapping[str, P | None]) -> Graph:
    """The graph with annotations on some buffers, by name."""
    names = {buffer.name for buffer in graph.buffers}
    assert names >= set(shards), f"{set(shards) - names} are no buffers"
    buffers = tuple(replace(b, shard=shards.get(b.name, b.shard)) for b in graph.buffers)
    return replace(graph, buffers=buffers)


def compare(
    graph: Graph,
    axes: Mapping[str, int],
    *,
    data: Data | None = None,
    runs: Sequence[tuple[str, int]] = (("forward", 1),),
    tolerance: float = 1e-9,
    scalars: Scalars | None = None,
) -> Ranks:
    """Run a graph on a mesh and on one rank; states and outputs must be the same."""
    data = random_data(graph, 0) if data is None else data
    one, many = alone(graph, data), ranks(graph, MeshShape(tuple(axes.items())), data)
    for method, iterations in runs:
        one.run(method, iterations, scalars)
        many.run(method, iterations, scalars)
    for buffer in graph.buffers:
        if buffer.kind in ("state", "output"):
            want = one.value(buffer.id).astype(np.float64)
            found = many.value(buffer.id).astype(np.float64)
            limit = tolerance * (1 + np.abs(want).max(initial=0))
            np.testing.assert_allclose(found, want, rtol=0, atol=limit, err_msg=buffer.name)
    return many


def random_data(graph: Graph, seed: int, limits: Mapping[int, int] | None = None) -> Data:
    """Values for all inputs and weights; integers are below their limit."""
    rng = np.random.default_rng(seed)
    data: dict[int, Array] = {}
    for buffer in graph.buffers:
        if buffer.kind in ("input", "weight"):
            limit = (limits or {}).get(buffer.id, 4)
            if buffer.dtype.is_float:
                data[buffer.id] = rng.uniform(-1, 1, buffer.shape)
            else:
                data[buffer.id] = rng.integers(0, limit, buffer.shape).astype(buffer.dtype.numpy)
    return data
