"""Compile the kernels that measure a GPU, run them, and time them by the GPU's own clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi
from ark_dist.core.abi import Record
from ark_dist.core.errors import StallError
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.kernels.text import SHARED_BYTES
from ark_dist.launch.devices.cupy_gpu import Gpu, gpu_properties, nap
from ark_dist.launch.nvrtc import compile_cuda

BENCH = Record(
    "bench",
    "What a kernel that measures a GPU starts with.",
    (
        ("source", "u8", 1, "gpu_vec4[] that are read"),
        ("target", "u8", 1, "gpu_vec4[] that copies go to"),
        ("first", "u8", 1, "vectors from one CTA's start to the next one's"),
        ("step", "u8", 1, "vectors from round to round; in a slot, words from lane to lane"),
        ("rounds", "u8", 1, "how often"),
        ("segments", "u8", 1, "ark_segment[]"),
        ("streams", "u8", 1, "ark_queue[CTA]: its segments"),
        ("words", "u8", 1, "ark_counter[] that CTAs, or a CTA and the host, meet at"),
        ("never", "u8", 1, "uint32_t that stays 0"),
        ("limit_ns", "u8", 1, "of a wait"),
        ("sums", "u8", 1, "uint32_t[]: what warps or CTAs leave"),
        ("begins", "u8", 1, "uint64_t[CTA]: the clock when it began"),
        ("ends", "u8", 1, "uint64_t[CTA]: the clock when it was through"),
    ),
)
CONFIG = "ark_bench_config"
# ARK_STREAM_HEAD_BYTES of gpu_stream.h: shared memory before the slots.
HEAD_BYTES = 1024
MAX_CTAS_PER_SM = 4
# A kernel takes milliseconds; a wait inside one that takes longer has failed.
LIMIT_S, WAIT_LIMIT_NS = 30.0, 5_000_000_000

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Ring:
    """A weight ring: how many slots, a multiple of 8 and a power of 2, of how many bytes."""

    slots: int
    slot_bytes: int

    @property
    def bytes(self) -> int:
        """Shared memory of a CTA with this ring and nothing else."""
        return HEAD_BYTES + self.slots * self.slot_bytes

    @property
    def name(self) -> str:
        """As rows name it: "8 KiB x 16"."""
        return f"{self.slot_bytes / 1024:g} KiB x {self.slots}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds from the first CTA's begin to the last one's end, and what kernels left as sums."""

    seconds: float
    sums: Words


def kernel_text(header: str, ring: Ring | None = None) -> str:
    """The source of one of this folder's `gpu_*.h`; that of a ring needs the ring's sizes."""
    own = resources.files("ark_dist.bench")
    device = resources.files("ark_dist.kernels") / "device"
    records = (abi.COUNTER, abi.QUEUE, abi.SEGMENT, BENCH)
    texts = ['#include "ark_gpu.h"', *(record.c_text for record in records)]
    texts.append((own / "gpu_bench.h").read_text("utf-8"))
    if ring is not None:
        sizes = {"ARK_RING_SLOTS": ring.slots, "ARK_SLOT_BYTES": ring.slot_bytes}
        texts += [f"constexpr uint32_t {name} = {size};" for name, size in sizes.items()]
        texts.append((device / "ring.h").read_text("utf-8"))
    texts.append((own / header).read_text("utf-8"))
    return "\n\n".join(texts)


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels of one header.

    Attributes:
        header: the file.
        threads: of a CTA.
        sums: that each CTA leaves.
        is_alone: a CTA has a multiprocessor for itself; it takes all of its shared memory.
    """

    header: str
    threads: int
    sums: int
    is_alone: bool


READ = Family("gpu_read.h", 512, 16, False)
STREAM = Family("gpu_stream.h", 288, 8, True)
HOPS = Family("gpu_hops.h", 32, 1, True)
EMPTY = Family("gpu_hops.h", 32, 1, False)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that is loaded; module and function are cupy's."""

    name: str
    family: Family
    module: Any
    function: Any
    shared_bytes: int


