"""What a session asks of a device."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ark_dist.core.plan import Plan
from ark_dist.core.source import Source
from ark_dist.kernels.tables import Tables
from ark_dist.launch.machine import Command
from ark_dist.launch.memory import Arenas

# Turns a device's plan into source, and the tables that go with it.
Emit = Callable[[Plan], tuple[Source, Tables]]


class Device(Protocol):
    """Runs the plan it was made for; a session calls these in the order of its lifecycle."""

    plan: Plan

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """Make the kernel; call `on_compile` with the path of its source, if it has one."""

    def allocate(self) -> Arenas:
        """Make the program's memory: outputs and activations poisoned, states at their start."""

    def start(self, arenas: Arenas) -> None:
        """Start the resident kernel on this memory."""

    def post(self, command: Command) -> None:
        """Hand over a command without waiting for it."""

    def wait(self, timeout_s: float) -> list[int]:
        """Block until all commands are done; return the iterations each one did.

        Raises TaskError or StallError; the kernel has ended then.
        """

    def abort(self) -> None:
        """End what is under way, as soon as the device can; any thread may call it."""

    def stop(self) -> None:
        """End the kernel; all commands are done."""

    def leave(self) -> None:
        """Tell the other ranks, where there are any, that this one computes no more."""
