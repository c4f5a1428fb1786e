"""Check a graph against the rules every later stage relies on."""

from collections.abc import Iterator

from ark_dist.core.dtype import DTYPES
from ark_dist.core.errors import PlanError
from ark_dist.core.graph import BUFFER_KINDS, WRITABLE_KINDS, Buffer, Graph, GraphMethod, Node
from ark_dist.core.op import OPS, Op, reads_in_place
from ark_dist.core.shape import MAX_DIMS, MAX_ELEMENTS, boxes_overlap
from ark_dist.core.verify_packing import packed_read_problems, packing_problems
from ark_dist.core.view import View

# What some node has to write before others read it.
MADE_KINDS = ("activation", "output", "peer")
# Attributes of other annotations are checked by their operators.
ATTRIBUTE_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
}


def verify_graph(graph: Graph) -> None:
    """Raise PlanError naming the first rule the graph breaks, and where."""
    for problem in graph_problems(graph):
        raise PlanError(f"graph {graph.name!r}: {problem}")


def graph_problems(graph: Graph) -> Iterator[str]:
    """Yield every broken rule as a sentence."""
    yield from buffer_problems(graph.buffers)
    names = [m.name for m in graph.methods]
    if len(set(names)) != len(names):
        yield f"two methods have one name: {names}"
    for method in graph.methods:
        yield from method_problems(graph.buffers, method)


def method_problems(
    buffers: tuple[Buffer, ...], method: GraphMethod, *, is_plan: bool = False
) -> Iterator[str]:
    """Yield the broken rules of one method's nodes, of a graph or, with `is_plan`, of a plan."""
    written: set[int] = set()
    stops = 0
    for position, node in enumerate(method.nodes):
        where = f"method {method.name!r}, node {position} ({node.op} {node.name!r})"
        if node.id != position:
            yield f"{where}: its id is {node.id}"
        problems = list(_node_problems(buffers, node, is_plan))
        yield from (f"{where}: {p}" for p in problems)
        if problems:
            return
        for view in (*node.inputs, *node.after):
            buffer = buffers[view.buffer]
            if buffer.kind in MADE_KINDS and view.buffer not in written:
                yield f"{where}: reads {buffer.name!r} before anything wrote it"
        for view in node.writes:
            target = buffers[view.buffer]
            if target.method not in (None, method.name):
                yield f"{where}: writes {target.name!r} of method {target.method!r}"
            written.add(view.buffer)
        stops += OPS[node.op].effect == "stop"
    if stops > 1:
        yield f"method {method.name!r} has {stops} stop operators; one may decide"
    flags = [flag for node in method.nodes for flag in node.waits]
    if len(set(flags)) != len(flags):
        yield f"method {method.name!r}: two handshakes wait for one flag"
    raised = [item for node in method.nodes for item in node.raises]
    if len(set(raised)) != len(raised):
        yield f"method {method.name!r}: two handshakes raise one flag"


def buffer_problems(buffers: tuple[Buffer, ...]) -> Iterator[str]:
    """Yield the broken rules of buffers."""
    names = set()
    for position, buffer in enumerate(buffers):
        where = f"buffer {position} ({buffer.name!r})"
        if buffer.id != position:
            yield f"{where}: its id is {buffer.id}"
        if buffer.name in names:
            yield f"{where}: the name is taken"
        names.add(buffer.name)
        if buffer.kind not in BUFFER_KINDS:
            yield f"{where}: kind {buffer.kind!r} is not one of {BUFFER_KINDS}"
        if (buffer.kind == "peer") != (buffer.peer >= 0):
            yield f"{where}: is of kind {buffer.kind!r} and lies on rank {buffer.peer}"
        if buffer.kind == "peer" and not buffer.export:
            yield f"{where}: names nothing that rank {buffer.peer} has"
        if DTYPES.get(buffer.dtype.name) != buffer.dtype:
            yield f"{where}: dtype {buffer.dtype!r} is unknown"
        if len(buffer.shape) > MAX_DIMS or any(s < 0 for s in buffer.shape):
            yield f"{where}: shape {buffer.shape} is out of range"
            continue
        if buffer.packing:
            problems = list(packing_problems(buffer))
            yield from (f"{where}: {problem}" for problem in problems)
            # Its size is not known then.
            if problems:
                continue
        count = 1
        for size in buffer.shape:
            count *= max(size, 1)
        if count > MAX_ELEMENTS or not 1 <= buffer.slots <= 64:
            yield f"{where}: {count} elements in {buffer.slots} slots are too many"
        elif buffer.initial is not None and len(buffer.initial) * buffer.slots != buffer.size_bytes:
            yield f"{where}: {len(buffer.initial)} initial bytes for {buffer.size_bytes}"


