"""Communicate between GPUs with NCCL: arrays in GPU memory, calls that a stream runs in order."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.nccl_arrays import DeviceArray, check_pair, device_array, movable
from ark_dist.comm.nccl_bootstrap import (
    ABORT_S,
    AGREE_EXTRA_S,
    NcclOptions,
    abort_comm,
    agree,
    config_of,
    connect,
    open_rank,
    run_bounded,
    settle,
)
from ark_dist.comm.nccl_gpu import Gpu
from ark_dist.comm.nccl_library import NCCLLibrary
from ark_dist.comm.nccl_types import (
    IN_PROGRESS,
    SUCCESS,
    WINDOW_ALIGNMENT_BYTES,
    WINDOW_SYMMETRIC,
    ncclComm_t,
    ncclDataTypeEnum,
    ncclRedOpTypeEnum,
    ncclWindow_t,
)
from ark_dist.core.errors import CommAborted, LifecycleError, NcclError

T = TypeVar("T")
Call = Callable[[ncclComm_t, int], None]

LEGACY_STREAMS = (0, 1)  # cudaStreamLegacy: it waits for all that the GPU runs
PER_THREAD_STREAM = 2  # cudaStreamPerThread: NCCL issue #1976, with blocking=0
DEVICE_API_VERSION = 22803

logger = logging.getLogger("ark_dist")


class NcclWindow:
    """GPU memory of NCCL's that kernels of other ranks reach: symmetric, `size_bytes` per rank.

    `cupy.asarray(window)` is this rank's bytes.

    Attributes:
        pointer: address of this rank's bytes.
        size_bytes: how many there are.
        handle: ncclWindow_t, for the device API.
    """

    def __init__(
        self, owner: "NcclCommunicator", pointer: int, size_bytes: int, handle: ncclWindow_t
    ) -> None:
        """Take what `NcclCommunicator.allocate_window` made."""
        self._owner = owner
        self.pointer = pointer
        self.size_bytes = size_bytes
        self.handle = handle

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        data = (self.pointer, False)
        return {"shape": (self.size_bytes,), "typestr": "|u1", "data": data, "version": 3}

    def close(self) -> None:
        """Deregister and free it: collective; nothing may use it any more."""
        if self.pointer:
            self._owner.deregister_window(self.handle)
            self._owner.library.ncclMemFree(self.pointer)
            self.pointer = 0


class NcclCommunicator:
    """NCCL between ranks that a control communicator (MPI) connects already.

    Every call but `abort` and `check` comes from one thread, in the same order on all ranks, and
    is enqueued on a stream: it is over when that stream has got there. A stream is its handle as
    a number. Anything that has `__cuda_array_interface__`, and torch tensors, are arrays.

    Attributes:
        control: the ranks' other connection, for what is no work of the GPU.
        library: the functions of NCCL.
        gpu: this rank's GPU.
        handle: ncclComm_t.
        stream: the stream of calls that name none.
    """

    backend = "nccl"

    def __init__(
        self,
        control: Communicator,
        library: NCCLLibrary,
        gpu: Gpu,
        handle: ncclComm_t,
        *,
        options: NcclOptions,
        stream: int | None,
    ) -> None:
        """Take a connected communicator; `nccl_communicator` makes one."""
        self.control = control
        self.library = library
        self.gpu = gpu
        self.handle = handle
        self.stream = stream
        self.rank, self.size = control.rank, control.size
        self.node_ranks = control.node_ranks
        found = {"stream"}
        if library.has("ncclCommWindowRegister"):
            found.add("symmetric")
        if library.version >= DEVICE_API_VERSION:
            found.add("device_api")
        self.capabilities = frozenset(found)
        self._options = options
        self._children: list[NcclCommunicator] = []
        self._stops: list[Callable[[], None]] = []
        self._releases: list[Callable[[], None]] = []
        self._depth = 0
        self._seq = 0
        self._ended = ""

    # --- collectives --------------------------------------------------------------------------

    def all_reduce(
        self, send: T, recv: T | None = None, op: str = "sum", *, stream: int | None = None
    ) -> T:
        """Reduce over all ranks; every rank gets the result, in `send` without `recv`."""
        target = send if recv is None else recv
        a, b, number, kind = self._reduction("all_reduce", send, target, op, 1, 1)
        call = self.library.ncclAllReduce
        self._run(
            "all_reduce",
            lambda comm, on: call(a.pointer, b.pointer, a.count, number, kind, comm, on),
            stream,
        )
        return target

    def reduce(
        self,
        send: T,
        recv: T | None = None,
        root: int = 0,
        op: str = "sum",
        *,
        stream: int | None = None,
    ) -> T:
        """Reduce over all ranks; `root` gets the result, in `send` without `recv`."""
        self._check_rank("reduce", "root", root)
        target = send if recv is None else recv
        a, b, number, kind = self._reduction("reduce", send, target, op, 1, 1)
        call = self.library.ncclReduce
        self._run(
            "reduce",
            lambda comm, on: call(a.pointer, b.pointer, a.count, number, kind, root, comm, on),
            stream,
        )
        return target

    def reduce_scatter(
        self, send: object, recv: T, op: str = "sum", *, stream: int | None = None
    ) -> T:
        """Reduce over all ranks; each gets its 1/size of the result, in rank order."""
        a, b, number, kind = self._reduction("reduce_scatter", send, recv, op, 1, self.size)
        call = self.library.ncclReduceScatter
        self._run(
            "reduce_scatter",
            lambda comm, on: call(a.pointer, b.pointer, b.count, number, kind, comm, on),
            stream,
        )
        return recv

    def all_gather(self, send: object, recv: T, *, stream: int | None = None) -> T:
        """Give every rank all arrays, one behind the other in rank order."""
        a, b = device_array(send), device_array(recv)
        check_pair("all_gather", a, b, self.size, 1)
        count, number = movable(a)
        call = self.library.ncclAllGather
        self._run(
            "all_gather",
            lambda comm, on: call(a.pointer, b.pointer, count, number, comm, on),
            stream,
        )
        return recv

    def broadcast(self, array: T, root: int = 0, *, stream: int | None = None) -> T:
        """Fill every rank's array with that of `root`."""
        self._check_rank("broadcast", "root", root)
        a = device_array(array)
        if self.rank != root:
            check_pair("broadcast", a, a, 1, 1)
        count, number = movable(a)
        call = self.library.ncclBroadcast
        self._run(
            "broadcast",
            lambda comm, on: call(a.pointer, a.pointer, count, number, root, comm, on),
            stream,
        )
        return array

    # --- point to point -----------------------------------------------------------------------

    def send(self, array: object, dst: int, *, stream: int | None = None) -> None:
        """Send to a rank; NCCL has no tags: both sides' order decides.

        A send and a receive that wait for each other belong into one `group()`.
        """
        self._check_rank("send", "dst", dst)
        a = device_array(array)
        count, number = movable(a)
        call = self.library.ncclSend
        self._run("send", lambda comm, on: call(a.pointer, count, number, dst, comm, on), stream)

    def recv(self, array: T, src: int, *, stream: int | None = None) -> T:
        """Fill an array with what a rank sends."""
        self._check_rank("recv", "src", src)
        a = device_array(array)
        check_pair("recv", a, a, 1, 1)
        count, number = movable(a)
        call = self.library.ncclRecv
        self._run("recv", lambda comm, on: call(a.pointer, count, number, src, comm, on), stream)
        return array

    @contextmanager
    def group(self) -> Iterator[None]:
        """Start the calls made inside together, at the end."""
        self._require_open("group")
        self.library.ncclGroupStart()
        self._depth += 1
        try:
            yield
        except BaseException:
            self._depth -= 1
            # NCCL can't drop a group, and one left open would swallow all later calls.
            problem = run_bounded_group_end(self.library)
            if problem:
                logger.error("rank %d: a group ended by an error: %s", self.rank, problem)
            raise
        self._depth -= 1
        self.library.ncclGroupEnd()
        self._settle("group")

    # --- memory -------------------------------------------------------------------------------

    def allocate_window(self, size_bytes: int) -> NcclWindow:
        """Allocate memory that all ranks reach: collective, with the same size on all.

        Raises:
            NcclError: NCCL is too old, a rank has no memory, or the GPUs can't reach each other.
        """
        self._require_open("allocate_window")
        if size_bytes <= 0:
            raise ValueError(f"size_bytes is {size_bytes}; it must be above 0")
        size_bytes = -(-size_bytes // WINDOW_ALIGNMENT_BYTES) * WINDOW_ALIGNMENT_BYTES
        pointer, handle = 0, ncclWindow_t()
        problem: Exception | None = None
        try:
            pointer = self.library.ncclMemAlloc(size_bytes)
        except Exception as error:  # whatever it is, the other ranks have to learn of it
            problem = error
        self._agree(problem, "ncclMemAlloc", pointer)
        try:
            handle = self.register_window(pointer, size_bytes)
        except Exception as error:  # whatever it is, the other ranks have to learn of it
            problem = error
        self._agree(problem, "ncclCommWindowRegister", pointer)
        return NcclWindow(self, pointer, size_bytes, handle)

    def register_window(
        self, pointer: int, size_bytes: int, flags: int = WINDOW_SYMMETRIC
    ) -> ncclWindow_t:
        """Make memory of `ncclMemAlloc` a window: collective; return its handle."""
        self._require_open("register_window")
        handle = self.library.ncclCommWindowRegister(self.handle, pointer, size_bytes, flags)
        self._settle("ncclCommWindowRegister")
        if not handle.value:
            raise NcclError(
                f"rank {self.rank}: NCCL makes no windows here: they need CUDA P2P between all "
                "GPUs, NCCL_CUMEM_ENABLE and NCCL_WIN_ENABLE; use send, recv and collectives"
            )
        return handle

    def deregister_window(self, handle: ncclWindow_t) -> None:
        """Undo `register_window`."""
        self._require_open("deregister_window")
        self.library.ncclCommWindowDeregister(self.handle, handle)
        self._settle("ncclCommWindowDeregister")

    # --- life ---------------------------------------------------------------------------------

    def split(self, color: int, key: int) -> "NcclCommunicator":
        """Join the ranks that pass the same color, in the order of key, then of rank."""
        self._require_open("split")
        if color < 0:
            raise ValueError(f"color is {color}; it must be 0 or above")
        control = self.control.split(color, key)
        if self.library.has("ncclCommSplit"):
            handle = self._split(control, color, key)
        else:
            handle = connect(control, self.library, self.gpu, self._options)
        child = NcclCommunicator(
            control, self.library, self.gpu, handle, options=self._options, stream=self.stream
        )
        self._children.append(child)
        return child

    def _split(self, control: Communicator, color: int, key: int) -> ncclComm_t:
        """Let NCCL split, on all ranks of the parent or on none."""
        part = ncclComm_t()
        problem: Exception | None = None
        what = "ncclCommSplit"
        try:
            config = config_of(self.library, self._options)
            part = self.library.ncclCommSplit(self.handle, color, key, config)
            self._settle(what)  # NCCL fills `part` before this ends: NCCL issue #1472
            settle(self.library, part, what, self.rank, self._options.timeout_s, self._seq)
            found = (self.library.ncclCommUserRank(part), self.library.ncclCommCount(part))
            if found != (control.rank, control.size):
                raise NcclError(
                    f"rank {self.rank}: {what} made rank {found[0]} of {found[1]}, and the "
                    f"control communicator {control.rank} of {control.size}"
                )
        except Exception as error:  # whatever it is, the other ranks have to learn of it
            problem = error
        try:
            agree(self.control, problem, what, self._options.timeout_s + AGREE_EXTRA_S)
        except BaseException:
            abort_comm(self.library, part)
            control.close()
            raise
        return part

    def on_abort(
        self,
        stop: Callable[[], None] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Say what an abort does first: `stop` raises a kernel's stop flag, `release` opens gates.

        NCCL's own abort waits for the streams, so it would never end before these.
        """
        self._stops += [stop] if stop else []
        self._releases += [release] if release else []

    def check(self) -> None:
        """Raise NcclError if a call went wrong on the GPU or the network meanwhile."""
        self._require_open("check")
        state = self.library.ncclCommGetAsyncError(self.handle)
        if state not in (SUCCESS, IN_PROGRESS):
            text = self.library.describe(state, "asynchronous work", self.handle)
            raise NcclError(f"rank {self.rank}: {text}; abort() this communicator")

    def end(self, reason: str) -> list[str]:
        """Abort NCCL on this rank: stop flags, then gates, then NCCL; return what went wrong.

        Any thread may call it. The control communicator stays.
        """
        if self._ended:
            return []
        self._ended = reason
        members = [*self._children, self]
        actions = [
            *((f"stop flag {n}", f) for m in members for n, f in enumerate(m._stops)),
            *((f"release of gate {n}", f) for m in members for n, f in enumerate(m._releases)),
        ]
        problems = [run_bounded(name, function, ABORT_S) for name, function in actions]
        problems += [problem for child in self._children for problem in child.end(reason)]
        problems.append(abort_comm(self.library, self.handle))
        problems = [problem for problem in problems if problem]
        for problem in problems:
            logger.error("rank %d: while aborting (%s): %s", self.rank, reason, problem)
        return problems

    def abort(self, code: int, reason: str) -> NoReturn:
        """Abort NCCL on this rank, then the work of all ranks."""
        self.end(reason)
        self.control.abort(code, reason)

    def close(self) -> None:
        """Finish what is under way and free the communicator: collective; twice is once.

        Raises:
            CommTimeout: other ranks did not come; NCCL was aborted then.
        """
        if self._ended:
            return
        for child in self._children:
            child.close()
        try:
            self.library.ncclCommFinalize(self.handle)
            self._settle("ncclCommFinalize")
        except BaseException as error:
            self.end(f"closing failed: {error}")
            raise
        self._ended = "closed"
        handle = self.handle
        problem = run_bounded(
            "ncclCommDestroy", lambda: self.library.ncclCommDestroy(handle), ABORT_S
        )
        if problem:
            raise NcclError(f"rank {self.rank}: {problem}")

    # --- inside -------------------------------------------------------------------------------

    def _reduction(
        self, what: str, send: object, recv: object, op: str, times: int, per: int
    ) -> tuple[DeviceArray, DeviceArray, int, int]:
        a, b = device_array(send), device_array(recv)
        check_pair(what, a, b, times, per)
        return a, b, ncclDataTypeEnum.from_name(a.dtype), ncclRedOpTypeEnum.from_name(op)

    def _run(self, what: str, call: Call, stream: int | None) -> None:
        """Enqueue a call, and let NCCL finish what it starts on the host for it."""
        self._require_open(what)
        on = self.stream if stream is None else stream
        if on is None:
            raise ValueError(f"{what} has no stream; pass stream=, or set it on the communicator")
        if on == PER_THREAD_STREAM:
            raise ValueError(f"{what}: NCCL can't work on cudaStreamPerThread; make a stream")
        self._seq += 1
        call(self.handle, on)
        if self._depth == 0:
            self._settle(what)

    def _settle(self, what: str) -> None:
        settle(self.library, self.handle, what, self.rank, self._options.timeout_s, self._seq)

    def _agree(self, problem: Exception | None, what: str, pointer: int) -> None:
        """Raise on all ranks if there is a problem on one, and free the memory then."""
        try:
            agree(self.control, problem, what, self._options.timeout_s + AGREE_EXTRA_S)
        except BaseException:
            if pointer:
                self.library.ncclMemFree(pointer)
            raise

    def _check_rank(self, what: str, name: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise ValueError(f"{what}: {name} is {rank}; the ranks are 0 to {self.size - 1}")

    def _require_open(self, what: str) -> None:
        if self._ended == "closed":
            raise LifecycleError(f"{what}: rank {self.rank} closed this communicator; make another")
        if self._ended:
            raise CommAborted(f"{what}: rank {self.rank} aborted NCCL: {self._ended}")


def run_bounded_group_end(library: NCCLLibrary) -> str:
    """End a group in this thread, whose group it is; return what went wrong, or ""."""
    try:
        library.ncclGroupEnd()
    except NcclError as error:
        return str(error)
    return ""


def nccl_communicator(
    control: Communicator, *, stream: int | None = None, options: NcclOptions | None = None
) -> NcclCommunicator:
    """Start NCCL over all ranks of `control`: collective.

    Start it, and use each call once with each peer, before a persistent kernel runs: NCCL
    allocates memory and waits for the GPU then.

    Args:
        control: connects the ranks already, over MPI as a rule.
        stream: handle of the stream of calls that name none; not the legacy default stream.
        options: the GPU, limits and library.

    Raises:
        NcclError: NCCL, a GPU or the start failed on a rank, or ranks share a GPU.
        CommMismatch: versions differ between ranks.
        CommTimeout: the start did not end in time.
    """
    options = options or NcclOptions()
    if stream in LEGACY_STREAMS:
        raise ValueError(
            "stream is the legacy default stream, which waits for a persistent kernel for ever; "
            "pass the handle of a non-blocking stream"
        )
    library, gpu = open_rank(control, options)
    handle = connect(control, library, gpu, options)
    return NcclCommunicator(control, library, gpu, handle, options=options, stream=stream)
