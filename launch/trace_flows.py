"""Find in what a rank's workers did the messages between ranks, as arrows of a trace."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ark_dist.core.graph import HOST, Node
from ark_dist.core.message import read_flag
from ark_dist.core.plan import Method, Plan
from ark_dist.launch.trace import NS_PER_US, Row, TraceEvent

# Ids are integers that doubles hold exactly, as JSON's readers may use them.
ID_BITS = 53
ID_BYTES = 7
DONE = ".done"


@dataclass(frozen=True, slots=True)
class Arrow:
    """A message of every turn, from a task of one rank to a task of another.

    Attributes:
        flag: the flag that tells of it.
        source: the rank that it comes from.
        target: the rank that waits for it.
    """

    flag: str
    source: int
    target: int

    @property
    def name(self) -> str:
        """The operator and the message's key."""
        flag = read_flag(self.flag)
        return f"{flag.op} {flag.key}"

    def number(self, launch: str, turn: int) -> int:
        """The id that both of its ends have in one turn of one launch of a program."""
        text = f"{launch} {turn} {self.source} {self.target} {self.flag}"
        digest = hashlib.blake2b(text.encode(), digest_size=ID_BYTES).digest()
        return int.from_bytes(digest, "big") >> (8 * ID_BYTES - ID_BITS)


def flows(
    plan: Plan,
    events: Sequence[TraceEvent],
    launch: str,
    *,
    first_tid: int = 0,
    shift_ns: int = 0,
) -> Iterator[Row]:
    """Yield the ends of arrows at this rank: "s" in tasks that raise flags, "f" in those that wait.

    `launch` is what all ranks call this launch of the program.
    """
    ends = [_ends_by_task(method, plan.rank) for method in plan.methods]
    for event in events:
        for arrow in ends[event.method].get(event.task, ()):
            # At the end of a slice it may be taken for over. Readers drop an arrow that ends
            # before it begins, which clocks of two ranks may make of a quick one.
            is_start = arrow.source == plan.rank
            phase: Row = {"ph": "s"} if is_start else {"ph": "f", "bp": "e"}
            at_ns = event.start_ns if is_start else (event.start_ns + event.end_ns) / 2
            yield {
                **phase,
                "cat": "message",
                "name": arrow.name,
                "id": arrow.number(launch, event.turn),
                "pid": plan.rank,
                "tid": first_tid + event.worker,
                "ts": (at_ns + shift_ns) / NS_PER_US,
                "args": {
                    "from": arrow.source,
                    "to": arrow.target,
                    "phase": read_flag(arrow.flag).phase,
                    "turn": event.turn,
                },
            }


def _ends_by_task(method: Method, rank: int) -> dict[int, tuple[Arrow, ...]]:
    """For each task that has any, the arrows that begin or end in it."""
    asked = {str(n.attributes["key"]): n for n in method.nodes if n.op == "request"}
    by_group = {
        group.id: tuple(a for n in group.nodes for a in _ends(method.nodes[n], asked, rank))
        for group in method.groups
    }
    return {task.id: by_group[task.group] for task in method.tasks if by_group[task.group]}


def _ends(node: Node, asked: Mapping[str, Node], rank: int) -> Iterator[Arrow]:
    for item in node.raises:
        if item.rank != HOST:
            yield Arrow(item.flag, rank, item.rank)
    if node.op == "request":
        flag = f"{node.attributes['key']}{DONE}"
        yield from (Arrow(flag, rank, target) for target in _targets(node, rank))
    for flag in node.waits:
        name = read_flag(flag)
        if name.rank >= 0:
            yield Arrow(flag, name.rank, rank)
        else:
            request = asked[flag.removesuffix(DONE)]
            yield from (Arrow(flag, source, rank) for source in _sources(request, rank))


def _targets(request: Node, rank: int) -> tuple[int, ...]:
    """The ranks that the host sends data to for this request."""
    attrs = request.attributes
    if attrs["op"] == "recv" or (attrs["op"] == "broadcast" and attrs["peer"] != rank):
        return ()
    return _others(request, rank)


def _sources(request: Node, rank: int) -> tuple[int, ...]:
    """The ranks that the host gets data from for this request."""
    attrs = request.attributes
    if attrs["op"] == "send":
        return ()
    if attrs["op"] == "broadcast":
        peer = attrs["peer"]
        assert isinstance(peer, int)
        return () if peer == rank else (peer,)
    return _others(request, rank)


def _others(request: Node, rank: int) -> tuple[int, ...]:
    ranks = request.attributes["ranks"]
    assert isinstance(ranks, tuple)
    return tuple(r for r in ranks if r != rank)
