"""Turn SIGTERM and SIGINT into a proper end of the program, also while it is deep in C code."""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from ark_dist.launch.exit_codes import BY_SIGNAL

# How long the main thread may take until it runs its handler, before the process is ended for it.
STUCK_S = 2.0
STDERR = 2
Handler = Callable[[int, FrameType | None], object]


class SignalWatch:
    """Handles SIGTERM and SIGINT where the program does not; a thread covers a main thread in C.

    Attributes:
        exit_code: 0, or 143 once SIGTERM has come.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._name = ""
        self._old: dict[int, object] = {}
        self._seen = {int(s): threading.Event() for s in (signal.SIGTERM, signal.SIGINT)}
        self._pipe: tuple[int, int] | None = None

    def install(self, name: str) -> None:
        """Take the two signals, unless the program handles them; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._name = name
        for signum, handler, default in (
            (signal.SIGTERM, self._on_term, signal.SIG_DFL),
            (signal.SIGINT, self._on_interrupt, signal.default_int_handler),
        ):
            if signal.getsignal(signum) == default:
                self._old[signum] = default
                signal.signal(signum, handler)
        if self._old:
            self._watch()

    def uninstall(self) -> None:
        """Give the signals back, unless the program has taken them since; in a fork too."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum, old in self._old.items():
            if signal.getsignal(signum) in (self._on_term, self._on_interrupt):
                signal.signal(signum, old)  # type: ignore[arg-type]  # came from getsignal
        self._old.clear()
        if self._pipe is not None:
            current = signal.set_wakeup_fd(-1)
            if current not in (-1, self._pipe[1]):
                signal.set_wakeup_fd(current)  # somebody else's by now
            # The thread that reads it ends; in a fork there is none.
            os.close(self._pipe[1])
            self._pipe = None

    def _watch(self) -> None:
        """Have Python write each signal to a pipe, in C, that a thread reads."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        old = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        if old != -1:  # an event loop lives here: it must go on to hear its signals
            signal.set_wakeup_fd(old)
            os.close(read_end)
            os.close(write_end)
            return
        self._pipe = (read_end, write_end)
        threading.Thread(
            target=self._read, args=(read_end,), name="ark_dist signals", daemon=True
        ).start()

    def _read(self, read_end: int) -> None:
        while data := os.read(read_end, 1):
            seen = self._seen.get(data[0])
            if seen is None or seen.wait(STUCK_S) or not self._is_ours(data[0]):
                continue
            text = f"{self._name}: signal {data[0]} while deep in C code; stacks of all threads:\n"
            os.write(STDERR, text.encode())
            faulthandler.dump_traceback(file=STDERR, all_threads=True)
            os._exit(BY_SIGNAL + data[0])
        os.close(read_end)

    def _is_ours(self, signum: int) -> bool:
        return signal.getsignal(signum) in (self._on_term, self._on_interrupt)

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        is_first = not self._seen[signal.SIGTERM].is_set()
        self._seen[signal.SIGTERM].set()
        self.exit_code = BY_SIGNAL + signum
        if is_first:  # a second one must not cut the cleaning up short
            raise SystemExit(self.exit_code)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._seen[signal.SIGINT].set()
        signal.default_int_handler(signum, frame)
