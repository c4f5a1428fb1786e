"""Choose for each node how ranks share its work, and where its inputs come from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from ark_dist.core.graph import Buffer, Node
from ark_dist.core.op import OPS
from ark_dist.core.shape import Shape, full_box
from ark_dist.core.sharding import Dim, Rule
from ark_dist.core.view import View
from ark_dist.scheduler.layouts import Cut, Cuts, Layout, disjoint, traced, whole, window
from ark_dist.scheduler.propagate import Propagated, dimension, letter
from ark_dist.scheduler.routes import Move, Network, Tensor, largest_bytes, route, target_cut

# Operators whose result of a sum is the sum of their results; of a product, in one factor.
LINEAR = frozenset({"neg", "scale", "copy", "cast", "add", "sub"})
PRODUCTS = frozenset({"mul"})
QUOTIENTS = frozenset({"div"})
# Arithmetic operations that take as long as moving a byte between ranks does, at least.
OPS_PER_BYTE = 64
KEEP = "+"


@dataclass(frozen=True, slots=True)
class Held:
    """One form that ranks hold a buffer in.

    Attributes:
        layout: how it lies on ranks.
        buffer: its id in this rank's graph, -1 where this rank has none of it.
        since: the step that made it.
        source: what made it, for notes.
    """

    layout: Layout
    buffer: int
    since: int
    source: str


@dataclass(frozen=True, slots=True)
class Fetch:
    """How a node gets one of its inputs.

    Attributes:
        held: the form it starts from.
        moves: what has to be done to it.
        layout: how it lies afterwards; what the node needs less of is sliced.
        wanted: the cuts of the view that the node reads.
        seconds: predicted time of the moves.
    """

    held: Held
    moves: tuple[Move, ...]
    layout: Layout
    wanted: Cuts
    seconds: float


@dataclass(frozen=True, slots=True)
class Choice:
    """How ranks share a node.

    Attributes:
        cuts: for each letter that is cut, how.
        contracted: those of them that the result does not have.
        fetches: for each input.
        layout: how the result lies.
        seconds: predicted time.
    """

    cuts: Mapping[str, Cut]
    contracted: tuple[str, ...]
    fetches: tuple[Fetch, ...]
    layout: Layout
    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """One node with all that choices depend on.

    Attributes:
        method: its method's name.
        node: the node.
        helds: for each input, the forms of its buffer.
        sink: the cuts that its output view has to have, None if it is free.
        is_kept: whether the result may stay partial.
    """

    method: str
    node: Node
    helds: tuple[tuple[Held, ...], ...]
    sink: Cuts | None
    is_kept: bool


@dataclass(frozen=True, slots=True)
class Chooser:
    """Compares ways to share nodes."""

    buffers: tuple[Buffer, ...]
    found: Propagated
    network: Network

    def choose(self, work: Work) -> Choice:
        """The cheapest way; of equal ones the first, which cuts most."""
        rule = self.found.rules[work.method, work.node.id]
        options = [{}] if rule is None else self._options(work, rule)
        choices = (self._choice(work, rule, letters) for letters in options)
        return min(choices, key=lambda choice: choice.seconds)

    def _options(self, work: Work, rule: Rule) -> Iterator[Mapping[str, str]]:
        """For each axis the letter that it cuts, `KEEP`, or none; each letter once."""
        per_axis = {}
        for axis in self.found.classes.mesh:
            letters = [name for name in rule.letters if self._may_cut(work, rule, name, axis)]
            keeps = self._keeps(work, axis)
            # Sums of wider floats are worth their bytes: on one rank nothing is rounded here.
            is_free = not (keeps and work.node.op == "cast")
            per_axis[axis] = [*letters, *keeps, *([""] if is_free else [])]
        for names in product(*per_axis.values()):
            used = [name for name in names if name not in ("", KEEP)]
            if len(set(used)) == len(used):
                yield {a: n for a, n in zip(per_axis, names, strict=True) if n}

    def _may_cut(self, work: Work, rule: Rule, name: str, axis: str) -> bool:
        """Whether an axis belongs to a letter, or cuts an input there."""
        classes = self.found.classes
        if classes.axis_of(letter(work.method, work.node.id, name)) == axis:
            return True
        for dims, view, helds in zip(rule.inputs, work.node.inputs, work.helds, strict=True):
            for held in helds:
                seen = window(view, self.buffers[view.buffer].shape, held.layout.cuts)
                place = target_cut(seen.cuts, axis) if seen is not None else None
                if place is not None and dims[place[0]] == Dim(name, False):
                    return True
        return False

    def _keeps(self, work: Work, axis: str) -> list[str]:
        """`KEEP` if the node may work on values that are partial sums along the axis."""
        node = work.node
        partial = [any(axis in _sums(held) for held in helds) for helds in work.helds]
        if not work.is_kept or not any(partial) or node.op not in LINEAR | PRODUCTS | QUOTIENTS:
            return []
        dtypes = (node.inputs[0].dtype, node.output.dtype)
        is_float = all(dtype.is_float for dtype in dtypes)
        is_narrower = dtypes[1].itemsize < dtypes[0].itemsize
        if node.op in {"cast"} | QUOTIENTS and (not is_float or is_narrower):
            return []
        if node.op in LINEAR:
            # What is there in full as well is no longer worth adding up later.
            is_open = all(axis in _sums(held) for helds in work.helds for held in helds)
            return [KEEP] if is_open else []
        is_factor = partial == [True, False]
        return [KEEP] if is_factor or (node.op in PRODUCTS and partial == [False, True]) else []

    def _choice(self, work: Work, rule: Rule | None, letters: Mapping[str, str]) -> Choice:
        """The choice that these letters make."""
        node, classes = work.node, self.found.classes
        kept = frozenset(axis for axis, name in letters.items() if name == KEEP)
        cuts = {
            name: classes.cut(letter(work.method, node.id, name), axis)
            for axis, name in letters.items()
            if name != KEEP
        }
        sizes = {} if rule is None else _sizes(rule, node)
        contracted = tuple(name for name in rule.contracted if name in cuts) if rule else ()
        for name in contracted:
            edges = disjoint(cuts[name].bounds, sizes[name])
            cuts[name] = Cut(cuts[name].axis, tuple(pairwise(edges)))
        fetches = []
        for position, (view, helds) in enumerate(zip(node.inputs, work.helds, strict=True)):
            dims = rule.inputs[position] if rule is not None else ()
            wanted = _term_cuts(dims, view.shape, cuts) if rule is not None else whole(view.shape)
            fetches.append(self.fetch(view, helds, wanted, kept))
        out = _term_cuts(rule.output, node.output.shape, cuts) if rule else whole(node.output.shape)
        reduce = rule.reduce if rule is not None else ""
        partial = {cuts[name].axis: reduce for name in contracted}
        partial |= dict.fromkeys(kept, "sum")
        layout = Layout(out, tuple((a, partial[a]) for a in classes.mesh if a in partial))
        seconds = sum(fetch.seconds for fetch in fetches)
        seconds += self._output_seconds(work, layout) + self._kept_seconds(work, kept)
        seconds += self._compute_seconds(node, cuts, fetches)
        return Choice(cuts, contracted, tuple(fetches), layout, seconds)

    def fetch(self, view: View, helds: Sequence[Held], wanted: Cuts, kept: frozenset[str]) -> Fetch:
        """The cheapest way to what each rank needs of a view, from the forms there are.

        What is a partial sum along the axes `kept` stays so.
        """
        buffer = self.buffers[view.buffer]
        tensor = Tensor(buffer.shape, buffer.dtype.itemsize)
        best: Fetch | None = None
        most = max((len(kept & _sums(held)) for held in helds), default=0)
        for held in helds:
            own = kept & _sums(held)
            if len(own) < most:
                continue
            for target in self._targets(view, buffer.shape, held.layout, wanted):
                moves = route(held.layout, target, own)
                layout = moves[-1].after if moves else held.layout
                if not _shows(view, buffer.shape, layout.cuts, wanted):
                    continue
                seconds = self.network.seconds(tensor, moves)
                if best is None or seconds < best.seconds:
                    best = Fetch(held, moves, layout, wanted, seconds)
        assert best is not None, "what is gathered whole shows all of a view"
        return best

    def _targets(self, view: View, shape: Shape, layout: Layout, wanted: Cuts) -> Iterator[Cuts]:
        """Cuts of a buffer to try: as they are, those that are wanted, or none, per axis."""
        asked: dict[str, tuple[int, Cut]] = {}
        for cut, d, size in zip(wanted, traced(view, shape), view.shape, strict=True):
            if cut is not None and d is not None:
                scaled = _scaled(cut, size, shape[d])
                if scaled is not None:
                    asked[cut.axis] = (d, scaled)
        axes = dict.fromkeys((*layout.axes, *(axis for axis, _ in layout.partial)))
        options: list[list[tuple[int, Cut] | None]] = []
        for axis in axes:
            own = target_cut(layout.cuts, axis)
            found = [place for place in (own, asked.get(axis)) if place is not None]
            options.append([*dict.fromkeys(found), None])
        for places in product(*options):
            taken = [place[0] for place in places if place is not None]
            if len(set(taken)) == len(taken):
                cuts = list(whole(shape))
                for place in places:
                    if place is not None:
                        cuts[place[0]] = place[1]
                yield tuple(cuts)

    def _output_seconds(self, work: Work, layout: Layout) -> float:
        """What it takes to bring the result where it belongs."""
        view = work.node.output
        tensor = Tensor(view.shape, view.dtype.itemsize)
        target = work.sink if work.sink is not None else self._later(work, layout)
        return self.network.seconds(tensor, route(layout, target))

    def _later(self, work: Work, layout: Layout) -> Cuts:
        """The cuts that readers of a free result probably want."""
        view = work.node.output
        cuts = list(layout.cuts)
        for axis, _ in layout.partial:
            for d, traced_to in enumerate(traced(view, self.buffers[view.buffer].shape)):
                if traced_to is None or cuts[d] is not None:
                    continue
                key = dimension(view.buffer, traced_to)
                if self.found.classes.axis_of(key) == axis:
                    cuts[d] = self.found.classes.cut(key, axis)
                    break
        return tuple(cuts)

    def _compute_seconds(
        self, node: Node, cuts: Mapping[str, Cut], fetches: Sequence[Fetch]
    ) -> float:
        """A rough time of the largest part, for comparing ways that communicate alike."""
        moved = sum(
            largest_bytes(Tensor(view.shape, view.dtype.itemsize), fetch.wanted)
            for view, fetch in zip(node.inputs, fetches, strict=True)
        )
        cost = OPS[node.op].cost(
            node.input_specs, node.output.spec, node.attributes, full_box(node.output.shape)
        )
        ops = float(cost.ops)
        for cut in cuts.values():
            size = max(stop for _, stop in cut.bounds)
            ops *= max(stop - start for start, stop in cut.bounds) / max(size, 1)
        return self.network.read_seconds(moved + ops / OPS_PER_BYTE)

    def _kept_seconds(self, work: Work, kept: frozenset[str]) -> float:
        """What others will do to inputs that stay partial here."""
        seconds = 0.0
        for view, helds in zip(work.node.inputs, work.helds, strict=True):
            is_open = all(kept & _sums(held) for held in helds)
            if kept and is_open and self.found.readers[view.buffer] > 1:
                buffer = self.buffers[view.buffer]
                moves = route(helds[0].layout, helds[0].layout.cuts)
                seconds += self.network.seconds(Tensor(buffer.shape, buffer.dtype.itemsize), moves)
        return seconds


def _sums(held: Held) -> frozenset[str]:
    """The axes along which values are partial sums."""
    return frozenset(axis for axis, reduce in held.layout.partial if reduce == "sum")


def _sizes(rule: Rule, node: Node) -> dict[str, int]:
    """How many positions each letter has."""
    terms = zip((*rule.inputs, rule.output), (*node.inputs, node.output), strict=True)
    return {
        dim.letter: size
        for dims, view in terms
        for dim, size in zip(dims, view.shape, strict=True)
        if dim.ratio == 1
    }


def _term_cuts(dims: Sequence[Dim], shape: Shape, cuts: Mapping[str, Cut]) -> Cuts:
    """The cuts of one tensor of a node whose letters are cut."""
    found: list[Cut | None] = []
    for dim, size in zip(dims, shape, strict=True):
        cut = cuts.get(dim.letter) if not dim.is_whole else None
        if cut is not None:
            parts = (dim.part(size, {dim.letter: interval}) for interval in cut.bounds)
            cut = Cut(cut.axis, tuple(parts))
        found.append(cut)
    return tuple(found)


def _scaled(cut: Cut, size: int, wanted: int) -> Cut | None:
    """A cut of a dimension of `size` as one of a dimension of `wanted` positions."""
    if any(edge * wanted % max(size, 1) for interval in cut.bounds for edge in interval):
        return None
    return Cut(cut.axis, tuple((a * wanted // size, b * wanted // size) for a, b in cut.bounds))


def _shows(view: View, shape: Shape, cuts: Cuts, wanted: Cuts) -> bool:
    """Whether each rank sees all that it needs of a view."""
    seen = window(view, shape, cuts)
    if seen is None or seen.holders:
        return False
    return all(
        have is None or (want is not None and have.contains(want))
        for have, want in zip(seen.cuts, wanted, strict=True)
    )
