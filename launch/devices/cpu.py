"""Run a plan as a persistent kernel of threads: generated C++, compiled once, started once."""

import ctypes
import os
import struct
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ark_dist.comm.communicator import Communicator
from ark_dist.core import abi
from ark_dist.core.errors import ArkError, DeviceNotFoundError, StallError, TaskError
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import Settings
from ark_dist.kernels.emit import Tables, emit_cpu
from ark_dist.launch.compile import compile_source, load_library
from ark_dist.launch.cpuinfo import can_run
from ark_dist.launch.devices.cpu_blocks import Blocks, make_blocks
from ark_dist.launch.devices.commands import (
    DONE_OFFSET,
    MAX_TIMEOUT_S,
    NEVER,
    command_offset,
    command_text,
    write_command,
)
from ark_dist.launch.devices.report import failure_text, stall_text
from ark_dist.launch.machine import Command
from ark_dist.launch.memory import Arenas, allocate
from ark_dist.launch.op_faults import OpFaults
from ark_dist.launch.rank_link import RankLink
from ark_dist.launch.rank_trace import RankTrace
from ark_dist.launch.trace import TraceEvent, add_to_trace_file

# wait() comes back to Python this often, so that Ctrl-C works.
SLICE_S = 0.1
# Tasks that a trace keeps per worker: the last ones; a power of 2.
TRACE_ROWS = 1 << 16
# How long a stopped kernel may take to leave its loops.
EXIT_S = 10.0

_SEQUENCE = struct.Struct("<Q")

Memory = npt.NDArray[np.void]


