"""The operators as functions, as methods of tensors, and as methods of models.

Written from the records in `kernels/ops` by `./dev generate`; edit those, not this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ark_dist.kernels.ops  # noqa: F401  registers the operators
from ark_dist.apply import apply, apply_parts

if TYPE_CHECKING:
    from ark_dist.core.dtype import DTypeLike
    from ark_dist.tensors import Operand, Tensor

__all__ = [
    "abs",
    "add",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "argmax",
    "attention",
    "barrier",
    "broadcast",
    "broadcast_to",
    "cast",
    "concat",
    "copy",
    "cos",
    "cumsum",
    "div",
    "embedding",
    "equal",
    "exp",
    "gather",
    "gelu",
    "greater",
    "greater_equal",
    "identity",
    "im2col",
    "layernorm",
    "less",
    "less_equal",
    "log",
    "matmul",
    "maximum",
    "minimum",
    "mul",
    "narrow",
    "neg",
    "not_equal",
    "pow",
    "recv",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_scatter",
    "reduce_sum",
    "relu",
    "reshape",
    "rmsnorm",
    "rope",
    "rsqrt",
    "sample",
    "scale",
    "scatter",
    "send",
    "send_done",
    "sharding",
    "sigmoid",
    "silu",
    "sin",
    "slice",
    "softmax",
    "split",
    "sqrt",
    "stop_when",
    "sub",
    "tanh",
    "transpose",
    "view",
    "where",
]


def abs(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take the magnitude of every element; the lowest integer, which has none, stays.

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
    return apply("abs", input, output=output, name=name)


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


def all_gather(
    input: Tensor,
    axis: int = 0,
    ranks: Sequence[int] = (),
    cuts: Sequence[int] = (),
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Put the tensors of all ranks one after the other along `axis`; all get the result.

    They are in the order of the ranks. They have one shape and dtype, or else `cuts` says where
    each begins in the result.

    Args:
        input: the tensor to work on.
        axis: the dimension that grows; negative counts from the end.
        ranks: who takes part, increasing; () is all ranks.
        cuts: where the ranks' tensors begin, and where the last one ends; () is all of one size.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("all_gather", input, axis=axis, ranks=ranks, cuts=cuts, output=output, name=name)


def all_reduce(
    input: Tensor,
    reduce: str = "sum",
    ranks: Sequence[int] = (),
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Combine the tensors of all ranks element by element; all get the result.

    Each rank gives a tensor of one shape and dtype. `reduce` is "sum", "mean" (floats), "max" or
    "min" (these of bool too, as any and all). The ranks are combined in order, floats in fp32, so
    that all get the same bits in every run.

    Args:
        input: the tensor to work on.
        reduce: "sum", "max", "min" or "mean".
        ranks: who takes part, increasing; () is all ranks.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8, bool.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("all_reduce", input, reduce=reduce, ranks=ranks, output=output, name=name)


def all_to_all(
    input: Tensor,
    axis: int = 0,
    ranks: Sequence[int] = (),
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Cut each rank's tensor into one piece per rank, and give everybody theirs.

    Dimension `axis` is cut evenly; piece k goes to the group's rank k. The result has the pieces
    that this rank got, in the order of the ranks they came from.

    Args:
        input: the tensor to work on.
        axis: the dimension to cut; negative counts from the end.
        ranks: who takes part, increasing; () is all ranks.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("all_to_all", input, axis=axis, ranks=ranks, output=output, name=name)


def argmax(
    input: Tensor,
    axis: int | None = -1,
    keepdims: bool = False,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Index of the largest element along `axis`, as int32: the first of equals, or a NaN.

    Where `axis` is None, all elements count as one row, the last dimension fastest.

    Args:
        input: the tensor to reduce.
        axis: the dimension to search, None for all; negative is from the end.
        keepdims: keep reduced dimensions with size 1.
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


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    length: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    heads_per_key: int | None = None,
    first_head: int = 0,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """softmax(query key^T * scale) value, for H query heads in groups that share G key heads.

    `query` is (B, T, H, D), `key` (B, S, G, D) and `value` (B, S, G, Dv), where H is a multiple of
    G; the result is (B, T, H, Dv) (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023). Sums
    are fp32, and nothing overflows.

    `length`, int32 of shape (), (1,) or (B,), says how many keys are valid in each row of the
    batch, those of these queries included: after an append to a cache it is position + T. Without
    it all S are. A length outside 0 to S ends the run with a TaskError.

    If `causal`, query t sees the keys 0 to length - T + t, else it sees all that are valid. A query
    that sees no key gives zeros.

    Where the heads are only some of a model's, groups may be cut: with `heads_per_key`, query head
    h has key head (h + first_head) // heads_per_key.

    Args:
        query: the queries, (B, T, H, D).
        key: the keys, (B, S, G, D).
        value: the values, (B, S, G, Dv).
        length: int32, valid keys in each row of the batch.
        causal: let a query see no key after its own.
        scale: factor of the scores; None is 1 / sqrt(D).
        heads_per_key: heads that share a key; None is H / G.
        first_head: heads of the first key's group that are not here.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply(
        "attention",
        query,
        key,
        value,
        length,
        causal=causal,
        scale=scale,
        heads_per_key=heads_per_key,
        first_head=first_head,
        output=output,
        name=name,
    )


