"""Read and write tensors of a model that is cut over ranks, as if they were whole."""

from collections.abc import Sequence
from math import prod

import numpy as np

from ark_dist.comm.communicator import Communicator
from ark_dist.core.graph import Buffer
from ark_dist.core.layout import Share
from ark_dist.core.op import Array
from ark_dist.core.shape import Box, box_shape, full_box, row_major_strides
from ark_dist.core.view import View
from ark_dist.launch.session import Session

# Above the tags that the messages of a program count up from 0.
GATHER_TAG = 6000


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
        self.communicator = communicator
        self._global = {share.buffer: b for b, share in shares.items() if share.buffer >= 0}

    def global_id(self, local_id: int) -> int | None:
        """The global buffer that a rank's buffer is its part of; None for a rank's own."""
        return self._global.get(local_id)

    def part(self, buffer_id: int) -> Box:
        """The [start, stop) per dimension that this rank holds of a global buffer."""
        return self._shares[buffer_id].parts[self.communicator.rank]

    def is_held(self, buffer_id: int) -> bool:
        """Whether this rank has any element of a global buffer."""
        return self._shares[buffer_id].is_held_by(self.communicator.rank)

    def held(self) -> frozenset[int]:
        """The global buffers of which this rank has any element."""
        return frozenset(b for b in self._shares if self.is_held(b))

    def owner(self, buffer_id: int) -> int:
        """The lowest rank that has any element of a global buffer; 0 if none has."""
        share = self._shares[buffer_id]
        ranks = range(self.communicator.size)
        return next((rank for rank in ranks if share.is_held_by(rank)), 0)

    def local_view(self, view: View) -> View | None:
        """Where this rank's part of a view lies in its own memory.

        None if it has nothing of it, or if the view shows its buffer in another shape.
        """
        share, buffer = self._shares[view.buffer], self._buffers[view.buffer]
        is_plain = _is_whole(view, buffer) and view.shape == buffer.shape
        return self._local(share) if is_plain and self.is_held(view.buffer) else None

    def write(self, view: View, value: Array) -> None:
        """Store what this rank holds of a view of a global buffer; every rank has all of it."""
        share, buffer = self._shares[view.buffer], self._buffers[view.buffer]
        if not self.is_held(view.buffer):
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
        if self.is_held(view.buffer) and all(b == full_box(buffer.shape) for b in share.parts):
            return np.array(_seen(self._session.read(self._local(share)), view))
        givers = _givers(share)
        data = b""
        if self.communicator.rank in givers:
            data = np.ascontiguousarray(self._session.read(self._local(share))).tobytes()
        whole = np.empty(buffer.shape, buffer.dtype.numpy)
        pieces = self.communicator.all_gather_bytes(data)
        for rank in givers:
            box = share.parts[rank]
            piece = np.frombuffer(pieces[rank], buffer.dtype.numpy)
            whole[_slices(box)] = piece.reshape(box_shape(box))
        return np.array(_seen(whole, view))

    def gather(self, view: View, root: int, *, timeout_s: float | None = None) -> Array | None:
        """The value of a view of a global buffer on one rank, and None on the others.

        Collective; what the root has whole is not copied. Nobody holds more than the tensor and
        one part of it beside its own part.
        """
        share, buffer = self._shares[view.buffer], self._buffers[view.buffer]
        rank, givers = self.communicator.rank, _givers(share)
        if rank != root:
            if rank in givers:
                part = np.ascontiguousarray(self._own(share))
                self.communicator.send(part, root, GATHER_TAG, timeout_s=timeout_s)
            return None
        if givers == [root]:
            return _seen(self._own(share), view)
        whole = np.empty(buffer.shape, buffer.dtype.numpy)
        for giver in givers:
            # reshape: an index of a tensor without dimensions gives a number.
            box = share.parts[giver]
            target = whole[_slices(box)] if box else whole.reshape(())
            if giver == root:
                target[...] = self._own(share)
                continue
            # Rows of the tensor are received where they belong.
            part = target if target.flags.c_contiguous else np.empty_like(target, order="C")
            self.communicator.recv(part, giver, GATHER_TAG, timeout_s=timeout_s)
            if part is not target:
                target[...] = part
        return _seen(whole, view)

    def read_local(self, call: str, view: View) -> Array:
        """This rank's part of a whole buffer; ValueError for a view of another kind."""
        share, buffer = self._shares[view.buffer], self._buffers[view.buffer]
        if not _is_whole(view, buffer):
            raise ValueError(
                f"{call}: {buffer.name!r} is looked at through a view, of which no rank has a "
                "part of its own; read it without local=True"
            )
        if not self.is_held(view.buffer):
            return np.empty(box_shape(self.part(view.buffer)), buffer.dtype.numpy)
        return self._session.read(self._local(share))

    def _own(self, share: Share) -> Array:
        """This rank's part in its memory, or a copy where there are only copies."""
        return self._session.memory.view(self._local(share))

    def _local(self, share: Share) -> View:
        buffer = self._session.plan.buffers[share.buffer]
        return View(buffer.id, buffer.dtype, 0, buffer.shape, row_major_strides(buffer.shape))


def _givers(share: Share) -> list[int]:
    """The ranks whose parts make up a buffer, those that overrule others last.

    Of what several ranks hold the lowest rank's counts; a part inside another's is left out.
    """
    held = [rank for rank in range(len(share.parts)) if share.is_held_by(rank)]
    needed = []
    for rank in held:
        others = (other for other in held if other < rank)
        if not any(_is_inside(share.parts[rank], share.parts[other]) for other in others):
            needed.append(rank)
    return needed[::-1]


def _is_inside(box: Box, outer: Box) -> bool:
    return all(a <= start and stop <= b for (start, stop), (a, b) in zip(box, outer, strict=True))


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
