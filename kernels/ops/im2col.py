"""Lay the windows of a convolution out as the columns of a matrix."""

import numpy as np

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import INPUT, int_attr, map_cost, map_tiles

SUMMARY = """Lay the windows of a convolution out as the columns of a matrix.

`input` is (N, C, H, W) or (C, H, W); the result is (N, C * kernel_height * kernel_width, L), or
without N. L counts the places of the window, row by row, in the input with `pad_height` rows of
zeros above and below it and `pad_width` columns left and right. Multiplied by weights of
(M, C * kernel_height * kernel_width) it gives the convolution."""
SIDES = ("height", "width")
UNITS = {"height": "rows", "width": "columns"}


def _numbers(attrs: Attrs, side: str) -> tuple[int, int, int, int]:
    """Kernel, stride, padding and dilation along one side of the image."""
    kernel, stride, pad, dilation = (
        int_attr(attrs, f"{name}_{side}") for name in ("kernel", "stride", "pad", "dilation")
    )
    return kernel, stride, pad, dilation


def _windows(size: int, attrs: Attrs, side: str) -> int:
    """How many places the window has along one side."""
    kernel, stride, pad, dilation = _numbers(attrs, side)
    return (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    shape = specs[0].shape
    if len(shape) not in (3, 4):
        raise ValueError(f"im2col: input is {shape}; it must be (N, C, H, W) or (C, H, W)")
    places = 1
    for side, size in zip(SIDES, shape[-2:], strict=True):
        kernel, stride, pad, dilation = _numbers(attrs, side)
        if min(kernel, stride, dilation) < 1 or pad < 0:
            raise ValueError(
                f"im2col: along the {side}, kernel is {kernel}, stride {stride}, dilation "
                f"{dilation} and pad {pad}; they must be 1 or more, pad 0 or more"
            )
        count = _windows(size, attrs, side)
        if count < 1:
            raise ValueError(
                f"im2col: the window reaches over {dilation * (kernel - 1) + 1} elements of the "
                f"{side}, the input {shape} has {size} and {2 * pad} of padding; pad it more"
            )
        places *= count
    *batch, channels = shape[:-2]
    taps = int_attr(attrs, "kernel_height") * int_attr(attrs, "kernel_width")
    return Spec((*batch, channels * taps, places), specs[0].dtype)


def _top(width: int, attrs: Attrs, place: int) -> int:
    """The first row of the input that the window at a place covers; padding is negative."""
    _, stride, pad, _ = _numbers(attrs, "height")
    return place // _windows(width, attrs, "width") * stride - pad


def _in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    *_, height, width = specs[0].shape
    *batch, (k, k_end), (place, place_end) = box
    kernel, _, _, dilation = _numbers(attrs, "height")
    taps = kernel * int_attr(attrs, "kernel_width")
    top, bottom = _top(width, attrs, place), _top(width, attrs, place_end - 1)
    bottom += dilation * (kernel - 1) + 1
    rows = (min(max(top, 0), height), min(max(bottom, 0), height))
    channels = (k // taps, (k_end - 1) // taps + 1)
    return ((*batch, channels, rows, (0, width)),)


def _reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    image = tiles[0]
    height, width = image.shape[-2:]
    k, place = np.arange(*box[-2])[:, None], np.arange(*box[-1])[None, :]
    kernel_height, stride_height, pad_height, dilation_height = _numbers(attrs, "height")
    kernel_width, stride_width, pad_width, dilation_width = _numbers(attrs, "width")
    taps, across = kernel_height * kernel_width, _windows(width, attrs, "width")
    y = place // across * stride_height + k // kernel_width % kernel_height * dilation_height
    x = place % across * stride_width + k % kernel_width * dilation_width
    y, x = y - pad_height - max(_top(width, attrs, box[-1][0]), 0), x - pad_width
    is_inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    # One more row and column hold the zeros of the padding, at index -1.
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(0, 1), (0, 1)])
    y, x = np.where(is_inside, y, -1), np.where(is_inside, x, -1)
    return padded[..., k // taps - box[-2][0] // taps, y, x]


def _sharding(specs: Specs, out: Spec, attrs: Attrs) -> str:
    # A row of the result is an element of the window of a channel: with one, it is the channel's.
    is_point = int_attr(attrs, "kernel_height") * int_attr(attrs, "kernel_width") == 1
    batch = "b" if len(out.shape) == 3 else ""
    return f"{batch}cHW->{batch}cL" if is_point else f"{batch}CHW->{batch}KL"


_NUMBERS = (
    ("kernel", "of the window", None),
    ("stride", "from one place of the window to the next", "1"),
    ("pad", "of zeros on each side", "0"),
    ("dilation", "from one element of the window to the next", "1"),
)
_NAMES = tuple(f"{name}_{side}" for name, _, _ in _NUMBERS for side in SIDES)

register(
    Op(
        name="im2col",
        summary=SUMMARY,
        arguments=(
            INPUT,
            *(
                Argument(f"{name}_{side}", "int", f"{UNITS[side]} {doc}", default)
                for name, doc, default in _NUMBERS
                for side in SIDES
            ),
        ),
        dtypes=ALL_DTYPES,
        infer=_infer,
        view=None,
        in_boxes=_in_boxes,
        reference=_reference,
        tiles=map_tiles,
        cost=map_cost,
        sharding=_sharding,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel("tile", "ark_im2col", params=_NAMES),
        expand=None,
        parts=None,
        pieces=None,
        is_public=True,
    )
)
