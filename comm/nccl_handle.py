"""Own one communicator of NCCL: its state, groups, parts, windows, and both of its ends."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.nccl_bootstrap import (
    ABORT_S,
    AGREE_EXTRA_S,
    NcclOptions,
    abort_comm,
    agree,
    config_of,
    connect,
    run_bounded,
    settle,
)
from ark_dist.comm.nccl_gpu import Gpu
from ark_dist.comm.nccl_library import NCCLLibrary
from ark_dist.comm.nccl_types import (
    IN_PROGRESS,
    SUCCESS,
    WINDOW_SYMMETRIC,
    ncclComm_t,
    ncclWindow_t,
)
from ark_dist.core.errors import CommAborted, CommTimeout, LifecycleError, NcclError

LOCK_S = 1.0  # how long an abort lets the call of another thread end
CLOSED = "closed"

logger = logging.getLogger("ark_dist")


class NcclHandle:
    """A communicator of NCCL; calls come from one thread, `end` and `check` from any.

    Attributes:
        control: the ranks' other connection.
        library: the functions of NCCL.
        gpu: this rank's GPU.
        comm: ncclComm_t.
        options: its limits.
        seq: how many calls were made on it.
    """

    def __init__(
        self,
        control: Communicator,
        library: NCCLLibrary,
        gpu: Gpu,
        comm: ncclComm_t,
        options: NcclOptions,
        parent: "NcclHandle | None" = None,
    ) -> None:
        """Take a connected communicator, of which a part belongs to its parent."""
        self.control = control
        self.library = library
        self.gpu = gpu
        self.comm = comm
        self.options = options
        self.seq = 0
        self._children: list[NcclHandle] = []
        self._stops: list[Callable[[], None]] = []
        self._releases: list[Callable[[], None]] = []
        self._depth = 0
        self._thread = 0
        self._ended = ""
        # Held while a thread is inside of NCCL: an abort frees what it works on.
        self._lock = threading.RLock()
        self._is_part = parent is not None
        self._marking: threading.Lock = threading.Lock() if parent is None else parent._marking

    @contextlib.contextmanager
    def using(self, what: str) -> Iterator[ncclComm_t]:
        """Let calls inside use the communicator, unless it has ended."""
        if not self._lock.acquire(timeout=self.options.timeout_s):
            raise CommTimeout(
                f"{what}: another thread of rank {self.control.rank} is inside of NCCL for "
                f"{self.options.timeout_s} s; abort this communicator",
                rank=self.control.rank,
                op=what,
                seq=self.seq,
                waited_s=self.options.timeout_s,
            )
        try:
            if self._ended == CLOSED:
                raise LifecycleError(
                    f"{what}: rank {self.control.rank} closed this communicator; make another"
                )
            if self._ended:
                raise CommAborted(f"{what}: rank {self.control.rank} aborted NCCL: {self._ended}")
            yield self.comm
        finally:
            self._lock.release()

    def run(self, what: str, call: Callable[[ncclComm_t], None]) -> None:
        """Make a call, and let NCCL finish what it does on the host for it."""
        with self.using(what) as comm:
            self.seq += 1
            call(comm)
        if self._depth == 0:
            self.settle(what)

    def settle(self, what: str, poll: Callable[[], int] | None = None) -> None:
        """Wait until the communicator is no longer in progress, with the options' limit."""

        def own() -> int:
            with self.using(what) as comm:
                return self.library.ncclCommGetAsyncError(comm)

        rank, limit_s = self.control.rank, self.options.timeout_s
        settle(self.library, poll or own, what, rank, limit_s, self.seq)

    def agree(self, problem: Exception | None, what: str) -> None:
        """Raise on all ranks if there is a problem on one."""
        agree(self.control, problem, what, self.options.timeout_s + AGREE_EXTRA_S)

    def check(self) -> None:
        """Raise NcclError if a call went wrong on the GPU or the network meanwhile."""
        with self.using("check") as comm:
            state = self.library.ncclCommGetAsyncError(comm)
        if state not in (SUCCESS, IN_PROGRESS):
            text = self.library.describe(state, "asynchronous work")
            raise NcclError(f"rank {self.control.rank}: {text}; abort this communicator")

    # --- groups -------------------------------------------------------------------------------

    def group_start(self) -> None:
        """Begin a group in this thread; groups nest."""
        with self.using("group"):
            self.library.ncclGroupStart()
            self._lock.acquire()  # until the group's end: an abort waits for that
            self._depth += 1
            self._thread = threading.get_ident()

    def group_end(self) -> None:
        """Start the calls of the group."""
        if self._depth == 0:
            raise LifecycleError("group_end without group_start; start a group first")
        self._depth -= 1
        try:
            with self.using("group"):
                self.library.ncclGroupEnd()
        finally:
            self._lock.release()
        if self._depth == 0:
            self.settle("group")

    def drop_group(self) -> None:
        """End the group after an error: NCCL can't drop one, and it would swallow later calls."""
        if self._depth:
            try:
                self.group_end()
            except (NcclError, CommAborted) as error:
                logger.error("rank %d: a group ended by an error: %s", self.control.rank, error)

    # --- windows ------------------------------------------------------------------------------

    def register_window(
        self, pointer: int, size_bytes: int, flags: int = WINDOW_SYMMETRIC
    ) -> ncclWindow_t:
        """Make memory of all ranks a window: collective; NULL where NCCL has none here."""
        with self.using("register_window") as comm:
            window = self.library.ncclCommWindowRegister(comm, pointer, size_bytes, flags)
        if self._depth == 0:
            self.settle("ncclCommWindowRegister")
        return window

    def deregister_window(self, window: ncclWindow_t) -> None:
        """Undo `register_window`."""
        with self.using("deregister_window") as comm:
            self.library.ncclCommWindowDeregister(comm, window)
        self.settle("ncclCommWindowDeregister")

    # --- parts --------------------------------------------------------------------------------

    def split(self, color: int, key: int) -> "NcclHandle":
        """Join the ranks that pass the same color, in the order of key, then of rank."""
        if color < 0:
            raise ValueError(f"split: color is {color}; it must be 0 or above")
        with self.using("split"):
            control = self.control.split(color, key)
        try:
            if self.library.has("ncclCommSplit"):
                comm = self._split(control, color, key)
            else:
                comm = connect(control, self.library, self.gpu, self.options)
        except BaseException:
            control.close()
            raise
        child = NcclHandle(control, self.library, self.gpu, comm, self.options, self)
        self._children.append(child)
        return child

    def _split(self, control: Communicator, color: int, key: int) -> ncclComm_t:
        """Let NCCL split, on all ranks of the parent or on none."""
        part, problem, what = ncclComm_t(), None, "ncclCommSplit"
        library = self.library
        try:
            with self.using("split") as comm:
                part = library.ncclCommSplit(comm, color, key, config_of(library, self.options))
            self.settle(what)  # until its end `part` may be empty: NCCL issue #1472
            self.settle(what, lambda: library.ncclCommGetAsyncError(part))
            found = (library.ncclCommUserRank(part), library.ncclCommCount(part))
            if found != (control.rank, control.size):
                raise NcclError(
                    f"rank {self.control.rank}: {what} made rank {found[0]} of {found[1]}, and "
                    f"the control communicator rank {control.rank} of {control.size}"
                )
        except Exception as error:  # whatever it is, the other ranks have to learn of it
            problem = error
        try:
            self.agree(problem, what)
        except BaseException:
            abort_comm(library, part)
            raise
        return part

    # --- both ends ----------------------------------------------------------------------------

    def on_abort(
        self,
        stop: Callable[[], None] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Say what an abort does first: raise a kernel's stop flag, then release gates."""
        self._stops += [stop] if stop else []
        self._releases += [release] if release else []

    def family(self) -> list["NcclHandle"]:
        """This communicator's parts, the last made first, and itself."""
        return [member for child in reversed(self._children) for member in child.family()] + [self]

    def end(self, reason: str) -> list[str]:
        """Abort NCCL on this rank: stop flags, gates, then NCCL; return what went wrong.

        NCCL's abort waits for what the GPU runs, so it would never end before the other two.
        Nothing here waits for other ranks, and the control communicator stays.
        """
        with self._marking:
            members = [member for member in self.family() if not member._ended]
            for member in members:
                member._ended = reason
        problems = []
        for kind in ("stop", "release"):
            for member in members:
                for action in member._stops if kind == "stop" else member._releases:
                    problems.append(run_bounded(f"{kind} before the abort", action, ABORT_S))
        problems += [member._abort() for member in members]
        problems = [problem for problem in problems if problem]
        for problem in problems:
            logger.error("rank %d, aborting (%s): %s", self.control.rank, reason, problem)
        return problems

    def _abort(self) -> str:
        if self._depth and self._thread == threading.get_ident():
            # The group of this thread holds calls of what is about to be freed.
            with contextlib.suppress(NcclError):
                for _ in range(self._depth):
                    self.library.ncclGroupEnd()
        if self._lock.acquire(timeout=LOCK_S):
            self._lock.release()  # whoever comes now finds that it has ended
        return abort_comm(self.library, self.comm)

    def close(self) -> None:
        """Finish what is under way and free the communicator: collective; twice is once.

        Raises:
            NcclError: it failed; NCCL was aborted then.
            CommTimeout: other ranks did not come; NCCL was aborted then.
        """
        if self._ended:
            return
        for child in reversed(self._children):
            child.close()
        try:
            with self.using("close") as comm:
                self.library.ncclCommFinalize(comm)
            self.settle("ncclCommFinalize")
        except BaseException as error:
            self.end(f"closing failed: {error}")
            raise
        with self._marking:
            if self._ended:  # another thread aborted meanwhile
                return
            self._ended = CLOSED
        comm = self.comm
        problem = run_bounded(
            "ncclCommDestroy", lambda: self.library.ncclCommDestroy(comm), ABORT_S
        )
        if self._is_part:  # nobody else knows this control communicator
            self.control.close()
        if problem:
            raise NcclError(f"rank {self.control.rank}: {problem}")
