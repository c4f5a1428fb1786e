"""Run a plan as a persistent kernel of threads: generated C++, compiled once, started once."""

import ctypes
import os
import struct
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ark_dist.comm.communicator import Communicator
from ark_dist.core import abi
from ark_dist.core.errors import ArkError, DeviceNotFoundError, StallError, TaskError
from ark_dist.core.plan import Plan
from ark_dist.core.settings import Settings
from ark_dist.kernels.emit import emit_cpu
from ark_dist.kernels.tables import Tables
from ark_dist.launch.compile import compile_source
from ark_dist.launch.cpuinfo import can_run
from ark_dist.launch.devices.base import Emit
from ark_dist.launch.devices.commands import (
    DONE_OFFSET,
    command_offset,
    command_text,
    write_command,
)
from ark_dist.launch.devices.cpu_blocks import Blocks, make_blocks
from ark_dist.launch.devices.cpu_library import EXIT_S, HOOK, end_kernel, leaves, load_kernel
from ark_dist.launch.devices.report import failure_text, stall_text, waiting_text
from ark_dist.launch.machine import Command
from ark_dist.launch.memory import Arenas, allocate
from ark_dist.launch.op_faults import OpFaults
from ark_dist.launch.rank_link import RankLink, check_world_size
from ark_dist.launch.rank_trace import RankTrace
from ark_dist.launch.trace import TraceEvent, add_to_trace_file, read_together

# wait() comes back to Python this often, so that Ctrl-C works.
SLICE_S = 0.1
# The first time it does so earlier where there are other ranks, to see how they are.
FIRST_SLICE_S = 1e-3
# Whoever is told to end has no time for more rows of the trace.
LEAVE_TRACE_ROWS = 1 << 10
# Tasks that a trace keeps per worker: the last ones; a power of 2.
TRACE_ROWS = 1 << 16
# How long an aborted kernel may take when the process exits, and how often it is looked at.
LEAVE_S, LEAVE_PAUSE_S = 1.0, 1e-4

_SEQUENCE = struct.Struct("<Q")

Memory = npt.NDArray[np.void]


