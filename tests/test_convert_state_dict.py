"""Checks that NumPy arrays become torch tensors, and back, without a bit changed."""

from __future__ import annotations

import sys
from typing import cast

import ml_dtypes
import numpy as np
import pytest

from ark_dist.safetensors_file import Array
from ark_dist.serialize import convert_state_dict

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
LAYOUTS: dict[str, Array] = {
    "C order": BASE,
    "F order": np.asfortranarray(BASE),
    "reversed": BASE[::-1, ::-2],
    "big-endian": BASE.astype(">f4"),
    "0-d": np.array(3, np.float64),
    "no items": np.zeros((0, 3), np.float32),
}


def is_same(got: Array, wanted: Array) -> bool:
    native = wanted.astype(wanted.dtype.newbyteorder("="))
    is_equal = (got.dtype, got.shape) == (native.dtype, native.shape)
    return is_equal and got.tobytes() == native.tobytes()


def test_converting_to_numpy_copies_and_keeps_ties() -> None:
    got = cast(dict[str, Array], convert_state_dict({"a": BASE, "b": BASE, "c": BASE.T}, "numpy"))
    assert got["a"] is got["b"]
    assert not np.shares_memory(got["a"], BASE)
    assert got["c"].tolist() == BASE.T.tolist()


@pytest.mark.parametrize("kind", ["jax", "", None])
def test_converting_to_another_type_lists_the_known_ones(kind: str) -> None:
    with pytest.raises(TypeError, match='wanted "torch" or "numpy"'):
        convert_state_dict({}, kind)


@pytest.mark.parametrize("value", [1.0, [1], None, np.array(["x"])])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_converting_another_value_names_its_key(value: object, kind: str) -> None:
    with pytest.raises(TypeError, match=r"'a' is a .*, wanted a numpy.ndarray or a dense torch"):
        convert_state_dict(cast(dict[str, Array], {"a": value}), kind)


def test_converting_something_else_than_a_dict_is_refused() -> None:
    with pytest.raises(TypeError, match="wanted a dict"):
        convert_state_dict(cast(dict[str, Array], [BASE]), "numpy")


def test_converting_without_torch_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="torch is not installed; `pip install torch`"):
        convert_state_dict({"a": BASE}, "torch")


def test_torch_and_numpy_have_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    half = np.array([0x7F81, 0xFFC2, 1], np.uint16).view(ml_dtypes.bfloat16)
    arrays = {**LAYOUTS, "half": half, "tie": half}
    tensors = convert_state_dict(arrays, "torch")
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert tensors["half"] is tensors["tie"]
    assert tensors["half"].dtype == torch.bfloat16
    got = cast(dict[str, Array], convert_state_dict(tensors, "numpy"))
    assert all(is_same(got[name], array) for name, array in arrays.items())
    assert got["half"] is got["tie"]
    with pytest.raises(TypeError, match="'a' is a Tensor"):
        convert_state_dict({"a": torch.eye(2).to_sparse()}, "numpy")
