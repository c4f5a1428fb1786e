"""Bind libnccl with ctypes under the names of vLLM's pynccl."""

import contextlib
import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from ark_dist.comm.nccl_types import (
    IN_PROGRESS,
    RESULT_NAMES,
    SUCCESS,
    WINDOW_SYMMETRIC,
    buffer_type,
    cudaStream_t,
    make_config,
    ncclComm_t,
    ncclConfig_t,
    ncclUniqueId,
    ncclWindow_t,
    version_text,
)
from ark_dist.core.errors import NcclError

LIBRARY = "libnccl.so.2"
HINT = "set NCCL_DEBUG=INFO to see what NCCL did"

_int, _size, _pointer = ctypes.c_int, ctypes.c_size_t, ctypes.POINTER
_config = _pointer(ncclConfig_t)
_tail = (ncclComm_t, cudaStream_t)
# Arguments of each function of nccl.h; all of these return ncclResult_t.
FUNCTIONS: dict[str, tuple[type, ...]] = {
    "ncclGetVersion": (_pointer(_int),),
    "ncclGetUniqueId": (_pointer(ncclUniqueId),),
    "ncclCommInitRank": (_pointer(ncclComm_t), _int, ncclUniqueId, _int),
    "ncclCommInitAll": (_pointer(ncclComm_t), _int, _pointer(_int)),
    "ncclCommDestroy": (ncclComm_t,),
    "ncclCommAbort": (ncclComm_t,),
    "ncclCommGetAsyncError": (ncclComm_t, _pointer(_int)),
    "ncclCommCount": (ncclComm_t, _pointer(_int)),
    "ncclCommUserRank": (ncclComm_t, _pointer(_int)),
    "ncclCommCuDevice": (ncclComm_t, _pointer(_int)),
    "ncclAllReduce": (buffer_type, buffer_type, _size, _int, _int, *_tail),
    "ncclReduce": (buffer_type, buffer_type, _size, _int, _int, _int, *_tail),
    "ncclReduceScatter": (buffer_type, buffer_type, _size, _int, _int, *_tail),
    "ncclAllGather": (buffer_type, buffer_type, _size, _int, *_tail),
    "ncclBroadcast": (buffer_type, buffer_type, _size, _int, _int, *_tail),
    "ncclSend": (buffer_type, _size, _int, _int, *_tail),
    "ncclRecv": (buffer_type, _size, _int, _int, *_tail),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
}
# The same, with the first version that has them.
OPTIONAL_FUNCTIONS: dict[str, tuple[int, tuple[type, ...]]] = {
    "ncclCommInitRankConfig": (
        21400,
        (_pointer(ncclComm_t), _int, ncclUniqueId, _int, _config),
    ),
    "ncclCommFinalize": (21400, (ncclComm_t,)),
    "ncclCommSplit": (21801, (ncclComm_t, _int, _int, _pointer(ncclComm_t), _config)),
    "ncclMemAlloc": (21901, (_pointer(buffer_type), _size)),
    "ncclMemFree": (21901, (buffer_type,)),
    "ncclCommRegister": (21901, (ncclComm_t, buffer_type, _size, _pointer(buffer_type))),
    "ncclCommDeregister": (21901, (ncclComm_t, buffer_type)),
    "ncclCommWindowRegister": (
        22703,
        (ncclComm_t, buffer_type, _size, _pointer(ncclWindow_t), _int),
    ),
    "ncclCommWindowDeregister": (22703, (ncclComm_t, ncclWindow_t)),
}


def wheel_libraries() -> Iterator[Path]:
    """Yield libnccl of the wheel nvidia-nccl-cu12 or nvidia-nccl-cu13, without importing it."""
    with contextlib.suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec("nvidia.nccl")
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder, "lib", LIBRARY)
            if path.is_file():
                yield path


