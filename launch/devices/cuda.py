"""Run a plan on a GPU: one cooperative launch, then commands through pinned memory."""

import ctypes
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.errors import ArkError, StallError, TaskError
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import Settings
from ark_dist.kernels.emit import emit_cuda
from ark_dist.kernels.tables import Tables
from ark_dist.kernels.text import SHARED_BYTES, shared_layout
from ark_dist.launch.devices.base import Emit
from ark_dist.launch.devices.commands import CommandRing
from ark_dist.launch.devices.cuda_memory import (
    CudaArenas,
    allocate_arenas,
    allocate_blocks,
    fill_arenas,
)
from ark_dist.launch.devices.cupy_gpu import (
    SPIN_S,
    Gpu,
    GpuFaultError,
    GpuPart,
    gpu_properties,
    nap,
    require_free,
    require_none_resident,
)
from ark_dist.launch.devices.gpu import (
    THREADS,
    TRACE_ROWS,
    Blocks,
    GpuClock,
    first_failure,
    make_blocks,
    trace_events,
)
from ark_dist.launch.devices.report import failure_text, stall_text
from ark_dist.launch.machine import Command
from ark_dist.launch.memory import Arenas
from ark_dist.launch.nvrtc import compile_cuda
from ark_dist.launch.trace import add_to_trace_file

# How long a stopped kernel may take to leave its loops.
EXIT_S = 10.0
# How often a wait asks CUDA whether the kernel is still there.
LOOK_S = 1e-3
# The kernel's own watchdog, which takes up to two limits, names what holds it up. The host's comes
# later: it is for kernels that can't, because all workers compute and none waits.
HOST_LIMITS, LOOKS_PER_LIMIT = 2.5, 8
# It looks once per second at least.
MAX_LOOK_S = 1.0

Progress = tuple[int, bytes]
WHOLE = GpuPart()


@dataclass(slots=True)
class _Running:
    """A resident kernel, and what the host knows of it.

    Attributes:
        arenas, blocks, ring: its memory.
        clock: what the GPU's clock showed when; None until it has started.
        progress: how far it was at `progress_at`, in seconds of the monotonic clock.
        look_at: when to look at that again.
        aborted_at: when it was first seen that it is to end.
    """

    arenas: CudaArenas
    blocks: Blocks
    ring: CommandRing
    clock: GpuClock | None = None
    progress: Progress | None = None
    progress_at: float = 0.0
    look_at: float = 0.0
    aborted_at: float | None = None

    def word(self, name: str) -> int:
        """A word that the kernel writes into the host's memory."""
        return int(self.arenas.words["host"][name][0])

    def read(self, name: str) -> npt.NDArray[Any]:
        """A copy of one of the kernel's blocks."""
        return self.arenas.block(name, self.blocks.arrays[name])

    def abort(self) -> None:
        """Let the kernel end; the abort word comes first in its record."""
        self.arenas.gpu.store_word(self.arenas.blocks["control"], abi.HOST_ABORT)

    def leaves(self) -> bool:
        """Whether the kernel exits within `EXIT_S` seconds."""
        began = time.monotonic()
        while not self.arenas.gpu.has_exited():
            waited_s = time.monotonic() - began
            if waited_s > EXIT_S:
                return False
            nap(waited_s)
        return True

    def stop(self) -> bool:
        """Ask the kernel to leave; whether it does. The clocks are compared once more."""
        is_idle = self.ring.completed == self.ring.posted
        if not is_idle:
            self.abort()
        self.ring.post_exit()
        began = time.monotonic()
        while is_idle and not self.word("exited_ns"):
            # It sees the command within microseconds: this is no place to sleep.
            if time.monotonic() - began > SPIN_S:
                return self.leaves()
        if is_idle and self.clock is not None:
            self.clock = self.clock.through(self.word("exited_ns"), time.monotonic_ns())
        return self.leaves()


@dataclass(slots=True, eq=False)
class _Program:
    """A program that is loaded: its code, and its kernel while that is resident."""

    gpu: Gpu
    path: str
    module: Any
    function: Any
    constant: Any
    tables: Tables
    shared_bytes: int
    running: _Running | None = None


