"""Walk a graph's nodes and add each rank's part of them, with the communication they need."""

from collections.abc import Sequence
from math import prod

from ark_dist.core.dtype import UINT8
from ark_dist.core.graph import Buffer, Graph, GraphMethod, Node
from ark_dist.core.groups import MAX_TAG
from ark_dist.core.layout import Note
from ark_dist.core.op import OPS, AttrValue, reads_in_place
from ark_dist.core.shape import box_shape, box_size, boxes_overlap
from ark_dist.core.view import View
from ark_dist.scheduler.layouts import (
    Cuts,
    Layout,
    Window,
    local_view,
    narrowed,
    part,
    whole,
    window,
)
from ark_dist.scheduler.rank_graph import STAGE_AXIS, Place, RankNodes, Whole
from ark_dist.scheduler.routes import Move, route
from ark_dist.scheduler.strategy import Choice, Chooser, Fetch, Held, Work

# What the host fills, and no node writes.
GIVEN_KINDS = ("weight", "constant", "input")
LASTING_KINDS = (*GIVEN_KINDS, "state")


class ShareOut:
    """Builds one rank's graph.

    Attributes:
        homes: for each buffer the stages whose ranks keep it.
        stored: for each buffer how it is cut.
        local: for each buffer that this rank keeps, its id in the rank's graph.
        regrets: buffers that nobody asked to cut, and that were cut and needed whole.
    """

    def __init__(self, graph: Graph, place: Place, chooser: Chooser) -> None:
        """Start with the buffers that last."""
        self.graph = graph
        self.nodes = RankNodes(place)
        self.homes = _homes(graph, dict(place.mesh.axes).get(STAGE_AXIS, 1))
        self.stored: dict[int, Cuts] = dict(enumerate(chooser.found.layouts))
        self.local: dict[int, int] = {}
        self.regrets: frozenset[int] = frozenset()
        self._chooser = chooser
        self._place = place
        self._held: dict[tuple[int, int], list[Held]] = {}
        self._transfers = 0
        for buffer in graph.buffers:
            self.nodes.reserve(buffer.name)
        for buffer in graph.buffers:
            if buffer.kind in LASTING_KINDS or buffer.id in chooser.found.fixed:
                self._keep(buffer)

    def run(self) -> None:
        """Add all methods."""
        for method in self.graph.methods:
            self.nodes.begin(method.name)
            self._held.clear()
            for buffer in self.graph.buffers:
                if buffer.kind in LASTING_KINDS:
                    self._hold_stored(buffer, buffer.name)
            for node in method.nodes:
                self._add(method, node)

    def _keep(self, buffer: Buffer) -> None:
        """Give this rank its part of a buffer."""
        if self._place.stage in self.homes[buffer.id]:
            box = part(self.stored[buffer.id], buffer.shape, self._place.at)
            self.local[buffer.id] = self.nodes.store(buffer, box)

    def _hold_stored(self, buffer: Buffer, source: str) -> None:
        """Forget all forms of a buffer but that in which it is kept."""
        for key in [key for key in self._held if key[0] == buffer.id]:
            del self._held[key]
        layout = Layout(self.stored[buffer.id])
        for stage in self.homes[buffer.id]:
            here = self.local.get(buffer.id, -1) if stage == self._place.stage else -1
            self._held[buffer.id, stage] = [Held(layout, here, self.nodes.step, source)]

    def _whole(self, buffer: Buffer) -> Whole:
        return Whole(buffer.name, buffer.shape, buffer.dtype)

    # Nodes.

    def _add(self, method: GraphMethod, node: Node) -> None:
        effect = OPS[node.op].effect
        stages: Sequence[int] = (node.stage if len(self._place.group((STAGE_AXIS,))) > 1 else 0,)
        if effect in ("stop", "command"):
            stages = self.homes[node.output.buffer]
        if effect == "stop":
            for view in node.inputs:
                self._share_with_all(view, node, stages)
        for stage in stages:
            self.nodes.step += 1
            self.nodes.stage = stage
            self._compute(method, node, stage)

    def _compute(self, method: GraphMethod, node: Node, stage: int) -> None:
        """Add a node on the ranks of a stage."""
        target = self.graph.buffers[node.output.buffer]
        is_fixed = target.id in self._chooser.found.fixed
        sink = None
        if is_fixed:
            sink = self._seen(node.output).cuts
        helds = tuple(tuple(self._forms(view.buffer, stage, node)) for view in node.inputs)
        is_kept = not is_fixed and target.kind == "activation"
        choice = self._chooser.choose(Work(method.name, node, helds, sink, is_kept))
        inputs = tuple(
            self._fetched(view, fetch, stage, node)
            for view, fetch in zip(node.inputs, choice.fetches, strict=True)
        )
        if is_fixed:
            self._write(node, choice, inputs, stage)
        else:
            self._make(node, choice, inputs, stage)

    def _make(self, node: Node, choice: Choice, inputs: tuple[View, ...], stage: int) -> None:
        """Compute a result that is cut as it comes."""
        buffer, layout = self.graph.buffers[node.output.buffer], choice.layout
        is_here = stage == self._place.stage
        self.stored[buffer.id] = layout.cuts
        is_open = bool(layout.partial) and buffer.kind == "output"
        made, into = -1, None
        if is_here:
            box = part(layout.cuts, buffer.shape, self._place.at)
            self.local[buffer.id] = self.nodes.store(buffer, box)
            into = self.nodes.all_of(self.local[buffer.id])
            view = into
            if is_open:
                view = self.nodes.temporary(f"{buffer.name}.part", into.shape, buffer.dtype)
            self._emit(node, choice, inputs, view, stage)
            made = view.buffer
        held = Held(layout, made, self.nodes.step, f"{node.op} {node.name!r}")
        if is_open:
            held = self._moved(
                self._whole(buffer), held, route(layout, layout.cuts), stage, node, into
            )
        self._held[buffer.id, stage] = [held]

    def _write(self, node: Node, choice: Choice, inputs: tuple[View, ...], stage: int) -> None:
        """Compute a result into a buffer that is cut already."""
        buffer = self.graph.buffers[node.output.buffer]
        homes, seen = self.homes[buffer.id], self._seen(node.output)
        home = stage if stage in homes else homes[0]
        is_same = choice.layout == Layout(seen.cuts)
        is_direct = is_same and not seen.holders and stage == home
        target = self._target(node.output, buffer) if self._place.stage == home else None
        if is_direct and (target is None or not self._overwrites(node, inputs, target)):
            if target is not None:
                self._emit(node, choice, inputs, target, stage)
        else:
            self._write_copy(node, choice, inputs, (stage, home), target)
        self._hold_stored(buffer, f"{node.op} {node.name!r}")

    def _write_copy(
        self,
        node: Node,
        choice: Choice,
        inputs: tuple[View, ...],
        stages: tuple[int, int],
        target: View | None,
    ) -> None:
        """Compute a result by itself, then bring each rank its part."""
        layout, seen = choice.layout, self._seen(node.output)
        stage, home = stages
        made, spec = -1, Whole(node.name, node.output.shape, node.output.dtype)
        if self._place.stage == stage:
            shape = box_shape(part(layout.cuts, spec.shape, self._place.at))
            view = self.nodes.temporary(f"{node.name}.{node.op}", shape, spec.dtype)
            self._emit(node, choice, inputs, view, stage)
            made = view.buffer
        held = Held(layout, made, self.nodes.step, f"{node.op} {node.name!r}")
        if stage != home:
            held = self._transferred(spec, held, (stage, home), node)
            self.nodes.step += 1
        moves = route(layout, seen.cuts)
        is_exact = moves and moves[-1].after == Layout(seen.cuts) and not seen.holders
        into = target if is_exact else None
        held = self._moved(spec, held, moves, home, node, into)
        if not is_exact and target is not None and 0 not in target.shape:
            box = part(held.layout.cuts, spec.shape, self._place.at)
            wanted = part(seen.cuts, spec.shape, self._place.at)
            self.nodes.copy(narrowed(self.nodes.all_of(held.buffer), box, wanted), target)

    def _seen(self, view: View) -> Window:
        """How an output view is cut where its buffer is."""
        seen = window(view, self.graph.buffers[view.buffer].shape, self.stored[view.buffer])
        assert seen is not None, "buffers are not cut where they can't be written"
        return seen

    def _target(self, view: View, buffer: Buffer) -> View:
        """The part of an output view that this rank keeps; empty where it has none."""
        cuts, at, seen = self.stored[buffer.id], self._place.at, self._seen(view)
        box = part(seen.cuts, view.shape, at)
        if not box_size(box) or not all(has[at[axis]] for axis, has in seen.holders):
            return View(-1, view.dtype, 0, (0,), (1,))
        return local_view(view, buffer.shape, cuts, at, self.local[buffer.id])

    def _overwrites(self, node: Node, inputs: Sequence[View], target: View) -> bool:
        """Whether tiles would read what their neighbours already wrote."""
        shape = self.nodes.buffers[target.buffer].shape
        return any(
            view.buffer == target.buffer
            and not (view == target and reads_in_place(OPS[node.op], position))
            and boxes_overlap(view.whole(shape).box, target.whole(shape).box)
            for position, view in enumerate(inputs)
        )

    def _emit(
        self, node: Node, choice: Choice, inputs: tuple[View, ...], output: View, stage: int
    ) -> None:
        """Add this rank's own node, unless there is nothing to compute."""
        at, op = self._place.at, OPS[node.op]
        box = part(choice.layout.cuts, node.output.shape, at)
        if not box_size(box):
            return
        after = self._after(node, stage)
        if any(self._is_empty(choice, name) for name in choice.contracted):
            reduce = choice.layout.partial[0][1]
            nothing = self.nodes.filled(output.shape, output.dtype, reduce)
            self.nodes.add("copy", (nothing,), output, {}, after=after)
            return
        attrs = node.attributes
        if choice.cuts and op.localize is not None:
            boxes = tuple(
                part(fetch.wanted, view.shape, at)
                for view, fetch in zip(node.inputs, choice.fetches, strict=True)
            )
            attrs = op.localize(node.input_specs, node.output.spec, attrs, boxes, box)
        self.nodes.add(node.op, inputs, output, attrs, after=after)

    def _is_empty(self, choice: Choice, name: str) -> bool:
        cut = choice.cuts[name]
        start, stop = cut.bounds[self._place.at[cut.axis]]
        return start >= stop

    def _after(self, node: Node, stage: int) -> tuple[View, ...]:
        """What this rank has of the tensors that a node comes after."""
        forms = (self._held.get((view.buffer, stage), []) for view in node.after)
        views = (self.nodes.all_of(held[0].buffer) for held in forms if held)
        return tuple(dict.fromkeys(view for view in views if 0 not in view.shape))

    # Inputs.

    def _forms(self, buffer: int, stage: int, node: Node) -> list[Held]:
        """The forms that a stage has of a buffer; at first what its home sends."""
        if (buffer, stage) not in self._held:
            home = self.homes[buffer][0]
            forms = self._held[buffer, home]
            held = next((form for form in forms if not form.layout.partial), forms[0])
            whole = self._whole(self.graph.buffers[buffer])
            self._held[buffer, stage] = [self._transferred(whole, held, (home, stage), node)]
        return self._held[buffer, stage]

    def _fetched(self, view: View, fetch: Fetch, stage: int, node: Node) -> View:
        """Bring an input to the ranks that need it; returns what this rank reads."""
        buffer, at = self.graph.buffers[view.buffer], self._place.at
        held = self._brought(buffer, fetch, stage, node)
        if stage != self._place.stage:
            return view
        box = part(fetch.wanted, view.shape, at)
        if not box_size(box):
            return self.nodes.zeros(box_shape(box), view.dtype)
        seen = window(view, buffer.shape, held.layout.cuts)
        assert seen is not None, "fetches show what is wanted"
        local = local_view(view, buffer.shape, held.layout.cuts, at, held.buffer)
        return narrowed(local, part(seen.cuts, view.shape, at), box)

    def _brought(self, buffer: Buffer, fetch: Fetch, stage: int, node: Node) -> Held:
        """The form that a fetch makes, or has."""
        forms = self._held[buffer.id, stage]
        # Another input of the node may have made it by now.
        held = next((form for form in forms if form.layout == fetch.layout), None)
        if held is None:
            if buffer.kind in GIVEN_KINDS and buffer.shard is None:
                self.regrets |= {buffer.id}
            held = self._moved(self._whole(buffer), fetch.held, fetch.moves, stage, node, None)
            forms.append(held)
        return held

    # Communication.

    def _moved(
        self,
        whole: Whole,
        held: Held,
        moves: Sequence[Move],
        stage: int,
        node: Node,
        into: View | None,
    ) -> Held:
        """Do moves one after the other; the last one writes `into`, if that is given."""
        for number, move in enumerate(moves):
            self.nodes.step += 1
            made = -1
            if stage == self._place.stage:
                last = into if number == len(moves) - 1 else None
                made = self.nodes.communicate(whole, move, held.buffer, last).buffer
                text = f"{whole.name} {move.reason} after {held.source}"
                self.nodes.note(f"{node.op} {node.name!r}", move, whole, text)
            held = Held(move.after, made, self.nodes.step, held.source)
        return held

    def _transferred(self, whole: Whole, held: Held, stages: tuple[int, int], node: Node) -> Held:
        """Send a tensor to the ranks of another stage, right after it was made."""
        self._transfers += 1
        source, target = stages
        own, made, group = self._place.stage, -1, {"tag": self._transfers % (MAX_TAG + 1)}
        shape = box_shape(part(held.layout.cuts, whole.shape, self._place.at))
        at = held.since, self._transfers
        if own == source and 0 not in shape:
            token = self.nodes.temporary(f"{whole.name}.send", (1,), UINT8)
            peer = {"dst": self._place.at_stage(target)}
            sent = (self.nodes.all_of(held.buffer),)
            self.nodes.exchange("send", sent, token, {**group, **peer}, at)
        elif own == target:
            view = self.nodes.temporary(f"{whole.name}.recv", shape, whole.dtype)
            made = view.buffer
            what: dict[str, AttrValue] = {
                "shape": shape,
                "dtype": whole.dtype.name,
                "src": self._place.at_stage(source),
            }
            if 0 not in shape:
                self.nodes.exchange("recv", (), view, {**group, **what}, at)
        if own in stages and 0 not in shape:
            ranks = tuple(sorted(self._place.at_stage(stage) for stage in stages))
            op = "send" if own == source else "recv"
            size = prod(shape) * whole.dtype.itemsize * (op == "recv")
            reason = f"{whole.name} of stage {source} is needed in stage {target}"
            self.nodes.notes.append(Note(f"{node.op} {node.name!r}", op, ranks, size, reason))
        return Held(held.layout, made, held.since, held.source)

    def _share_with_all(self, view: View, node: Node, stages: Sequence[int]) -> None:
        """Give all stages what one of them has."""
        buffer = self.graph.buffers[view.buffer]
        home = self.homes[buffer.id][0]
        if len(stages) == 1 or len(self.homes[buffer.id]) == len(stages):
            return
        self.nodes.stage = home
        forms = self._held[buffer.id, home]
        fetch = self._chooser.fetch(view, forms, whole(view.shape), frozenset())
        held = self._brought(buffer, fetch, home, node)
        self.nodes.step += 1
        group = self._place.group((STAGE_AXIS,))
        shape = box_shape(part(held.layout.cuts, buffer.shape, self._place.at))
        is_home = self._place.stage == home
        given = self.nodes.all_of(held.buffer) if is_home else self.nodes.zeros(shape, view.dtype)
        made = self.nodes.temporary(f"{buffer.name}.broadcast", shape, view.dtype)
        attrs: dict[str, AttrValue] = {"ranks": group, "root": self._place.at_stage(home)}
        self.nodes.exchange("broadcast", (given,), made, attrs)
        reason = f"{buffer.name} of stage {home} is needed in all stages"
        size = prod(shape) * view.dtype.itemsize
        self.nodes.notes.append(Note(f"{node.op} {node.name!r}", "broadcast", group, size, reason))
        for stage in stages:
            if stage != home:
                here = made.buffer if stage == self._place.stage else -1
                form = Held(held.layout, here, self.nodes.step, held.source)
                self._held[buffer.id, stage] = [form]


def _homes(graph: Graph, stages: int) -> dict[int, tuple[int, ...]]:
    """The stages that keep each buffer: that which writes it, else all that read it."""
    every = tuple(range(stages))
    if stages == 1:
        return {buffer.id: every for buffer in graph.buffers}
    found: dict[int, tuple[int, ...]] = {}
    readers: dict[int, set[int]] = {buffer.id: set() for buffer in graph.buffers}
    for method in graph.methods:
        for node in method.nodes:
            effect = OPS[node.op].effect
            for view in node.inputs:
                readers[view.buffer].update(every if effect == "stop" else (node.stage,))
            if effect != "command":
                found.setdefault(node.output.buffer, every if effect == "stop" else (node.stage,))
    # What nobody reads stays in the first stage.
    return {b: found.get(b) or tuple(sorted(read)) or (0,) for b, read in readers.items()}
