"""The operators as functions, as methods of tensors, and as methods of models.

Written from the records in `kernels/ops` by `./dev generate`; edit those, not this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ark_dist.kernels.ops  # noqa: F401  registers the operators
from ark_dist.apply import apply

if TYPE_CHECKING:
    from ark_dist.core.dtype import DTypeLike
    from ark_dist.tensors import Operand, Tensor

__all__ = [
    "add",
    "argmax",
    "broadcast_to",
    "cast",
    "copy",
    "div",
    "embedding",
    "equal",
    "greater_equal",
    "identity",
    "layernorm",
    "matmul",
    "mul",
    "narrow",
    "reduce_max",
    "reduce_mean",
    "reduce_sum",
    "relu",
    "reshape",
    "softmax",
    "stop_when",
    "sub",
    "transpose",
]


def add(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Add two tensors, broadcasting as NumPy does.

    Args:
        input: the tensor to work on.
        other: the second tensor, or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("add", input, other, output=output, name=name)


def argmax(
    input: Tensor,
    axis: int = -1,
    keepdims: bool = False,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Index of the largest element along `axis`, as int32; the first of equals, the first NaN.

    Args:
        input: the tensor to reduce.
        axis: the dimension to work along; negative counts from the end.
        keepdims: keep the dimension with size 1.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("argmax", input, axis=axis, keepdims=keepdims, output=output, name=name)


def broadcast_to(
    input: Tensor,
    shape: Sequence[int],
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Repeat a tensor along new dimensions and dimensions of size 1, without copying.

    Args:
        input: the tensor to work on.
        shape: the sizes to spread over.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("broadcast_to", input, shape=shape, output=output, name=name)


def cast(
    input: Tensor,
    dtype: DTypeLike,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Convert a tensor to `dtype`.

    Floats round to nearest even. Floats to integers cut the fraction off and stop at the integer's
    range, NaN becomes 0; integers to narrower integers wrap; anything but 0 is True.

    Args:
        input: the tensor to work on.
        dtype: the dtype of the result.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("cast", input, dtype=dtype, output=output, name=name)


def copy(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Copy a tensor into contiguous memory of its own.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("copy", input, output=output, name=name)


def div(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Divide `input` by `other`, broadcasting as NumPy does.

    Args:
        input: the tensor to work on.
        other: the second tensor, or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("div", input, other, output=output, name=name)


def embedding(
    input: Tensor,
    weight: Tensor,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Return weight[input]: row `input[i]` of the table for each index.

    `input` is int32 of any shape, `weight` is (rows, width); the result is (*input.shape, width).
    An index outside [0, rows) ends the run with a TaskError that names it.

    Args:
        input: int32 indices.
        weight: the table, (rows, width).
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("embedding", input, weight, output=output, name=name)


def equal(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Whether elements are equal, as bool; NaN equals nothing.

    Args:
        input: the tensor to work on.
        other: the second tensor, or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("equal", input, other, output=output, name=name)


def greater_equal(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Whether `input` is at least `other`, as bool.

    Args:
        input: the tensor to work on.
        other: the second tensor, or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("greater_equal", input, other, output=output, name=name)


def identity(
    input: Tensor,
    deps: Sequence[Tensor] = (),
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Return `input` as it is; whatever uses the result also comes after all of `deps`.

    Args:
        input: the tensor to work on.
        deps: tensors that must be computed before.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("identity", input, deps=deps, output=output, name=name)


def layernorm(
    input: Tensor,
    axis: int = -1,
    eps: float = 1e-5,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) along `axis`, without affine parameters (Ba et al. 2016).

    Args:
        input: the tensor to work on.
        axis: the dimension to work along; negative counts from the end.
        eps: added to the variance.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("layernorm", input, axis=axis, eps=eps, output=output, name=name)


def matmul(
    input: Tensor,
    other: Tensor,
    transpose_input: bool = False,
    transpose_other: bool = False,
    is_relu: bool = False,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Multiply matrices: the last two dimensions are (M, K) and (K, N), others broadcast.

    Products accumulate in fp32. `is_relu` replaces negative results by zero.

    Args:
        input: the tensor to work on.
        other: the right operand.
        transpose_input: swap the last two dimensions of input.
        transpose_other: swap the last two dimensions of other.
        is_relu: replace negative results by zero.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply(
        "matmul",
        input,
        other,
        transpose_input=transpose_input,
        transpose_other=transpose_other,
        is_relu=is_relu,
        output=output,
        name=name,
    )


def mul(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Multiply two tensors, broadcasting as NumPy does.

    Args:
        input: the tensor to work on.
        other: the second tensor, or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("mul", input, other, output=output, name=name)


def narrow(
    input: Tensor,
    axis: int,
    start: int,
    length: int,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Take `length` elements from `start` on along dimension `axis`, without copying.

    Args:
        input: the tensor to work on.
        axis: the dimension to cut; negative counts from the end.
        start: first index; negative counts from the end.
        length: number of elements.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("narrow", input, axis=axis, start=start, length=length, output=output, name=name)


def reduce_max(
    input: Tensor,
    axis: int,
    keepdims: bool = True,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Largest element along `axis`; NaN wins.

    Args:
        input: the tensor to reduce.
        axis: the dimension to work along; negative counts from the end.
        keepdims: keep the dimension with size 1.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("reduce_max", input, axis=axis, keepdims=keepdims, output=output, name=name)


def reduce_mean(
    input: Tensor,
    axis: int,
    keepdims: bool = True,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Mean along `axis`, accumulated in fp32.

    Args:
        input: the tensor to reduce.
        axis: the dimension to work along; negative counts from the end.
        keepdims: keep the dimension with size 1.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("reduce_mean", input, axis=axis, keepdims=keepdims, output=output, name=name)


def reduce_sum(
    input: Tensor,
    axis: int,
    keepdims: bool = True,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Sum along `axis`; floats accumulate in fp32, integers wrap.

    Args:
        input: the tensor to reduce.
        axis: the dimension to work along; negative counts from the end.
        keepdims: keep the dimension with size 1.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("reduce_sum", input, axis=axis, keepdims=keepdims, output=output, name=name)


def relu(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Replace negative elements by zero; NaN stays NaN.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("relu", input, output=output, name=name)


def reshape(
    input: Tensor,
    shape: Sequence[int],
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Give a tensor another shape with the same elements in the same order; one size may be -1.

    Args:
        input: the tensor to work on.
        shape: the new sizes.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("reshape", input, shape=shape, output=output, name=name)


def softmax(
    input: Tensor,
    axis: int = -1,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, computed from x - max(x) so that nothing overflows.

    Args:
        input: the tensor to work on.
        axis: the dimension to work along; negative counts from the end.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("softmax", input, axis=axis, output=output, name=name)


def stop_when(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """End the run after this iteration if `input`, one element of bool or int32, is not 0.

    The iteration completes entirely; `wait()` returns how many were done, and the next run goes on
    as if there had been no interruption. A method has at most one.

    Args:
        input: the flag.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of bool, int32.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("stop_when", input, output=output, name=name)