class CpuDevice:
    """One process's persistent kernel; its workers are threads, pinned where cores suffice."""

    def __init__(
        self, plan: Plan, settings: Settings, communicator: Communicator | None = None
    ) -> None:
        """Take a plan made for a CPU; `settings.trace_path` turns tracing on."""
        if plan.target.kind != "cpu":
            raise ValueError(
                f"program {plan.name!r} was planned for {plan.target.kind!r}, not for 'cpu'; "
                "plan the graph again for this device"
            )
        if plan.target.worker_count > abi.MAX_WORKERS:
            raise ValueError(
                f"program {plan.name!r} has {plan.target.worker_count} workers; "
                f"at most {abi.MAX_WORKERS} work"
            )
        self.plan = plan
        self._settings = settings
        self._communicator = communicator
        self._link: RankLink | None = None
        self._rank_trace: RankTrace | None = None
        self._trace_rows = TRACE_ROWS if settings.trace_path else 0
        self._clock_start = (0, 0)
        # What a test's fault raised in the kernel.
        self._injected: BaseException | None = None
        self._tables: Tables | None = None
        self._library: ctypes.CDLL | None = None
        self._blocks: Blocks | None = None
        self._arenas: Arenas | None = None
        self._sequence = 0
        self._collected = 0
        # Iterations done by each collected command, by its sequence number.
        self._results: dict[int, int] = {}
        self._end: weakref.finalize[[int, ctypes.CDLL, Blocks, Arenas], CpuDevice] | None = None

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """Emit the source, compile it or take it from the cache, and load it."""
        isa = self.plan.target.arch
        if not can_run(isa):
            raise DeviceNotFoundError(
                f"instruction set {isa!r} is not on this machine; unset ARK_DIST_ISA"
            )
        source, self._tables = emit_cpu(self.plan)
        binary = compile_source(source, isa=isa, settings=self._settings, on_compile=on_compile)
        self._library = load_library(binary)
        for name, result, arguments in _FUNCTIONS:
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments

    def allocate(self) -> Arenas:
        """Make the program's memory in that of this process, and what its node shares."""
        assert self._tables is not None
        if self._communicator is not None and self.plan.world_size > 1:
            tables = self._tables
            self._link = RankLink(
                self.plan,
                self._communicator,
                tables.flags,
                tables.counter_count,
                self._settings.timeout_s,
            )
            self._rank_trace = RankTrace(
                self.plan, self._communicator, self._settings.trace_path
            )
            return self._link.arenas
        return allocate(self.plan)

    def start(self, arenas: Arenas) -> None:
        """Start the workers on this memory; they sleep until a command comes."""
        assert self._tables is not None and self._library is not None
        if self._blocks is not None:
            # A worker was stuck when the kernel before ended: it may have come free since.
            self.stop()
        if self._link is not None:
            self._link.start()
        if self._rank_trace is not None:
            self._rank_trace.start()
        self._blocks = make_blocks(
            self.plan, self._tables, arenas, self._settings, self._trace_rows, self._link
        )
        self._arenas = arenas
        if self._link is not None:
            self._arm(self._link)
        self._sequence = self._collected = 0
        self._results = {}
        self._commands = self._blocks.commands.view(np.uint8).data
        self._address = self._blocks.config.ctypes.data
        self._clock_start = self._clocks()
        error = self._library.ark_kernel_start(self._address)
        if error:
            self._blocks = self._arenas = None
            raise ArkError(
                f"the kernel could not start {self.plan.target.worker_count} threads: "
                f"{os.strerror(error)}; use fewer workers"
            )
        # Keeps the memory the workers use, and ends them with this object or the process.
        self._end = weakref.finalize(
            self, _end_kernel, os.getpid(), self._library, self._blocks, arenas
        )

    def _arm(self, link: RankLink) -> None:
        """Let the kernel call back where tests want it broken."""
        assert self._blocks is not None
        faults = OpFaults(self.plan, self._break)
        self._injected = None
        if faults.is_armed:
            self._hook = _HOOK(faults.pass_task)
            self._blocks.config["hook"] = ctypes.cast(self._hook, ctypes.c_void_p).value

    def _break(self, error: BaseException) -> None:
        self._injected = error
        self.abort()

    def post(self, command: Command) -> None:
        """Put the command into the ring and wake the workers it needs."""
        assert self._library is not None and self._tables is not None
        sequence = self._sequence + 1
        while sequence - self._collected > abi.COMMAND_RING:
            self._await(self._collected + 1, float("inf"))
            self._collect(self._collected + 1)
        method = self.plan.method_names.index(command.method)
        participants = int(self._tables.methods[method]["participants"])
        write_command(self._commands, sequence, self.plan, self._tables, command, participants)
        if self._link is not None:
            self._link.post(sequence, command_text(command))
        self._sequence = sequence
        if participants:
            self._library.ark_kernel_post(self._address, sequence)
        else:
            self._skip(sequence, command)

    def wait(self, timeout_s: float) -> list[int]:
        """Sleep until all commands are done."""
        self._await(self._sequence, timeout_s)
        if self._link is not None:
            self._check_neighbours(self._link.rest)
        while self._collected < self._sequence:
            self._collect(self._collected + 1)
        results, self._results = self._results, {}
        return list(results.values())

    def abort(self) -> None:
        """End the kernel at once; a wait() in another thread raises then."""
        blocks = self._blocks
        if blocks is not None and self._library is not None:
            self._library.ark_kernel_abort(blocks.config.ctypes.data)

    def leave(self) -> None:
        """Tell the other ranks that this one computes no more."""
        if self._link is not None:
            self._link.memory.leave()

    def stop(self) -> None:
        """Let the workers leave and the memory go; commands that are not done are dropped."""
        if self._blocks is None:
            return
        assert self._library is not None
        if int(self._blocks.control["completed"][0]) < self._sequence:
            self._library.ark_kernel_abort(self._address)
        if not _leaves(self._library, self._address):
            # The stuck thread may still use the memory: the finalizer keeps it.
            raise StallError(
                f"rank {self.plan.rank}: a worker did not leave its task within {EXIT_S:.0f} s; "
                f"{stall_text(self.plan, self._blocks.statuses)}"
            )
        assert self._end is not None
        self._end.detach()
        blocks, self._blocks, self._arenas = self._blocks, None, None
        if self._link is not None:
            self._link.stop()
        self._write_trace(blocks)

    def _clocks(self) -> tuple[int, int]:
        """The trace clock and the monotonic clock in nanoseconds, read together."""
        assert self._library is not None
        return int(self._library.ark_kernel_ticks()), time.monotonic_ns()

    def _write_trace(self, blocks: Blocks) -> None:
        path = self._settings.trace_path
        if path is None:
            return
        events = self._trace(blocks)
        if self._rank_trace is None:
            add_to_trace_file(path, self.plan, events)
        else:
            is_complete = int(blocks.control["abort"][0]) == abi.RUNNING
            self._rank_trace.write(events, is_complete=is_complete)

    def _trace(self, blocks: Blocks) -> list[TraceEvent]:
        """The last tasks of every worker, oldest first."""
        ticks, now_ns = self._clocks()
        ticks_0, start_ns = self._clock_start
        ns_per_tick = (now_ns - start_ns) / max(ticks - ticks_0, 1)
        events = []
        for worker in range(self.plan.target.worker_count):
            count = int(blocks.trace_counts["value"][worker])
            first = worker * self._trace_rows
            for number in range(max(0, count - self._trace_rows), count):
                row = blocks.traces[first + number % self._trace_rows]
                times = (
                    start_ns + int((int(row[name]) - ticks_0) * ns_per_tick)
                    for name in ("wait_begin", "start", "end")
                )
                events.append(
                    TraceEvent(
                        worker, int(row["method"]), int(row["task"]), int(row["turn"]), *times
                    )
                )
        return events

    def _await(self, sequence: int, timeout_s: float) -> None:
        assert self._library is not None and self._blocks is not None
        left_s = timeout_s
        while True:
            slice_s = min(SLICE_S, max(left_s, 0.0))
            outcome = self._library.ark_kernel_wait(self._address, sequence, int(slice_s * 1e9))
            if outcome > 0:
                return
            if outcome < 0:
                raise self._failure()
            if self._link is not None:
                self._check_neighbours(self._link.memory.check)
            left_s -= slice_s
            if left_s <= 0:
                raise TimeoutError(
                    f"program {self.plan.name!r} is still running after {timeout_s} s; "
                    "wait again, or stop it"
                )

    def _check_neighbours(self, check: Callable[[], None]) -> None:
        """End the kernel if another rank does something else, or will not come."""
        assert self._link is not None
        try:
            check()
        except ArkError as error:
            self._link.memory.fail(str(error))
            self.abort()
            self.stop()
            raise

    def _failure(self) -> ArkError:
        """What ended the kernel; its threads are gone afterwards."""
        error = self._local_failure()
        if self._link is not None:
            self._link.memory.fail(str(error))
        return error

    def _local_failure(self) -> ArkError:
        assert self._blocks is not None
        blocks = self._blocks
        if self._injected is not None:
            self.stop()
            raise self._injected
        stuck = ""
        try:
            self.stop()
        except StallError as error:
            # What ended the kernel is the cause and comes first.
            stuck = f"; then {error}"
        reason = int(blocks.control["abort"][0])
        if reason == abi.TASK_FAILED:
            return TaskError(failure_text(self.plan, blocks.failure[0]) + stuck)
        if reason == abi.STALLED:
            limit_s = self._settings.timeout_s
            return StallError(stall_text(self.plan, blocks.statuses, limit_s=limit_s) + stuck)
        if reason == abi.PEER_ABORT and self._link is not None:
            try:
                self._link.memory.check()
            except ArkError as error:
                return error
        return ArkError(f"rank {self.plan.rank}: the kernel was aborted{stuck}")

    def _collect(self, sequence: int) -> None:
        row = command_offset(sequence)
        self._results[sequence] = _SEQUENCE.unpack_from(self._commands, row + DONE_OFFSET)[0]
        self._collected = sequence

    def _skip(self, sequence: int, command: Command) -> None:
        """Complete a command of a method without tasks, in its turn."""
        assert self._blocks is not None
        self._await(sequence - 1, float("inf"))
        row = command_offset(sequence)
        is_closed = command.epoch < int(self._blocks.control["closed_epoch"][0])
        done = 0 if is_closed else command.iterations
        _SEQUENCE.pack_into(self._commands, row + DONE_OFFSET, done)
        self._blocks.control["completed"][0] = sequence