def _node_problems(buffers: tuple[Buffer, ...], node: Node, is_plan: bool) -> Iterator[str]:
    op = OPS.get(node.op)
    if op is None or (op.kernel is None and op.effect != "communication"):
        yield "the operator is unknown"
        return
    if is_plan and op.effect == "communication":
        yield "it moves data between ranks; a plan has the handshakes and copies it is made of"
        return
    for view in (*node.inputs, *node.writes, *node.after):
        problem = view_problem(buffers, view)
        if problem:
            yield problem
            return
    arguments = list(_argument_problems(op, node))
    if arguments:
        yield from arguments
        return
    try:
        spec = op.infer(node.input_specs, node.attributes)
    except Exception as error:  # attributes of a plan file may be anything
        yield f"the operator refuses its inputs: {type(error).__name__}: {error}"
        return
    if op.effect != "handshake" and (node.takes or node.waits or node.raises):
        yield "only a handshake takes views over, or waits for flags and raises them"
    # The command's scalar takes the shape and dtype of the state it sets.
    if op.effect != "command" and spec != node.output.spec:
        yield f"writes {node.output.spec} where the operator makes {spec}"
    for view in node.writes:
        target = buffers[view.buffer]
        if target.kind not in WRITABLE_KINDS:
            yield f"writes {target.name!r}, which is {target.kind}"
    if any(n > 1 and s == 0 for n, s in zip(node.output.shape, node.output.strides, strict=True)):
        yield f"writes a broadcast view of {buffers[node.output.buffer].name!r}"
    yield from packed_read_problems(buffers, node)
    yield from _alias_problems(buffers, op, node)


def _argument_problems(op: Op, node: Node) -> Iterator[str]:
    """Yield what does not fit the operator's signature; its rules rely on it."""
    most = sum(a.is_tensor for a in op.arguments)
    least = most - sum(a.is_optional for a in op.arguments)
    # An operator of any number of tensors checks them itself.
    is_open = any("Sequence[Tensor]" in a.annotation for a in op.arguments)
    if not least <= len(node.inputs) <= most and not is_open:
        takes = f"{least} to {most}" if least < most else f"{most}"
        yield f"it has {len(node.inputs)} inputs; {op.name} takes {takes}"
    wanted = {a.name: a.annotation for a in op.arguments if not a.is_tensor and not a.is_list}
    if op.effect == "command":
        wanted["name"] = "str"
    names = [name for name, _ in node.attrs]
    if names != sorted(wanted):
        yield f"its attributes are {names}; {op.name} takes {sorted(wanted)}"
        return
    for name, value in node.attrs:
        types = ATTRIBUTE_TYPES.get(wanted[name])
        if types is not None and type(value) not in types:
            yield f"attribute {name!r} is {value!r}; it must be {wanted[name]}"


def _alias_problems(buffers: tuple[Buffer, ...], op: Op, node: Node) -> Iterator[str]:
    shape = buffers[node.output.buffer].shape
    for position, view in enumerate(node.inputs):
        same = view == node.output and reads_in_place(op, position)
        if (
            view.buffer == node.output.buffer
            and not same
            and boxes_overlap(view.whole(shape).box, node.output.whole(shape).box)
        ):
            yield f"reads and writes overlapping parts of {buffers[view.buffer].name!r}"


def view_problem(buffers: tuple[Buffer, ...], view: View) -> str | None:
    """What is wrong with a view, or None: it must stay inside its buffer."""
    if not 0 <= view.buffer < len(buffers):
        return f"buffer {view.buffer} does not exist"
    buffer = buffers[view.buffer]
    if view.dtype != buffer.dtype:
        return f"views {buffer.name!r} of {buffer.dtype} as {view.dtype}"
    if len(view.shape) != len(view.strides) or len(view.shape) > MAX_DIMS:
        return f"view of {buffer.name!r} has shape {view.shape} and strides {view.strides}"
    if view.offset < 0 or any(v < 0 for v in (*view.shape, *view.strides)):
        return f"view of {buffer.name!r} has a negative offset, size or stride"
    count = 1
    for size in buffer.shape:
        count *= size
    empty = any(size == 0 for size in view.shape)
    last = view.offset + sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
    if not empty and last >= count:
        return f"view of {buffer.name!r} reaches element {last} of {count}"
    return None
