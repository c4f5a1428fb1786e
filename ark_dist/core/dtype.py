"""Name the element types of tensors and tie each to NumPy and C++."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: the short name used in plans and messages, such as "fp16".
        kind: "float", "int", "uint", "bool" or "byte" (raw bytes, no arithmetic).
        itemsize: bytes per element.
        c_name: its type in generated code.
        numpy_name: its NumPy name; "bfloat16" comes from ml_dtypes.
    """

    name: str
    kind: str
    itemsize: int
    c_name: str
    numpy_name: str

    def __repr__(self) -> str:
        return self.name

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy dtype with the same bits."""
        if self.numpy_name == "bfloat16":
            bfloat16: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return np.dtype(self.numpy_name)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type."""
        bits = 8 * self.itemsize
        return (
            (-(1 << bits - 1), (1 << bits - 1) - 1) if self.kind == "int" else (0, (1 << bits) - 1)
        )

    @property
    def is_float(self) -> bool:
        """Whether arithmetic on it is floating point."""
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        """Whether arithmetic on it is integer, wrapping on overflow."""
        return self.kind in ("int", "uint")


FP32 = DType("fp32", "float", 4, "float", "float32")
FP16 = DType("fp16", "float", 2, "ark_fp16", "float16")
BF16 = DType("bf16", "float", 2, "ark_bf16", "bfloat16")
INT32 = DType("int32", "int", 4, "int32_t", "int32")
UINT32 = DType("uint32", "uint", 4, "uint32_t", "uint32")
INT8 = DType("int8", "int", 1, "int8_t", "int8")
UINT8 = DType("uint8", "uint", 1, "uint8_t", "uint8")
BYTE = DType("byte", "byte", 1, "uint8_t", "uint8")
BOOL = DType("bool", "bool", 1, "ark_bool", "bool")

DTYPES = {d.name: d for d in (FP32, FP16, BF16, INT32, UINT32, INT8, UINT8, BYTE, BOOL)}
FLOATS = ("fp32", "fp16", "bf16")
INTEGERS = ("int32", "uint32", "int8", "uint8")
NUMBERS = FLOATS + INTEGERS
ALL_DTYPES = tuple(DTYPES)

# byte shares NumPy's uint8, so an array of uint8 means uint8.
_FROM_NUMPY = {d.numpy: d for d in DTYPES.values() if d is not BYTE}

DTypeLike = DType | str | npt.DTypeLike


class TensorType:
    """ARK's names for the element types."""

    FP32 = FP32
    FP16 = FP16
    BF16 = BF16
    INT32 = INT32
    UINT32 = UINT32
    INT8 = INT8
    UINT8 = UINT8
    BYTE = BYTE
    BOOL = BOOL


def as_dtype(value: DTypeLike) -> DType:
    """Return the DType that a DType, its name, or a NumPy dtype stands for.

    Raises TypeError if there is none.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    try:
        found = _FROM_NUMPY.get(np.dtype(value))
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"dtype {value!r} is not supported; use one of {', '.join(DTYPES)}")
    return found
