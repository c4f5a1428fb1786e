"""Round matrices to int8, with one scale per row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST = 127  # of both signs, so that a scale maps zero to zero and signs to signs
SUFFIX = "_scale"  # behind the weight's name
# Elements that are rounded at a time, by way of a few fp32 arrays of that size.
_PIECE_ELEMS = 1 << 20

Matrix = npt.NDArray[np.generic]


def quantize(matrix: Matrix) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 (rows, columns) and fp32 scales (rows, 1), so that matrix is about their product.

    A row's scale is its largest magnitude / 127, its elements are rounded to nearest even. A row of
    zeros has the scale 0. Rows must be finite.
    """
    units, scales = np.empty(matrix.shape, np.int8), row_scales(matrix)
    for piece in _pieces(matrix):
        rows, scale = np.asarray(matrix[piece], np.float32), scales[piece]
        exact = np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)
        units[piece] = np.clip(np.rint(exact), -MOST, MOST)
    return units, scales


def row_scales(matrix: Matrix) -> npt.NDArray[np.float32]:
    """Return the scales alone."""
    scales = np.empty((len(matrix), 1), np.float32)
    for piece in _pieces(matrix):
        sizes = np.abs(np.asarray(matrix[piece], np.float32))
        scales[piece] = sizes.max(axis=1, keepdims=True, initial=0.0) / np.float32(MOST)
    return scales


def _pieces(matrix: Matrix) -> list[slice]:
    """The rows, some at a time."""
    step = max(1, _PIECE_ELEMS // max(1, matrix.shape[1]))
    return [slice(first, first + step) for first in range(0, len(matrix), step)]
