"""Read and write tensors of a model that is cut over ranks, as if they were whole."""

from collections.abc import Sequence
from math import prod

import numpy as np

from ark_dist.comm.communicator import Communicator
from ark_dist.core.graph import Buffer
from ark_dist.core.layout import Share
from ark_dist.core.op import Array
from ark_dist.core.shape import Box, box_shape, box_size, full_box, row_major_strides
from ark_dist.core.view import View
from ark_dist.launch.session import Session


class Shares:
    """What every rank of a session has of each buffer of the global graph."""

    def __init__(
        self,
        session: Session,
        buffers: Sequence[Buffer],
        shares: dict[int, Share],
        communicator: Communicator,
    ) -> None:
        """`buffers` are the global graph's; `shares` has those that outlive an iteration."""
        self._session = session
        self._buffers = buffers
        self._shares = shares
        self._communicator = communicator
        self._global = {share.buffer: b for b, share in shares.items() if share.buffer >= 0}

    def global_id(self, local_id: int) -> int | None:
        """The global buffer that a rank's buffer is its part of; None for a rank's own."""
        return self._global.get(local_id)

    def part(self, buffer_id: int) -> Box:
        """The [start, stop) per dimension that this rank holds of a global buffer."""
        return self._shares[buffer_id].parts[self._communicator.rank]

    def held(self) -> frozenset[int]:
        """The global buffers of which this rank has any element."""
        rank = self._communicator.rank
        return frozenset(b for b, share in self._shares.items() if share.is_held_by(rank))

    def write(self, view: View, value: Array) -> None:
        """Store what this rank holds of a view of a global buffer; every rank has all of it."""
        share, buffer = self._shares[view.buffer], self._buffers[view.buffer]
        if not share.is_held_by(self._communicator.rank):
            return
        part = _slices(self.part(view.buffer))
        if _is_whole(view, buffer):
            self._session.write(self._local(share), value.reshape(buffer.shape)[part])
            return
        whole = np.zeros(buffer.shape, buffer.dtype.numpy)
        mask = np.zeros(buffer.shape, np.bool_)
        _seen(whole, view)[...] = value
        _seen(mask, view)[...] = True
        local = self._session.read(self._local(share))
        self._session.write(self._local(share), np.where(mask[part], whole[part], local))

    def read(self, view: View) -> Array:
        """The value of a view of a global buffer; collective, unless every rank has all of it."""
        share, buffer = self._shares[view.buffer], self._buffers[view.buffer]
        rank = self._communicator.rank
        local = self._session.read(self._local(share)) if share.is_held_by(rank) else None
        if all(box == full_box(buffer.shape) for box in share.parts):
            assert local is not None
            return np.array(_seen(local, view))
        data = b"" if local is None else np.ascontiguousarray(local).tobytes()
        whole = np.empty(buffer.shape, buffer.dtype.numpy)
        pieces = self._communicator.all_gather_bytes(data)
        # Backwards: of what several ranks hold, the lowest rank's counts.
        for box, piece in reversed(list(zip(share.parts, pieces, strict=True))):
            if box_size(box) or not box:
                array = np.frombuffer(piece, buffer.dtype.numpy)
                if array.size:
                    whole[_slices(box)] = array.reshape(box_shape(box))
        return np.array(_seen(whole, view))

    def read_local(self, call: str, view: View) -> Array:
        """This rank's part of a whole buffer; ValueError for a view of another kind."""
        share, buffer = self._shares[view.buffer], self._buffers[view.buffer]
        if not _is_whole(view, buffer):
            raise ValueError(
                f"{call}: {buffer.name!r} is looked at through a view, of which no rank has a "
                "part of its own; read it without local=True"
            )
        if not share.is_held_by(self._communicator.rank):
            return np.empty(box_shape(self.part(view.buffer)), buffer.dtype.numpy)
        return self._session.read(self._local(share))

    def _local(self, share: Share) -> View:
        buffer = self._session.plan.buffers[share.buffer]
        return View(buffer.id, buffer.dtype, 0, buffer.shape, row_major_strides(buffer.shape))


def _is_whole(view: View, buffer: Buffer) -> bool:
    return view.offset == 0 and view.is_contiguous and prod(view.shape) == prod(buffer.shape)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def _seen(array: Array, view: View) -> Array:
    """A global buffer's array through a view."""
    if 0 in view.shape:
        return np.empty(view.shape, array.dtype)
    flat = np.ascontiguousarray(array).reshape(-1)
    strides = tuple(s * flat.itemsize for s in view.strides)
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides)
