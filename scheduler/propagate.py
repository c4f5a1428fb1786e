"""Find the dimensions that are cut together, and the mesh axis that cuts them."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

from ark_dist.core.graph import Buffer, Graph, Node
from ark_dist.core.op import OPS
from ark_dist.core.sharding import Dim, Rule, rule_of
from ark_dist.core.view import View
from ark_dist.scheduler.layouts import Cut, Cuts, Interval, even, traced, whole, window

# A dimension of a buffer, or a letter (with its ratio) of a node: (kind, ...).
Key = tuple[object, ...]
Rules = Mapping[tuple[str, int], Rule | None]


def rules_of(graph: Graph) -> Rules:
    """The sharding rule of every node, by method and id."""
    return {
        (method.name, node.id): rule_of(
            OPS[node.op], node.input_specs, node.output.spec, node.attributes
        )
        for method in graph.methods
        for node in method.nodes
    }


def dimension(buffer: int, d: int) -> Key:
    """The key of a buffer's dimension."""
    return ("buffer", buffer, d)


def letter(method: str, node: int, name: str, ratio: int = 1) -> Key:
    """The key of a letter of a node's rule, or of a ratio of one."""
    return ("letter", method, node, name, ratio)


class Classes:
    """Dimensions that are cut at the same places, as a union-find forest.

    Attributes:
        mesh: the size of each axis that cuts.
        sizes: how many positions each dimension has.
        grid: for each root, how many units its members have in common.
        axis: for each root, the axis that cuts it.
        parent: for each root whose parts cover those of another one, that one.
        weight: for each root, the annotated bytes that speak for its axis.
    """

    def __init__(self, mesh: Mapping[str, int]) -> None:
        """Start without dimensions."""
        self.mesh = mesh
        self.sizes: dict[Key, int] = {}
        self.grid: dict[Key, int] = {}
        self.axis: dict[Key, str] = {}
        self.parent: dict[Key, Key] = {}
        self.weight: Counter[Key] = Counter()
        self._above: dict[Key, Key] = {}
        # A class never gets so coarse that it could not be cut into this many parts.
        self._most = max(mesh.values(), default=1)

    def add(self, key: Key, size: int) -> None:
        """Make a class of one dimension."""
        if key not in self.sizes:
            self.sizes[key] = self.grid[key] = size

    def root(self, key: Key) -> Key:
        """The class of a dimension."""
        while key in self._above:
            above = self._above[key]
            if above in self._above:
                self._above[key] = self._above[above]
            key = above
        return key

    def join(self, a: Key, b: Key) -> None:
        """Make two classes one, unless too few common units would be left."""
        a, b = self.root(a), self.root(b)
        if a == b:
            return
        grid = gcd(self.grid[a], self.grid[b])
        if grid >= min(self._most, self.grid[a], self.grid[b]):
            self._above[b] = a
            self.grid[a] = grid

    def axis_of(self, key: Key) -> str | None:
        """The axis that cuts a dimension."""
        return self.axis.get(self.root(key))

    def cut(self, key: Key, axis: str) -> Cut:
        """How a dimension is cut over an axis, whether or not it is its own."""
        root = self.root(key)
        unit = self.sizes[key] // max(self.grid[root], 1)
        return Cut(axis, tuple((a * unit, b * unit) for a, b in self._units(root, axis)))

    def _units(self, root: Key, axis: str) -> tuple[Interval, ...]:
        count = self.grid[root]
        if root not in self.parent:
            return even(count, self.mesh[axis])
        above = self.parent[root]
        return tuple(
            _cover(interval, count, self.grid[above]) for interval in self._units(above, axis)
        )


