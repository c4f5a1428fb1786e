"""Define, once, the records that host and kernel share: NumPy dtypes and the C header."""

from dataclasses import dataclass

import numpy as np

LINE_BYTES = 64
COMMAND_RING = 64
# The method of the command that ends a kernel on a GPU.
EXIT = 0xFFFFFFFF
MAX_SCALARS = 16
MAX_WORKERS = 1024

# Task flags; above them, the slots of the weight stream that a task takes.
EFFECT = 1
STOP = 2
HANDSHAKE = 4
SILENT = 8
SLOTS_SHIFT = 8

# Reasons to abort, in the abort word.
RUNNING = 0
HOST_ABORT = 1
STALLED = 2
TASK_FAILED = 3
PEER_ABORT = 4

# What a worker does, in its status.
IDLE = 0
WAITING = 1
COMPUTING = 2
EXITED = 3
JOINING = 4

_C_TYPES = {"u4": "uint32_t", "i4": "int32_t", "u8": "uint64_t", "i8": "int64_t"}


@dataclass(frozen=True, slots=True)
class Record:
    """One C struct: name, comment, and fields of (name, type code, count, comment)."""

    name: str
    comment: str
    fields: tuple[tuple[str, str, int, str], ...]
    is_line: bool = False

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The NumPy dtype with the same layout; line records fill whole cache lines."""
        items = [
            (n, code, (count,)) if count > 1 else (n, code) for n, code, count, _ in self.fields
        ]
        natural = np.dtype(items, align=True)
        if not self.is_line:
            return natural
        size = -(-natural.itemsize // LINE_BYTES) * LINE_BYTES
        offsets = [natural.fields[n][1] for n, *_ in self.fields]  # type: ignore[index]  # structured
        formats = [natural.fields[n][0] for n, *_ in self.fields]  # type: ignore[index]  # structured
        names = [n for n, *_ in self.fields]
        return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})

    @property
    def c_text(self) -> str:
        """The struct as C, with a check of its size."""
        align = f" alignas({LINE_BYTES})" if self.is_line else ""
        lines = [f"// {self.comment}", f"struct{align} ark_{self.name} {{"]
        for name, code, count, comment in self.fields:
            array = f"[{count}]" if count > 1 else ""
            lines.append(f"  {_C_TYPES[code]} {name}{array};  // {comment}")
        size = self.dtype.itemsize
        lines += ["};", f'static_assert(sizeof(ark_{self.name}) == {size}, "layout");']
        return "\n".join(lines)


TASK = Record(
    "task",
    "One task of a queue.",
    (
        ("function", "u4", 1, "index into the program's task functions"),
        ("params", "u4", 1, "first of its integers in the parameter table"),
        ("operands", "u4", 1, "first of its addresses in the operand table"),
        ("waits", "u4", 1, "first of its rows in the wait table"),
        ("wait_count", "u4", 1, "how many waits"),
        ("flags", "u4", 1, "EFFECT, STOP, HANDSHAKE, SILENT; its slots << SLOTS_SHIFT"),
        ("counter", "u4", 1, "the counter it raises"),
        ("id", "u4", 1, "its id in the plan"),
        ("raises", "u4", 1, "first of its addresses in the table of raises"),
        ("raise_count", "u4", 1, "how many flags it raises when it is done"),
        ("param_count", "u4", 1, "how many integers"),
        ("operand_count", "u4", 1, "how many addresses"),
    ),
)
OPERAND = Record(
    "operand",
    "Where an operand of a task starts.",
    (
        ("arena", "u4", 1, "index of the arena"),
        ("reserved", "u4", 1, "0"),
        ("offset", "u8", 1, "bytes from the arena's start"),
    ),
)
WAIT = Record(
    "wait",
    "Hold a task until value(counter) >= turn * signals + need.",
    (
        ("counter", "u4", 1, "index of the counter"),
        ("signals", "u4", 1, "how often it is raised per turn"),
        ("need", "i8", 1, "threshold, less the signals of the turns it looks back"),
    ),
)
QUEUE = Record(
    "queue",
    "One worker's tasks of one method.",
    (("first", "u4", 1, "first row of the task table"), ("count", "u4", 1, "how many")),
)
METHOD = Record(
    "method",
    "One entry point.",
    (
        ("has_stop", "u4", 1, "whether a task may end a run early"),
        ("depth", "u4", 1, "turns under way before the oldest one's decision is known"),
        ("participants", "u4", 1, "workers with tasks"),
        ("is_shared_counter", "u4", 1, "whether several workers raise one counter"),
    ),
)
COUNTER = Record("counter", "A counter, alone on its line.", (("value", "u8", 1, "signals"),), True)
COMMAND = Record(
    "command",
    "What the host asks for.",
    (
        ("epoch", "u8", 1, "an early end closes it"),
        ("iterations", "i8", 1, "turns to do"),
        ("done", "i8", 1, "turns done, once completed"),
        ("method", "u4", 1, "index of the method"),
        ("remaining", "u4", 1, "participants that are not through"),
        ("given", "u8", 1, "bit mask of the scalars the command carries"),
        ("scalars", "u8", MAX_SCALARS, "their bytes"),
    ),
    True,
)
CONTROL = Record(
    "control",
    "The words that host and workers share.",
    (
        ("abort", "u4", 1, "why the kernel ends at once; 0 while it runs"),
        ("stop", "u4", 1, "1: exit once all commands are done"),
        ("completed", "u8", 1, "sequence number of the last completed command"),
        ("completed_signal", "u4", 1, "raised with completed; the host sleeps on it"),
        ("host_sleeps", "u4", 1, "whether the host has to be woken"),
        ("closed_epoch", "u8", 1, "commands of smaller epochs do nothing"),
        ("exited", "u4", 1, "workers that left their loop"),
        ("reserved", "u4", 1, "0"),
    ),
    True,
)
METHOD_STATE = Record(
    "method_state",
    "How far a method's decisions are.",
    (
        ("last_turn", "i8", 1, "the turn an early end chose; a huge number otherwise"),
        ("decided", "i8", 1, "turns whose stop task has decided"),
    ),
    True,
)
FAILURE = Record(
    "failure",
    "The first task that met data it can't work on.",
    (
        ("state", "u4", 1, "0 none, 1 being written, 2 complete"),
        ("method", "u4", 1, "index of the method"),
        ("task", "u4", 1, "id of the task"),
        ("worker", "u4", 1, "who ran it"),
        ("turn", "i8", 1, "in which turn"),
        ("iteration", "i8", 1, "in which iteration of the command"),
        ("value", "i8", 1, "the offending value"),
        ("limit", "i8", 1, "what it had to be below"),
    ),
    True,
)
STATUS = Record(
    "status",
    "What a worker does now; written by the worker alone.",
    (
        ("turn", "i8", 1, "its turn"),
        ("phase", "u4", 1, "IDLE, WAITING, COMPUTING, EXITED, JOINING"),
        ("method", "u4", 1, "index of the method"),
        ("task", "u4", 1, "id of the task"),
        ("counter", "u4", 1, "what it waits for"),
        ("have", "i8", 1, "the counter's value when last looked at"),
        ("want", "i8", 1, "the value it waits for"),
        ("is_stalled", "u4", 1, "whether it gave up waiting"),
        ("is_told", "u4", 1, "on a GPU: whether a wait that the kernel's end cut short is told of"),
    ),
    True,
)
MAILBOX = Record(
    "mailbox",
    "Commands for one worker; written by the host.",
    (
        ("posted", "u8", 1, "how many it was sent"),
        ("wake", "u4", 1, "raised with posted; the worker sleeps on it"),
        ("sleeps", "u4", 1, "whether it has to be woken"),
        ("ring", "u8", COMMAND_RING, "sequence numbers of its commands"),
    ),
    True,
)
TRACE = Record(
    "trace",
    "One executed task.",
    (
        ("wait_begin", "u8", 1, "clock when the worker came to it"),
        ("start", "u8", 1, "clock when its waits held"),
        ("end", "u8", 1, "clock when it was done"),
        ("turn", "i8", 1, "the turn"),
        ("task", "u4", 1, "id of the task"),
        ("method", "u4", 1, "index of the method"),
    ),
)
CONFIG = Record(
    "config",
    "Addresses and sizes the kernel starts with.",
    (
        ("tasks", "u8", 1, "ark_task[]"),
        ("params", "u8", 1, "int64_t[]"),
        ("operands", "u8", 1, "void*[]"),
        ("waits", "u8", 1, "ark_wait[]"),
        ("raises", "u8", 1, "ark_counter*[]: flags in the memory of other ranks"),
        ("queues", "u8", 1, "ark_queue[method][worker]"),
        ("methods", "u8", 1, "ark_method[]"),
        ("streams", "u8", 1, "ark_queue[method][worker]: its rows of segments"),
        ("segments", "u8", 1, "ark_segment[]: weights, in the order of the tasks that read them"),
        ("counters", "u8", 1, "ark_counter[]: counters, then the rank's flags, of each method"),
        ("control", "u8", 1, "ark_control"),
        ("method_states", "u8", 1, "ark_method_state[]"),
        ("commands", "u8", 1, "ark_command[COMMAND_RING]"),
        ("mailboxes", "u8", 1, "ark_mailbox[worker]"),
        ("statuses", "u8", 1, "ark_status[worker]"),
        ("failure", "u8", 1, "ark_failure"),
        ("traces", "u8", 1, "ark_trace[worker][trace_rows], or 0"),
        ("trace_counts", "u8", 1, "ark_counter[worker]: rows written"),
        ("trace_rows", "u8", 1, "rows per worker, a power of 2"),
        ("scratch", "u8", 1, "fp32[worker][scratch_elems]"),
        ("scratch_elems", "u8", 1, "elements per worker"),
        ("cores", "u8", 1, "int32_t[worker]: core to stay on, -1 for any"),
        ("threads", "u8", 1, "uint64_t[worker]: thread handles, written by the start"),
        ("timeout_ns", "u8", 1, "limit of a wait without progress"),
        ("idle_spin_ns", "u8", 1, "how long an idle worker spins before it sleeps"),
        ("hook", "u8", 1, "called in handshakes where tests ask for it, or 0"),
        ("wait_spins", "u4", 1, "pauses in a wait before it yields the core"),
        ("reserved", "u4", 1, "0"),
        ("worker_count", "u4", 1, "how many workers"),
        ("method_count", "u4", 1, "how many methods"),
    ),
)

# `ark_segment` in kernels/device/ring.h, which stands by itself.
SEGMENT = Record(
    "segment",
    "Weights for one slot of a ring, or to be read ahead: `count` runs of `bytes`, `pitch` apart.",
    (
        ("source", "u8", 1, "address, a multiple of 16"),
        ("pitch", "u8", 1, "bytes, a multiple of 16"),
        ("bytes", "u4", 1, "of one run, a multiple of 16"),
        ("count", "u4", 1, "how many runs"),
        ("unused", "u8", 1, "0"),
    ),
)
HOST = Record(
    "host",
    "Words in the host's memory through which it talks with a kernel on a GPU.",
    (
        ("posted", "u8", 1, "sequence number of the last command"),
        ("completed", "u8", 1, "sequence number of the last completed command"),
        ("started_ns", "u8", 1, "the GPU's clock when the kernel started"),
        ("exited_ns", "u8", 1, "the GPU's clock when the kernel exited"),
    ),
    True,
)
LAUNCH = Record(
    "launch",
    "Addresses and sizes that a kernel on a GPU starts with.",
    (
        ("tasks", "u8", 1, "ark_task[]"),
        ("params", "u8", 1, "int64_t[]"),
        ("operands", "u8", 1, "void*[]"),
        ("waits", "u8", 1, "ark_wait[]"),
        ("raises", "u8", 1, "ark_counter*[]: flags in the memory of other ranks"),
        ("queues", "u8", 1, "ark_queue[method][worker]"),
        ("methods", "u8", 1, "ark_method[]"),
        ("streams", "u8", 1, "ark_queue[method][worker]: rows of the weight stream"),
        ("segments", "u8", 1, "ark_segment[]: what fills one slot each"),
        ("counters", "u8", 1, "ark_counter[]"),
        ("control", "u8", 1, "ark_control"),
        ("method_states", "u8", 1, "ark_method_state[]"),
        ("commands", "u8", 1, "ark_command[COMMAND_RING]: copies of the host's"),
        ("forwarded", "u8", 1, "ark_counter: commands copied"),
        ("statuses", "u8", 1, "ark_status[worker]"),
        ("failures", "u8", 1, "ark_failure[worker]"),
        ("traces", "u8", 1, "ark_trace[worker][trace_rows], or 0"),
        ("trace_counts", "u8", 1, "ark_counter[worker]: rows written"),
        ("trace_rows", "u8", 1, "rows per worker, a power of 2"),
        ("scratch", "u8", 1, "fp32[worker][scratch_elems]"),
        ("scratch_elems", "u8", 1, "elements per worker"),
        ("host", "u8", 1, "ark_host, in the host's memory"),
        ("host_commands", "u8", 1, "ark_command[COMMAND_RING], in the host's memory"),
        ("timeout_ns", "u8", 1, "limit of a wait without progress"),
        ("worker_count", "u4", 1, "how many workers"),
        ("method_count", "u4", 1, "how many methods"),
    ),
)

RECORDS = (
    TASK,
    OPERAND,
    WAIT,
    QUEUE,
    METHOD,
    COUNTER,
    COMMAND,
    CONTROL,
    METHOD_STATE,
    FAILURE,
    STATUS,
    MAILBOX,
    TRACE,
    CONFIG,
    SEGMENT,
    HOST,
    LAUNCH,
)
_CONSTANTS = {
    "EFFECT": EFFECT,
    "STOP": STOP,
    "HANDSHAKE": HANDSHAKE,
    "SILENT": SILENT,
    "SLOTS_SHIFT": SLOTS_SHIFT,
    "EXIT": EXIT,
    "RUNNING": RUNNING,
    "HOST_ABORT": HOST_ABORT,
    "STALLED": STALLED,
    "TASK_FAILED": TASK_FAILED,
    "PEER_ABORT": PEER_ABORT,
    "IDLE": IDLE,
    "WAITING": WAITING,
    "COMPUTING": COMPUTING,
    "EXITED": EXITED,
    "JOINING": JOINING,
    "COMMAND_RING": COMMAND_RING,
    "MAX_SCALARS": MAX_SCALARS,
}


def c_header() -> str:
    """All records and constants as C."""
    constants = [f"constexpr uint32_t ARK_{name} = {value};" for name, value in _CONSTANTS.items()]
    return "\n".join(constants) + "\n\n" + "\n\n".join(r.c_text for r in RECORDS) + "\n"
