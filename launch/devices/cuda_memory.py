"""Keep a program's memory on a GPU: arenas, and the blocks that its kernel starts with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ark_dist.core.data import as_array
from ark_dist.core.op import Array
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.view import View
from ark_dist.launch.devices.cupy_gpu import Gpu
from ark_dist.launch.devices.gpu import HOST_BLOCKS, Blocks
from ark_dist.launch.memory import POISON, Arenas, reset_state

# Arenas that are zero before anybody writes them; weights that nobody wrote are refused.
ZEROED = ("state", "io", "symmetric")


@dataclass(frozen=True, slots=True)
class CudaArenas(Arenas):
    """Arenas in a GPU's memory; only copies reach them.

    Attributes:
        gpu: where they are.
        bases: where each arena starts.
        blocks: where the kernel's blocks are, by name; all but those of `words`.
        words: the blocks that are in the host's memory.
    """

    gpu: Gpu
    bases: dict[str, Any]
    blocks: dict[str, Any]
    words: dict[str, npt.NDArray[Any]]

    def address(self, arena: str) -> int:
        """Where the arena starts, on the GPU."""
        return int(self.bases[arena].ptr)

    def buffer(self, buffer_id: int) -> Array:
        """A copy of a buffer in the host's memory."""
        buffer = self.plan.buffers[buffer_id]
        data = np.empty(buffer.shape, buffer.dtype.numpy)
        self.gpu.copy_out(self._place(buffer_id), data)
        return data

    def view(self, view: View) -> Array:
        """A copy of what a view holds, and of what is between its strides."""
        return _strided(self._span(view), view)

    def write(self, view: View, value: Array) -> None:
        """Store an array of the view's shape and dtype; what is between strides stays."""
        if 0 in view.shape:
            return
        target = self._place(view.buffer) + view.offset * view.dtype.numpy.itemsize
        if view.is_contiguous:
            self.gpu.copy_in(target, np.ascontiguousarray(value))
            return
        span = self._span(view)
        _strided(span, view)[...] = value
        self.gpu.copy_in(target, span)

    def store(self, buffer_id: int, data: Array) -> None:
        """Fill a buffer from an array of its shape and dtype."""
        self.gpu.copy_in(self._place(buffer_id), np.ascontiguousarray(data))

    def place(self, blocks: Blocks) -> dict[str, int]:
        """Copy blocks where the kernel will find them; return their addresses."""
        addresses = {}
        for name, array in blocks.arrays.items():
            if name in self.words:
                self.words[name][...] = array.reshape(-1)
                addresses[name] = int(self.words[name].ctypes.data)
            else:
                self.gpu.copy_in(self.blocks[name], array)
                addresses[name] = int(self.blocks[name].ptr)
        return addresses

    def block(self, name: str, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A copy of one of the kernel's blocks."""
        array = np.empty_like(like)
        self.gpu.copy_out(self.blocks[name], array)
        return array

    def _place(self, buffer_id: int) -> Any:  # noqa: ANN401  # a cupy pointer
        place = self.plan.places[buffer_id]
        return self.bases[place.arena] + place.offset

    def _span(self, view: View) -> Array:
        """The elements from a view's first one to its last one."""
        last = sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))
        span = np.empty(0 if 0 in view.shape else last + 1, view.dtype.numpy)
        if span.size:
            self.gpu.copy_out(self._place(view.buffer) + view.offset * span.itemsize, span)
        return span


def _strided(span: Array, view: View) -> Array:
    """The view, on its span; writable unless it is broadcast."""
    if 0 in view.shape:
        return np.empty(view.shape, span.dtype)
    is_broadcast = any(n > 1 and s == 0 for n, s in zip(view.shape, view.strides, strict=True))
    steps = tuple(step * span.itemsize for step in view.strides)
    strided = np.lib.stride_tricks.as_strided
    return strided(span, view.shape, steps, writeable=not is_broadcast)


def allocate_arenas(plan: Plan, gpu: Gpu) -> dict[str, Any]:
    """Allocate the arenas of a plan; a size of 0 still has an address."""
    sizes = zip(ARENAS, plan.arena_bytes, strict=True)
    return {name: gpu.alloc(max(size, 1)) for name, size in sizes}


def allocate_blocks(plan: Plan, gpu: Gpu, bases: dict[str, Any], blocks: Blocks) -> CudaArenas:
    """Allocate what blocks of these sizes need: later starts of the kernel use it again."""
    memory, words = {}, {}
    for name, array in blocks.arrays.items():
        if name in HOST_BLOCKS:
            words[name] = gpu.pinned(array.nbytes).view(array.dtype)
        else:
            memory[name] = gpu.alloc(max(array.nbytes, 1))
    return CudaArenas(plan, {}, {}, gpu, bases, memory, words)


def fill_arenas(arenas: CudaArenas) -> None:
    """Poison activations and outputs, fill constants and states; the rest is zero."""
    plan = arenas.plan
    for name, size in zip(ARENAS, plan.arena_bytes, strict=True):
        if name == "activations":
            arenas.gpu.fill(arenas.bases[name], size, POISON)
        elif name in ZEROED:
            arenas.gpu.fill(arenas.bases[name], size, 0)
    for buffer in plan.buffers:
        if buffer.kind == "output":
            poison = bytes([POISON]) * buffer.size_bytes
            arenas.store(buffer.id, as_array(poison, buffer.dtype, buffer.shape))
    reset_state(arenas, kinds=("constant", "state"))
