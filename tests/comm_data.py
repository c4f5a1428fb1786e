"""Arrays of ranks that every process can make again, and how to compare what comes back."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import ml_dtypes
import numpy as np

from ark_dist.core.op import Array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16, np.dtype(np.float64))
INTEGERS = tuple(np.dtype(name) for name in ("int8", "uint8", "int32", "uint32", "int64"))
DTYPES = (*FLOATS, *INTEGERS, np.dtype(np.bool_))
SHAPES = ((), (0,), (1,), (3, 0, 2), (2, 3, 5), (10_007,))
SHORT_S = 0.15
Raised = dict[str, str]


def data_of(rank: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """The array of a rank: random, and the same in every process."""
    rng = np.random.default_rng([rank, len(shape), sum(shape)])
    values = rng.standard_normal(shape) * 50
    with np.errstate(invalid="ignore"):
        kind: Array = values if dtype.kind in "fV" else np.rint(values)
        if dtype.kind == "b":
            return np.asarray(values > 0)
        if dtype.kind == "u":
            kind = np.rint(np.abs(values))
        return np.asarray(kind).astype(dtype)


def combined(parts: list[Array], op: str) -> Array:
    """The reduction in rank order, 16-bit floats in fp32: the bits that must come out."""
    dtype = parts[0].dtype
    wide = np.dtype(np.float32) if dtype in (np.dtype(np.float16), BFLOAT16) else dtype
    step = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}[op]
    with np.errstate(all="ignore"):
        total = reduce(step, [np.asarray(part, wide) for part in parts])
        if op == "mean":
            total = np.asarray(total / wide.type(len(parts)), wide)
        return np.asarray(np.asarray(total).astype(dtype))


def assert_bits(found: Array | None, wanted: Array) -> None:
    """Compare shape, dtype and every bit."""
    assert found is not None
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


@contextmanager
def raising(
    kind: type[BaseException] | tuple[type[BaseException], ...], *texts: str
) -> Iterator[Raised]:
    """Assert that a block raises, with texts in the message."""
    found: Raised = {}
    try:
        yield found
    except kind as error:
        found["text"] = str(error)
        found["type"] = type(error).__name__
        for text in texts:
            assert text in str(error), f"{text!r} is not in: {error}"
    else:
        raise AssertionError(f"{kind} was not raised")
