"""Hold one program on one device: its memory, its lifecycle, and the way data gets in and out."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ark_dist.core.data import converted
from ark_dist.core.errors import ArkError, LifecycleError
from ark_dist.core.graph import Node
from ark_dist.core.op import Array
from ark_dist.core.plan import Plan
from ark_dist.core.view import View
from ark_dist.launch.devices.base import Device
from ark_dist.launch.fault import fault_point
from ark_dist.launch.machine import Command, Scalars
from ark_dist.launch.memory import Arenas, reset_state

# Which call is legal in which state, and the state after it. `docs/lifecycle.md` shows this.
TRANSITIONS = {
    ("new", "compile"): "compiled",
    ("compiled", "compile"): "compiled",
    ("compiled", "read"): "compiled",
    ("compiled", "write"): "compiled",
    ("compiled", "launch"): "launched",
    ("launched", "read"): "launched",
    ("launched", "write"): "launched",
    ("launched", "run"): "running",
    ("launched", "wait"): "launched",
    ("launched", "stop"): "compiled",
    ("running", "run"): "running",
    ("running", "wait"): "launched",
    ("running", "stop"): "compiled",
    # A kernel that ended with an error: its memory can be read, and it can be started anew.
    ("failed", "read"): "failed",
    ("failed", "write"): "failed",
    ("failed", "stop"): "compiled",
    ("failed", "launch"): "launched",
}
WAYS_OUT = {
    "new": "call compile() first",
    "compiled": "call launch() first",
    "launched": "call stop() first",
    "running": "call wait() or stop() first",
    "failed": "the kernel ended with an error; call launch() to start it anew",
    "closed": "the program was closed; make a new one",
}
MAX_ITERATIONS = 2**40


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Limits of a session: `timeout_s` bounds every wait without progress, in seconds."""

    timeout_s: float = 60.0


