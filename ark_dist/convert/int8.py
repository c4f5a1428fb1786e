"""Round matrices to int8, with one scale per row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST = 127  # of both signs, so that a scale maps zero to zero and signs to signs
SUFFIX = "_scale"  # behind the weight's name


def quantize(
    matrix: npt.NDArray[np.generic],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 (rows, columns) and fp32 scales (rows, 1), so that matrix is about their product.

    A row's scale is its largest magnitude / 127, its elements are rounded to nearest even. A row of
    zeros has the scale 0. Rows must be finite.
    """
    rows = np.asarray(matrix, np.float32)
    scale = np.abs(rows).max(axis=1, keepdims=True, initial=0.0) / np.float32(MOST)
    units = np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)
    return np.clip(np.rint(units), -MOST, MOST).astype(np.int8), scale.astype(np.float32)