def _cover(interval: Interval, count: int, of: int) -> Interval:
    """The positions of `count` that an interval of `of` touches."""
    start, stop = interval
    first = start * count // max(of, 1)
    return first, -(-stop * count // max(of, 1)) if start < stop else first


@dataclass(frozen=True, slots=True)
class Propagated:
    """What propagation found.

    Attributes:
        classes: the dimensions that are cut together.
        rules: the sharding rule of every node.
        layouts: for each buffer the cuts it would have.
        fixed: buffers that have just these cuts: what is annotated, what lives across
            iterations, what is read only, and what several nodes write.
        readers: how many nodes read each buffer.
    """

    classes: Classes
    rules: Rules
    layouts: tuple[Cuts, ...]
    fixed: frozenset[int]
    readers: Counter[int]


def propagate(graph: Graph, mesh: Mapping[str, int], kept: frozenset[int]) -> Propagated:
    """Find classes from views and rules, and give each the axis that annotations say.

    `mesh` has the axes that cut, `kept` are buffers that every rank has all of.
    """
    classes = Classes(mesh)
    for buffer in graph.buffers:
        for d, size in enumerate(buffer.shape):
            classes.add(dimension(buffer.id, d), size)
    rules = rules_of(graph)
    links: list[tuple[Key, Key]] = []
    for method in graph.methods:
        for node in method.nodes:
            links += _join_node(graph, classes, method.name, node, rules[method.name, node.id])
    _link(classes, links)
    _assign(graph, classes)
    writers = _writers(graph)
    layouts = tuple(
        whole(b.shape) if b.id in kept else _layout(b, classes, writers[b.id])
        for b in graph.buffers
    )
    fixed = frozenset(b.id for b in graph.buffers if _is_fixed(b, writers[b.id]))
    readers = Counter(
        v for m in graph.methods for n in m.nodes for v in {v.buffer for v in n.inputs}
    )
    return Propagated(classes, rules, layouts, fixed, readers)


def _join_node(
    graph: Graph, classes: Classes, method: str, node: Node, rule: Rule | None
) -> list[tuple[Key, Key]]:
    """Join what a node cuts together; returns pairs (ratio of a letter, letter)."""
    if rule is None:
        return []
    links = []
    terms = zip((*rule.inputs, rule.output), (*node.inputs, node.output), strict=True)
    pairs = [
        (dim, size, place, view.buffer)
        for dims, view in terms
        for dim, size, place in zip(
            dims, view.shape, traced(view, graph.buffers[view.buffer].shape), strict=True
        )
        if not dim.is_whole
    ]
    for dim, size, place, buffer in sorted(pairs, key=lambda pair: pair[0].ratio):
        key = key_of(method, node.id, dim)
        classes.add(key, size)
        if dim.ratio > 1:
            links.append((key, letter(method, node.id, dim.letter)))
        if place is not None and size > 1:
            classes.join(dimension(buffer, place), key)
    return links


def key_of(method: str, node: int, dim: Dim) -> Key:
    """The key of a dimension of a rule."""
    return letter(method, node, dim.letter, dim.ratio)


def _link(classes: Classes, links: list[tuple[Key, Key]]) -> None:
    for small, large in links:
        child, parent = classes.root(small), classes.root(large)
        above = parent
        while above in classes.parent and above != child:
            above = classes.parent[above]
        if above != child and child not in classes.parent:
            classes.parent[child] = parent


def _assign(graph: Graph, classes: Classes) -> None:
    """Give classes the axes that the most annotated bytes ask for, then those that cover them."""
    votes: dict[Key, Counter[str]] = defaultdict(Counter)
    for buffer in graph.buffers:
        for d, axis in enumerate(buffer.shard or ()):
            if axis is not None and axis in classes.mesh:
                votes[classes.root(dimension(buffer.id, d))][axis] += max(buffer.size_bytes, 1)
    order = {axis: -place for place, axis in enumerate(classes.mesh)}
    for root, found in votes.items():
        axis = max(found, key=lambda name: (found[name], order[name]))
        classes.axis[root], classes.weight[root] = axis, found[axis]
    is_new = True
    while is_new:
        is_new = False
        for child, parent in classes.parent.items():
            for a, b in ((child, parent), (parent, child)):
                if a in classes.axis and b not in classes.axis:
                    classes.axis[b], classes.weight[b] = classes.axis[a], classes.weight[a]
                    is_new = True


def _writers(graph: Graph) -> dict[int, list[Node]]:
    writers: dict[int, list[Node]] = {buffer.id: [] for buffer in graph.buffers}
    for method in graph.methods:
        for node in method.nodes:
            writers[node.output.buffer].append(node)
    return writers


def _is_fixed(buffer: Buffer, writers: list[Node]) -> bool:
    if buffer.kind not in ("activation", "output") or buffer.shard is not None:
        return True
    return len(writers) > 1 or any(
        node.output.shape != buffer.shape or not node.output.is_contiguous for node in writers
    )


def _layout(buffer: Buffer, classes: Classes, writers: list[Node]) -> Cuts:
    """The cuts that a buffer's annotation says, else those of its classes."""
    cuts: list[Cut | None] = [None] * len(buffer.shape)
    if any(OPS[node.op].effect != "none" for node in writers):
        return tuple(cuts)
    if buffer.shard is not None:
        wanted = {d: axis for d, axis in enumerate(buffer.shard) if axis in classes.mesh}
    else:
        pinned = {d for node in writers for d in _unseen(node.output, buffer)}
        wanted = _by_class(buffer, classes, pinned)
    for d, axis in wanted.items():
        if axis is not None and buffer.shape[d]:
            cuts[d] = classes.cut(dimension(buffer.id, d), axis)
    views = {node.output for node in writers}
    if any(window(view, buffer.shape, tuple(cuts)) is None for view in views):
        # What is written can't be said of a part: every rank has all of it.
        return whole(buffer.shape)
    return tuple(cuts)


def _unseen(view: View, buffer: Buffer) -> set[int]:
    """Dimensions of a buffer that a view has a part of, or mixes with others."""
    return set(range(len(buffer.shape))) - set(traced(view, buffer.shape))


def _by_class(buffer: Buffer, classes: Classes, pinned: set[int]) -> dict[int, str | None]:
    """The axis of each dimension's class; each axis once, where the most bytes ask for it."""
    roots = {d: classes.root(dimension(buffer.id, d)) for d in range(len(buffer.shape))}
    found: dict[str, int] = {}
    for d, root in roots.items():
        axis = classes.axis.get(root)
        if axis is None or d in pinned or buffer.shape[d] <= 1:
            continue
        if axis not in found or classes.weight[root] > classes.weight[roots[found[axis]]]:
            found[axis] = d
    return {d: axis for axis, d in found.items()}
