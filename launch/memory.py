"""Allocate the arenas of a plan, and read and write tensors in them."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ark_dist.core.data import as_array
from ark_dist.core.errors import MemoryLimitError
from ark_dist.core.op import Array
from ark_dist.core.packing import pack, pack_box, unpack, unpack_box
from ark_dist.core.plan import ALIGNMENT_BYTES, ARENAS, Place, Plan, peer_buffers
from ark_dist.core.shape import box_shape
from ark_dist.core.view import Region, View
from ark_dist.launch.rank_memory import RankMemory

HUGE_PAGE_BYTES = 2 * 1024 * 1024
# All bits set: NaN in every float, and absurd as an index.
POISON = 0xFF

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Arenas:
    """The memory of one rank's program.

    Attributes:
        plan: the program, with the places of buffers in this memory.
        memory: the rank's own, by arena.
        peers: what lies on other ranks, by buffer.
    """

    plan: Plan
    memory: dict[str, Bytes]
    peers: Mapping[int, Bytes]

    def address(self, arena: str) -> int:
        """Where the arena starts."""
        return int(self.memory[arena].ctypes.data)

    def buffer(self, buffer_id: int) -> Array:
        """A buffer as a writable array over its arena, of the shape in which it is stored."""
        buffer, place = self.plan.buffers[buffer_id], self.plan.places[buffer_id]
        if buffer.kind == "peer":
            return self.peers[buffer_id].view(buffer.dtype.numpy).reshape(buffer.shape)
        part = self.memory[place.arena][place.offset : place.offset + buffer.size_bytes]
        return part.view(buffer.dtype.numpy).reshape(buffer.stored_shape)

    def view(self, view: View) -> Array:
        """A view as a strided array over its arena; writable unless it is broadcast.

        Of a packed buffer it is a copy, which can't be written.
        """
        if self.plan.buffers[view.buffer].packing:
            copy = self._unpacked(view)
            copy.flags.writeable = False
            return copy
        return _strided(self.buffer(view.buffer), view)

    def region(self, region: Region) -> Array:
        """A box of a buffer as an array over its arena; a copy if it is packed."""
        buffer = self.plan.buffers[region.buffer]
        if buffer.packing:
            return unpack_box(buffer.packing, self.buffer(buffer.id), region.box)
        return self.buffer(region.buffer)[tuple(slice(a, b) for a, b in region.box)]

    def read(self, view: View) -> Array:
        """A copy of what a view holds."""
        if self.plan.buffers[view.buffer].packing:
            return self._unpacked(view)
        return np.array(self.view(view))

    def write(self, view: View, value: Array) -> None:
        """Store an array of the view's shape and dtype."""
        buffer = self.plan.buffers[view.buffer]
        if not buffer.packing:
            self.view(view)[...] = value
            return
        value = np.broadcast_to(np.asarray(value, buffer.dtype.numpy), view.shape)
        stored, box = self.buffer(view.buffer), view.box_in(buffer.shape)
        if box is not None:
            pack_box(buffer.packing, value.reshape(box_shape(box)), stored, box)
            return
        whole = unpack(buffer.packing, stored, buffer.shape)
        _strided(whole, view)[...] = value
        pack(buffer.packing, whole, stored)

    def store(self, buffer_id: int, data: Array) -> None:
        """Fill a buffer from an array of its shape and dtype."""
        buffer = self.plan.buffers[buffer_id]
        if buffer.packing:
            pack(buffer.packing, data, self.buffer(buffer_id))
        else:
            self.buffer(buffer_id)[...] = data

    def _unpacked(self, view: View) -> Array:
        buffer, stored = self.plan.buffers[view.buffer], self.buffer(view.buffer)
        box = view.box_in(buffer.shape)
        if box is not None:
            return unpack_box(buffer.packing, stored, box).reshape(view.shape)
        return np.array(_strided(unpack(buffer.packing, stored, buffer.shape), view))


def _strided(array: Array, view: View) -> Array:
    """A view of a contiguous buffer; writable unless it is broadcast."""
    flat = array.reshape(-1)
    if 0 in view.shape:
        return np.empty(view.shape, flat.dtype)
    return np.lib.stride_tricks.as_strided(
        flat[view.offset :],
        view.shape,
        tuple(s * flat.itemsize for s in view.strides),
        writeable=not any(n > 1 and s == 0 for n, s in zip(view.shape, view.strides, strict=True)),
    )


def allocate(plan: Plan, shared: RankMemory | None = None, *, is_packed: bool = True) -> Arenas:
    """Allocate all arenas, poison activations and outputs, fill constants and states.

    `shared` has the symmetric arena and the way to other ranks' buffers. Without `is_packed`
    weights are row-major whatever the plan says, for devices that compute with references.
    """
    if not is_packed:
        plan = row_major(plan)
    sizes = dict(zip(ARENAS, plan.arena_bytes, strict=True))
    given = {} if shared is None else {"symmetric": shared.symmetric}
    memory = {n: given[n] if n in given else _allocate(n, size) for n, size in sizes.items()}
    peers = {} if shared is None else {b: shared.buffer(b) for b in peer_buffers(plan)}
    arenas = Arenas(plan, memory, peers)
    memory["activations"][:] = POISON
    for buffer in plan.buffers:
        if buffer.kind == "output" or (buffer.kind == "activation" and buffer.export):
            arenas.buffer(buffer.id).reshape(-1).view(np.uint8)[:] = POISON
    reset_state(arenas, kinds=("constant", "state"))
    return arenas


def row_major(plan: Plan) -> Plan:
    """Return the plan with no weight packed; all buffers of their arena lie elsewhere then."""
    if not any(buffer.packing for buffer in plan.buffers):
        return plan
    buffers = tuple(replace(buffer, packing="") for buffer in plan.buffers)
    places, end = list(plan.places), 0
    for buffer in buffers:
        if places[buffer.id].arena == "weights":
            places[buffer.id] = Place("weights", end)
            end += -(-buffer.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    arenas = zip(ARENAS, plan.arena_bytes, strict=True)
    sizes = tuple(end if name == "weights" else size for name, size in arenas)
    return replace(plan, buffers=buffers, places=tuple(places), arena_bytes=sizes)


def reset_state(arenas: Arenas, kinds: tuple[str, ...] = ("state",)) -> None:
    """Fill the buffers of these kinds with their initial values."""
    for buffer in arenas.plan.buffers:
        if buffer.kind in kinds:
            zeros = bytes(buffer.size_bytes) if buffer.initial is None else buffer.initial
            arenas.store(buffer.id, as_array(zeros, buffer.dtype, buffer.shape))


def _allocate(arena: str, size_bytes: int) -> Bytes:
    # Anonymous maps are zero, aligned to pages, and freed with the last array over them.
    try:
        pages = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError, ValueError) as error:
        raise MemoryLimitError(
            f"the {arena} arena needs {size_bytes} bytes, which this machine does not have "
            f"({error}); use a smaller model, or more ranks"
        ) from None
    if size_bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8, count=max(size_bytes, 1))