def barrier(
    input: Tensor,
    ranks: Sequence[int] = (),
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Wait until all ranks have computed their `input`; returns a token.

    Whatever names the token among its `deps` comes after that: `identity(x, deps=[token])`.

    Args:
        input: what has to be computed before.
        ranks: who takes part, increasing; () is all ranks.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("barrier", input, ranks=ranks, output=output, name=name)


def broadcast(
    input: Tensor,
    root: int = 0,
    ranks: Sequence[int] = (),
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Return rank `root`'s tensor on all ranks.

    The others give a tensor of the same shape and dtype; what is in it does not matter.

    Args:
        input: the tensor to work on.
        root: the rank whose tensor all get.
        ranks: who takes part, increasing; () is all ranks.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("broadcast", input, root=root, ranks=ranks, output=output, name=name)


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


def concat(
    tensors: Sequence[Tensor],
    axis: int = 0,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Put tensors one after the other along dimension `axis`.

    Their other sizes must be equal. Each is written to its place in the result, by the operator
    that computes it where that is possible, else by a copy.

    Args:
        tensors: what to put together, in order.
        axis: the dimension that grows; negative counts from the end.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("concat", tensors, axis=axis, output=output, name=name)


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


def cos(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take the cosine of every element, an angle in radians.

    Angles of any size are reduced exactly.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("cos", input, output=output, name=name)


def cumsum(
    input: Tensor,
    axis: int = -1,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Running sums along `axis`; floats accumulate in fp32, integers wrap in their own type.

    Args:
        input: the tensor to work on.
        axis: the dimension to work along; negative counts from the end.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("cumsum", input, axis=axis, output=output, name=name)


def div(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Divide `input` by `other`, broadcasting as NumPy does.

    A quotient of integers is no integer: cast them to a floating dtype first.

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
    first_row: int = 0,
    rows: int | None = None,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Return weight[input]: row `input[i]` of the table for each index.

    `input` is int32 of any shape, `weight` is (rows, width); the result is (*input.shape, width).
    An index outside [0, rows) ends the run with a TaskError that names it.

    With `rows`, `weight` is a part of a table of so many rows, from `first_row` on; other rows of
    it give zeros, so that the results of all parts add up to that of the table.

    Args:
        input: int32 indices.
        weight: the table, (rows, width).
        first_row: the row of the whole table that `weight` begins with.
        rows: rows of the whole table; None is those of `weight`.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply(
        "embedding",
        input,
        weight,
        first_row=first_row,
        rows=rows,
        output=output,
        name=name,
    )


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
            int32, uint32, int8, uint8, bool.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("equal", input, other, output=output, name=name)


def exp(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Raise e to the power of every element.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("exp", input, output=output, name=name)


def gather(
    input: Tensor,
    index: Tensor,
    axis: int,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Take for each element of `index` the one it names along dimension `axis`.

    For `axis` 1 of three, result[i, j, k] = input[i, index[i, j, k], k]. `index` is int32 with as
    many dimensions as `input`, and no larger than it but along `axis`. An index outside [0, size of
    `axis`) ends the run with a TaskError that names it. Whole rows of a table: `embedding`.

    Args:
        input: the tensor to work on.
        index: int32 indices.
        axis: the dimension they count along; negative from the end.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("gather", input, index, axis=axis, output=output, name=name)


def gelu(
    input: Tensor,
    approximate: str = "none",
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Multiply every element with the chance that a normal number is below it.

    This is x / 2 * (1 + erf(x / sqrt(2))), or with approximate="tanh" x / 2 * (1 + tanh(sqrt(2 /
    pi) * (x + 0.044715 * x^3))); 0 of -inf, the limit (Hendrycks and Gimpel 2016).

    Args:
        input: the tensor to work on.
        approximate: "none" for the exact form, or "tanh".
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("gelu", input, approximate=approximate, output=output, name=name)


def greater(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Whether `input` is greater than `other`, as bool.

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
    return apply("greater", input, other, output=output, name=name)


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


def im2col(
    input: Tensor,
    kernel_height: int,
    kernel_width: int,
    stride_height: int = 1,
    stride_width: int = 1,
    pad_height: int = 0,
    pad_width: int = 0,
    dilation_height: int = 1,
    dilation_width: int = 1,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Lay the windows of a convolution out as the columns of a matrix.

    `input` is (N, C, H, W) or (C, H, W); the result is (N, C * kernel_height * kernel_width, L), or
    without N. L counts the places of the window, row by row, in the input with `pad_height` rows of
    zeros above and below it and `pad_width` columns left and right. Multiplied by weights of (M, C
    * kernel_height * kernel_width) it gives the convolution.

    Args:
        input: the tensor to work on.
        kernel_height: rows of the window.
        kernel_width: columns of the window.
        stride_height: rows from one place of the window to the next.
        stride_width: columns from one place of the window to the next.
        pad_height: rows of zeros on each side.
        pad_width: columns of zeros on each side.
        dilation_height: rows from one element of the window to the next.
        dilation_width: columns from one element of the window to the next.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply(
        "im2col",
        input,
        kernel_height=kernel_height,
        kernel_width=kernel_width,
        stride_height=stride_height,
        stride_width=stride_width,
        pad_height=pad_height,
        pad_width=pad_width,
        dilation_height=dilation_height,
        dilation_width=dilation_width,
        output=output,
        name=name,
    )


def layernorm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    axis: int = -1,
    eps: float = 1e-5,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias along `axis` (Ba et al. 2016).

    `weight` and `bias` have the input's dtype; what is left out is 1 and 0. Before a matmul it runs
    inside the matmul.

    Args:
        input: the tensor to work on.
        weight: factors, one per element along `axis`.
        bias: summands, one per element along `axis`.
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
    return apply("layernorm", input, weight, bias, axis=axis, eps=eps, output=output, name=name)


def less(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Whether `input` is less than `other`, as bool.

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
    return apply("less", input, other, output=output, name=name)


def less_equal(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Whether `input` is at most `other`, as bool.

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
    return apply("less_equal", input, other, output=output, name=name)


def log(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take the natural logarithm of every element: -inf of 0, NaN of negative numbers.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("log", input, output=output, name=name)


def matmul(
    input: Tensor,
    other: Tensor,
    transpose_input: bool = False,
    transpose_other: bool = False,
    is_relu: bool = False,
    splitk: int = 1,
    dtype: DTypeLike | None = None,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Multiply matrices: the last two dimensions are (M, K) and (K, N), others broadcast.

    Products accumulate in fp32 and are rounded to `dtype`, that of the left operand if it is left
    out. `is_relu` replaces negative results by zero. The right operand may be int8, such as
    quantized weights, whatever float the left one is; multiply the result by their scales, in fp32.

    `splitk` is a hint: K is cut into the largest number of equal parts that is not above it, their
    products are computed side by side in fp32, and then summed in a fixed order. With 1 a GPU may
    split by itself where it has more multiprocessors than there are tiles.

    Args:
        input: the tensor to work on.
        other: the right operand.
        transpose_input: swap the last two dimensions of input.
        transpose_other: swap the last two dimensions of other.
        is_relu: replace negative results by zero.
        splitk: parts of K to compute side by side.
        dtype: the dtype of the result.
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
        splitk=splitk,
        dtype=dtype,
        output=output,
        name=name,
    )


def maximum(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Take the larger of two elements; NaN wins.

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
    return apply("maximum", input, other, output=output, name=name)


def minimum(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Take the smaller of two elements; NaN wins.

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
    return apply("minimum", input, other, output=output, name=name)


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


def neg(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Change the sign of every element; integers wrap.

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
    return apply("neg", input, output=output, name=name)


def not_equal(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Whether elements differ, as bool; NaN differs from everything.

    Args:
        input: the tensor to work on.
        other: the second tensor, or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8, bool.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("not_equal", input, other, output=output, name=name)


def pow(
    input: Tensor,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Raise `input` to the power of `other`, broadcasting as NumPy does.

    x^0 and 1^y are 1 even for NaN; a negative number to a power that is not whole is NaN. Integers
    wrap; a negative power of an integer is what division leaves of it: 1 or -1 for those two, else
    0. Cast integers for fractions.

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
    return apply("pow", input, other, output=output, name=name)


def recv(
    shape: Sequence[int],
    dtype: DTypeLike,
    src: int,
    tag: int = 0,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Return the tensor that rank `src` sends to this one.

    Shape, dtype and tag must be those of the `send`: ranks compare them before they run.

    Args:
        shape: sizes per dimension.
        dtype: element type, such as ark.FP16.
        src: the rank that sends it.
        tag: tells messages between two ranks apart, 0 to 32767.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("recv", shape=shape, dtype=dtype, src=src, tag=tag, output=output, name=name)


def reduce_max(
    input: Tensor,
    axis: int | Sequence[int] | None,
    keepdims: bool = True,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Largest element along `axis`; NaN wins.

    Args:
        input: the tensor to reduce.
        axis: the dimensions to reduce, None for all; negative counts from the end.
        keepdims: keep reduced dimensions with size 1.
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
    axis: int | Sequence[int] | None,
    keepdims: bool = True,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Mean along `axis`, accumulated in fp32.

    The mean of no elements is NaN.

    Args:
        input: the tensor to reduce.
        axis: the dimensions to reduce, None for all; negative counts from the end.
        keepdims: keep reduced dimensions with size 1.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("reduce_mean", input, axis=axis, keepdims=keepdims, output=output, name=name)


def reduce_min(
    input: Tensor,
    axis: int | Sequence[int] | None,
    keepdims: bool = True,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Smallest element along `axis`; NaN wins.

    Args:
        input: the tensor to reduce.
        axis: the dimensions to reduce, None for all; negative counts from the end.
        keepdims: keep reduced dimensions with size 1.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("reduce_min", input, axis=axis, keepdims=keepdims, output=output, name=name)


def reduce_scatter(
    input: Tensor,
    reduce: str = "sum",
    axis: int = 0,
    ranks: Sequence[int] = (),
    cuts: Sequence[int] = (),
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Combine the tensors of all ranks element by element; each gets a part of the result.

    Each rank gives a tensor of one shape and dtype. Dimension `axis` of the result is cut among the
    ranks: evenly, or at `cuts`. `reduce` is as in `all_reduce`.

    Args:
        input: the tensor to work on.
        reduce: "sum", "max", "min" or "mean".
        axis: the dimension to cut; negative counts from the end.
        ranks: who takes part, increasing; () is all ranks.
        cuts: where the ranks' parts begin, and where the last one ends; () is evenly.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16,
            int32, uint32, int8, uint8, bool.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply(
        "reduce_scatter",
        input,
        reduce=reduce,
        axis=axis,
        ranks=ranks,
        cuts=cuts,
        output=output,
        name=name,
    )


def reduce_sum(
    input: Tensor,
    axis: int | Sequence[int] | None,
    keepdims: bool = True,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Sum along `axis`; floats accumulate in fp32, integers wrap in their own type.

    The sum of no elements is 0.

    Args:
        input: the tensor to reduce.
        axis: the dimensions to reduce, None for all; negative counts from the end.
        keepdims: keep reduced dimensions with size 1.
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


def rmsnorm(
    input: Tensor,
    weight: Tensor | None = None,
    axis: int = -1,
    eps: float = 1e-6,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Scale rows: x / sqrt(mean(x^2) + eps) * weight along `axis` (Zhang and Sennrich 2019).

    `weight` has the input's dtype; left out, it is 1. Beside an fp32 input it may be of 16 bits, as
    is the result then. Before a matmul it runs inside the matmul.

    Args:
        input: the tensor to work on.
        weight: factors, one per element along `axis`.
        axis: the dimension to work along; negative counts from the end.
        eps: added to the mean square.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("rmsnorm", input, weight, axis=axis, eps=eps, output=output, name=name)


def rope(
    input: Tensor,
    other: Tensor,
    position: Tensor | None = None,
    interleaved: bool = True,
    dtype: DTypeLike | None = None,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Rotate pairs of elements along the last dimension, as rotary position embedding does.

    `other` has the angles as pairs (cos, sin, cos, sin, ...) along its last dimension, of even size
    R <= D; the first R elements of each row of `input` (..., D) are rotated, the others are copied.
    A pair is two neighbours if `interleaved` (ARK, GPT-J), else elements i and i + R/2 (Llama).

    Without `position`, `other` broadcasts to `input`, up to the last dimension. With it, `other` is
    a table (P, R), `input` is (B, T, H, D), and row t of batch index b uses row position[b] + t of
    the table; `position` is int32 of shape (), (1,) or (B,). A row outside of the table ends the
    run with a TaskError.

    `other` is fp32 or has the dtype of `input`. Make it in float64: an angle of 100,000 radians has
    no fraction left in fp32. The result has `dtype`, or that of `input`. Su et al. 2021.

    Args:
        input: the tensor to work on.
        other: cosines and sines of the angles, in pairs.
        position: int32, the table's row for row 0 of input.
        interleaved: pair neighbours, not elements i and i + R/2.
        dtype: the dtype of the result.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply(
        "rope",
        input,
        other,
        position,
        interleaved=interleaved,
        dtype=dtype,
        output=output,
        name=name,
    )


def rsqrt(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Divide 1 by the square root of every element: inf of 0, NaN of negative numbers.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("rsqrt", input, output=output, name=name)


def sample(
    input: Tensor,
    position: Operand,
    temperature: Operand = 1.0,
    top_k: Operand = 0,
    top_p: Operand = 1.0,
    seed: Operand = 0,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Draw the next token: for each row of logits (B, V) an index, as int32 (B,).

    As elsewhere, logits are first divided by `temperature`, then all but the `top_k` largest are
    left out, then all but the largest whose probabilities add up to `top_p`; equals stay together.
    A temperature of 0 or less takes the largest, the first of equals. A `top_k` of 0 or less and a
    `top_p` of 1 or more leave nothing out. Where a logit is NaN or infinite the first such is
    taken.

    Noise is a function of seed, row, `position` and index alone (Philox4x32-10, Salmon et al.
    2011), so that a result can be had again. With `top_p` this is nucleus sampling (Holtzman et al.
    2020). All but the logits may change from iteration to iteration: numbers, or one-element
    tensors, or tensors of shape (B,) with one value for each row.

    Args:
        input: the tensor to work on.
        position: int32, what the noise depends on besides the row.
        temperature: what divides the logits.
        top_k: how many logits to draw from.
        top_p: the probability to draw from.
        seed: int32 or uint32, another seed is another sequence.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply(
        "sample",
        input,
        position,
        temperature,
        top_k,
        top_p,
        seed,
        output=output,
        name=name,
    )


def scale(
    input: Tensor,
    val: float,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Multiply a tensor with a number that is known now.

    The number is kept in fp32, whatever the tensor's dtype: `scale(x, 0.1)` of an fp16 tensor is
    more precise than `x * 0.1`, whose 0.1 is one of fp16.

    Args:
        input: the tensor to work on.
        val: the number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("scale", input, val=val, output=output, name=name)


def scatter(
    input: Tensor,
    source: Tensor,
    position: Operand,
    axis: int,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Write `source` over elements `position` to `position` + T of dimension `axis`.

    T is the size of `source` along `axis`; its other sizes are those of `input`. `position` is
    int32 of shape () or (1,), or of shape (B,) with one position for each index of dimension 0.
    Where the part does not lie inside, nothing is written, and the run ends with a TaskError.

    A state is written in place, and the result is the state as it is afterwards: this appends to a
    cache. Of any other tensor the result is a copy.

    Args:
        input: the state or tensor to write into.
        source: what to write.
        position: int32, the first index to write to.
        axis: the dimension; negative counts from the end.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("scatter", input, source, position, axis=axis, output=output, name=name)


def send(
    input: Tensor,
    dst: int,
    tag: int = 0,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Send a tensor to rank `dst`, which gets it by `recv`; returns a token for `send_done`.

    Messages between two ranks with one tag arrive in the order in which they were sent.

    Args:
        input: the tensor to work on.
        dst: the rank that gets it.
        tag: tells messages between two ranks apart, 0 to 32767.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("send", input, dst=dst, tag=tag, output=output, name=name)


def send_done(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Wait until a tensor that `send` has sent is with its receiver.

    Operators that come after, by `identity(x, deps=[...])`, may then write over the tensor's
    memory.

    Args:
        input: the token that `send` returned.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of uint8.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("send_done", input, output=output, name=name)


def sharding(input: Tensor, axis: int, dim_per_shard: int) -> list[Tensor]:
    """Cut a tensor into parts of `dim_per_shard` along dimension `axis`, without copying.

    Args:
        input: the tensor to work on.
        axis: the dimension to cut; negative counts from the end.
        dim_per_shard: the size of each part; it must divide.

    Returns:
        The parts, tensors of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply_parts("sharding", input, axis=axis, dim_per_shard=dim_per_shard)


def sigmoid(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take 1 / (1 + exp(-x)) of every element x.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("sigmoid", input, output=output, name=name)


def silu(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take x / (1 + exp(-x)) of every element x, also called swish; 0 of -inf, the limit.

    Elfwing, Uchibe and Doya 2018.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("silu", input, output=output, name=name)


def sin(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take the sine of every element, an angle in radians.

    Angles of any size are reduced exactly.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("sin", input, output=output, name=name)


def slice(
    input: Tensor,
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int] | None = None,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Take elements `start:stop:step` of each dimension, without copying.

    There is one start, stop and step for each dimension from the first on; those that are left over
    stay whole. Numbers mean what they mean in Python: negative ones count from the end, those
    beyond it are cut. Steps are 1 or more.

    Args:
        input: the tensor to work on.
        starts: first index of each dimension.
        stops: the index after the last one.
        steps: from one index to the next; 1 if None.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("slice", input, starts=starts, stops=stops, steps=steps, output=output, name=name)


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


def split(input: Tensor, split_size: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Cut a tensor into parts along dimension `axis`, without copying.

    An integer `split_size` is the size of every part; the last one is smaller where it does not
    divide the dimension. A sequence lists the sizes of the parts; they must add up.

    Args:
        input: the tensor to work on.
        split_size: the size of a part, or of each.
        axis: the dimension to cut; negative counts from the end.

    Returns:
        The parts, tensors of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply_parts("split", input, split_size=split_size, axis=axis)


def sqrt(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take the square root of every element: NaN of negative numbers.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("sqrt", input, output=output, name=name)


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


def tanh(input: Tensor, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
    """Take the hyperbolic tangent of every element.

    Args:
        input: the tensor to work on.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type, or a dtype is none of fp32, fp16, bf16.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("tanh", input, output=output, name=name)


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


def view(
    input: Tensor,
    shape: Sequence[int],
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Look at a tensor's memory in another shape, never copying; one size may be -1.

    The elements stay in their order. A tensor whose memory can't be seen that way, such as most
    transposed ones, is refused; `reshape` copies it.

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
    return apply("view", input, shape=shape, output=output, name=name)


def where(
    condition: Tensor,
    input: Operand,
    other: Operand,
    *,
    output: Tensor | None = None,
    name: str | None = None,
) -> Tensor:
    """Take elements of `input` where `condition` is True, of `other` elsewhere.

    All three broadcast as in NumPy. One of `input` and `other` is a tensor; a number has its dtype.

    Args:
        condition: what decides, of dtype bool.
        input: what to take where it is True: a tensor or a number.
        other: what to take elsewhere: a tensor or a number.
        output: a state, or a tensor nobody used yet, to write into.
        name: a name for the result.

    Returns:
        The result, a tensor of the same model.

    Raises:
        TypeError: where an argument has the wrong type.
        ValueError: where shapes or attributes do not fit, or models differ.
    """
    return apply("where", condition, input, other, output=output, name=name)


class TensorOps:
    """The operators whose first argument is a tensor `input`."""

    def abs(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take the magnitude of every element; the lowest integer, which has none, stays.

        Arguments and errors: `ark_dist.abs`.
        """
        return apply("abs", self, output=output, name=name)

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

    def all_gather(
        self,
        axis: int = 0,
        ranks: Sequence[int] = (),
        cuts: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Put the tensors of all ranks one after the other along `axis`; all get the result.

        Arguments and errors: `ark_dist.all_gather`.
        """
        return apply(
            "all_gather",
            self,
            axis=axis,
            ranks=ranks,
            cuts=cuts,
            output=output,
            name=name,
        )

    def all_reduce(
        self,
        reduce: str = "sum",
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Combine the tensors of all ranks element by element; all get the result.

        Arguments and errors: `ark_dist.all_reduce`.
        """
        return apply("all_reduce", self, reduce=reduce, ranks=ranks, output=output, name=name)

    def all_to_all(
        self,
        axis: int = 0,
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Cut each rank's tensor into one piece per rank, and give everybody theirs.

        Arguments and errors: `ark_dist.all_to_all`.
        """
        return apply("all_to_all", self, axis=axis, ranks=ranks, output=output, name=name)

    def argmax(
        self,
        axis: int | None = -1,
        keepdims: bool = False,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Index of the largest element along `axis`, as int32: the first of equals, or a NaN.

        Arguments and errors: `ark_dist.argmax`.
        """
        return apply("argmax", self, axis=axis, keepdims=keepdims, output=output, name=name)

    def barrier(
        self,
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Wait until all ranks have computed their `input`; returns a token.

        Arguments and errors: `ark_dist.barrier`.
        """
        return apply("barrier", self, ranks=ranks, output=output, name=name)

    def broadcast(
        self,
        root: int = 0,
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return rank `root`'s tensor on all ranks.

        Arguments and errors: `ark_dist.broadcast`.
        """
        return apply("broadcast", self, root=root, ranks=ranks, output=output, name=name)

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

    def cos(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take the cosine of every element, an angle in radians.

        Arguments and errors: `ark_dist.cos`.
        """
        return apply("cos", self, output=output, name=name)

    def cumsum(
        self,
        axis: int = -1,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Running sums along `axis`; floats accumulate in fp32, integers wrap in their own type.

        Arguments and errors: `ark_dist.cumsum`.
        """
        return apply("cumsum", self, axis=axis, output=output, name=name)

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
        first_row: int = 0,
        rows: int | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return weight[input]: row `input[i]` of the table for each index.

        Arguments and errors: `ark_dist.embedding`.
        """
        return apply(
            "embedding",
            self,
            weight,
            first_row=first_row,
            rows=rows,
            output=output,
            name=name,
        )

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

    def exp(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Raise e to the power of every element.

        Arguments and errors: `ark_dist.exp`.
        """
        return apply("exp", self, output=output, name=name)

    def gather(
        self,
        index: Tensor,
        axis: int,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take for each element of `index` the one it names along dimension `axis`.

        Arguments and errors: `ark_dist.gather`.
        """
        return apply("gather", self, index, axis=axis, output=output, name=name)

    def gelu(
        self,
        approximate: str = "none",
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Multiply every element with the chance that a normal number is below it.

        Arguments and errors: `ark_dist.gelu`.
        """
        return apply("gelu", self, approximate=approximate, output=output, name=name)

    def greater(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is greater than `other`, as bool.

        Arguments and errors: `ark_dist.greater`.
        """
        return apply("greater", self, other, output=output, name=name)

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

    def im2col(
        self,
        kernel_height: int,
        kernel_width: int,
        stride_height: int = 1,
        stride_width: int = 1,
        pad_height: int = 0,
        pad_width: int = 0,
        dilation_height: int = 1,
        dilation_width: int = 1,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Lay the windows of a convolution out as the columns of a matrix.

        Arguments and errors: `ark_dist.im2col`.
        """
        return apply(
            "im2col",
            self,
            kernel_height=kernel_height,
            kernel_width=kernel_width,
            stride_height=stride_height,
            stride_width=stride_width,
            pad_height=pad_height,
            pad_width=pad_width,
            dilation_height=dilation_height,
            dilation_width=dilation_width,
            output=output,
            name=name,
        )

    def layernorm(
        self,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        axis: int = -1,
        eps: float = 1e-5,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * weight + bias along `axis` (Ba et al. 2016).

        Arguments and errors: `ark_dist.layernorm`.
        """
        return apply("layernorm", self, weight, bias, axis=axis, eps=eps, output=output, name=name)

    def less(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is less than `other`, as bool.

        Arguments and errors: `ark_dist.less`.
        """
        return apply("less", self, other, output=output, name=name)

    def less_equal(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is at most `other`, as bool.

        Arguments and errors: `ark_dist.less_equal`.
        """
        return apply("less_equal", self, other, output=output, name=name)

    def log(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take the natural logarithm of every element: -inf of 0, NaN of negative numbers.

        Arguments and errors: `ark_dist.log`.
        """
        return apply("log", self, output=output, name=name)

    def matmul(
        self,
        other: Tensor,
        transpose_input: bool = False,
        transpose_other: bool = False,
        is_relu: bool = False,
        splitk: int = 1,
        dtype: DTypeLike | None = None,
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
            splitk=splitk,
            dtype=dtype,
            output=output,
            name=name,
        )

    def maximum(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the larger of two elements; NaN wins.

        Arguments and errors: `ark_dist.maximum`.
        """
        return apply("maximum", self, other, output=output, name=name)

    def minimum(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the smaller of two elements; NaN wins.

        Arguments and errors: `ark_dist.minimum`.
        """
        return apply("minimum", self, other, output=output, name=name)

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

    def neg(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Change the sign of every element; integers wrap.

        Arguments and errors: `ark_dist.neg`.
        """
        return apply("neg", self, output=output, name=name)

    def not_equal(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether elements differ, as bool; NaN differs from everything.

        Arguments and errors: `ark_dist.not_equal`.
        """
        return apply("not_equal", self, other, output=output, name=name)

    def pow(
        self,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Raise `input` to the power of `other`, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.pow`.
        """
        return apply("pow", self, other, output=output, name=name)

    def reduce_max(
        self,
        axis: int | Sequence[int] | None,
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
        axis: int | Sequence[int] | None,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Mean along `axis`, accumulated in fp32.

        Arguments and errors: `ark_dist.reduce_mean`.
        """
        return apply("reduce_mean", self, axis=axis, keepdims=keepdims, output=output, name=name)

    def reduce_min(
        self,
        axis: int | Sequence[int] | None,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Smallest element along `axis`; NaN wins.

        Arguments and errors: `ark_dist.reduce_min`.
        """
        return apply("reduce_min", self, axis=axis, keepdims=keepdims, output=output, name=name)

    def reduce_scatter(
        self,
        reduce: str = "sum",
        axis: int = 0,
        ranks: Sequence[int] = (),
        cuts: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Combine the tensors of all ranks element by element; each gets a part of the result.

        Arguments and errors: `ark_dist.reduce_scatter`.
        """
        return apply(
            "reduce_scatter",
            self,
            reduce=reduce,
            axis=axis,
            ranks=ranks,
            cuts=cuts,
            output=output,
            name=name,
        )

    def reduce_sum(
        self,
        axis: int | Sequence[int] | None,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Sum along `axis`; floats accumulate in fp32, integers wrap in their own type.

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

    def rmsnorm(
        self,
        weight: Tensor | None = None,
        axis: int = -1,
        eps: float = 1e-6,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Scale rows: x / sqrt(mean(x^2) + eps) * weight along `axis` (Zhang and Sennrich 2019).

        Arguments and errors: `ark_dist.rmsnorm`.
        """
        return apply("rmsnorm", self, weight, axis=axis, eps=eps, output=output, name=name)

    def rope(
        self,
        other: Tensor,
        position: Tensor | None = None,
        interleaved: bool = True,
        dtype: DTypeLike | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Rotate pairs of elements along the last dimension, as rotary position embedding does.

        Arguments and errors: `ark_dist.rope`.
        """
        return apply(
            "rope",
            self,
            other,
            position,
            interleaved=interleaved,
            dtype=dtype,
            output=output,
            name=name,
        )

    def rsqrt(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Divide 1 by the square root of every element: inf of 0, NaN of negative numbers.

        Arguments and errors: `ark_dist.rsqrt`.
        """
        return apply("rsqrt", self, output=output, name=name)

    def sample(
        self,
        position: Operand,
        temperature: Operand = 1.0,
        top_k: Operand = 0,
        top_p: Operand = 1.0,
        seed: Operand = 0,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Draw the next token: for each row of logits (B, V) an index, as int32 (B,).

        Arguments and errors: `ark_dist.sample`.
        """
        return apply(
            "sample",
            self,
            position,
            temperature,
            top_k,
            top_p,
            seed,
            output=output,
            name=name,
        )

    def scale(self, val: float, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Multiply a tensor with a number that is known now.

        Arguments and errors: `ark_dist.scale`.
        """
        return apply("scale", self, val=val, output=output, name=name)

    def scatter(
        self,
        source: Tensor,
        position: Operand,
        axis: int,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Write `source` over elements `position` to `position` + T of dimension `axis`.

        Arguments and errors: `ark_dist.scatter`.
        """
        return apply("scatter", self, source, position, axis=axis, output=output, name=name)

    def send(
        self,
        dst: int,
        tag: int = 0,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Send a tensor to rank `dst`, which gets it by `recv`; returns a token for `send_done`.

        Arguments and errors: `ark_dist.send`.
        """
        return apply("send", self, dst=dst, tag=tag, output=output, name=name)

    def send_done(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Wait until a tensor that `send` has sent is with its receiver.

        Arguments and errors: `ark_dist.send_done`.
        """
        return apply("send_done", self, output=output, name=name)

    def sharding(self, axis: int, dim_per_shard: int) -> list[Tensor]:
        """Cut a tensor into parts of `dim_per_shard` along dimension `axis`, without copying.

        Arguments and errors: `ark_dist.sharding`.
        """
        return apply_parts("sharding", self, axis=axis, dim_per_shard=dim_per_shard)

    def sigmoid(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take 1 / (1 + exp(-x)) of every element x.

        Arguments and errors: `ark_dist.sigmoid`.
        """
        return apply("sigmoid", self, output=output, name=name)

    def silu(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take x / (1 + exp(-x)) of every element x, also called swish; 0 of -inf, the limit.

        Arguments and errors: `ark_dist.silu`.
        """
        return apply("silu", self, output=output, name=name)

    def sin(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take the sine of every element, an angle in radians.

        Arguments and errors: `ark_dist.sin`.
        """
        return apply("sin", self, output=output, name=name)

    def slice(
        self,
        starts: Sequence[int],
        stops: Sequence[int],
        steps: Sequence[int] | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take elements `start:stop:step` of each dimension, without copying.

        Arguments and errors: `ark_dist.slice`.
        """
        return apply(
            "slice",
            self,
            starts=starts,
            stops=stops,
            steps=steps,
            output=output,
            name=name,
        )

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

    def split(self, split_size: int | Sequence[int], axis: int = 0) -> list[Tensor]:
        """Cut a tensor into parts along dimension `axis`, without copying.

        Arguments and errors: `ark_dist.split`.
        """
        return apply_parts("split", self, split_size=split_size, axis=axis)

    def sqrt(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take the square root of every element: NaN of negative numbers.

        Arguments and errors: `ark_dist.sqrt`.
        """
        return apply("sqrt", self, output=output, name=name)

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

    def tanh(self, *, output: Tensor | None = None, name: str | None = None) -> Tensor:
        """Take the hyperbolic tangent of every element.

        Arguments and errors: `ark_dist.tanh`.
        """
        return apply("tanh", self, output=output, name=name)

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

    def view(
        self,
        shape: Sequence[int],
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Look at a tensor's memory in another shape, never copying; one size may be -1.

        Arguments and errors: `ark_dist.view`.
        """
        return apply("view", self, shape=shape, output=output, name=name)

    def __abs__(self) -> Tensor:
        return apply("abs", self)

    def __add__(self, other: Operand) -> Tensor:
        return apply("add", self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return apply("add", other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return apply("div", self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return apply("div", other, self)

    def __gt__(self, other: Operand) -> Tensor:
        return apply("greater", self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return apply("greater_equal", self, other)

    def __lt__(self, other: Operand) -> Tensor:
        return apply("less", self, other)

    def __le__(self, other: Operand) -> Tensor:
        return apply("less_equal", self, other)

    def __matmul__(self, other: Tensor) -> Tensor:
        return apply(
            "matmul",
            self,
            other,
            transpose_input=False,
            transpose_other=False,
            is_relu=False,
            splitk=1,
            dtype=None,
        )

    def __mul__(self, other: Operand) -> Tensor:
        return apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return apply("mul", other, self)

    def __neg__(self) -> Tensor:
        return apply("neg", self)

    def __pow__(self, other: Operand) -> Tensor:
        return apply("pow", self, other)

    def __rpow__(self, other: Operand) -> Tensor:
        return apply("pow", other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return apply("sub", other, self)


class ModelOps:
    """The operators as methods of the model they are added to."""

    def abs(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the magnitude of every element; the lowest integer, which has none, stays.

        Arguments and errors: `ark_dist.abs`.
        """
        return apply("abs", input, output=output, name=name, model=self)

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

    def all_gather(
        self,
        input: Tensor,
        axis: int = 0,
        ranks: Sequence[int] = (),
        cuts: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Put the tensors of all ranks one after the other along `axis`; all get the result.

        Arguments and errors: `ark_dist.all_gather`.
        """
        return apply(
            "all_gather",
            input,
            axis=axis,
            ranks=ranks,
            cuts=cuts,
            output=output,
            name=name,
            model=self,
        )

    def all_reduce(
        self,
        input: Tensor,
        reduce: str = "sum",
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Combine the tensors of all ranks element by element; all get the result.

        Arguments and errors: `ark_dist.all_reduce`.
        """
        return apply(
            "all_reduce",
            input,
            reduce=reduce,
            ranks=ranks,
            output=output,
            name=name,
            model=self,
        )

    def all_to_all(
        self,
        input: Tensor,
        axis: int = 0,
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Cut each rank's tensor into one piece per rank, and give everybody theirs.

        Arguments and errors: `ark_dist.all_to_all`.
        """
        return apply(
            "all_to_all",
            input,
            axis=axis,
            ranks=ranks,
            output=output,
            name=name,
            model=self,
        )

    def argmax(
        self,
        input: Tensor,
        axis: int | None = -1,
        keepdims: bool = False,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Index of the largest element along `axis`, as int32: the first of equals, or a NaN.

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

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        length: Tensor | None = None,
        causal: bool = True,
        scale: float | None = None,
        heads_per_key: int | None = None,
        first_head: int = 0,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """softmax(query key^T * scale) value, for H query heads in groups that share G key heads.

        Arguments and errors: `ark_dist.attention`.
        """
        return apply(
            "attention",
            query,
            key,
            value,
            length,
            causal=causal,
            scale=scale,
            heads_per_key=heads_per_key,
            first_head=first_head,
            output=output,
            name=name,
            model=self,
        )

    def barrier(
        self,
        input: Tensor,
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Wait until all ranks have computed their `input`; returns a token.

        Arguments and errors: `ark_dist.barrier`.
        """
        return apply("barrier", input, ranks=ranks, output=output, name=name, model=self)

    def broadcast(
        self,
        input: Tensor,
        root: int = 0,
        ranks: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return rank `root`'s tensor on all ranks.

        Arguments and errors: `ark_dist.broadcast`.
        """
        return apply(
            "broadcast",
            input,
            root=root,
            ranks=ranks,
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

    def concat(
        self,
        tensors: Sequence[Tensor],
        axis: int = 0,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Put tensors one after the other along dimension `axis`.

        Arguments and errors: `ark_dist.concat`.
        """
        return apply("concat", tensors, axis=axis, output=output, name=name, model=self)

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

    def cos(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the cosine of every element, an angle in radians.

        Arguments and errors: `ark_dist.cos`.
        """
        return apply("cos", input, output=output, name=name, model=self)

    def cumsum(
        self,
        input: Tensor,
        axis: int = -1,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Running sums along `axis`; floats accumulate in fp32, integers wrap in their own type.

        Arguments and errors: `ark_dist.cumsum`.
        """
        return apply("cumsum", input, axis=axis, output=output, name=name, model=self)

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
        first_row: int = 0,
        rows: int | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return weight[input]: row `input[i]` of the table for each index.

        Arguments and errors: `ark_dist.embedding`.
        """
        return apply(
            "embedding",
            input,
            weight,
            first_row=first_row,
            rows=rows,
            output=output,
            name=name,
            model=self,
        )

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

    def exp(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Raise e to the power of every element.

        Arguments and errors: `ark_dist.exp`.
        """
        return apply("exp", input, output=output, name=name, model=self)

    def gather(
        self,
        input: Tensor,
        index: Tensor,
        axis: int,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take for each element of `index` the one it names along dimension `axis`.

        Arguments and errors: `ark_dist.gather`.
        """
        return apply("gather", input, index, axis=axis, output=output, name=name, model=self)

    def gelu(
        self,
        input: Tensor,
        approximate: str = "none",
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Multiply every element with the chance that a normal number is below it.

        Arguments and errors: `ark_dist.gelu`.
        """
        return apply("gelu", input, approximate=approximate, output=output, name=name, model=self)

    def greater(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is greater than `other`, as bool.

        Arguments and errors: `ark_dist.greater`.
        """
        return apply("greater", input, other, output=output, name=name, model=self)

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

    def im2col(
        self,
        input: Tensor,
        kernel_height: int,
        kernel_width: int,
        stride_height: int = 1,
        stride_width: int = 1,
        pad_height: int = 0,
        pad_width: int = 0,
        dilation_height: int = 1,
        dilation_width: int = 1,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Lay the windows of a convolution out as the columns of a matrix.

        Arguments and errors: `ark_dist.im2col`.
        """
        return apply(
            "im2col",
            input,
            kernel_height=kernel_height,
            kernel_width=kernel_width,
            stride_height=stride_height,
            stride_width=stride_width,
            pad_height=pad_height,
            pad_width=pad_width,
            dilation_height=dilation_height,
            dilation_width=dilation_width,
            output=output,
            name=name,
            model=self,
        )

    def layernorm(
        self,
        input: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        axis: int = -1,
        eps: float = 1e-5,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * weight + bias along `axis` (Ba et al. 2016).

        Arguments and errors: `ark_dist.layernorm`.
        """
        return apply(
            "layernorm",
            input,
            weight,
            bias,
            axis=axis,
            eps=eps,
            output=output,
            name=name,
            model=self,
        )

    def less(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is less than `other`, as bool.

        Arguments and errors: `ark_dist.less`.
        """
        return apply("less", input, other, output=output, name=name, model=self)

    def less_equal(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether `input` is at most `other`, as bool.

        Arguments and errors: `ark_dist.less_equal`.
        """
        return apply("less_equal", input, other, output=output, name=name, model=self)

    def log(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the natural logarithm of every element: -inf of 0, NaN of negative numbers.

        Arguments and errors: `ark_dist.log`.
        """
        return apply("log", input, output=output, name=name, model=self)

    def matmul(
        self,
        input: Tensor,
        other: Tensor,
        transpose_input: bool = False,
        transpose_other: bool = False,
        is_relu: bool = False,
        splitk: int = 1,
        dtype: DTypeLike | None = None,
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
            splitk=splitk,
            dtype=dtype,
            output=output,
            name=name,
            model=self,
        )

    def maximum(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the larger of two elements; NaN wins.

        Arguments and errors: `ark_dist.maximum`.
        """
        return apply("maximum", input, other, output=output, name=name, model=self)

    def minimum(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the smaller of two elements; NaN wins.

        Arguments and errors: `ark_dist.minimum`.
        """
        return apply("minimum", input, other, output=output, name=name, model=self)

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

    def neg(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Change the sign of every element; integers wrap.

        Arguments and errors: `ark_dist.neg`.
        """
        return apply("neg", input, output=output, name=name, model=self)

    def not_equal(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Whether elements differ, as bool; NaN differs from everything.

        Arguments and errors: `ark_dist.not_equal`.
        """
        return apply("not_equal", input, other, output=output, name=name, model=self)

    def pow(
        self,
        input: Tensor,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Raise `input` to the power of `other`, broadcasting as NumPy does.

        Arguments and errors: `ark_dist.pow`.
        """
        return apply("pow", input, other, output=output, name=name, model=self)

    def recv(
        self,
        shape: Sequence[int],
        dtype: DTypeLike,
        src: int,
        tag: int = 0,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Return the tensor that rank `src` sends to this one.

        Arguments and errors: `ark_dist.recv`.
        """
        return apply(
            "recv",
            shape=shape,
            dtype=dtype,
            src=src,
            tag=tag,
            output=output,
            name=name,
            model=self,
        )

    def reduce_max(
        self,
        input: Tensor,
        axis: int | Sequence[int] | None,
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
        axis: int | Sequence[int] | None,
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

    def reduce_min(
        self,
        input: Tensor,
        axis: int | Sequence[int] | None,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Smallest element along `axis`; NaN wins.

        Arguments and errors: `ark_dist.reduce_min`.
        """
        return apply(
            "reduce_min",
            input,
            axis=axis,
            keepdims=keepdims,
            output=output,
            name=name,
            model=self,
        )

    def reduce_scatter(
        self,
        input: Tensor,
        reduce: str = "sum",
        axis: int = 0,
        ranks: Sequence[int] = (),
        cuts: Sequence[int] = (),
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Combine the tensors of all ranks element by element; each gets a part of the result.

        Arguments and errors: `ark_dist.reduce_scatter`.
        """
        return apply(
            "reduce_scatter",
            input,
            reduce=reduce,
            axis=axis,
            ranks=ranks,
            cuts=cuts,
            output=output,
            name=name,
            model=self,
        )

    def reduce_sum(
        self,
        input: Tensor,
        axis: int | Sequence[int] | None,
        keepdims: bool = True,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Sum along `axis`; floats accumulate in fp32, integers wrap in their own type.

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

    def rmsnorm(
        self,
        input: Tensor,
        weight: Tensor | None = None,
        axis: int = -1,
        eps: float = 1e-6,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Scale rows: x / sqrt(mean(x^2) + eps) * weight along `axis` (Zhang and Sennrich 2019).

        Arguments and errors: `ark_dist.rmsnorm`.
        """
        return apply(
            "rmsnorm",
            input,
            weight,
            axis=axis,
            eps=eps,
            output=output,
            name=name,
            model=self,
        )

    def rope(
        self,
        input: Tensor,
        other: Tensor,
        position: Tensor | None = None,
        interleaved: bool = True,
        dtype: DTypeLike | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Rotate pairs of elements along the last dimension, as rotary position embedding does.

        Arguments and errors: `ark_dist.rope`.
        """
        return apply(
            "rope",
            input,
            other,
            position,
            interleaved=interleaved,
            dtype=dtype,
            output=output,
            name=name,
            model=self,
        )

    def rsqrt(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Divide 1 by the square root of every element: inf of 0, NaN of negative numbers.

        Arguments and errors: `ark_dist.rsqrt`.
        """
        return apply("rsqrt", input, output=output, name=name, model=self)

    def sample(
        self,
        input: Tensor,
        position: Operand,
        temperature: Operand = 1.0,
        top_k: Operand = 0,
        top_p: Operand = 1.0,
        seed: Operand = 0,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Draw the next token: for each row of logits (B, V) an index, as int32 (B,).

        Arguments and errors: `ark_dist.sample`.
        """
        return apply(
            "sample",
            input,
            position,
            temperature,
            top_k,
            top_p,
            seed,
            output=output,
            name=name,
            model=self,
        )

    def scale(
        self,
        input: Tensor,
        val: float,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Multiply a tensor with a number that is known now.

        Arguments and errors: `ark_dist.scale`.
        """
        return apply("scale", input, val=val, output=output, name=name, model=self)

    def scatter(
        self,
        input: Tensor,
        source: Tensor,
        position: Operand,
        axis: int,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Write `source` over elements `position` to `position` + T of dimension `axis`.

        Arguments and errors: `ark_dist.scatter`.
        """
        return apply(
            "scatter",
            input,
            source,
            position,
            axis=axis,
            output=output,
            name=name,
            model=self,
        )

    def send(
        self,
        input: Tensor,
        dst: int,
        tag: int = 0,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Send a tensor to rank `dst`, which gets it by `recv`; returns a token for `send_done`.

        Arguments and errors: `ark_dist.send`.
        """
        return apply("send", input, dst=dst, tag=tag, output=output, name=name, model=self)

    def send_done(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Wait until a tensor that `send` has sent is with its receiver.

        Arguments and errors: `ark_dist.send_done`.
        """
        return apply("send_done", input, output=output, name=name, model=self)

    def sharding(self, input: Tensor, axis: int, dim_per_shard: int) -> list[Tensor]:
        """Cut a tensor into parts of `dim_per_shard` along dimension `axis`, without copying.

        Arguments and errors: `ark_dist.sharding`.
        """
        return apply_parts("sharding", input, axis=axis, dim_per_shard=dim_per_shard, model=self)

    def sigmoid(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take 1 / (1 + exp(-x)) of every element x.

        Arguments and errors: `ark_dist.sigmoid`.
        """
        return apply("sigmoid", input, output=output, name=name, model=self)

    def silu(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take x / (1 + exp(-x)) of every element x, also called swish; 0 of -inf, the limit.

        Arguments and errors: `ark_dist.silu`.
        """
        return apply("silu", input, output=output, name=name, model=self)

    def sin(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the sine of every element, an angle in radians.

        Arguments and errors: `ark_dist.sin`.
        """
        return apply("sin", input, output=output, name=name, model=self)

    def slice(
        self,
        input: Tensor,
        starts: Sequence[int],
        stops: Sequence[int],
        steps: Sequence[int] | None = None,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take elements `start:stop:step` of each dimension, without copying.

        Arguments and errors: `ark_dist.slice`.
        """
        return apply(
            "slice",
            input,
            starts=starts,
            stops=stops,
            steps=steps,
            output=output,
            name=name,
            model=self,
        )

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

    def split(self, input: Tensor, split_size: int | Sequence[int], axis: int = 0) -> list[Tensor]:
        """Cut a tensor into parts along dimension `axis`, without copying.

        Arguments and errors: `ark_dist.split`.
        """
        return apply_parts("split", input, split_size=split_size, axis=axis, model=self)

    def sqrt(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the square root of every element: NaN of negative numbers.

        Arguments and errors: `ark_dist.sqrt`.
        """
        return apply("sqrt", input, output=output, name=name, model=self)

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

    def tanh(
        self,
        input: Tensor,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take the hyperbolic tangent of every element.

        Arguments and errors: `ark_dist.tanh`.
        """
        return apply("tanh", input, output=output, name=name, model=self)

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

    def view(
        self,
        input: Tensor,
        shape: Sequence[int],
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Look at a tensor's memory in another shape, never copying; one size may be -1.

        Arguments and errors: `ark_dist.view`.
        """
        return apply("view", input, shape=shape, output=output, name=name, model=self)

    def where(
        self,
        condition: Tensor,
        input: Operand,
        other: Operand,
        *,
        output: Tensor | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Take elements of `input` where `condition` is True, of `other` elsewhere.

        Arguments and errors: `ark_dist.where`.
        """
        return apply("where", condition, input, other, output=output, name=name, model=self)
