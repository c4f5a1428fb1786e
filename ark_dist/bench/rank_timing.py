"""Time what several ranks do together, ours and that of torch's gloo backend."""

import struct
import sys
import time
from collections.abc import Callable

import numpy as np

from ark_dist.comm.communicator import Communicator

POLITE_PAUSE_S = 2e-3


def in_turn(
    communicator: Communicator, calls: dict[str, Callable[[], float]], rounds: int
) -> dict[str, float]:
    """The median, over rounds, of each call's time on the slowest rank, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            communicator.barrier()
            mine = struct.pack("<d", call())
            slowest = max(struct.unpack("<d", t)[0] for t in communicator.all_gather_bytes(mine))
            times[name].append(slowest)
    return {name: float(np.median(found)) for name, found in times.items()}


def wait_politely(communicator: Communicator) -> None:
    """Wait for rank 0 without taking its cores: it measures alone."""
    ready = np.zeros(1, np.uint8)
    if communicator.rank == 0:
        for other in range(1, communicator.size):
            communicator.send(ready, other)
        return
    work = communicator.irecv(ready, 0)
    while not work.done():
        time.sleep(POLITE_PAUSE_S)


def join_gloo(communicator: Communicator, folder: str) -> bool:
    """Let torch's gloo backend meet in rank 0's folder, one thread a rank; False without torch."""
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer
        import torch.distributed as distributed  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        if communicator.rank == 0:
            print("torch is not installed: no comparison with gloo", file=sys.stderr)
        return False
    torch.set_num_threads(1)
    shared = communicator.broadcast_bytes(folder.encode())
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{shared.decode()}/store",
        rank=communicator.rank,
        world_size=communicator.size,
    )
    return True