class CpuDevice:
    """One process's persistent kernel; its workers are threads, pinned where cores suffice."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        communicator: Communicator | None = None,
        *,
        emit: Emit = emit_cpu,
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
        self._emit = emit
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
        source, self._tables = self._emit(self.plan)
        binary = compile_source(source, isa=isa, settings=self._settings, on_compile=on_compile)
        self._library = load_kernel(binary)

    def allocate(self) -> Arenas:
        """Make the program's memory in that of this process, and what its node shares."""
        assert self._tables is not None
        check_world_size(self.plan, self._communicator)
        if self._communicator is not None and self.plan.world_size > 1:
            tables = self._tables
            self._link = RankLink(
                self.plan,
                self._communicator,
                tables.flags,
                tables.counter_count,
                self._settings.timeout_s,
            )
            self._rank_trace = RankTrace(self.plan, self._communicator, self._settings.trace_path)
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
        shared = None if self._link is None else self._link.memory
        self._blocks = make_blocks(
            self.plan, self._tables, arenas, self._settings, self._trace_rows, shared
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
            self, end_kernel, os.getpid(), self._library, self._blocks, arenas
        )

    def _arm(self, link: RankLink) -> None:
        """Let the kernel call back where tests want it broken."""
        assert self._blocks is not None
        faults = OpFaults(self.plan, self._break)
        self._injected = None
        if faults.is_armed:
            self._hook = HOOK(faults.pass_task)
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
        """End the kernel, and tell the other ranks that this one computes no more."""
        if self._link is None:
            return
        blocks = self._blocks
        if blocks is not None:
            self.abort()
            deadline = time.monotonic() + LEAVE_S
            # What it has completed is final once all workers have left.
            while blocks.control["exited"][0] < self.plan.target.worker_count:
                if time.monotonic() > deadline:
                    break
                time.sleep(LEAVE_PAUSE_S)
        self._link.memory.leave()
        if blocks is not None:
            self._write_trace(blocks, most=LEAVE_TRACE_ROWS)

    def stop(self) -> None:
        """Let the workers leave and the memory go; commands that are not done are dropped."""
        if self._blocks is not None:
            self._let_go(self._end_workers(self._blocks))

    def _end_workers(self, blocks: Blocks) -> Blocks:
        assert self._library is not None
        if int(blocks.control["completed"][0]) < self._sequence:
            self._library.ark_kernel_abort(self._address)
        if not leaves(self._library, self._address, EXIT_S):
            # The stuck thread may still use the memory: the finalizer keeps it.
            raise StallError(
                f"rank {self.plan.rank}: a worker did not leave its task within {EXIT_S:.0f} s; "
                f"{stall_text(self.plan, blocks.statuses)}"
            )
        assert self._end is not None
        self._end.detach()
        self._blocks = self._arenas = None
        return blocks

    def _let_go(self, blocks: Blocks) -> None:
        if self._link is not None:
            self._link.stop()
        self._write_trace(blocks)

    def _clocks(self) -> tuple[int, int]:
        """The trace clock and the monotonic clock in nanoseconds, read together."""
        assert self._library is not None
        # The quickest of several looks: ranks compare times of a fraction of a microsecond.
        return read_together(self._library.ark_kernel_ticks, time.monotonic_ns)

    def _write_trace(self, blocks: Blocks, most: int = TRACE_ROWS) -> None:
        path = self._settings.trace_path
        if path is None:
            return
        events = self._trace(blocks, most)
        if self._rank_trace is None:
            add_to_trace_file(path, self.plan, events)
        else:
            is_complete = int(blocks.control["abort"][0]) == abi.RUNNING
            self._rank_trace.write(events, is_complete=is_complete)

    def _trace(self, blocks: Blocks, most: int) -> list[TraceEvent]:
        """The last tasks of every worker, at most so many of each, oldest first."""
        ticks, now_ns = self._clocks()
        ticks_0, start_ns = self._clock_start
        ns_per_tick = (now_ns - start_ns) / max(ticks - ticks_0, 1)
        events = []
        for worker in range(self.plan.target.worker_count):
            count = int(blocks.trace_counts["value"][worker])
            first = worker * self._trace_rows
            for number in range(max(0, count - min(most, self._trace_rows)), count):
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
        left_s, link = timeout_s, self._link
        longest_s = SLICE_S if link is None else FIRST_SLICE_S
        try:
            while True:
                slice_s = min(longest_s, max(left_s, 0.0))
                outcome = self._library.ark_kernel_wait(self._address, sequence, int(slice_s * 1e9))
                if outcome > 0:
                    return
                if outcome < 0:
                    raise self._failure(self._blocks)
                if link is not None:
                    self._look_around(link, self._blocks, is_first=longest_s == FIRST_SLICE_S)
                longest_s = SLICE_S
                left_s -= slice_s
                if left_s <= 0:
                    raise TimeoutError(
                        f"program {self.plan.name!r} is still running after {timeout_s} s; "
                        "wait again, or stop it"
                    )
        finally:
            if link is not None:
                link.vigil.end()

    def _look_around(self, link: RankLink, blocks: Blocks, *, is_first: bool) -> None:
        """Check how the other ranks are, in a wait that has come back with nothing."""

        def waits() -> str:
            return waiting_text(self.plan, blocks.statuses)

        if is_first:
            link.vigil.begin()
        else:
            link.vigil.tick(blocks.statuses.tobytes(), waits)
        self._check_neighbours(lambda: link.memory.check(waits))

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

    def _failure(self, blocks: Blocks) -> BaseException:
        """What ended the kernel; its threads are gone afterwards, and the others know."""
        stuck = ""
        try:
            self._end_workers(blocks)
        except StallError as error:
            # What ended the kernel is the cause and comes first.
            stuck = f"; then {error}"
        cause = self._injected or self._cause(blocks, stuck)
        # Before leaving: others are to hear of the failure. Who exits just leaves.
        if self._link is not None and isinstance(cause, Exception):
            self._link.memory.fail(str(cause))
        if not stuck:
            self._let_go(blocks)
        return cause

    def _cause(self, blocks: Blocks, stuck: str) -> ArkError:
        reason = int(blocks.control["abort"][0])
        if reason == abi.TASK_FAILED:
            return TaskError(failure_text(self.plan, blocks.failure[0]) + stuck)
        if reason == abi.STALLED:
            limit_s = self._settings.timeout_s
            stopped = "" if self._link is None else self._link.memory.stopped()
            text = stall_text(self.plan, blocks.statuses, limit_s=limit_s)
            return StallError(text + stopped + stuck)
        if reason == abi.PEER_ABORT and self._link is not None:
            try:
                self._link.memory.check(lambda: waiting_text(self.plan, blocks.statuses))
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
