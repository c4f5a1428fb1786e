"""Turn the names that a pickle may ask for into records: data to check, nothing to run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np

from ark_dist.safetensors_file import MAX_RANK, Dtype, shown


def told(value: object) -> str:
    """Return a str as it can be shown, and the type's name of all else."""
    # Never str() of a whole value: a list of lists may print as gigabytes.
    return shown(value) if isinstance(value, str) else type(value).__name__


class Record:
    """What a pickle may build: data to check later, with no state to set from outside."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # reason: a record is never a dict key

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"state for a {type(self).__name__}")


class OrderedDict(dict[object, object]):
    """An OrderedDict of a pickle; torch sets its _metadata, which is dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Drop the attributes."""


class Global(Record):
    """A name that a pickle may ask for: something harmless to call, or only a dtype."""

    __slots__ = ("build", "dtype", "name")

    def __init__(
        self, name: str, build: Callable[..., object] | None = None, dtype: Dtype | None = None
    ) -> None:
        self.name, self.build, self.dtype = name, build, dtype

    def __call__(self, *args: object) -> object:
        """Build a record."""
        if self.build is None:
            raise pickle.UnpicklingError(f"a call of {self.name}")
        return self.build(*args)


class Encoded(Record):
    """Bytes that protocol 2 wrote as latin1 text."""

    __slots__ = ("text",)

    def __init__(self, text: object, encoding: object) -> None:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError("_codecs.encode of something else than latin1 text")
        self.text = text


_BFLOAT16: Dtype = np.dtype(ml_dtypes.bfloat16)
_DTYPES: Mapping[object, Dtype] = MappingProxyType(
    {
        code: np.dtype(code)
        for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    }
)


class DtypeRecord(Record):
    """A numpy.dtype; its state is only looked at for the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, spec: object, *_flags: object) -> None:
        known = spec.dtype if isinstance(spec, Global) else None
        if isinstance(spec, str):
            known = _DTYPES.get(spec)
        if known is None:
            raise pickle.UnpicklingError(f"dtype {told(spec)}, wanted numbers or bool")
        self.dtype = known

    def __setstate__(self, state: object) -> None:
        """Set the byte order; refuse fields, subarrays and names."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("a dtype with fields or a subarray")
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a dtype with an unknown byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class ArrayRecord(Record):
    """A numpy array that a pickle describes."""

    __slots__ = ("axes", "data", "dtype", "order", "shape")

    def __init__(
        self, data: object, dtype: object, shape: object, order: object, axes: object = None
    ) -> None:
        self.data, self.dtype, self.shape, self.order, self.axes = data, dtype, shape, order, axes

    def __setstate__(self, state: object) -> None:
        """Take what ndarray.__reduce__ wrote: version, shape, dtype, is_fortran, data."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array state that is not five values")
        _, self.shape, self.dtype, is_fortran, self.data = state
        self.order = "F" if is_fortran else "C"


class StorageRecord(Record):
    """A torch storage: the key of its bytes, and how many there must be."""

    __slots__ = ("dtype", "key", "size")

    def __init__(self, key: str, dtype: Dtype, size: int) -> None:
        self.key, self.dtype, self.size = key, dtype, size


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_RANK:
        raise pickle.UnpicklingError(f"a tensor of a rank over {MAX_RANK}")
    if not all(type(v) is int and v >= 0 for v in values):
        raise pickle.UnpicklingError("a tensor whose shape or strides are not sizes >= 0")
    return values


class TensorRecord(Record):
    """A torch tensor: a strided view of a storage."""

    __slots__ = ("storage", "view")

    def __init__(
        self, storage: object, offset: object, shape: object, strides: object, dtype: object
    ) -> None:
        if not isinstance(storage, StorageRecord):
            raise pickle.UnpicklingError("a tensor without a storage")
        known = dtype.dtype if isinstance(dtype, Global) else storage.dtype
        if type(offset) is not int or offset < 0 or known is None:
            raise pickle.UnpicklingError("a tensor without offset or dtype")
        self.storage = storage
        self.view = (storage.key, offset, _sizes(shape), _sizes(strides), known)


def _reconstruct(_kind: object, _shape: object, _code: object) -> ArrayRecord:
    return ArrayRecord(None, None, None, "C")


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *_rest: object
) -> TensorRecord:
    return TensorRecord(storage, offset, shape, strides, None)


def _rebuild_tensor_v3(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _requires_grad: object,
    _hooks: object,
    dtype: object,
    *_rest: object,
) -> TensorRecord:
    return TensorRecord(storage, offset, shape, strides, dtype)


def _rebuild_parameter(tensor: object, *_rest: object) -> object:
    return tensor


def _make_dict() -> OrderedDict:
    return OrderedDict()


def _make_bytes() -> bytes:
    return b""


_CALLS: Mapping[str, Callable[..., object] | None] = {
    "collections.OrderedDict": _make_dict,
    "builtins.bytes": _make_bytes,
    "__builtin__.bytes": _make_bytes,
    "_codecs.encode": Encoded,
    "numpy.dtype": DtypeRecord,
    "numpy.ndarray": None,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}
_NUMPY_CALLS: Mapping[str, Callable[..., object]] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": lambda dtype, data: ArrayRecord(data, dtype, (), "C"),
    "numeric._frombuffer": ArrayRecord,
}
_STORAGES = {
    **{"Bool": "b1", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8"},
    **{"Half": "f2", "Float": "f4", "Double": "f8"},
}
GLOBALS: Mapping[str, Global] = MappingProxyType(
    {
        **{name: Global(name, build) for name, build in _CALLS.items()},
        **{
            f"numpy.{core}.{name}": Global(name, build)
            for core in ("core", "_core")
            for name, build in _NUMPY_CALLS.items()
        },
        **{
            f"torch.{kind}Storage": Global(kind, dtype=_DTYPES[code])
            for kind, code in _STORAGES.items()
        },
        "torch.storage.UntypedStorage": Global("Untyped", dtype=_DTYPES["u1"]),
        **{
            f"torch.uint{8 * size}": Global("uint", dtype=_DTYPES[f"u{size}"]) for size in (2, 4, 8)
        },
        "torch.BFloat16Storage": Global("bfloat16", dtype=_BFLOAT16),
        "ml_dtypes.bfloat16": Global("bfloat16", dtype=_BFLOAT16),
    }
)
