"""The plan: everything a rank's kernel will do, decided ahead of time."""

from dataclasses import dataclass

from ark_dist.core.graph import HOST, Buffer, Node
from ark_dist.core.target import Target
from ark_dist.core.task import Group, Task

PLAN_VERSION = 1
ARENAS = ("weights", "state", "io", "activations", "symmetric")
ALIGNMENT_BYTES = 256
ARENA_OF_KIND = {
    "weight": "weights",
    "constant": "weights",
    "state": "state",
    "input": "io",
    "output": "io",
    "activation": "activations",
}


def arena_of(buffer: Buffer) -> str:
    """The arena that a buffer lies in: what other ranks reach is in the symmetric one."""
    return "symmetric" if buffer.export else ARENA_OF_KIND[buffer.kind]


@dataclass(frozen=True, slots=True)
class Counter:
    """A set of signalling tasks; its value only grows, `signals` per turn.

    Attributes:
        id: its position in the method's counter list.
        kind: "clock" (one worker's queue) or "group" (the tasks of one group).
        owner: the worker or the group.
        signals: how many tasks raise it in one turn.
    """

    id: int
    kind: str
    owner: int
    signals: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold a task until `counter` has `threshold` signals of the turn `turns_back` ago.

    In turn u the counter's value must reach (u - turns_back) * signals + threshold;
    a need of 0 or less is met.
    """

    counter: int
    threshold: int
    turns_back: int


@dataclass(frozen=True, slots=True)
class Method:
    """One entry point, planned.

    Attributes:
        name: the user's name for it.
        nodes: the rank's nodes, in build order.
        groups: fused nodes, in the order their tasks were made.
        tasks: all tiles, by id.
        queues: for each worker, its task ids, increasing.
        counters: what tasks raise.
        signals: for each task, the counter it raises when done.
        waits: for each task, what holds it.
        stop_task: the task that may end a run early, or None.
        depth: how many turns may be under way before the oldest one's decision is known.
    """

    name: str
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...]
    tasks: tuple[Task, ...]
    queues: tuple[tuple[int, ...], ...]
    counters: tuple[Counter, ...]
    signals: tuple[int, ...]
    waits: tuple[tuple[Wait, ...], ...]
    stop_task: int | None
    depth: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer lies: the arena, and bytes from its start."""

    arena: str
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One rank's program for one target; the only thing that passes from deciding to doing.

    Attributes:
        version: of this format; a reader refuses any other.
        name: the program's name.
        rank, world_size: whose plan it is.
        target: the device it was made for.
        buffers: all buffers of the rank, by id.
        places: where each buffer lies, by id; methods share weights, state and io.
        arena_bytes: size of each arena, in the order of `ARENAS`.
        methods: the entry points.
    """

    version: int
    name: str
    rank: int
    world_size: int
    target: Target
    buffers: tuple[Buffer, ...]
    places: tuple[Place, ...]
    arena_bytes: tuple[int, ...]
    methods: tuple[Method, ...]

    def method(self, name: str) -> Method:
        """The method called `name`; ValueError lists what there is."""
        for method in self.methods:
            if method.name == name:
                return method
        known = ", ".join(m.name for m in self.methods)
        raise ValueError(f"method {name!r} is not in the program; there are {known}")

    @property
    def method_names(self) -> tuple[str, ...]:
        """The names of all methods."""
        return tuple(m.name for m in self.methods)

    def __str__(self) -> str:
        from ark_dist.core.plan_text import plan_text

        return plan_text(self)


def own_flags(method: Method) -> tuple[str, ...]:
    """The flags that lie on this rank: those it waits for, and those that its host looks at."""
    awaited = (flag for node in method.nodes for flag in node.waits)
    asked = (item.flag for node in method.nodes for item in node.raises if item.rank == HOST)
    return (*awaited, *asked)


def peer_buffers(plan: Plan) -> tuple[int, ...]:
    """Ids of the buffers that lie on other ranks, in order."""
    return tuple(buffer.id for buffer in plan.buffers if buffer.kind == "peer")