class Session:
    """One program on one device. Threads may share it: their calls come one after the other."""

    def __init__(self, plan: Plan, device: Device, options: SessionOptions) -> None:
        """Take a plan and the device that will run it; nothing happens yet."""
        self.plan = plan
        self._device = device
        self._options = options
        self._state = "new"
        self._arenas: Arenas | None = None
        self._epoch = 0
        self._launched_at = 0.0
        self._pid = os.getpid()
        # Reentrant: stop() waits.
        self._lock = threading.RLock()

    @property
    def state(self) -> str:
        """Where in the lifecycle the session is."""
        return self._state

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """Make the kernel and allocate the memory."""
        with self._calling("compile"):
            state = self._next("compile")
            fault_point("compile", self.plan.rank)
            self._device.compile(on_compile)
            if self._arenas is None:
                self._arenas = self._device.allocate()
            self._state = state

    def write(self, view: View, value: Array) -> None:
        """Copy an array of the view's shape and dtype into the program's memory."""
        with self._calling("write"):
            self._next("write")
            self.memory.write(view, value)

    def read(self, view: View) -> Array:
        """Return a copy of what the program's memory holds."""
        with self._calling("read"):
            self._next("read")
            return self.memory.read(view)

    def reset_state(self) -> None:
        """Set all state tensors back to their initial values."""
        with self._calling("write"):
            self._next("write")
            reset_state(self.memory)

    def launch(self) -> None:
        """Start the resident kernel; it computes nothing yet."""
        with self._calling("launch"):
            state = self._next("launch")
            if self._state == "failed":
                # What the failed kernel left half done must not meet the new one.
                self._device.stop()
            self._device.start(self.memory)
            self._launched_at = time.monotonic()
            self._state = state

    def run(
        self, iterations: int, method: str, scalars: Scalars, *, whole: Iterable[Node] | None = None
    ) -> None:
        """Queue `iterations` turns of a method and return at once.

        Of a program cut over ranks `whole` has the method's nodes on all of them: a scalar may be
        another rank's alone, and the ranks' commands are equal all the same.

        Raises TaskError or StallError if the queue is full and a run before has failed.
        """
        with self._calling("run"):
            state = self._next("run")
            if isinstance(iterations, bool) or not isinstance(iterations, (int, np.integer)):
                raise TypeError(f"run: iterations is {iterations!r}; it must be an integer")
            if not 0 <= iterations <= MAX_ITERATIONS:
                raise ValueError(f"run: iterations is {iterations}; it must be 0 to 2**40")
            nodes = self.plan.method(method).nodes
            checked = _checked_scalars(nodes if whole is None else whole, method, scalars)
            command = Command(method, int(iterations), self._epoch, checked)
            fault_point("run", self.plan.rank)
            # Ctrl-C in post() leaves a session that may have a run under way.
            self._state = state
            try:
                self._device.post(command)
            except ArkError:
                self._state = "failed"
                raise

    def wait(self, timeout_s: float | None = None) -> int:
        """Block until all runs are done; return the iterations they did.

        Raises StallError when the kernel makes no progress, TimeoutError when `timeout_s`
        (seconds) ran out first: the runs go on then.
        """
        if timeout_s is not None and not timeout_s >= 0:
            raise ValueError(f"wait: timeout is {timeout_s!r}; it must be seconds, 0 or more")
        with self._calling("wait"):
            state = self._next("wait")
            if self._state == "launched":
                return 0
            try:
                done = self._device.wait(timeout_s if timeout_s is not None else float("inf"))
            except ArkError:
                self._state = "failed"
                raise
            self._epoch += 1
            self._state = state
            return sum(done)

    def stop(self) -> float:
        """Finish all runs, end the kernel, and return milliseconds since `launch`."""
        with self._calling("stop"):
            state = self._next("stop")
            if self._state == "running":
                self.wait()
            self._device.stop()
            self._state = state
            return (time.monotonic() - self._launched_at) * 1e3

    def leave(self) -> None:
        """Tell other ranks that this one computes no more, whatever they still wait for."""
        if os.getpid() == self._pid:
            self._device.leave()

    def close(self) -> None:
        """End the kernel at once, with the runs under way; safe to call twice."""
        if os.getpid() != self._pid:
            # After a fork the kernel's threads are the parent's alone.
            self._state, self._arenas = "closed", None
            return
        if self._state == "running":
            # Before taking the lock: another thread may hold it in wait().
            self._device.abort()
        with self._lock:
            try:
                if self._state in ("launched", "running", "failed"):
                    self._device.stop()
            finally:
                self._state, self._arenas = "closed", None

    @property
    def memory(self) -> Arenas:
        """The arenas; allocated by `compile`."""
        if self._arenas is None:
            raise LifecycleError(f"the program has no memory yet; {WAYS_OUT[self._state]}")
        return self._arenas

    def require(self, call: str) -> None:
        """Raise LifecycleError if `call` is not allowed now."""
        with self._calling(call):
            self._next(call)

    def _calling(self, call: str) -> threading.RLock:
        """The lock that every call holds; LifecycleError in a fork, where it may be stuck."""
        if os.getpid() != self._pid:
            raise LifecycleError(
                f"{call}() was called in process {os.getpid()}, a fork of {self._pid}, which "
                "holds the program; make a new Executor in this process"
            )
        return self._lock

    def _next(self, call: str) -> str:
        state = TRANSITIONS.get((self._state, call))
        if state is None:
            raise LifecycleError(
                f"{call}() is not allowed while {self._state}; {WAYS_OUT[self._state]}"
            )
        return state


def _checked_scalars(
    nodes: Iterable[Node], method: str, scalars: Scalars
) -> tuple[tuple[str, int | float | bool], ...]:
    known = {str(n.attributes["name"]): n.output for n in nodes if n.op == "command_scalar"}
    checked = []
    for name, value in sorted(scalars.items()):
        if name not in known:
            raise ValueError(
                f"run: scalar {name!r} is not one of method {method!r}; there are "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        if not isinstance(value, (bool, int, float, np.number, np.bool_)):
            raise TypeError(f"run: scalar {name!r} is {value!r}; it must be a number")
        item = converted(f"run: scalar {name!r}", value, known[name].dtype)
        checked.append((name, item.item()))
    return tuple(checked)
