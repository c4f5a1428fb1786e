"""Open a session: from a graph and a device name to a program ready to compile."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from ark_dist.comm.communicator import Communicator
from ark_dist.core.abi import MAX_WORKERS
from ark_dist.core.errors import ConfigError, DeviceNotFoundError
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape
from ark_dist.core.plan import Plan
from ark_dist.core.settings import Settings
from ark_dist.core.target import Target, cpu_target, topology_of, wide_target
from ark_dist.launch.agreement import node_topology
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.devices.base import Device, Emit
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.cuda import WHOLE, CudaDevice
from ark_dist.launch.devices.cupy_gpu import GpuPart, gpu_properties
from ark_dist.launch.devices.emulated import EmulatedDevice
from ark_dist.launch.devices.null import NullDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.memory_limit import check_fits, machine_bytes
from ark_dist.launch.plan_key import PlanRequest
from ark_dist.launch.planning import find_plan
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.launch.shares import Shares
from ark_dist.scheduler.plan import PlanOptions

LOGGER = logging.getLogger("ark_dist")

# Plan, settings, which part of which GPU, the other ranks, and what emits the plan's source.
DeviceFactory = Callable[[Plan, Settings, GpuPart, Communicator | None, Emit], Device]

DEVICES: dict[str, DeviceFactory] = {
    "cpu": lambda plan, settings, gpu, ranks, emit: CpuDevice(plan, settings, ranks, emit=emit),
    "numpy": lambda plan, settings, gpu, ranks, emit: NumpyDevice(
        plan, communicator=ranks, timeout_s=settings.timeout_s
    ),
    "null": lambda plan, settings, gpu, ranks, emit: NullDevice(plan),
    "cuda": lambda plan, settings, gpu, ranks, emit: CudaDevice(plan, settings, gpu, emit=emit),
    "emulated": lambda plan, settings, gpu, ranks, emit: EmulatedDevice(plan, settings, emit=emit),
}
# What plans become; the other devices walk them as they are.
LANGUAGES = {"cpu": "c++", "cuda": "cuda", "emulated": "cuda"}
# Devices that allocate nothing in the machine's memory.
UNBOUNDED_DEVICES = ("cuda", "null")
# Devices that can run one of several ranks.
RANKED_DEVICES = ("cpu", "numpy")
# CTAs of an emulated GPU, unless somebody asks for another number.
EMULATED_WORKERS = 4


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_device(name: str, settings: Settings, gpu_id: int = 0, *, is_alone: bool = True) -> str:
    """Return the device a name stands for; "auto" takes the best that one rank, or all, can use.

    Raises ValueError for an unknown name.
    """
    if name == "auto" and settings.device is not None:
        name = settings.device
    if name == "auto":
        name = "cuda" if is_alone and _has_gpu(gpu_id) else "cpu"
    if name not in DEVICES:
        raise ValueError(
            f"device is {name!r}; it must be one of auto, {', '.join(sorted(DEVICES))}"
        )
    return name


def _has_gpu(gpu_id: int) -> bool:
    """Whether cupy is installed and finds a GPU that kernels are compiled for."""
    try:
        found = gpu_properties(gpu_id)
    except DeviceNotFoundError as error:
        LOGGER.debug("device 'auto' is the CPU: %s", error)
        return False
    LOGGER.info("device 'auto' is GPU %d (%s); device='cpu' is the CPU", gpu_id, found.name)
    return True


def target_for(
    device: str,
    settings: Settings,
    worker_count: int | None,
    gpu: GpuPart = WHOLE,
    ranks_here: int = 1,
) -> Target:
    """The target a plan is made for on this machine, which `ranks_here` ranks share."""
    asked = worker_count or settings.worker_count
    if device == "cuda":
        found = gpu_properties(gpu.gpu_id)
        sms = gpu.within(found.worker_count)
        if asked and asked > len(sms):
            raise ValueError(
                f"workers is {asked}; GPU {gpu.gpu_id} ({found.name}) has {len(sms)} "
                "multiprocessors for this program, one per worker; ask for fewer"
            )
        return wide_target(asked or len(sms), found.arch, "cuda")
    if device == "emulated":
        return wide_target(asked or EMULATED_WORKERS, kind="cuda")
    if device == "null":
        return wide_target(asked or available_cores())
    if device == "cpu":
        return cpu_target(
            asked or max(available_cores() // ranks_here, 1), settings.isa or best_isa()
        )
    return cpu_target(worker_count or 1, kind=device)


@dataclass(frozen=True, slots=True)
class Opened:
    """A session, and what its rank has of the global graph: None for a graph of its own."""

    session: Session
    shares: Shares | None


def open_session(
    graph: Graph,
    *,
    device: str,
    settings: Settings,
    worker_count: int | None = None,
    options: PlanOptions | None = None,
    gpu: GpuPart = WHOLE,
    communicator: Communicator | None = None,
    mesh: MeshShape | None = None,
) -> Opened:
    """Plan the graph for a device and return the session that will run it.

    `communicator` has the other ranks, which open theirs at the same time. With a mesh the graph
    is all ranks' together, and this one's part is cut out of it.
    """
    if communicator is not None and communicator.size == 1:
        communicator = None
    device = find_device(device, settings, gpu.gpu_id, is_alone=communicator is None)
    if worker_count is not None and not 1 <= worker_count <= MAX_WORKERS:
        raise ValueError(f"workers is {worker_count}; it must be 1 to {MAX_WORKERS}")
    if communicator is not None:
        check_device(device, communicator)
    request = PlanRequest(
        graph,
        None if communicator is None else mesh,
        0 if communicator is None else communicator.rank,
        topology_of((0,)) if communicator is None else node_topology(communicator),
        target_for(device, settings, worker_count, gpu, _ranks_here(communicator)),
        options or PlanOptions(),
        LANGUAGES.get(device, ""),
    )
    found = find_plan(request, settings, communicator)
    if device not in UNBOUNDED_DEVICES:
        share = machine_bytes() // _ranks_here(communicator)
        check_fits(found.plan, settings.memory_bytes or share)
    runner = DEVICES[device](found.plan, settings, gpu, communicator, found.emit)
    session = Session(found.plan, runner, SessionOptions(timeout_s=settings.timeout_s))
    if communicator is None or mesh is None:
        return Opened(session, None)
    return Opened(session, Shares(session, graph.buffers, dict(found.shares), communicator))


def _ranks_here(communicator: Communicator | None) -> int:
    return 1 if communicator is None else len(communicator.node_ranks)


def check_device(device: str, communicator: Communicator) -> None:
    """Raise ConfigError for a device that can't run together with other ranks yet."""
    if device not in RANKED_DEVICES:
        raise ConfigError(
            f"device {device!r} runs one rank, and this is rank {communicator.rank} of "
            f"{communicator.size}; use device={' or '.join(map(repr, RANKED_DEVICES))}, or give "
            "each process a program of its own: Executor(rank=0, world_size=1)"
        )
