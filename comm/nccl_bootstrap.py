"""Start a NCCL communicator over ranks that can talk already: all of them get it, or none."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from ark_dist.comm.communicator import DEFAULT_TIMEOUT_S, Communicator
from ark_dist.comm.nccl_gpu import Gpu, cuda_gpu, local_rank
from ark_dist.comm.nccl_library import HINT, NCCLLibrary
from ark_dist.comm.nccl_types import (
    IN_PROGRESS,
    SUCCESS,
    ncclComm_t,
    ncclConfig_t,
    ncclUniqueId,
    version_text,
)
from ark_dist.core.errors import CommMismatch, CommTimeout, NcclError
from ark_dist.core.version import VERSION

MIN_VERSION = 21700  # the first with maxCTAs; communicators that don't block came before
SHARED_GPU_VERSION = 23003  # the first with NCCL_MULTI_RANK_GPU_ENABLE
POLL_S = 0.001
ABORT_S = 5.0  # NCCL may hang in its own abort: what the GPU runs must end first
AGREE_EXTRA_S = 5.0  # ranks leave their own wait at different times

# Read when a rank starts, before CUDA does; docs/nccl.md has the reasons.
ADVICE = {
    "CUDA_MODULE_LOADING": "EAGER",
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
    "NCCL_RUNTIME_CONNECT": "0",
    "NCCL_LAUNCH_ORDER_IMPLICIT": "1",
}
SHARED_GPU_ADVICE = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}


def environment_advice(environ: Mapping[str, str], *, share_gpu: bool = False) -> dict[str, str]:
    """Return the variables to set for ranks with GPUs, without those that `environ` has.

    Set them before CUDA starts: in the launcher. `share_gpu` adds what several ranks on one GPU
    need.
    """
    advice = {**ADVICE, **(SHARED_GPU_ADVICE if share_gpu else {})}
    return {name: value for name, value in advice.items() if name not in environ}


@dataclass(frozen=True, slots=True)
class NcclOptions:
    """How a NCCL communicator is made.

    Attributes:
        device: number of this rank's GPU; None means its place among the ranks of the node.
        max_ctas: CTAs that NCCL's kernels may use, those a persistent kernel leaves free; None
            lets NCCL choose.
        share_gpu: whether several ranks may use one GPU; NCCL_MULTI_RANK_GPU_ENABLE=1 too then.
        timeout_s: limit of every wait, in seconds.
        so_file: libnccl.so.2; None means `setting`, then what is installed.
        setting: the value of ARK_DIST_NCCL, if any.
        find_gpu: finds a GPU by its number.
    """

    device: int | None = None
    max_ctas: int | None = None
    share_gpu: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    so_file: str | None = None
    setting: str | None = None
    find_gpu: Callable[[int], Gpu] = cuda_gpu


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What a rank tells the others before NCCL starts; `problem` is "" where all is well."""

    rank: int
    hostname: str
    pid: int
    ark_dist: str
    nccl: int
    driver: int
    gpu: int
    uuid: str
    problem: str


def open_rank(control: Communicator, options: NcclOptions) -> tuple[NCCLLibrary, Gpu]:
    """Open NCCL and this rank's GPU, on all ranks or on none.

    Raises:
        NcclError: a rank lacks NCCL or its GPU, or ranks share a GPU without being told to.
        CommMismatch: versions differ between ranks.
    """
    library: NCCLLibrary | None = None
    gpu: Gpu | None = None
    problem = ""
    ordinal = local_rank(control) if options.device is None else options.device
    try:
        library = NCCLLibrary(options.so_file, setting=options.setting)
        gpu = options.find_gpu(ordinal)
    except Exception as error:  # whatever it is, the other ranks have to learn of it
        problem = f"{type(error).__name__}: {error}"
    own = RankFacts(
        rank=control.rank,
        hostname=socket.gethostname(),
        pid=os.getpid(),
        ark_dist=VERSION,
        nccl=library.version if library else 0,
        driver=gpu.driver if gpu else 0,
        gpu=ordinal,
        uuid=gpu.uuid if gpu else "",
        problem=problem,
    )
    data = json.dumps(asdict(own)).encode()
    answers = control.all_gather_bytes(data, timeout_s=options.timeout_s)
    require_fit([RankFacts(**json.loads(answer)) for answer in answers], options.share_gpu)
    assert library is not None and gpu is not None
    return library, gpu


