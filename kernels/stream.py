"""Cut the weights of a matrix-vector product into what fills the slots of the ring, in order."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core import abi

WARPS = 8  # ARK_RING_WARPS: consumer warps that take slots in turn
COPY_BYTES = 16  # addresses and sizes of copies are multiples of this


@dataclass(frozen=True, slots=True)
class Cut:
    """How a product is cut into slots; `ark_few_cut` of kernels/device/matvec.h.

    Attributes:
        columns: columns of the result (rows of weights) per slot.
        depth: elements of each of them per slot.
    """

    columns: int
    depth: int

    def slot_count(self, n: int, k: int) -> int:
        """Slots that n columns of k weights take; in several parts, 8 for each."""
        groups, parts = -(-n // self.columns), -(-k // self.depth)
        return groups if parts == 1 else -(-groups // WARPS) * WARPS * parts


def cut_weights(n: int, k: int, itemsize: int, *, slot_bytes: int, held: int) -> Cut:
    """Cut n columns of k weights each, so that all warps have some.

    Args:
        n: columns of the result.
        k: weights per column; a multiple of 16 bytes.
        itemsize: bytes per weight.
        slot_bytes: size of a slot.
        held: columns that a warp holds the sums of, `R` of `ark_matvec_stream`.

    Raises:
        ValueError: the weights of a column are no multiple of 16 bytes, or there are none.
    """
    line_bytes = k * itemsize
    if n < 1 or k < 1 or line_bytes % COPY_BYTES:
        raise ValueError(
            f"weights are {n} lines of {line_bytes} bytes; the ring takes multiples of "
            f"{COPY_BYTES} bytes, use ark_matvec_direct"
        )
    share = -(-n // WARPS)
    if line_bytes <= slot_bytes:
        return Cut(min(share, slot_bytes // line_bytes), k)
    columns = min(share, held)
    part_bytes = slot_bytes // columns // COPY_BYTES * COPY_BYTES
    return Cut(columns, part_bytes // itemsize)


def segments(
    source: int, n: int, k: int, itemsize: int, pitch_bytes: int, cut: Cut
) -> npt.NDArray[np.void]:
    """Return one row per slot, in the order in which `ark_matvec_stream` takes them.

    Args:
        source: address of the first column's weights, a multiple of 16.
        n: columns of the result.
        k: weights per column.
        itemsize: bytes per weight.
        pitch_bytes: from a column's weights to the next one's, a multiple of 16.
        cut: the same that the kernel gets.
    """
    if source % COPY_BYTES or pitch_bytes % COPY_BYTES:
        raise ValueError(
            f"weights at {source:#x}, {pitch_bytes} bytes apart; both must be multiples of "
            f"{COPY_BYTES}, use ark_matvec_direct"
        )
    groups = -(-n // cut.columns)
    width = groups if k <= cut.depth else -(-groups // WARPS) * WARPS
    rows = []
    for first in range(0, groups, WARPS):
        for k0 in range(0, k, cut.depth):
            size = min(cut.depth, k - k0) * itemsize
            for group in range(first, min(first + WARPS, width)):
                if group >= groups:
                    # A warp without columns still takes its turn.
                    rows.append((source, pitch_bytes, 0, 0, 0))
                    continue
                column = group * cut.columns
                count = min(cut.columns, n - column)
                start = source + column * pitch_bytes + k0 * itemsize
                # Lines without gaps are one copy.
                run = (size * count, 1) if size == pitch_bytes else (size, count)
                rows.append((start, pitch_bytes, *run, 0))
    return np.array(rows, abi.SEGMENT.dtype)