class BenchGpu:
    """One GPU, and this folder's kernels on it.

    Attributes:
        gpu: how it is reached.
        sm_count: its multiprocessors.
        arch: what kernels are compiled for.

    Raises:
        DeviceNotFoundError: cupy or the GPU is missing.
    """

    def __init__(self, gpu_id: int) -> None:
        found = gpu_properties(gpu_id)
        self.sm_count, self.arch = found.worker_count, found.arch
        self.gpu = Gpu(gpu_id)
        self._modules: dict[tuple[Family, Ring | None], Any] = {}
        ctas = MAX_CTAS_PER_SM * self.sm_count
        self._times = np.zeros(ctas, np.uint64)
        self._sums = np.zeros(ctas * READ.sums, np.uint32)
        self._outputs = {
            "begins": self.gpu.alloc(self._times.nbytes),
            "ends": self.gpu.alloc(self._times.nbytes),
            "sums": self.gpu.alloc(self._sums.nbytes),
        }
        self._never = self.place(np.zeros(1, np.uint32))

    def place(self, array: npt.NDArray[Any]) -> Any:  # noqa: ANN401  # a cupy pointer
        """Allocate memory for an array and copy it there."""
        target = self.gpu.alloc(array.nbytes)
        self.gpu.copy_in(target, array)
        return target

    def load(self, family: Family, name: str, ring: Ring | None = None) -> Kernel:
        """Compile and load a kernel, or find it loaded."""
        key = family, ring
        if key not in self._modules:
            label = family.header if ring is None else f"{family.header}, {ring.name}"
            source = Source(f"bench {label}", "cuda", kernel_text(family.header, ring))
            binary, _ = compile_cuda(
                source, arch=self.arch, settings=read_settings(), on_compile=lambda path: None
            )
            self._modules[key] = self.gpu.load(str(binary.path))
        shared_bytes = SHARED_BYTES[self.arch] if family.is_alone else 0
        module = self._modules[key]
        function = self.gpu.function(module, name, shared_bytes)
        return Kernel(name, family, module, function, shared_bytes)

    def most_ctas(self, kernel: Kernel, per_sm: int) -> int:
        """CTAs of which so many share a multiprocessor, or as many as fit."""
        fit = self.gpu.ctas_per_sm(kernel.function, kernel.family.threads, kernel.shared_bytes)
        return min(per_sm, fit, MAX_CTAS_PER_SM) * self.sm_count

    def configure(self, kernel: Kernel, **fields: int) -> None:
        """Write what the kernel starts with; `fields` are those of BENCH that it looks at."""
        record = np.zeros(1, BENCH.dtype)
        addresses = {name: int(pointer.ptr) for name, pointer in self._outputs.items()}
        addresses["never"] = int(self._never.ptr)
        for name, value in {**addresses, "limit_ns": WAIT_LIMIT_NS, **fields}.items():
            record[0][name] = value
        self.gpu.copy_in(self.gpu.constant(kernel.module, CONFIG), record)

    def launch(self, kernel: Kernel, ctas: int) -> None:
        """Start a kernel that is configured."""
        self.gpu.launch(kernel.function, ctas, kernel.family.threads, kernel.shared_bytes)

    def finish(self, kernel: Kernel) -> None:
        """Wait until it has ended.

        Raises:
            StallError: that takes too long.
        """
        began = time.monotonic()
        while not self.gpu.has_exited():
            waited_s = time.monotonic() - began
            if waited_s > LIMIT_S:
                raise StallError(f"bench gpu: {kernel.name} did not end within {LIMIT_S:.0f} s")
            nap(waited_s)

    def run(self, kernel: Kernel, ctas: int, **fields: int) -> Outcome:
        """Run a kernel to its end."""
        self.configure(kernel, **fields)
        self.launch(kernel, ctas)
        self.finish(kernel)
        self.gpu.copy_out(self._outputs["sums"], self._sums)
        self.gpu.copy_out(self._outputs["begins"], self._times)
        began = int(self._times[:ctas].min())
        self.gpu.copy_out(self._outputs["ends"], self._times)
        seconds = (int(self._times[:ctas].max()) - began) * 1e-9
        return Outcome(seconds, self._sums[: ctas * kernel.family.sums].copy())
