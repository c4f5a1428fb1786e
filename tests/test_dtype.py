"""Element types have one name each, a NumPy twin and a C++ type."""

import re

import ml_dtypes
import numpy as np
import pytest

from ark_dist.core.dtype import ALL_DTYPES, BYTE, DTYPES, FLOATS, NUMBERS, TensorType, as_dtype


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_has_the_size_of_its_numpy_twin(name: str) -> None:
    dtype = DTYPES[name]
    assert dtype.numpy.itemsize == dtype.itemsize
    assert repr(dtype) == name == dtype.name


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_is_found_by_name_by_itself_and_by_its_numpy_twin(name: str) -> None:
    dtype = DTYPES[name]
    assert as_dtype(name) is dtype
    assert as_dtype(dtype) is dtype
    # byte and uint8 share NumPy's uint8, which means uint8.
    assert as_dtype(dtype.numpy) is (DTYPES["uint8"] if dtype is BYTE else dtype)


def test_numpy_names_and_types_are_understood() -> None:
    assert as_dtype("float32") is DTYPES["fp32"]
    assert as_dtype(np.float16) is DTYPES["fp16"]
    assert as_dtype(ml_dtypes.bfloat16) is DTYPES["bf16"]
    assert as_dtype(bool) is DTYPES["bool"]


@pytest.mark.parametrize(
    "value", ["fp64", np.float64, int, np.int64, "no such thing", 3, b"x", object()]
)
def test_an_unknown_dtype_is_an_error_that_lists_the_known(value: object) -> None:
    text = f"dtype {value!r} is not supported; use one of fp32, fp16, bf16, int32, uint32, int8"
    with pytest.raises(TypeError, match=re.escape(text)):
        as_dtype(value)  # type: ignore[arg-type]  # that is the test


def test_the_names_of_ark_are_the_dtypes() -> None:
    for name in ("FP32", "FP16", "BF16", "INT32", "UINT32", "INT8", "UINT8", "BYTE", "BOOL"):
        assert getattr(TensorType, name) is DTYPES[name.lower()]


def test_the_groups_say_what_arithmetic_a_dtype_has() -> None:
    for name in ALL_DTYPES:
        dtype = DTYPES[name]
        assert dtype.is_float == (name in FLOATS)
        assert (dtype.is_float or dtype.is_integer) == (name in NUMBERS)


@pytest.mark.parametrize("name", [n for n in NUMBERS if n not in FLOATS])
def test_limits_are_those_of_numpy(name: str) -> None:
    info = np.iinfo(DTYPES[name].numpy_name)
    assert tuple(DTYPES[name].limits) == (info.min, info.max)
