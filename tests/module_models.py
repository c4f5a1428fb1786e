"""Modules that several test files use."""

import numpy as np
import numpy.typing as npt

import ark_dist as ark

Array = npt.NDArray[np.generic]


class Inner(ark.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight_2 = ark.Parameter(ark.tensor([3, 2], ark.FP16))

    def forward(self, x: ark.Tensor) -> ark.Tensor:
        return ark.matmul(x, self.weight_2)


class Outer(ark.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight_1 = ark.Parameter(ark.tensor([2, 3], ark.FP16))
        self.submodule = Inner()

    def forward(self, x: ark.Tensor, scale: float = 1.0) -> ark.Tensor:
        middle = ark.matmul(x, self.weight_1, is_relu=True)
        result: ark.Tensor = self.submodule(middle) * scale
        return result


def weights() -> dict[str, Array]:
    """A state_dict that fits Outer."""
    return {
        "weight_1": np.arange(6, dtype=np.float16).reshape(2, 3),
        "submodule.weight_2": np.arange(6, dtype=np.float16).reshape(3, 2) - 2,
    }


def launched(device: str = "numpy") -> tuple[Outer, ark.Tensor, ark.Tensor, ark.Runtime]:
    """An Outer with memory, its input, its output and the runtime."""
    runtime = ark.Runtime(device=device)
    x = ark.tensor([4, 2], ark.FP16)
    module = Outer()
    y = module(x, scale=2)
    runtime.launch()
    return module, x, y, runtime
