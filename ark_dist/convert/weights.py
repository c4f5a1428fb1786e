"""Say what tensors a converted folder has, and make them from those of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from ark_dist.checkpoint.shards import Layout
from ark_dist.convert.int8 import SUFFIX, quantize, row_scales
from ark_dist.core.dtype import DTYPES, FP32, INT8
from ark_dist.safetensors_file import Array, Dtype

# Names of Hugging Face for ours.
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# What can be converted to; with int8, what is no matrix is in BESIDE_INT8.
TARGET_DTYPES = (*TORCH_DTYPES, INT8.name)
BESIDE_INT8 = "bf16"
# What is converted at all.
FLOATS = frozenset({*(DTYPES[name].numpy for name in TORCH_DTYPES), np.dtype(np.float64)})

# Returns a tensor of the source in a dtype.
Read = Callable[[str, Dtype], Array]

_NOTHING: Mapping[str, str] = MappingProxyType({})


def is_matrix(name: str, layout: Layout) -> bool:
    """Whether a tensor is what `--dtype int8` is about."""
    return len(layout.shape) == 2 and name.endswith(".weight")


class Weights:
    """The tensors of a converted folder; what holds no floats stays as it is.

    Attributes:
        layouts: their names, shapes and dtypes.
        tied: alias -> the tensor that holds its data.
    """

    def __init__(
        self,
        sources: Mapping[str, Layout],
        read: Read,
        dtype: str,
        tied: Mapping[str, str] = _NOTHING,
    ) -> None:
        """Take the tensors of the source, what reads one, one of `TARGET_DTYPES`, and aliases."""
        self._read = read
        self._scaled: dict[str, str] = {}  # scales -> their matrix
        is_int8 = dtype == INT8.name
        plain = DTYPES[BESIDE_INT8 if is_int8 else dtype].numpy
        self.layouts: dict[str, Layout] = {}
        for name, source in sources.items():
            if source.dtype not in FLOATS:
                self.layouts[name] = Layout(source.shape, source.dtype)
            elif is_int8 and is_matrix(name, source):
                self.layouts[name] = Layout(source.shape, INT8.numpy)
                self.layouts[name + SUFFIX] = Layout((source.shape[0], 1), FP32.numpy)
                self._scaled[name + SUFFIX] = name
            else:
                self.layouts[name] = Layout(source.shape, plain)
        self._matrices = frozenset(self._scaled.values())
        self.tied: dict[str, str] = dict(tied)
        for alias, name in tied.items():
            if name in self._matrices:
                self.tied[alias + SUFFIX] = name + SUFFIX

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(layout.size_bytes for layout in self.layouts.values())

    def read(self, name: str) -> Array:
        """Return a tensor.

        A matrix and its scales each read the source: files hold the scales of many matrices first.
        """
        if name in self._scaled:
            return row_scales(self._read(self._scaled[name], FP32.numpy))
        if name in self._matrices:
            return quantize(self._read(name, FP32.numpy))[0]
        return self._read(name, self.layouts[name].dtype)