def sub(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Subtract `other` from `input`, broadcasting as NumPy does.

    Args:
        input: the tensor to work on.
        other: the second tensor, or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("sub", input, other, output=output, name=name)


def transpose(
    input: Tensor,
    perm: Sequence[int] | None = None,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Reorder the dimensions as `perm` says; without it, reverse them.

    Args:
        input: the tensor to work on.
        perm: old dimension for each new one.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("transpose", input, perm=perm, output=output, name=name)


class TensorOps:
    """The operators whose first argument is a tensor `input`."""

    def add(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Add two tensors, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.add`.
        """
        return apply("add", self, other, output=output, name=name)

    def argmax(
        self,
        axis: int = -1,
        keepdims: bool = False,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Index of the largest element along `axis`, as int32; the first of equals, the first NaN.

        Arguments and errors: `ark_dist.argmax`.
        """
        return apply("argmax", self, axis=axis, keepdims=keepdims, output=output, name=name)

    def broadcast_to(
        self,
        shape: Sequence[int],
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Repeat a tensor along new dimensions and dimensions of size 1, without copying.

        Arguments and errors: `ark_dist.broadcast_to`.
        """
        return apply("broadcast_to", self, shape=shape, output=output, name=name)

    def cast(
        self,
        dtype: DTypeLike,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Convert a tensor to `dtype`.

        Arguments and errors: `ark_dist.cast`.
        """
        return apply("cast", self, dtype=dtype, output=output, name=name)

    def copy(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Copy a tensor into contiguous memory of its own.

        Arguments and errors: `ark_dist.copy`.
        """
        return apply("copy", self, output=output, name=name)

    def div(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Divide `input` by `other`, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.div`.
        """
        return apply("div", self, other, output=output, name=name)

    def embedding(
        self,
        weight: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return weight[input]: row `input[i]` of the table for each index.

        Arguments and errors: `ark_dist.embedding`.
        """
        return apply("embedding", self, weight, output=output, name=name)

    def equal(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether elements are equal, as bool; NaN equals nothing.

        Arguments and errors: `ark_dist.equal`.
        """
        return apply("equal", self, other, output=output, name=name)

    def greater_equal(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is at least `other`, as bool.

        Arguments and errors: `ark_dist.greater_equal`.
        """
        return apply("greater_equal", self, other, output=output, name=name)

    def identity(
        self,
        deps: Sequence[Tensor] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return `input` as it is; whatever uses the result also comes after all of `deps`.

        Arguments and errors: `ark_dist.identity`.
        """
        return apply("identity", self, deps=deps, output=output, name=name)

    def layernorm(
        self,
        axis: int = -1,
        eps: float = 1e-5,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Add the operator `layernorm`.

        Arguments and errors: `ark_dist.layernorm`.
        """
        return apply("layernorm", self, axis=axis, eps=eps, output=output, name=name)

    def matmul(
        self,
        other: Tensor,
        transpose_input: bool = False,
        transpose_other: bool = False,
        is_relu: bool = False,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Multiply matrices: the last two dimensions are (M, K) and (K, N), others broadcast.

        Arguments and errors: `ark_dist.matmul`.
        """
        return apply(
            "matmul",
            self,
            other,
            transpose_input=transpose_input,
            transpose_other=transpose_other,
            is_relu=is_relu,
            output=output,
            name=name,
        )

    def mul(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Multiply two tensors, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.mul`.
        """
        return apply("mul", self, other, output=output, name=name)

    def narrow(
        self,
        axis: int,
        start: int,
        length: int,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take `length` elements from `start` on along dimension `axis`, without copying.

        Arguments and errors: `ark_dist.narrow`.
        """
        return apply(
            "narrow",
            self,
            axis=axis,
            start=start,
            length=length,
            output=output,
            name=name,
        )

    def reduce_max(
        self,
        axis: int,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Largest element along `axis`; NaN wins.

        Arguments and errors: `ark_dist.reduce_max`.
        """
        return apply("reduce_max", self, axis=axis, keepdims=keepdims, output=output, name=name)

    def reduce_mean(
        self,
        axis: int,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Mean along `axis`, accumulated in fp32.

        Arguments and errors: `ark_dist.reduce_mean`.
        """
        return apply("reduce_mean", self, axis=axis, keepdims=keepdims, output=output, name=name)

    def reduce_sum(
        self,
        axis: int,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Sum along `axis`; floats accumulate in fp32, integers wrap.

        Arguments and errors: `ark_dist.reduce_sum`.
        """
        return apply("reduce_sum", self, axis=axis, keepdims=keepdims, output=output, name=name)

    def relu(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Replace negative elements by zero; NaN stays NaN.

        Arguments and errors: `ark_dist.relu`.
        """
        return apply("relu", self, output=output, name=name)

    def reshape(
        self,
        shape: Sequence[int],
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Give a tensor another shape with the same elements in the same order; one size may be -1.

        Arguments and errors: `ark_dist.reshape`.
        """
        return apply("reshape", self, shape=shape, output=output, name=name)

    def softmax(
        self,
        axis: int = -1,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """exp(x) / sum(exp(x)) along `axis`, computed from x - max(x) so that nothing overflows.

        Arguments and errors: `ark_dist.softmax`.
        """
        return apply("softmax", self, axis=axis, output=output, name=name)

    def stop_when(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """End the run after this iteration if `input`, one element of bool or int32, is not 0.

        Arguments and errors: `ark_dist.stop_when`.
        """
        return apply("stop_when", self, output=output, name=name)

    def sub(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Subtract `other` from `input`, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.sub`.
        """
        return apply("sub", self, other, output=output, name=name)

    def transpose(
        self,
        perm: Sequence[int] | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Reorder the dimensions as `perm` says; without it, reverse them.

        Arguments and errors: `ark_dist.transpose`.
        """
        return apply("transpose", self, perm=perm, output=output, name=name)

    def __add__(self, other: Operand) -> Tensor:
        return apply("add", self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return apply("add", other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return apply("div", self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return apply("div", other, self)

    def __ge__(self, other: Operand) -> Tensor:
        return apply("greater_equal", self, other)

    def __le__(self, other: Operand) -> Tensor:
        return apply("greater_equal", other, self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return apply(
            "matmul",
            self,
            other,
            transpose_input=False,
            transpose_other=False,
            is_relu=False,
        )

    def __mul__(self, other: Operand) -> Tensor:
        return apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return apply("mul", other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return apply("sub", other, self)


class ModelOps:
    """The operators as methods of the model they are added to."""

    def add(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Add two tensors, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.add`.
        """
        return apply("add", input, other, output=output, name=name, model=self)

    def argmax(
        self,
        input: Tensor,
        axis: int = -1,
        keepdims: bool = False,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Index of the largest element along `axis`, as int32; the first of equals, the first NaN.

        Arguments and errors: `ark_dist.argmax`.
        """
        return apply(
            "argmax",
            input,
            axis=axis,
            keepdims=keepdims,
            output=output,
            name=name,
            model=self,
        )

    def broadcast_to(
        self,
        input: Tensor,
        shape: Sequence[int],
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Repeat a tensor along new dimensions and dimensions of size 1, without copying.

        Arguments and errors: `ark_dist.broadcast_to`.
        """
        return apply("broadcast_to", input, shape=shape, output=output, name=name, model=self)

    def cast(
        self,
        input: Tensor,
        dtype: DTypeLike,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Convert a tensor to `dtype`.

        Arguments and errors: `ark_dist.cast`.
        """
        return apply("cast", input, dtype=dtype, output=output, name=name, model=self)

    def copy(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Copy a tensor into contiguous memory of its own.

        Arguments and errors: `ark_dist.copy`.
        """
        return apply("copy", input, output=output, name=name, model=self)

    def div(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Divide `input` by `other`, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.div`.
        """
        return apply("div", input, other, output=output, name=name, model=self)

    def embedding(
        self,
        input: Tensor,
        weight: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return weight[input]: row `input[i]` of the table for each index.

        Arguments and errors: `ark_dist.embedding`.
        """
        return apply("embedding", input, weight, output=output, name=name, model=self)

    def equal(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether elements are equal, as bool; NaN equals nothing.

        Arguments and errors: `ark_dist.equal`.
        """
        return apply("equal", input, other, output=output, name=name, model=self)

    def greater_equal(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is at least `other`, as bool.

        Arguments and errors: `ark_dist.greater_equal`.
        """
        return apply("greater_equal", input, other, output=output, name=name, model=self)

    def identity(
        self,
        input: Tensor,
        deps: Sequence[Tensor] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return `input` as it is; whatever uses the result also comes after all of `deps`.

        Arguments and errors: `ark_dist.identity`.
        """
        return apply("identity", input, deps=deps, output=output, name=name, model=self)

    def layernorm(
        self,
        input: Tensor,
        axis: int = -1,
        eps: float = 1e-5,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Add the operator `layernorm`.

        Arguments and errors: `ark_dist.layernorm`.
        """
        return apply("layernorm", input, axis=axis, eps=eps, output=output, name=name, model=self)

    def matmul(
        self,
        input: Tensor,
        other: Tensor,
        transpose_input: bool = False,
        transpose_other: bool = False,
        is_relu: bool = False,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Multiply matrices: the last two dimensions are (M, K) and (K, N), others broadcast.

        Arguments and errors: `ark_dist.matmul`.
        """
        return apply(
            "matmul",
            input,
            other,
            transpose_input=transpose_input,
            transpose_other=transpose_other,
            is_relu=is_relu,
            output=output,
            name=name,
            model=self,
        )

    def mul(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Multiply two tensors, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.mul`.
        """
        return apply("mul", input, other, output=output, name=name, model=self)

    def narrow(
        self,
        input: Tensor,
        axis: int,
        start: int,
        length: int,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take `length` elements from `start` on along dimension `axis`, without copying.

        Arguments and errors: `ark_dist.narrow`.
        """
        return apply(
            "narrow",
            input,
            axis=axis,
            start=start,
            length=length,
            output=output,
            name=name,
            model=self,
        )

    def reduce_max(
        self,
        input: Tensor,
        axis: int,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Largest element along `axis`; NaN wins.

        Arguments and errors: `ark_dist.reduce_max`.
        """
        return apply(
            "reduce_max",
            input,
            axis=axis,
            keepdims=keepdims,
            output=output,
            name=name,
            model=self,
        )

    def reduce_mean(
        self,
        input: Tensor,
        axis: int,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Mean along `axis`, accumulated in fp32.

        Arguments and errors: `ark_dist.reduce_mean`.
        """
        return apply(
            "reduce_mean",
            input,
            axis=axis,
            keepdims=keepdims,
            output=output,
            name=name,
            model=self,
        )

    def reduce_sum(
        self,
        input: Tensor,
        axis: int,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Sum along `axis`; floats accumulate in fp32, integers wrap.

        Arguments and errors: `ark_dist.reduce_sum`.
        """
        return apply(
            "reduce_sum",
            input,
            axis=axis,
            keepdims=keepdims,
            output=output,
            name=name,
            model=self,
        )

    def relu(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Replace negative elements by zero; NaN stays NaN.

        Arguments and errors: `ark_dist.relu`.
        """
        return apply("relu", input, output=output, name=name, model=self)

    def reshape(
        self,
        input: Tensor,
        shape: Sequence[int],
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Give a tensor another shape with the same elements in the same order; one size may be -1.

        Arguments and errors: `ark_dist.reshape`.
        """
        return apply("reshape", input, shape=shape, output=output, name=name, model=self)

    def softmax(
        self,
        input: Tensor,
        axis: int = -1,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """exp(x) / sum(exp(x)) along `axis`, computed from x - max(x) so that nothing overflows.

        Arguments and errors: `ark_dist.softmax`.
        """
        return apply("softmax", input, axis=axis, output=output, name=name, model=self)

    def stop_when(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """End the run after this iteration if `input`, one element of bool or int32, is not 0.

        Arguments and errors: `ark_dist.stop_when`.
        """
        return apply("stop_when", input, output=output, name=name, model=self)

    def sub(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Subtract `other` from `input`, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.sub`.
        """
        return apply("sub", input, other, output=output, name=name, model=self)

    def transpose(
        self,
        input: Tensor,
        perm: Sequence[int] | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Reorder the dimensions as `perm` says; without it, reverse them.

        Arguments and errors: `ark_dist.transpose`.
        """
        return apply("transpose", input, perm=perm, output=output, name=name, model=self)