def require_fit(ranks: Sequence[RankFacts], share_gpu: bool) -> None:
    """Raise, the same on every rank, unless these ranks can start NCCL together."""
    table = "; ".join(_where(r) for r in ranks)
    broken = [f"rank {r.rank}: {r.problem}" for r in ranks if r.problem]
    if broken:
        raise NcclError(f"NCCL can't start: {'; '.join(broken)} (GPUs: {table})")
    for field, title in (("ark_dist", "ark_dist"), ("nccl", "NCCL"), ("driver", "CUDA driver")):
        found = {r.rank: str(getattr(r, field)) for r in ranks}
        if len(set(found.values())) > 1:
            text = ", ".join(f"rank {rank} has {value}" for rank, value in found.items())
            raise CommMismatch(f"versions of {title} differ: {text}; install one version for all")
    if ranks[0].nccl < MIN_VERSION:
        raise NcclError(
            f"NCCL is {version_text(ranks[0].nccl)}, and {version_text(MIN_VERSION)} or later is "
            "needed; install a newer NCCL, or use the backend mpi"
        )
    if len({r.uuid for r in ranks}) == len(ranks):
        return
    if not share_gpu:
        raise NcclError(
            f"ranks share a GPU: {table}; start one rank per GPU (is CUDA_VISIBLE_DEVICES the "
            "same for all?), or pass share_gpu=True with NCCL_MULTI_RANK_GPU_ENABLE=1"
        )
    if ranks[0].nccl < SHARED_GPU_VERSION:
        raise NcclError(
            f"ranks share a GPU: {table}; that needs NCCL {version_text(SHARED_GPU_VERSION)}, "
            f"and this is {version_text(ranks[0].nccl)}; install a newer NCCL"
        )


def _where(facts: RankFacts) -> str:
    uuid = facts.uuid or "none"
    return f"rank {facts.rank} ({facts.hostname}, pid {facts.pid}) -> GPU {facts.gpu} {uuid}"


def share_unique_id(control: Communicator, library: NCCLLibrary, timeout_s: float) -> ncclUniqueId:
    """Give every rank the id that rank 0 makes; if it can't, all ranks raise NcclError."""
    data: bytes | None = None
    if control.rank == 0:
        try:
            data = b"\x01" + bytes(library.ncclGetUniqueId())
        except NcclError as error:
            data = b"\x00" + str(error).encode()
    data = control.broadcast_bytes(data, 0, timeout_s=timeout_s)
    if data[:1] != b"\x01":
        raise NcclError(f"rank 0 has no id for NCCL: {data[1:].decode(errors='replace')}")
    return library.unique_id_from_bytes(data[1:])


def config_of(library: NCCLLibrary, options: NcclOptions) -> ncclConfig_t:
    """The config of a communicator that never blocks and leaves multiprocessors to others."""
    limits = {} if options.max_ctas is None else {"maxCTAs": options.max_ctas}
    return library.make_config(blocking=0, **limits)


def connect(
    control: Communicator, library: NCCLLibrary, gpu: Gpu, options: NcclOptions
) -> ncclComm_t:
    """Start NCCL over all ranks of `control`.

    Raises:
        NcclError: it failed on a rank.
        CommTimeout: it was still in progress after the limit, and failed on no rank.
    """
    unique_id = share_unique_id(control, library, options.timeout_s)
    comm, problem, limit_s = ncclComm_t(), None, options.timeout_s
    what = "ncclCommInitRankConfig"

    def start() -> None:
        gpu.activate()
        config = config_of(library, options)
        library.ncclCommInitRankConfig(control.size, unique_id, control.rank, config, comm)

    try:
        start_s = time.monotonic()
        # A thread of its own: CUDA may wait for a kernel of this GPU before NCCL even starts.
        call_bounded(what, start, limit_s)
        gpu.activate()  # in this thread, for the calls to come
        poll = partial(library.ncclCommGetAsyncError, comm)
        settle(library, poll, what, control.rank, limit_s, seq=0, start_s=start_s)
    except Exception as error:  # whatever it is, the other ranks have to learn of it
        problem = error
    try:
        agree(control, problem, what, options.timeout_s + AGREE_EXTRA_S)
    except BaseException:
        abort_comm(library, comm)
        raise
    return comm


