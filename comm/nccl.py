"""Communicate between GPUs with NCCL: arrays in GPU memory, calls that a stream runs in order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.nccl_arrays import DeviceArray, check_pair, device_array, movable
from ark_dist.comm.nccl_bootstrap import NcclOptions, connect, open_rank
from ark_dist.comm.nccl_handle import NcclHandle
from ark_dist.comm.nccl_types import (
    WINDOW_ALIGNMENT_BYTES,
    ncclComm_t,
    ncclDataTypeEnum,
    ncclRedOpTypeEnum,
    ncclWindow_t,
)
from ark_dist.core.errors import NcclError

T = TypeVar("T")
Call = Callable[[ncclComm_t, int], None]

LEGACY_STREAMS = (0, 1)  # cudaStreamLegacy: it waits for all that the GPU runs
PER_THREAD_STREAM = 2  # cudaStreamPerThread: NCCL issue #1976, with blocking=0
DEVICE_API_VERSION = 22803


class NcclWindow:
    """GPU memory of NCCL's that kernels of other ranks reach: symmetric, `size_bytes` per rank.

    `cupy.asarray(window)` is this rank's bytes.

    Attributes:
        pointer: address of this rank's bytes.
        size_bytes: how many there are.
        handle: ncclWindow_t, for the device API.
    """

    def __init__(
        self, owner: NcclHandle, pointer: int, size_bytes: int, handle: ncclWindow_t
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
        handle: the communicator of NCCL, and its ends.
        stream: the stream of calls that name none.
        rank: this rank.
        size: how many ranks there are.
        node_ranks: ranks on this node, sorted, itself included.
        capabilities: "stream"; "symmetric" and "device_api" if NCCL is new enough.
    """

    backend = "nccl"

    def __init__(self, handle: NcclHandle, stream: int | None) -> None:
        """Take a connected communicator; `nccl_communicator` makes one."""
        self.handle = handle
        self.stream = stream
        self.rank, self.size = handle.control.rank, handle.control.size
        self.node_ranks = handle.control.node_ranks
        self._library = handle.library
        found = {"stream"}
        if self._library.has("ncclCommWindowRegister"):
            found.add("symmetric")
        if self._library.version >= DEVICE_API_VERSION:
            found.add("device_api")
        self.capabilities = frozenset(found)

    # --- collectives --------------------------------------------------------------------------

    def all_reduce(
        self, send: T, recv: T | None = None, op: str = "sum", *, stream: int | None = None
    ) -> T:
        """Reduce over all ranks; every rank gets the result, in `send` without `recv`."""
        target = send if recv is None else recv
        a, b, number, kind = self._reduction("all_reduce", send, target, op, 1, 1)
        call = self._library.ncclAllReduce
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
        call = self._library.ncclReduce
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
        call = self._library.ncclReduceScatter
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
        call = self._library.ncclAllGather
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
        call = self._library.ncclBroadcast
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
        call = self._library.ncclSend
        self._run("send", lambda comm, on: call(a.pointer, count, number, dst, comm, on), stream)

    def recv(self, array: T, src: int, *, stream: int | None = None) -> T:
        """Fill an array with what a rank sends."""
        self._check_rank("recv", "src", src)
        a = device_array(array)
        check_pair("recv", a, a, 1, 1)
        count, number = movable(a)
        call = self._library.ncclRecv
        self._run("recv", lambda comm, on: call(a.pointer, count, number, src, comm, on), stream)
        return array

    @contextmanager
    def group(self) -> Iterator[None]:
        """Start the calls made inside together, at the end; after an error they start too."""
        self.handle.group_start()
        try:
            yield
        except BaseException:
            self.handle.drop_group()
            raise
        self.handle.group_end()

    # --- memory -------------------------------------------------------------------------------

    def allocate_window(self, size_bytes: int) -> NcclWindow:
        """Allocate memory that all ranks reach: collective, with the same size on all.

        Raises:
            NcclError: NCCL is too old, a rank has no memory, or the GPUs can't reach each other.
        """
        if size_bytes <= 0:
            raise ValueError(f"size_bytes is {size_bytes}; it must be above 0")
        size_bytes = -(-size_bytes // WINDOW_ALIGNMENT_BYTES) * WINDOW_ALIGNMENT_BYTES
        pointer, window = 0, ncclWindow_t()
        problem: Exception | None = None
        try:
            with self.handle.using("allocate_window"):
                pointer = self._library.ncclMemAlloc(size_bytes)
        except Exception as error:  # whatever it is, the other ranks have to learn of it
            problem = error
        self._agree(problem, "ncclMemAlloc", pointer)
        try:
            window = self.register_window(pointer, size_bytes)
        except Exception as error:  # whatever it is, the other ranks have to learn of it
            problem = error
        self._agree(problem, "ncclCommWindowRegister", pointer)
        return NcclWindow(self.handle, pointer, size_bytes, window)

    def register_window(self, pointer: int, size_bytes: int) -> ncclWindow_t:
        """Make memory of `ncclMemAlloc` a window: collective; return its handle."""
        window = self.handle.register_window(pointer, size_bytes)
        if not window.value:
            raise NcclError(
                f"rank {self.rank}: NCCL makes no windows here: they need CUDA P2P between all "
                "GPUs, NCCL_CUMEM_ENABLE and NCCL_WIN_ENABLE; use send, recv and collectives"
            )
        return window

    def deregister_window(self, window: ncclWindow_t) -> None:
        """Undo `register_window`."""
        self.handle.deregister_window(window)

    # --- life ---------------------------------------------------------------------------------

    def split(self, color: int, key: int) -> "NcclCommunicator":
        """Join the ranks that pass the same color, in the order of key, then of rank."""
        return NcclCommunicator(self.handle.split(color, key), self.stream)

    def on_abort(
        self,
        stop: Callable[[], None] | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        """Say what an abort does first: `stop` raises a kernel's stop flag, `release` opens gates.

        Each is given 5 s.
        """
        self.handle.on_abort(stop, release)

    def check(self) -> None:
        """Raise NcclError if a call went wrong on the GPU or the network meanwhile."""
        self.handle.check()

    def abort(self, code: int, reason: str) -> NoReturn:
        """Stop kernels, release gates, abort NCCL on this rank, then end the work of all ranks."""
        self.handle.end(reason)
        self.handle.control.abort(code, reason)

    def close(self) -> None:
        """Finish what is under way and free the communicator: collective; twice is once.

        Raises:
            NcclError: it failed; NCCL was aborted then.
            CommTimeout: other ranks did not come; NCCL was aborted then.
        """
        self.handle.close()

    # --- inside -------------------------------------------------------------------------------

    def _reduction(
        self, what: str, send: object, recv: object, op: str, times: int, per: int
    ) -> tuple[DeviceArray, DeviceArray, int, int]:
        a, b = device_array(send), device_array(recv)
        check_pair(what, a, b, times, per)
        return a, b, ncclDataTypeEnum.from_name(a.dtype), ncclRedOpTypeEnum.from_name(op)

    def _run(self, what: str, call: Call, stream: int | None) -> None:
        """Enqueue a call on a stream."""
        on = self.stream if stream is None else stream
        if on is None:
            raise ValueError(f"{what} has no stream; pass stream=, or set it on the communicator")
        if on == PER_THREAD_STREAM:
            raise ValueError(f"{what}: NCCL can't work on cudaStreamPerThread; make a stream")
        self.handle.run(what, lambda comm: call(comm, on))

    def _agree(self, problem: Exception | None, what: str, pointer: int) -> None:
        """Raise on all ranks if there is a problem on one, and free the memory then."""
        try:
            self.handle.agree(problem, what)
        except BaseException:
            if pointer:
                self._library.ncclMemFree(pointer)
            raise

    def _check_rank(self, what: str, name: str, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise ValueError(f"{what}: {name} is {rank}; the ranks are 0 to {self.size - 1}")


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
    comm = connect(control, library, gpu, options)
    return NcclCommunicator(NcclHandle(control, library, gpu, comm, options), stream)
