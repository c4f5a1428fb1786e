"""Name the messages of a graph, so that all ranks call the same one by the same name."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ark_dist.core.graph import Graph, GraphMethod, Node
from ark_dist.core.op import OPS, AttrValue

POINT_TO_POINT = ("send", "recv", "send_done")
# Attributes that say where this rank stands, and so differ between ranks.
OWN_ATTRIBUTES = ("rank",)


@dataclass(frozen=True, slots=True)
class Message:
    """One use of a communication operator.

    Attributes:
        key: its name, equal on all ranks that take part: the method, who takes part, and how
            many of the like came before it.
        ranks: who takes part, in increasing order.
    """

    key: str
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FlagName:
    """What a flag's name says.

    Attributes:
        key: the message it belongs to.
        op: the message's operator; "send" for both sides of one.
        phase: what is done: ready, taken, arrived, here; ask or done between kernel and host.
        rank: who raises it, -1 for this rank's host.
    """

    key: str
    op: str
    phase: str
    rank: int


def named_key(key: str, op: str) -> str:
    """A message's key with its operator, as flags' names begin."""
    return f"{key}:{'send' if op in POINT_TO_POINT else op}"


def read_flag(flag: str) -> FlagName:
    """Take the name of a flag apart."""
    head, _, last = flag.rpartition(".")
    phase, rank = last, -1
    if last.isdecimal():
        head, _, phase = head.rpartition(".")
        rank = int(last)
    key, _, op = head.rpartition(":")
    return FlagName(key, op, phase, rank)


def flag_text(flag: str) -> str:
    """For whom and what one waits, such as `rank 1 ('ready' of all_reduce forward/0-1#0)`."""
    name = read_flag(flag)
    who = "the host" if name.rank < 0 else f"rank {name.rank}"
    return f"{who} ({name.phase!r} of {name.op} {name.key})"


@dataclass(frozen=True, slots=True)
class Call:
    """What one rank says about a message; all that take part must say the same.

    Attributes:
        key: the message's.
        ranks: who takes part.
        op: the operator's name.
        what: dtype, shape and attributes, as text.
        node: the name of the result.
    """

    key: str
    ranks: tuple[int, ...]
    op: str
    what: str
    node: str


def messages(method: GraphMethod, rank: int, world_size: int) -> Iterator[Message | None]:
    """Yield the message of every node, None for nodes that are none."""
    counts: dict[str, int] = {}
    open_sends: dict[str, deque[Message]] = {}
    for node in method.nodes:
        if OPS[node.op].effect != "communication":
            yield None
            continue
        group = _group(node, rank, world_size)
        base = f"{method.name}/{_route(node, rank, group)}"
        if node.op == "send_done":
            waiting = open_sends.get(base)
            if not waiting:
                raise ValueError(
                    f"send_done {node.name!r} (dst={node.attributes['dst']}, "
                    f"tag={node.attributes['tag']}) has no send before it that is not done yet"
                )
            yield waiting.popleft()
            continue
        number = counts[base] = counts.get(base, -1) + 1
        message = Message(f"{base}#{number}", group)
        if node.op == "send":
            open_sends.setdefault(base, deque()).append(message)
        yield message


def _group(node: Node, rank: int, world_size: int) -> tuple[int, ...]:
    attrs = node.attributes
    if node.op in POINT_TO_POINT:
        peer = attrs["src"] if node.op == "recv" else attrs["dst"]
        assert isinstance(peer, int)
        return tuple(sorted((rank, peer)))
    ranks = attrs["ranks"]
    assert isinstance(ranks, tuple)
    return ranks or tuple(range(world_size))


def _route(node: Node, rank: int, group: tuple[int, ...]) -> str:
    attrs = node.attributes
    if node.op == "recv":
        return f"{attrs['src']}>{rank}.{attrs['tag']}"
    if node.op in POINT_TO_POINT:
        return f"{rank}>{attrs['dst']}.{attrs['tag']}"
    return "-".join(map(str, group))


def calls(graph: Graph, rank: int, world_size: int) -> tuple[Call, ...]:
    """What a rank says about its messages, in the order of its nodes."""
    result = []
    for method in graph.methods:
        found = messages(method, rank, world_size)
        for node, message in zip(method.nodes, found, strict=True):
            if message is not None:
                result.append(
                    Call(message.key, message.ranks, node.op, _described(node), node.name)
                )
    return tuple(result)


def _described(node: Node) -> str:
    view = node.inputs[0] if node.inputs and node.op != "send_done" else node.output
    text = f"{view.dtype}{_shape_text(node, view.shape)}"
    skipped = (*OWN_ATTRIBUTES, *(("dst", "src", "dtype", "shape") if _is_sent(node) else ()))
    attrs = [f"{name}={value!r}" for name, value in node.attrs if name not in skipped]
    return ", ".join([text, *attrs])


def _is_sent(node: Node) -> bool:
    return node.op in POINT_TO_POINT


def _shape_text(node: Node, shape: tuple[int, ...]) -> str:
    """The shape, without what may differ between ranks."""
    if node.op == "redistribute":
        return f"[{len(shape)} dimensions]"
    cuts: AttrValue = node.attributes.get("cuts", ())
    if node.op == "all_gather" and cuts:
        axis = node.attributes["axis"]
        assert isinstance(axis, int)
        return str(["..." if d == axis % len(shape) else n for d, n in enumerate(shape)])
    return str(list(shape))


def disagreement(by_rank: Mapping[int, Sequence[Call]]) -> str | None:
    """Say where ranks disagree about their messages, or None.

    MPI and NCCL compare nothing: counts, dtypes or reductions that differ give wrong numbers.
    """
    said = {rank: {c.key: c for c in made if c.op != "send_done"} for rank, made in by_rank.items()}
    for rank, made in said.items():
        for call in made.values():
            for other in call.ranks:
                if other == rank:
                    continue
                if other not in said:
                    return f"rank {rank}: {_text(call)}: there is no rank {other}"
                problem = _difference(rank, call, other, said[other].get(call.key))
                if problem is not None:
                    return problem
    return _stuck(by_rank)


def _difference(rank: int, call: Call, other: int, answer: Call | None) -> str | None:
    mine = f"rank {rank}: {_text(call)}"
    if answer is None:
        missing = {"send": "recv", "recv": "send"}.get(call.op, call.op)
        return (
            f"{mine}; rank {other} has no such {missing}: do all ranks build the same "
            "communication, with the same tags and in the same order?"
        )
    is_pair = {call.op, answer.op} == {"send", "recv"}
    if not is_pair and call.op != answer.op:
        return f"{mine}; rank {other}: {_text(answer)}: another operator"
    if call.what != answer.what:
        return f"{mine}; rank {other}: {_text(answer)}: they must be the same"
    return None


def _text(call: Call) -> str:
    return f"{call.op} {call.node!r} ({call.what}) as message {call.key}"


def _stuck(by_rank: Mapping[int, Sequence[Call]]) -> str | None:
    """Say who would wait for whom for ever, walking all ranks' messages in their order.

    A send goes on at once; a recv needs its send, a send_done its recv, all others everybody.
    """
    position = dict.fromkeys(by_rank, 0)
    come: dict[str, set[tuple[int, str]]] = {}
    is_moving = True
    while is_moving:
        is_moving = False
        for rank, made in by_rank.items():
            while position[rank] < len(made):
                call = made[position[rank]]
                here = come.setdefault(call.key, set())
                here.add((rank, call.op))
                if not _can_pass(call, rank, here):
                    break
                position[rank] += 1
                is_moving = True
    waiting = {r: made[position[r]] for r, made in by_rank.items() if position[r] < len(made)}
    if not waiting:
        return None
    lines = (f"rank {rank} waits in {_text(call)}" for rank, call in waiting.items())
    return f"no rank could go on: {'; '.join(lines)}; change the order on one of them"


def _can_pass(call: Call, rank: int, here: set[tuple[int, str]]) -> bool:
    if call.op == "send":
        return True
    others = [r for r in call.ranks if r != rank]
    if call.op == "recv":
        return (others[0], "send") in here
    if call.op == "send_done":
        return (others[0], "recv") in here
    return {r for r, _ in here} >= set(call.ranks)
