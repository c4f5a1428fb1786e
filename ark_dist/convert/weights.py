"""Say what tensors a converted folder has, and make them from those of the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ark_dist.checkpoint.shards import Layout
from ark_dist.convert.int8 import SUFFIX, quantize, row_scales
from ark_dist.core.dtype import DTYPES, FP32, INT8
from ark_dist.core.shape import Shape
from ark_dist.safetensors_file import Array

# Names of Hugging Face for ours.
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# What can be converted to; with int8, what is no matrix is in BESIDE_INT8.
TARGET_DTYPES = (*TORCH_DTYPES, INT8.name)
BESIDE_INT8 = "bf16"

# Returns a tensor of the source in a dtype.
Read = Callable[[str, "np.dtype[np.generic]"], Array]


class Weights:
    """The tensors of a converted folder.

    Attributes:
        layouts: their names, shapes and dtypes.
    """

    def __init__(self, shapes: Mapping[str, Shape], read: Read, dtype: str) -> None:
        """Take the tensors of the source, what reads one, and one of `TARGET_DTYPES`."""
        self._read = read
        is_int8 = dtype == INT8.name
        plain = DTYPES[BESIDE_INT8 if is_int8 else dtype].numpy
        self.layouts: dict[str, Layout] = {}
        for name, shape in shapes.items():
            if is_int8 and len(shape) == 2:
                self.layouts[name] = Layout(shape, INT8.numpy)
                self.layouts[name + SUFFIX] = Layout((shape[0], 1), FP32.numpy)
            else:
                self.layouts[name] = Layout(shape, plain)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(layout.size_bytes for layout in self.layouts.values())

    def read(self, name: str) -> Array:
        """Return a tensor.

        A matrix and its scales each read the source: files hold the scales of many matrices first.
        """
        source = name.removesuffix(SUFFIX)
        if source != name:
            return row_scales(self._read(source, FP32.numpy))
        if self.layouts[name].dtype == INT8.numpy:
            return quantize(self._read(name, FP32.numpy))[0]
        return self._read(name, self.layouts[name].dtype)