_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32)
_FUNCTIONS = (
    ("ark_kernel_start", ctypes.c_int, (ctypes.c_void_p,)),
    ("ark_kernel_post", None, (ctypes.c_void_p, ctypes.c_uint64)),
    ("ark_kernel_wait", ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64)),
    ("ark_kernel_stop", ctypes.c_int, (ctypes.c_void_p, ctypes.c_int64)),
    ("ark_kernel_abort", None, (ctypes.c_void_p,)),
    ("ark_kernel_ticks", ctypes.c_uint64, ()),
)


def _end_kernel(pid: int, library: ctypes.CDLL, blocks: Blocks, arenas: Arenas) -> None:
    """End a kernel that nobody stopped."""
    if os.getpid() != pid:
        # In a fork there are no workers to end.
        return
    address = blocks.config.ctypes.data
    library.ark_kernel_abort(address)
    if not _leaves(library, address):
        # A stuck worker still uses the memory: never free it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object((blocks, arenas)))


def _leaves(library: ctypes.CDLL, address: int) -> bool:
    """Ask the workers to leave; whether all did within `EXIT_S`."""
    deadline = time.monotonic() + EXIT_S
    # In slices, so that Ctrl-C works.
    while not library.ark_kernel_stop(address, int(SLICE_S * 1e9)):
        if time.monotonic() > deadline:
            return False
    return True
