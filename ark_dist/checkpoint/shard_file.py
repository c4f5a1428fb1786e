"""Write tensors one after another into one safetensors file, with a checksum."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ark_dist.checkpoint.atomic import PendingFile
from ark_dist.checkpoint.boxes import cut_box
from ark_dist.checkpoint.shards import Layout
from ark_dist.core.shape import full_box
from ark_dist.safetensors_file import Array, check_bools

# What a tensor that is not stored in the file's order is copied in.
_PIECE_BYTES = 16 << 20


class ShardFile(PendingFile):
    """A file of a checkpoint until it has its name."""

    def __init__(self, path: Path, temporary: Path, *, like: Path) -> None:
        """Create it; see `PendingFile`."""
        super().__init__(path, temporary, like=like)
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The checksum of what was written, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes at the end."""
        self._digest.update(data)
        super().write(data)

    def write_array(self, name: str, layout: Layout, array: Array | None) -> None:
        """Add an array, whatever its strides and byte order; ValueError if it does not fit."""
        if array is None or not _is_fit(layout, array):
            found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise ValueError(
                f"save: found {found} for {name!r}, wanted {layout.dtype} of shape {layout.shape}; "
                "gather(name) must return the whole tensor on its owner"
            )
        wanted, box = layout.dtype.newbyteorder("<"), full_box(layout.shape)
        is_plain = array.flags.c_contiguous and array.dtype == wanted
        pieces = [box] if is_plain else cut_box(box, _PIECE_BYTES // wanted.itemsize)
        for part in pieces:
            piece = np.ascontiguousarray(array[tuple(slice(*pair) for pair in part)], wanted)
            try:
                check_bools(piece)
            except ValueError as error:
                raise ValueError(f"save: {name!r} has {error}") from None
            self.write(piece.reshape(-1).view(np.uint8).data)


def _is_fit(layout: Layout, array: Array) -> bool:
    return array.shape == layout.shape and array.dtype.newbyteorder("=") == layout.dtype
