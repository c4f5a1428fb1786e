"""Group nodes that run as one: elementwise chains, epilogues and norm prologues."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ark_dist.core.graph import EFFECT_KINDS, Buffer, Node, frame_of
from ark_dist.core.op import OPS, reads_in_place
from ark_dist.core.target import Target
from ark_dist.core.task import Group
from ark_dist.core.view import View

MAX_GROUP_NODES = 16
# Generated functions address at most this many views of one group.
MAX_GROUP_OPERANDS = 14
MAX_PROLOGUE_USERS = 4
# A norm is recomputed by every column tile of its matmul: worth it for wide ones only.
MIN_PROLOGUE_COLUMNS = 64
ANCHOR_FRAMES = ("row", "reduce", "matmul", "gather")


@dataclass(frozen=True, slots=True)
class _Draft:
    nodes: tuple[int, ...]
    has_anchor: bool


def fuse(
    nodes: Sequence[Node],
    buffers: Sequence[Buffer],
    *,
    is_enabled: bool = True,
    target: Target | None = None,
) -> tuple[Group, ...]:
    """Return groups in the order of their last nodes; every node is in at least one.

    Without a target all is fused that any target can do.
    """
    users = _users(nodes)
    drafts: dict[int, _Draft] = {}
    # For each buffer, the drafts whose last node writes it.
    writers: dict[int, list[int]] = {}
    for node in nodes:
        draft = _Draft((node.id,), frame_of(node) in ANCHOR_FRAMES)
        for view in dict.fromkeys(node.inputs) if is_enabled else ():
            producer = _producer(writers, nodes, view)
            if producer is not None and _can_join(
                draft, drafts[producer], nodes[producer], node, nodes, buffers, users
            ):
                joined = drafts.pop(producer)
                writers[view.buffer].remove(producer)
                draft = _Draft(
                    tuple(sorted({*joined.nodes, *draft.nodes})),
                    joined.has_anchor or draft.has_anchor,
                )
        drafts[node.id] = draft
        writers.setdefault(node.output.buffer, []).append(node.id)
    if is_enabled:
        drafts = _add_prologues(drafts, nodes, buffers, users, target)
    ordered = sorted(drafts)
    return tuple(
        Group(position, drafts[last].nodes, _effect(nodes[last], buffers))
        for position, last in enumerate(ordered)
    )


def materialized(groups: Sequence[Group], nodes: Sequence[Node]) -> frozenset[int]:
    """Ids of the buffers that groups write to memory."""
    return frozenset(nodes[group.nodes[-1]].output.buffer for group in groups)


def _effect(node: Node, buffers: Sequence[Buffer]) -> str:
    effect = OPS[node.op].effect
    if effect == "stop":
        return "stop"
    is_seen = buffers[node.output.buffer].kind in EFFECT_KINDS
    return "effect" if effect == "command" or is_seen else "none"


def _users(nodes: Sequence[Node]) -> dict[int, list[int]]:
    users: dict[int, list[int]] = {}
    for node in nodes:
        for view in (*node.inputs, *node.after, *node.takes):
            users.setdefault(view.buffer, []).append(node.id)
    return users


def _producer(writers: dict[int, list[int]], nodes: Sequence[Node], view: View) -> int | None:
    """The draft whose last node wrote exactly this view, if its buffer has one writer."""
    found = writers.get(view.buffer, [])
    return found[0] if len(found) == 1 and nodes[found[0]].output == view else None


def _can_join(
    draft: _Draft,
    joined: _Draft,
    producer: Node,
    node: Node,
    nodes: Sequence[Node],
    buffers: Sequence[Buffer],
    users: dict[int, list[int]],
) -> bool:
    """Whether the group that ends in `producer` may run inside the one that ends in `node`."""
    members = {*draft.nodes, *joined.nodes}
    return (
        frame_of(node) == "map"
        and frame_of(producer) in (*ANCHOR_FRAMES, "map")
        and buffers[producer.output.buffer].kind == "activation"
        and set(users.get(producer.output.buffer, ())) == {node.id}
        and _reads_only(node, producer.output)
        and producer.output.shape == node.output.shape
        and producer.stage == node.stage
        and not (draft.has_anchor and joined.has_anchor)
        and len(members) <= MAX_GROUP_NODES
        and _operand_count(members, nodes) <= MAX_GROUP_OPERANDS
        and not _is_disturbed(joined, node, nodes)
        and not _aliases_output(members, node, nodes)
    )


def _reads_only(node: Node, made: View) -> bool:
    """Whether a node reads a buffer through this one view."""
    views = (*node.inputs, *node.after)
    return made not in node.after and all(v == made for v in views if v.buffer == made.buffer)


def _operand_count(members: set[int], nodes: Sequence[Node]) -> int:
    made = {nodes[n].output for n in members}
    read = {view for n in members for view in nodes[n].inputs}
    return len(read - made) + 1


def _is_disturbed(joined: _Draft, node: Node, nodes: Sequence[Node]) -> bool:
    """Whether a node between the group and `node` writes what the group reads.

    Joining moves the group's reads to the place of `node`.
    """
    read = {view.buffer for n in joined.nodes for view in nodes[n].inputs}
    between = range(joined.nodes[-1] + 1, node.id)
    return any(view.buffer in read for n in between for view in nodes[n].writes)


def _aliases_output(members: set[int], last: Node, nodes: Sequence[Node]) -> bool:
    """Whether the group would read the buffer it writes through another view.

    Tiles of one group run in any order, so only reading and writing the same element works.
    """
    for n in members:
        op = OPS[nodes[n].op]
        for position, view in enumerate(nodes[n].inputs):
            if view.buffer == last.output.buffer and not (
                view == last.output and reads_in_place(op, position)
            ):
                return True
    return False


def _add_prologues(
    drafts: dict[int, _Draft],
    nodes: Sequence[Node],
    buffers: Sequence[Buffer],
    users: dict[int, list[int]],
    target: Target | None,
) -> dict[int, _Draft]:
    result = dict(drafts)
    draft_of = {n: last for last, draft in drafts.items() for n in draft.nodes}
    for last, draft in drafts.items():
        norm = nodes[last]
        if len(draft.nodes) != 1 or not _is_prologue(norm, nodes, buffers, users):
            continue
        is_narrower = norm.inputs[0].dtype != norm.output.dtype
        matmuls = (nodes[user] for user in users[norm.output.buffer])
        if is_narrower and not all(_takes_wide_rows(matmul, target) for matmul in matmuls):
            continue
        hosts = sorted({draft_of[user] for user in users[norm.output.buffer]})
        if any(_is_disturbed(draft, nodes[h], nodes) for h in hosts):
            continue
        if any(_aliases_output({norm.id}, nodes[h], nodes) for h in hosts):
            continue
        members = ({norm.id, *result[h].nodes} for h in hosts)
        if any(_operand_count(m, nodes) > MAX_GROUP_OPERANDS for m in members):
            continue
        for host in hosts:
            result[host] = replace(result[host], nodes=(norm.id, *result[host].nodes))
        del result[last]
    return result


def _is_prologue(
    norm: Node, nodes: Sequence[Node], buffers: Sequence[Buffer], users: dict[int, list[int]]
) -> bool:
    """Whether all that use a norm are matmuls that can normalize its rows as they read them."""
    consumers = users.get(norm.output.buffer, [])
    kernel = OPS[norm.op].kernel
    return (
        kernel is not None
        and kernel.has_prologue
        and norm.attributes["axis"] in (-1, len(norm.output.shape) - 1)
        and buffers[norm.output.buffer].kind == "activation"
        and sum(n.output.buffer == norm.output.buffer for n in nodes) == 1
        and 0 < len(consumers) <= MAX_PROLOGUE_USERS
        and all(_reads_rows(nodes[c], norm) for c in consumers)
    )


def _takes_wide_rows(matmul: Node, target: Target | None) -> bool:
    """Whether its rows may be of a wider dtype than its weights."""
    kernel = OPS[matmul.op].kernel
    if target is None or kernel is None or kernel.takes_wide_rows is None:
        return True
    specs, attributes = matmul.input_specs, matmul.attributes
    return kernel.takes_wide_rows(specs, matmul.output.spec, attributes, target)


def _reads_rows(matmul: Node, norm: Node) -> bool:
    return (
        frame_of(matmul) == "matmul"
        and matmul.inputs[0] == norm.output
        and norm.output not in (*matmul.inputs[1:], *matmul.after)
        and not matmul.attributes["transpose_input"]
        and matmul.output.shape[:-1] == norm.output.shape[:-1]
        and matmul.output.shape[-1] >= MIN_PROLOGUE_COLUMNS
        and matmul.stage == norm.stage
    )