class CudaDevice:
    """One GPU's persistent kernel: one CTA per streaming multiprocessor."""

    def __init__(
        self, plan: Plan, settings: Settings, part: GpuPart = WHOLE, *, emit: Emit = emit_cuda
    ) -> None:
        """Take a plan made for a GPU; `settings.trace_path` turns tracing on."""
        if plan.target.kind != "cuda":
            raise ValueError(
                f"program {plan.name!r} was planned for {plan.target.kind!r}, not for 'cuda'; "
                "plan the graph again for this device"
            )
        self._properties = found = gpu_properties(part.gpu_id)
        self._sms = part.within(found.worker_count)
        if plan.target.arch != found.arch or plan.target.worker_count > len(self._sms):
            raise ValueError(
                f"program {plan.name!r} was planned for {plan.target.worker_count} workers of "
                f"{plan.target.arch}; GPU {part.gpu_id} ({found.name}) has {len(self._sms)} of "
                f"{found.arch}; plan the graph again"
            )
        self.plan = plan
        self._settings = settings
        self._emit = emit
        self._gpu_id = part.gpu_id
        self._trace_rows = TRACE_ROWS if settings.trace_path else 0
        self._gpu: Gpu | None = None
        self._program: _Program | None = None

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """Emit the source, compile it or take it from the cache, and load it."""
        source, tables = self._emit(self.plan)
        arch, workers = self.plan.target.arch, self.plan.target.worker_count
        shared_bytes = shared_layout(arch, tables.shared_bytes, tables.has_stream).bytes
        assert shared_bytes <= SHARED_BYTES[arch]
        binary, _ = compile_cuda(source, arch=arch, settings=self._settings, on_compile=on_compile)
        if self._program is not None:
            return  # the same plan is the same program
        gpu, path = self._opened(), str(binary.path)
        module = gpu.load(path)
        # Finding them loads them: CUDA puts that off, and must not when a kernel is resident.
        function = gpu.function(module, "ark_kernel", shared_bytes)
        constant = gpu.constant(module, "ark_kernel_launch")
        threads = THREADS[arch]
        room = gpu.ctas_per_sm(function, threads, shared_bytes) * self._properties.worker_count
        if room < workers:
            gpu.unload(path, module)
            raise ArkError(
                f"program {self.plan.name!r}: {workers} blocks of {threads} threads and "
                f"{shared_bytes} bytes of shared memory were planned, GPU {gpu.id} takes {room} "
                "at once; use fewer workers"
            )
        self._program = _Program(gpu, path, module, function, constant, tables, shared_bytes)
        weakref.finalize(self, _drop, os.getpid(), self._program)

    def _opened(self) -> Gpu:
        require_none_resident(self._gpu_id, self.plan.name)
        if self._gpu is None:
            self._gpu = Gpu(self._gpu_id)
        return self._gpu

    def allocate(self) -> Arenas:
        """Allocate all that the program ever needs on the GPU, poison and fill the arenas."""
        gpu = self._opened()
        bases = allocate_arenas(self.plan, gpu)
        blocks = self._blocks({name: int(base.ptr) for name, base in bases.items()})
        arenas = allocate_blocks(self.plan, gpu, bases, blocks)
        fill_arenas(arenas)
        return arenas

    def _blocks(self, addresses: dict[str, int]) -> Blocks:
        assert self._program is not None
        tables = self._program.tables
        return make_blocks(self.plan, tables, addresses, self._settings, self._trace_rows)

    def start(self, arenas: Arenas) -> None:
        """Launch the kernel: from now on it holds its multiprocessors."""
        assert self._program is not None and isinstance(arenas, CudaArenas)
        program, workers = self._program, self.plan.target.worker_count
        if program.running is not None:
            # It did not leave when it was told to: it may have done so since.
            self.stop()
        gpu = program.gpu
        require_free(gpu.id, self.plan.name, self._sms)
        blocks = self._blocks({name: arenas.address(name) for name in ARENAS})
        gpu.copy_in(program.constant, blocks.launch_record(arenas.place(blocks)))
        words = arenas.words
        ring = CommandRing(self.plan, program.tables, words["host"], words["host_commands"])
        # Before the launch: Ctrl-C must not leave a kernel that nobody knows of.
        program.running = _Running(arenas, blocks, ring)
        gpu.hold(program, self.plan.name, self._sms)
        try:
            with self._forgetting_faults():
                threads = THREADS[self.plan.target.arch]
                gpu.launch(program.function, workers, threads, program.shared_bytes)
                self._await_start(program.running)
        except BaseException:
            # A launch can't be taken back: the kernel shall exit as soon as it starts.
            self.abort()
            raise

    def _await_start(self, running: _Running) -> None:
        """Wait until the kernel is there, and compare the clocks."""
        began = time.monotonic()
        while not running.word("started_ns"):
            waited_s = time.monotonic() - began
            if running.arenas.gpu.has_exited() or waited_s > self._settings.timeout_s:
                raise StallError(
                    f"rank {self.plan.rank}: the kernel did not start within "
                    f"{self._settings.timeout_s:g} s; what else runs on GPU {self._gpu_id} "
                    "(nvidia-smi tells) holds its multiprocessors: end that, or use fewer workers"
                )
            nap(waited_s)
        running.clock = GpuClock(running.word("started_ns"), time.monotonic_ns())

    def post(self, command: Command) -> None:
        """Write the command into the ring, once there is room, and let the kernel see it."""
        running = self._resident
        if running.ring.is_full:
            self._await(running, running.ring.oldest, float("inf"))
            running.ring.collect()
        running.progress = None
        running.ring.post(command)

    def wait(self, timeout_s: float) -> list[int]:
        """Block until all commands are done."""
        running = self._resident
        self._await(running, running.ring.posted, timeout_s)
        return running.ring.take_results()

    @property
    def _resident(self) -> _Running:
        assert self._program is not None and self._program.running is not None
        return self._program.running

    def _await(self, running: _Running, sequence: int, timeout_s: float) -> None:
        began = time.monotonic()
        look_at = began + LOOK_S
        while running.ring.completed < sequence:
            now = time.monotonic()
            if now >= look_at:
                look_at = now + LOOK_S
                self._look(running, now)
            if now - began >= timeout_s:
                raise TimeoutError(
                    f"program {self.plan.name!r} is still running after {timeout_s} s; "
                    "wait again, or stop it"
                )
            nap(now - began)

    def _look(self, running: _Running, now: float) -> None:
        """Raise what ended the kernel, or StallError if it gets on no more."""
        limit_s = self._settings.timeout_s
        with self._forgetting_faults():
            has_exited = running.arenas.gpu.has_exited()
        if has_exited:
            raise self._failure(running)
        if now < running.look_at:
            return
        running.look_at = now + min(limit_s / LOOKS_PER_LIMIT, MAX_LOOK_S)
        statuses = running.read("statuses")
        if int(running.read("control")["abort"][0]) != abi.RUNNING:
            running.aborted_at = running.aborted_at or now
            if now - running.aborted_at > EXIT_S:
                raise self._stuck(statuses)
            return
        steps = b"".join(statuses[name].tobytes() for name in ("turn", "task", "method"))
        if running.progress != (running.ring.completed, steps):
            running.progress, running.progress_at = (running.ring.completed, steps), now
        elif now - running.progress_at > HOST_LIMITS * limit_s:
            raise self._stalled(running, statuses)

    def _stalled(self, running: _Running, statuses: npt.NDArray[Any]) -> StallError:
        """End a kernel whose own watchdog says nothing."""
        running.abort()
        text = stall_text(self.plan, statuses, limit_s=self._settings.timeout_s)
        if not running.leaves():
            return StallError(f"{text}; then {self._stuck(statuses)}")
        self._release(running)
        return StallError(text)

    def _stuck(self, statuses: npt.NDArray[Any]) -> StallError:
        """For a kernel that does not leave: its memory is kept, since it may still write to it."""
        return StallError(
            f"rank {self.plan.rank}: the kernel did not exit within {EXIT_S:.0f} s; "
            f"{stall_text(self.plan, statuses)}"
        )

    def abort(self) -> None:
        """End the kernel at once; a wait() in another thread raises then."""
        running = self._program.running if self._program is not None else None
        if running is not None:
            # After a fault there is nothing to end; stop() tells of it.
            with suppress(GpuFaultError):
                running.abort()

    def leave(self) -> None:
        """There are no other ranks."""

    def stop(self) -> None:
        """Let the kernel exit; commands that are not done are dropped."""
        running = self._program.running if self._program is not None else None
        if running is None:
            return
        with self._forgetting_faults():
            if not running.stop():
                raise self._stuck(running.read("statuses"))
            self._release(running)

    def _failure(self, running: _Running) -> ArkError:
        """Why the kernel exited by itself."""
        control, statuses = running.read("control"), running.read("statuses")
        failures = running.read("failures")
        self._release(running)
        reason = int(control["abort"][0])
        if reason == abi.TASK_FAILED:
            return TaskError(failure_text(self.plan, first_failure(failures)))
        if reason == abi.STALLED:
            limit_s = self._settings.timeout_s
            return StallError(stall_text(self.plan, statuses, limit_s=limit_s))
        return ArkError(f"rank {self.plan.rank}: the kernel was aborted")

    @contextmanager
    def _forgetting_faults(self) -> Iterator[None]:
        """After a fault there is no kernel that could be stopped, nor memory to read."""
        try:
            yield
        except GpuFaultError:
            self._forget()
            raise

    def _forget(self) -> None:
        assert self._program is not None
        self._program.running = None
        self._program.gpu.release(self._program)

    def _release(self, running: _Running) -> None:
        """Forget a kernel that has exited, and write its trace."""
        self._forget()
        path = self._settings.trace_path
        if path is not None and running.clock is not None:
            counts, traces = running.read("trace_counts"), running.read("traces")
            add_to_trace_file(
                path, self.plan, trace_events(self.plan, counts, traces, running.clock)
            )


def _drop(pid: int, program: _Program) -> None:
    """End the kernel of a program that nobody stopped, and take its module back."""
    running, has_left = program.running, False
    if os.getpid() == pid:
        try:
            if running is not None:
                running.abort()
            has_left = running is None or running.leaves()
        except ArkError:
            pass  # after a fault nothing on this GPU can be used again
    if not has_left:
        # The kernel may still use the memory, or it belongs to the process that was forked.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(program))
        return
    program.gpu.release(program)
    program.gpu.unload(program.path, program.module)