def open_nccl(so_file: str | None, setting: str | None) -> tuple[ctypes.CDLL, str]:
    """Load libnccl: the file that was asked for, else the wheel's, else the loader's.

    Raises:
        NcclError: there is none; or the one that was asked for can't be loaded, and no other is
            taken in its place.
    """
    for name, source in ((so_file, "so_file"), (setting, "ARK_DIST_NCCL")):
        if name:
            path = str(Path(name, LIBRARY)) if Path(name).is_dir() else name
            try:
                return ctypes.CDLL(path), path
            except OSError as error:
                raise NcclError(f"{source} is {name!r}, which can't be loaded: {error}") from error
    found: list[str] = []
    for name in (*map(str, wheel_libraries()), LIBRARY):
        try:
            return ctypes.CDLL(name), name
        except OSError as error:
            found.append(str(error))
    raise NcclError(
        f"{LIBRARY} can't be loaded ({'; '.join(found)}); "
        '`pip install "ark_dist[cuda12]"` or "ark_dist[cuda13]", or set ARK_DIST_NCCL to its path'
    )


class NCCLLibrary:
    """The functions of libnccl; a code other than success or "in progress" is a NcclError.

    Handles that NCCL fills in later (of a split, of a window) are the returned objects themselves:
    keep them until the communicator is no longer in progress.

    Attributes:
        path: where the library came from.
        version: NCCL_VERSION_CODE of the library, such as 23203 for 2.32.3.
    """

    def __init__(self, so_file: str | None = None, *, setting: str | None = None) -> None:
        """Load the library `so_file`, or `setting` (a file or a folder), or what is installed."""
        self.library, self.path = open_nccl(so_file, setting)
        self._bind("ncclGetErrorString", (_int,), ctypes.c_char_p)
        self._bind("ncclGetLastError", (ncclComm_t,), ctypes.c_char_p)
        for name, arguments in FUNCTIONS.items():
            if not self._bind(name, arguments, _int):
                raise NcclError(f"{self.path} has no function {name}; it is no {LIBRARY}")
        for name, (_, arguments) in OPTIONAL_FUNCTIONS.items():
            self._bind(name, arguments, _int)
        self.version = self.ncclGetRawVersion()

    def _bind(self, name: str, arguments: tuple[type, ...], result: type) -> bool:
        function = getattr(self.library, name, None)
        if function is not None:
            function.argtypes, function.restype = arguments, result
        return function is not None

    def has(self, name: str) -> bool:
        """Tell whether this version has a function."""
        return hasattr(self.library, name)

    def NCCL_CHECK(self, code: int, call: str) -> None:
        """Raise NcclError naming the call, the code and NCCL's last words, if a call failed."""
        if code not in (SUCCESS, IN_PROGRESS):
            raise NcclError(self.describe(code, call))

    def describe(self, code: int, call: str) -> str:
        """Say which call failed, how, and what can be done."""
        name = RESULT_NAMES[code] if 0 <= code < len(RESULT_NAMES) else "unknown code"
        last = self.ncclGetLastError()
        return (
            f"{call} of NCCL {version_text(self.version) if hasattr(self, 'version') else '?'} "
            f"failed with code {code}, {name} ({self.ncclGetErrorString(code)})"
            f"{f'; last error: {last}' if last else ''}; {HINT}"
        )

    def _call(self, call: str, *arguments: object) -> int:
        """Make a call; return SUCCESS or IN_PROGRESS."""
        if not self.has(call):
            since, _ = OPTIONAL_FUNCTIONS[call]
            raise NcclError(
                f"{call} needs NCCL {version_text(since)}, and {self.path} is "
                f"{version_text(self.version)}; install a newer NCCL"
            )
        code = int(getattr(self.library, call)(*arguments))
        self.NCCL_CHECK(code, call)
        return code

    def ncclGetErrorString(self, result: int) -> str:
        """Describe a code."""
        return bytes(self.library.ncclGetErrorString(result) or b"").decode(errors="replace")

    def ncclGetLastError(self, comm: ncclComm_t | None = None) -> str:
        """Return NCCL's last error as a text, which may be empty."""
        text = bytes(self.library.ncclGetLastError(comm) or b"")
        return text.decode(errors="replace").strip()

    def ncclGetRawVersion(self) -> int:
        """Return NCCL_VERSION_CODE, such as 23203."""
        version = _int()
        self._call("ncclGetVersion", ctypes.byref(version))
        return version.value

    def ncclGetVersion(self) -> str:
        """Return the version, such as "2.32.3"."""
        return version_text(self.ncclGetRawVersion())

    def ncclGetUniqueId(self) -> ncclUniqueId:
        """Make the id of a new communicator; one rank calls this."""
        unique_id = ncclUniqueId()
        self._call("ncclGetUniqueId", ctypes.byref(unique_id))
        return unique_id

    def unique_id_from_bytes(self, data: bytes) -> ncclUniqueId:
        """Rebuild an id from `bytes(unique_id)`."""
        if len(data) != ctypes.sizeof(ncclUniqueId):
            raise ValueError(f"a ncclUniqueId has 128 bytes, and this has {len(data)}")
        return ncclUniqueId.from_buffer_copy(data)

    def make_config(self, **values: int | str) -> ncclConfig_t:
        """Fill a config that fits this version: `make_config(blocking=0, maxCTAs=4)`."""
        return make_config(self.version, values)

    def ncclCommInitRank(self, world_size: int, unique_id: ncclUniqueId, rank: int) -> ncclComm_t:
        """Join a communicator; blocks until all ranks have, without a limit."""
        comm = ncclComm_t()
        self._call("ncclCommInitRank", ctypes.byref(comm), world_size, unique_id, rank)
        return comm

    def ncclCommInitRankConfig(
        self,
        world_size: int,
        unique_id: ncclUniqueId,
        rank: int,
        config: ncclConfig_t,
        comm: ncclComm_t | None = None,
    ) -> ncclComm_t:
        """Join a communicator; with blocking=0, poll `ncclCommGetAsyncError` then.

        Where `comm` is given it takes the handle, which a failing call may leave there: abort it.
        """
        comm = ncclComm_t() if comm is None else comm
        arguments = (world_size, unique_id, rank, ctypes.byref(config))
        self._call("ncclCommInitRankConfig", ctypes.byref(comm), *arguments)
        return comm

    def ncclCommInitAll(self, devices: Sequence[int]) -> list[ncclComm_t]:
        """Make the communicators of a single process, one per GPU."""
        comms = (ncclComm_t * len(devices))()
        self._call("ncclCommInitAll", comms, len(devices), (_int * len(devices))(*devices))
        return [ncclComm_t(comm) for comm in comms]

    def ncclCommFinalize(self, comm: ncclComm_t) -> None:
        """Flush what is under way; the communicator is in progress until that is done."""
        self._call("ncclCommFinalize", comm)

    def ncclCommDestroy(self, comm: ncclComm_t) -> None:
        """Free a communicator."""
        self._call("ncclCommDestroy", comm)

    def ncclCommAbort(self, comm: ncclComm_t) -> None:
        """End what is under way and free the communicator."""
        self._call("ncclCommAbort", comm)

    def ncclCommGetAsyncError(self, comm: ncclComm_t) -> int:
        """Return a communicator's state: SUCCESS, IN_PROGRESS, or the code of its error."""
        state = _int()
        self._call("ncclCommGetAsyncError", comm, ctypes.byref(state))
        return state.value

    def ncclCommSplit(
        self, comm: ncclComm_t, color: int, key: int, config: ncclConfig_t | None = None
    ) -> ncclComm_t:
        """Split a communicator; the handle is filled once `comm` is no longer in progress."""
        part = ncclComm_t()
        given = None if config is None else ctypes.byref(config)
        self._call("ncclCommSplit", comm, color, key, ctypes.byref(part), given)
        return part

    def _number(self, call: str, comm: ncclComm_t) -> int:
        number = _int()
        self._call(call, comm, ctypes.byref(number))
        return number.value

    def ncclCommCount(self, comm: ncclComm_t) -> int:
        """Return how many ranks a communicator has."""
        return self._number("ncclCommCount", comm)

    def ncclCommUserRank(self, comm: ncclComm_t) -> int:
        """Return the own rank in a communicator."""
        return self._number("ncclCommUserRank", comm)

    def ncclCommCuDevice(self, comm: ncclComm_t) -> int:
        """Return the GPU of a communicator, as CUDA counts them."""
        return self._number("ncclCommCuDevice", comm)

    def _move(self, call: str, comm: ncclComm_t, stream: int, *arguments: int) -> None:
        self._call(call, *arguments, comm, stream)

    def ncclAllReduce(
        self,
        sendbuff: int,
        recvbuff: int,
        count: int,
        datatype: int,
        op: int,
        comm: ncclComm_t,
        stream: int,
    ) -> None:
        """Reduce `count` elements over all ranks, for all of them."""
        self._move("ncclAllReduce", comm, stream, sendbuff, recvbuff, count, datatype, op)

    def ncclReduce(
        self,
        sendbuff: int,
        recvbuff: int,
        count: int,
        datatype: int,
        op: int,
        root: int,
        comm: ncclComm_t,
        stream: int,
    ) -> None:
        """Reduce `count` elements over all ranks, for the root."""
        self._move("ncclReduce", comm, stream, sendbuff, recvbuff, count, datatype, op, root)

    def ncclReduceScatter(
        self,
        sendbuff: int,
        recvbuff: int,
        recvcount: int,
        datatype: int,
        op: int,
        comm: ncclComm_t,
        stream: int,
    ) -> None:
        """Reduce over all ranks; each gets its `recvcount` elements."""
        self._move("ncclReduceScatter", comm, stream, sendbuff, recvbuff, recvcount, datatype, op)

    def ncclAllGather(
        self,
        sendbuff: int,
        recvbuff: int,
        sendcount: int,
        datatype: int,
        comm: ncclComm_t,
        stream: int,
    ) -> None:
        """Give the `sendcount` elements of every rank to all ranks, in rank order."""
        self._move("ncclAllGather", comm, stream, sendbuff, recvbuff, sendcount, datatype)

    def ncclBroadcast(
        self,
        sendbuff: int,
        recvbuff: int,
        count: int,
        datatype: int,
        root: int,
        comm: ncclComm_t,
        stream: int,
    ) -> None:
        """Give the root's `count` elements to all ranks."""
        self._move("ncclBroadcast", comm, stream, sendbuff, recvbuff, count, datatype, root)

    def ncclSend(
        self, sendbuff: int, count: int, datatype: int, dest: int, comm: ncclComm_t, stream: int
    ) -> None:
        """Send `count` elements to a rank, which has to receive them."""
        self._move("ncclSend", comm, stream, sendbuff, count, datatype, dest)

    def ncclRecv(
        self, recvbuff: int, count: int, datatype: int, src: int, comm: ncclComm_t, stream: int
    ) -> None:
        """Receive `count` elements from a rank."""
        self._move("ncclRecv", comm, stream, recvbuff, count, datatype, src)

    def ncclGroupStart(self) -> None:
        """Begin a group: its calls start together at the end."""
        self._call("ncclGroupStart")

    def ncclGroupEnd(self) -> None:
        """Start the calls of a group."""
        self._call("ncclGroupEnd")

    def ncclMemAlloc(self, size: int) -> int:
        """Allocate memory that windows can be made of; return its address."""
        pointer = buffer_type()
        self._call("ncclMemAlloc", ctypes.byref(pointer), size)
        return pointer.value or 0

    def ncclMemFree(self, pointer: int) -> None:
        """Free memory of `ncclMemAlloc`."""
        self._call("ncclMemFree", pointer)

    def ncclCommRegister(self, comm: ncclComm_t, buff: int, size: int) -> int:
        """Register memory of this rank for copies without staging; return its handle."""
        handle = buffer_type()
        self._call("ncclCommRegister", comm, buff, size, ctypes.byref(handle))
        return handle.value or 0

    def ncclCommDeregister(self, comm: ncclComm_t, handle: int) -> None:
        """Undo `ncclCommRegister`."""
        self._call("ncclCommDeregister", comm, handle)

    def ncclCommWindowRegister(
        self, comm: ncclComm_t, buff: int, size: int, win_flags: int = WINDOW_SYMMETRIC
    ) -> ncclWindow_t:
        """Make memory of all ranks a window; NULL where the GPUs can't reach each other.

        Collective; the handle is filled once `comm` is no longer in progress.
        """
        window = ncclWindow_t()
        arguments = (buff, size, ctypes.byref(window), win_flags)
        self._call("ncclCommWindowRegister", comm, *arguments)
        return window

    def ncclCommWindowDeregister(self, comm: ncclComm_t, window: ncclWindow_t | int) -> None:
        """Undo `ncclCommWindowRegister`."""
        self._call("ncclCommWindowDeregister", comm, window)
