"""Run the CUDA source of a plan without a GPU, on fibers of one thread: to test it, not fast."""

import time
from collections.abc import Callable
from pathlib import Path

from ark_dist.core import abi
from ark_dist.core.errors import ArkError, StallError, TaskError
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import Settings
from ark_dist.core.shape import row_major_strides
from ark_dist.core.view import Region
from ark_dist.kernels.emit import emit_cuda
from ark_dist.kernels.tables import Tables
from ark_dist.kernels.text import shared_layout
from ark_dist.launch.devices.base import Emit
from ark_dist.launch.devices.commands import CommandRing
from ark_dist.launch.devices.gpu import (
    READ_ONLY,
    TRACE_ROWS,
    Blocks,
    GpuClock,
    first_failure,
    make_blocks,
    trace_events,
)
from ark_dist.launch.devices.report import failure_text, stall_text
from ark_dist.launch.emulation import Emulation, EmulationFault, Program, compile_emulated
from ark_dist.launch.machine import Command
from ark_dist.launch.memory import Arenas, allocate
from ark_dist.launch.trace import add_to_trace_file


class EmulatedDevice:
    """A GPU's kernel on the CPU: same source, seeded schedules, every fault a message."""

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        *,
        seed: int = 0,
        is_race_checked: bool = False,
        has_watchdog: bool = False,
        emit: Emit = emit_cuda,
    ) -> None:
        """Take a plan made for a GPU.

        Args:
            plan: its target's kind is "cuda".
            settings: compiler, cache and limits; `trace_path` turns tracing on.
            seed: decides the schedule.
            is_race_checked: check every access against races and the tasks' boxes.
            has_watchdog: let waits time out where nothing can go on, as they would on a GPU;
                otherwise that is an error at once.
            emit: makes the source and its tables of the plan.
        """
        if plan.target.kind != "cuda":
            raise ValueError(
                f"program {plan.name!r} was planned for {plan.target.kind!r}, not for 'cuda'; "
                "plan the graph again for this device"
            )
        self.plan = plan
        self._settings = settings
        self._emit = emit
        self._seed = seed
        self._is_race_checked = is_race_checked
        self._has_watchdog = has_watchdog
        self._tables: Tables | None = None
        self._program: Program | None = None
        self._emulation: Emulation | None = None
        self._blocks: Blocks | None = None
        self._ring: CommandRing | None = None
        self._shared_bytes = 0
        self._started_at_ns = 0

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """Emit the source and compile it with the emulation's runtime."""
        source, self._tables = self._emit(self.plan)
        self._shared_bytes = shared_layout(
            self.plan.target.arch, self._tables.shared_bytes, self._tables.has_stream
        ).bytes
        self._program = compile_emulated(
            source.text,
            settings=self._settings,
            name=self.plan.name,
            arch=80 if self.plan.target.arch == "sm_80" else 90,
            race=self._is_race_checked,
        )
        on_compile(self._program.binary.source_path)

    def allocate(self) -> Arenas:
        """Make the program's memory in that of this process."""
        return allocate(self.plan)

    def start(self, arenas: Arenas) -> None:
        """Make the emulated GPU; its fibers run in `wait`."""
        assert self._tables is not None and self._program is not None
        emulation = Emulation(
            self._program,
            "ark_kernel",
            ctas=self.plan.target.worker_count,
            smem_bytes=self._shared_bytes,
            seed=self._seed,
            watchdog=self._has_watchdog,
        )
        addresses = {name: arenas.address(name) for name in ARENAS}
        rows = TRACE_ROWS if self._settings.trace_path else 0
        blocks = make_blocks(self.plan, self._tables, addresses, self._settings, rows)
        for name in ARENAS:
            is_writable = name not in ("weights", "constants")
            emulation.buffer(f"{name} arena", arenas.memory[name], is_writable=is_writable)
        placed = {
            name: emulation.buffer(name, array, is_writable=name not in READ_ONLY)
            for name, array in blocks.arrays.items()
        }
        emulation.constant("ark_kernel_launch", blocks.launch_record(placed))
        self._emulation, self._blocks = emulation, blocks
        self._started_at_ns = time.monotonic_ns()
        arrays = blocks.arrays
        self._ring = CommandRing(self.plan, self._tables, arrays["host"], arrays["host_commands"])
        if self._is_race_checked:
            self._declare_boxes(arenas)

    def post(self, command: Command) -> None:
        """Write the command into the ring; where it is full, earlier ones are done first."""
        assert self._ring is not None
        if self._ring.is_full:
            self._resume()
        self._ring.post(command)

    def wait(self, timeout_s: float) -> list[int]:
        """Run the kernel until it waits for a command."""
        assert self._ring is not None
        self._resume()
        return self._ring.take_results()

    def _resume(self) -> None:
        assert self._emulation is not None and self._ring is not None
        try:
            has_exited = self._emulation.resume()
        except EmulationFault:
            # Nothing is left that could go on.
            self._emulation.close()
            self._emulation = self._blocks = None
            raise
        if has_exited:
            raise self._failure()
        self._ring.collect()

    def abort(self) -> None:
        """Let the kernel end at once."""
        if self._blocks is not None:
            self._blocks.arrays["control"]["abort"] = abi.HOST_ABORT

    def leave(self) -> None:
        """There are no other ranks."""

    def stop(self) -> None:
        """Let the kernel exit; commands that are not done are done first, unless it is aborted."""
        if self._emulation is None or self._blocks is None:
            return
        assert self._ring is not None
        emulation, blocks = self._emulation, self._blocks
        self._emulation = self._blocks = None
        self._ring.post_exit()
        has_exited = emulation.resume()
        emulation.close()
        if not has_exited:
            raise StallError(f"rank {self.plan.rank}: the kernel did not exit")
        self._write_trace(blocks)

    def _failure(self) -> ArkError:
        """Why the kernel exited by itself."""
        assert self._blocks is not None and self._emulation is not None
        arrays = self._blocks.arrays
        self._write_trace(self._blocks)
        self._emulation.close()
        self._emulation = self._blocks = None
        reason = int(arrays["control"]["abort"][0])
        if reason == abi.TASK_FAILED:
            return TaskError(failure_text(self.plan, first_failure(arrays["failures"])))
        if reason == abi.STALLED:
            limit_s = self._settings.timeout_s
            return StallError(stall_text(self.plan, arrays["statuses"], limit_s=limit_s))
        return ArkError(f"rank {self.plan.rank}: the kernel was aborted")

    def _write_trace(self, blocks: Blocks) -> None:
        """Times are the emulation's virtual ones, counted from when the kernel was made."""
        path = self._settings.trace_path
        if path is not None:
            arrays = blocks.arrays
            clock = GpuClock(int(arrays["host"]["started_ns"][0]), self._started_at_ns)
            events = trace_events(self.plan, arrays["trace_counts"], arrays["traces"], clock)
            add_to_trace_file(path, self.plan, events)

    def _declare_boxes(self, arenas: Arenas) -> None:
        for number, method in enumerate(self.plan.methods):
            for task in method.tasks:
                for region in task.reads:
                    self._declare(arenas, number, task.id, region, is_write=False)
                for region in task.writes:
                    self._declare(arenas, number, task.id, region, is_write=True)

    def _declare(
        self, arenas: Arenas, method: int, task: int, region: Region, *, is_write: bool
    ) -> None:
        assert self._emulation is not None
        buffer, place = self.plan.buffers[region.buffer], self.plan.places[region.buffer]
        strides = row_major_strides(buffer.shape)
        first = sum(start * step for (start, _), step in zip(region.box, strides, strict=True))
        address = arenas.address(place.arena) + place.offset + first * buffer.dtype.itemsize
        extents = [stop - start for start, stop in region.box]
        self._emulation.box(
            method, task, address, buffer.dtype.itemsize, extents, strides, is_write=is_write
        )
