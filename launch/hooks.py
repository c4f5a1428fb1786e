"""Make a rank that fails or leaves end the whole job, instead of leaving the others waiting."""

import atexit
import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from ark_dist.core.errors import ConfigError
from ark_dist.launch.error_file import (
    error_path,
    error_record,
    log_folder,
    mark_finished,
    mark_hooked,
    write_record,
)
from ark_dist.launch.exit_codes import USER_ERROR, exit_code
from ark_dist.launch.parent import die_with_parent
from ark_dist.launch.ranks import ALONE, LASTING_PARENTS, Ranks, find_ranks
from ark_dist.launch.signals import SignalWatch

STDERR = 2
# An abort that itself hangs is cut off after this, without Python's help.
ABORT_LIMIT_S = 10.0
# A wait's own limit says more than the backstop: it comes first.
BACKSTOP_MARGIN_S = 4.0


class Backstop:
    """Ends the process after a time, with a dump of all stacks, even if nothing lets go of the GIL.

    It is Python's one such timer: a thread in C. The exit code is 1, which `ark-dist run` reads as
    a watchdog's.
    """

    def arm(self, timeout_s: float) -> None:
        """Start the time anew: the process ends in `timeout_s` seconds unless armed or disarmed."""
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=STDERR)

    def disarm(self) -> None:
        """Stop the time."""
        faulthandler.cancel_dump_traceback_later()