def settle(
    library: NCCLLibrary,
    poll: Callable[[], int],
    call: str,
    rank: int,
    timeout_s: float,
    seq: int,
    start_s: float | None = None,
) -> None:
    """Wait until a communicator is no longer in progress; the limit counts from `start_s` or now.

    Raises:
        NcclError: what it did failed.
        CommTimeout: it was still in progress after the limit.
    """
    start_s = time.monotonic() if start_s is None else start_s
    while (state := poll()) == IN_PROGRESS:
        waited_s = time.monotonic() - start_s
        if waited_s >= timeout_s:
            raise CommTimeout(
                f"rank {rank}: {call} of NCCL was still in progress after {waited_s:.1f} s; "
                f"a rank did not come, or can't be reached; {HINT}",
                rank=rank,
                op=call,
                seq=seq,
                waited_s=waited_s,
            )
        time.sleep(POLL_S)
    if state != SUCCESS:
        raise NcclError(f"rank {rank}: {library.describe(state, call)}")


def agree(control: Communicator, problem: Exception | None, what: str, timeout_s: float) -> None:
    """Raise on every rank if there is a problem on any; every rank hears of all of them.

    Raises:
        NcclError: a call failed.
        CommTimeout: calls timed out, and that is all.
    """
    late = isinstance(problem, CommTimeout)
    own = "" if problem is None else ("T" if late else "E") + str(problem)
    answers = control.all_gather_bytes(own.encode(), timeout_s=timeout_s)
    texts = {rank: answer.decode(errors="replace") for rank, answer in enumerate(answers)}
    failed = {rank: text[1:] for rank, text in texts.items() if text.startswith("E")}
    slow = {rank: text[1:] for rank, text in texts.items() if text.startswith("T")}
    if not failed and not slow:
        return
    first = failed or slow
    told = "; ".join(f"rank {rank}: {text}" for rank, text in first.items())
    message = f"{what} failed on {_ranks(first)} of {control.size}: {told}"
    if failed and slow:
        message += f"; {_ranks(slow)} waited for nothing"
    if failed:
        raise NcclError(message) from problem
    if isinstance(problem, CommTimeout):
        raise CommTimeout(
            message, rank=control.rank, op=what, seq=problem.seq, waited_s=problem.waited_s
        ) from problem
    raise CommTimeout(message, rank=control.rank, op=what, missing=tuple(slow))


def _ranks(named: Mapping[int, str]) -> str:
    return f"rank{'s' if len(named) > 1 else ''} {', '.join(map(str, named))}"


def abort_comm(library: NCCLLibrary, comm: ncclComm_t) -> str:
    """Abort a communicator within a limit; return what went wrong, or ""."""
    if not comm.value:
        return ""
    return run_bounded("ncclCommAbort", lambda: library.ncclCommAbort(comm), ABORT_S)


def call_bounded(what: str, function: Callable[[], None], limit_s: float) -> None:
    """Call a function that may hang, in a thread of its own; CommTimeout if it does.

    The thread of its own is outside of any group of the caller's, which would put an abort off.
    """
    errors: list[Exception] = []

    def call() -> None:
        try:
            function()
        except Exception as error:  # raised below, not lost in a thread
            errors.append(error)

    thread = threading.Thread(target=call, name=what, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise CommTimeout(f"{what} did not end in {limit_s} s", op=what, waited_s=limit_s)
    if errors:
        raise errors[0]


def run_bounded(what: str, function: Callable[[], None], limit_s: float) -> str:
    """The same, where nothing may stop the caller; return what went wrong, or ""."""
    try:
        call_bounded(what, function, limit_s)
    except Exception as error:
        return str(error)
    return ""
