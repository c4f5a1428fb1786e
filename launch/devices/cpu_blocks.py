"""Make the memory that the host and the threads of a CPU kernel share."""

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.settings import Settings
from ark_dist.kernels.tables import Tables
from ark_dist.launch.devices.commands import MAX_TIMEOUT_S, NEVER
from ark_dist.launch.memory import Arenas
from ark_dist.launch.rank_memory import RankMemory

IDLE_SPIN_NS = 50_000
# Pauses in a wait before it yields the core: many where each worker has a core of its own.
WAIT_SPINS, CROWDED_WAIT_SPINS = 4096, 4
PAGE_BYTES = 4096

Memory = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Blocks:
    """The memory that host and workers share; records of `core/abi.py`."""

    config: Memory
    control: Memory
    method_states: Memory
    commands: Memory
    mailboxes: Memory
    statuses: Memory
    failure: Memory
    counters: Memory
    traces: Memory
    trace_counts: Memory
    others: tuple[npt.NDArray[np.generic], ...]


def _lines(record: abi.Record, count: int) -> Memory:
    """Zeroed records that start on a cache line."""
    size = record.dtype.itemsize * max(count, 1)
    raw = np.zeros(size + abi.LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % abi.LINE_BYTES
    return raw[start : start + size].view(record.dtype)


def _scratch(workers: int, elems: int) -> npt.NDArray[np.float32]:
    """Zeroed fp32 elements for each worker, on pages of its own.

    What a core fetches ahead ends with a page: it must not take lines that another one writes.
    """
    row_bytes = -(-max(elems, 1) * 4 // PAGE_BYTES) * PAGE_BYTES
    raw = np.zeros(workers * row_bytes + PAGE_BYTES, np.uint8)
    start = -raw.ctypes.data % PAGE_BYTES
    return raw[start : start + workers * row_bytes].view(np.float32).reshape(workers, -1)


def make_blocks(
    plan: Plan,
    tables: Tables,
    arenas: Arenas,
    settings: Settings,
    trace_rows: int,
    shared: RankMemory | None,
) -> Blocks:
    """Make all blocks, and fill in where each of them lies."""
    workers = plan.target.worker_count
    local = (0, 1) if shared is None else shared.place_on_node
    addresses_of = [arenas.address(name) for name in ARENAS]
    addresses_of += [int(arenas.peers[buffer].ctypes.data) for buffer in tables.peers]
    bases = np.array(addresses_of, np.uint64)
    raises = [0] if shared is None else [shared.flag(r).ctypes.data for r in tables.raises] or [0]
    operands = bases[tables.operands["arena"]] + tables.operands["offset"]
    segments = tables.segments.copy()
    segments["source"] += bases[segments["unused"].astype(np.int64)]
    scratch = _scratch(workers, tables.scratch_elems)
    cores = np.array(worker_cores(workers, local), np.int32)
    threads = np.zeros(workers, np.uint64)
    flag_addresses = np.array(raises, np.uint64)
    blocks = Blocks(
        config=_lines(abi.CONFIG, 1),
        control=_lines(abi.CONTROL, 1) if shared is None else shared.control,
        method_states=_lines(abi.METHOD_STATE, len(plan.methods)),
        commands=_lines(abi.COMMAND, abi.COMMAND_RING),
        mailboxes=_lines(abi.MAILBOX, workers),
        statuses=_lines(abi.STATUS, workers),
        failure=_lines(abi.FAILURE, 1),
        counters=(_lines(abi.COUNTER, tables.counter_count) if shared is None else shared.counters),
        traces=_lines(abi.TRACE, workers * trace_rows),
        trace_counts=_lines(abi.COUNTER, workers),
        others=(
            tables.tasks,
            tables.params,
            tables.waits,
            tables.queues,
            tables.methods,
            tables.streams,
            segments,
            operands,
            flag_addresses,
            scratch,
            cores,
            threads,
        ),
    )
    blocks.method_states["last_turn"] = NEVER
    addresses = {
        "tasks": tables.tasks,
        "params": tables.params,
        "operands": operands,
        "waits": tables.waits,
        "raises": flag_addresses,
        "queues": tables.queues,
        "methods": tables.methods,
        "streams": tables.streams,
        "segments": segments,
        "counters": blocks.counters,
        "control": blocks.control,
        "method_states": blocks.method_states,
        "commands": blocks.commands,
        "mailboxes": blocks.mailboxes,
        "statuses": blocks.statuses,
        "failure": blocks.failure,
        "trace_counts": blocks.trace_counts,
        "scratch": scratch,
        "cores": cores,
        "threads": threads,
    }
    config = blocks.config[0]
    for name, array in addresses.items():
        config[name] = array.ctypes.data
    config["traces"] = blocks.traces.ctypes.data if trace_rows else 0
    config["trace_rows"] = trace_rows
    config["scratch_elems"] = scratch.shape[1]
    config["timeout_ns"] = int(min(settings.timeout_s, MAX_TIMEOUT_S) * 1e9)
    config["idle_spin_ns"] = IDLE_SPIN_NS
    config["wait_spins"] = CROWDED_WAIT_SPINS if -1 in cores else WAIT_SPINS
    config["worker_count"], config["method_count"] = workers, len(plan.methods)
    return blocks


def worker_cores(workers: int, local: tuple[int, int]) -> list[int]:
    """One core per worker from this rank's share of them, or -1 for all where there are too few.

    `local` is this rank's place among those of its node, and how many they are.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [-1] * workers
    cores = sorted(os.sched_getaffinity(0))
    place, count = local
    share = cores[len(cores) * place // count : len(cores) * (place + 1) // count]
    return share[:workers] if len(cores) >= count * workers else [-1] * workers