class RankHooks:
    """What `install_hooks` put in place.

    Attributes:
        ranks: which rank this is.
        backstop: a timer for callers that wait: arm it anew with every sign of progress.
        is_installed: False in an interactive session, which is left alone.
    """

    def __init__(
        self, ranks: Ranks, abort: Callable[[int], None], on_exit: Callable[[int], None]
    ) -> None:
        self.ranks = ranks
        self.backstop = Backstop()
        self.is_installed = False
        self._abort = abort
        self._on_exit = on_exit
        self._pid = os.getpid()
        self._signals = SignalWatch()
        self._error: BaseException | None = None
        self._failing = threading.Lock()
        self._old_hook = sys.excepthook
        self._old_thread_hook = threading.excepthook

    @property
    def name(self) -> str:
        """How messages name this process: rank, host, pid."""
        return f"rank {self.ranks.rank} (host {os.uname().nodename}, pid {os.getpid()})"

    def install(self) -> None:
        """Put everything in place; once."""
        self.is_installed = True
        mark_hooked(self.ranks.rank)
        sys.excepthook = self._on_error
        threading.excepthook = self._on_thread_error
        atexit.register(self._at_exit)
        os.register_at_fork(after_in_child=self.uninstall)  # a fork is no rank
        self._signals.install(self.name)
        if not faulthandler.is_enabled():
            faulthandler.enable(file=STDERR, all_threads=True)
        if self.ranks.launcher in LASTING_PARENTS:
            die_with_parent()

    def uninstall(self) -> None:
        """Put everything back as it was, but for faulthandler and the bond to the parent."""
        if not self.is_installed:
            return
        self.is_installed = False
        # == not is: each access makes a bound method anew.
        if sys.excepthook == self._on_error:
            sys.excepthook = self._old_hook
        if threading.excepthook == self._on_thread_error:
            threading.excepthook = self._old_thread_hook
        atexit.unregister(self._at_exit)
        self._signals.uninstall()
        if os.getpid() == self._pid:
            mark_finished(self.ranks.rank)

    def rebind(self, abort: Callable[[int], None], on_exit: Callable[[int], None] | None) -> None:
        """Change what is called when the rank fails or leaves."""
        self._abort = abort
        self._on_exit = on_exit or _do_nothing

    def fail(self, error: BaseException, thread: str = "MainThread") -> None:
        """End the job because of `error`: report it, abort; this does not return.

        The first of several failing threads reports; the others wait for the end.
        """
        if not self._failing.acquire(blocking=False):
            threading.Event().wait(ABORT_LIMIT_S)
            os._exit(exit_code(error))
        self.backstop.arm(ABORT_LIMIT_S)
        self._error = error
        self._report(error, thread)
        self._end(exit_code(error))

    def _end(self, code: int) -> None:
        code = code or USER_ERROR
        try:
            self._abort(code)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _report(self, error: BaseException, thread: str) -> None:
        """Say what happened: in the error file first, as stderr may block."""
        place = ""
        with suppress(Exception):
            path = error_path(log_folder(), self.ranks.rank)
            write_record(path, error_record(error, self.ranks, thread))
            place = f"{self.name}: this error is in {path}\n"
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(Exception):
            if isinstance(error, KeyboardInterrupt):
                _print(f"{self.name}: interrupted\n")
                return
            text = f"{self.name}: {type(error).__name__}: {error}\n"
            if self._old_hook is sys.__excepthook__:
                lines = traceback.format_exception(type(error), error, error.__traceback__)
                _print(text + "".join(lines) + place)
                return
            _print(text)
            self._old_hook(type(error), error, error.__traceback__)
            _print(place)

    def _on_error(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:
            self._old_hook(kind, error, trace)
            return
        self.fail(error.with_traceback(trace))

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        is_exit = issubclass(args.exc_type, SystemExit)
        if is_exit or os.getpid() != self._pid or args.exc_value is None:
            self._old_thread_hook(args)
            return
        self.fail(args.exc_value, args.thread.name if args.thread else "a thread")

    def _at_exit(self) -> None:
        """Let the others know that this rank leaves; a failure that no hook saw ends the job."""
        if os.getpid() != self._pid:
            return
        error = self._missed_error()
        if error is not None:
            self.fail(error)
        try:
            self._on_exit(self._signals.exit_code)
        except BaseException as leaving:
            self.fail(leaving)
        if self._signals.exit_code:
            _flush()
            self._end(self._signals.exit_code)
        mark_finished(self.ranks.rank)

    def _missed_error(self) -> BaseException | None:
        """The error that ended the program, where a hook set after ours swallowed it."""
        if sys.excepthook == self._on_error:
            return None
        error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
        return error if isinstance(error, BaseException) else None


def install_hooks(
    ranks: Ranks,
    abort: Callable[[int], None],
    on_exit: Callable[[int], None] | None = None,
) -> RankHooks:
    """Make the end of this rank known to the others, whatever way it ends.

    An exception that nobody catches, in any thread, is printed with rank, host and pid in its first
    line and written to the error file; then `abort(code)` is called, with a code of
    launch/exit_codes.py, and the process ends. SIGTERM unwinds as SystemExit. A crash prints its
    stack; a rank dies with its launcher. Hooks that were there go on to be called; an interactive
    session is left alone. A second call changes the callbacks of the first.

    Args:
        ranks: which rank this process is.
        abort: ends all ranks, such as MPI's Abort; called with the exit code, in any thread.
        on_exit: called when this rank leaves properly, with its exit code (0, or 143 after
            SIGTERM), to let ranks know that wait for it; an error it raises fails the job.
    """
    current = _installed()
    if current is not None:
        current.rebind(abort, on_exit)
        return current
    hooks = RankHooks(ranks, abort, on_exit or _do_nothing)
    if not is_interactive():
        hooks.install()
    return hooks


def hooked_ranks() -> Ranks:
    """Find out which rank this process is, with hooks from the first moment on.

    Until MPI is up they end this process alone, in a way that makes the launcher end the others;
    call `install_hooks` again then, with an abort that ends all.

    Raises:
        ConfigError: as `find_ranks`; uncaught, it has its exit code.
    """
    try:
        ranks = find_ranks()
    except ConfigError:
        install_hooks(ALONE, os._exit)
        raise
    if ranks.launcher != "none":
        install_hooks(ranks, _end_for_launcher if ranks.launcher == "mpich" else os._exit)
    return ranks


def _end_for_launcher(code: int) -> None:
    """End this process by a signal: mpich lets the others wait for one that exits before MPI_Init.

    The error file has the code.
    """
    os.kill(os.getpid(), signal.SIGKILL)


def active_backstop() -> Backstop | None:
    """The timer of this process's hooks; None where there are none, as in an interactive session.

    It is None too where the program has put an excepthook of its own above ours.
    """
    hooks = _installed()
    return None if hooks is None else hooks.backstop


@contextmanager
def bounded(timeout_s: float) -> Iterator[None]:
    """End this process by its backstop if a block takes longer, and a margin."""
    backstop = active_backstop()
    if backstop is None:
        yield
        return
    backstop.arm(timeout_s + BACKSTOP_MARGIN_S)
    try:
        yield
    finally:
        backstop.disarm()


def note_stage(stage: str) -> None:
    """Note in the log folder how far this rank has come, if it has hooks."""
    hooks = _installed()
    if hooks is not None:
        mark_hooked(hooks.ranks.rank, stage)


def _installed() -> RankHooks | None:
    hooks = getattr(sys.excepthook, "__self__", None)
    return hooks if isinstance(hooks, RankHooks) and hooks.is_installed else None


def is_interactive() -> bool:
    """Whether somebody types at this process: a prompt, `python -i`, IPython or Jupyter."""
    shell = sys.modules.get("IPython")
    get_shell = getattr(shell, "get_ipython", None)
    return (
        hasattr(sys, "ps1")
        or bool(sys.flags.interactive)
        or (get_shell is not None and get_shell() is not None)
    )


def _do_nothing(code: int) -> None:
    """Stand in for a callback that was not given."""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _print(text: str) -> None:
    """Write to stderr in one piece, so that ranks which share it do not mix within a line."""
    sys.stderr.flush()
    if sys.stderr is not sys.__stderr__:
        sys.stderr.write(text)
        sys.stderr.flush()
        return
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(STDERR, data) :]
