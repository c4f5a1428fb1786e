"""Map a box of a view to the box of its buffer that it touches."""

from functools import lru_cache

from ark_dist.core.shape import Box, Shape, row_major_strides


@lru_cache(maxsize=1 << 16)
def buffer_box(offset: int, strides: Shape, box: Box, shape: Shape) -> Box:
    """Return the smallest box we can prove to hold every element that the view's box touches.

    `offset` and `strides` (elements) are the view's, `box` is in the view's coordinates,
    `shape` is the buffer's. Each stride is written in the mixed-radix digits of the
    buffer; intervals are added per buffer dimension, then carried from the last dimension
    to the first. Where the carry is not constant the dimension widens to all of it.
    """
    if any(stop <= start for start, stop in box):
        return tuple((0, 0) for _ in shape)
    steps = row_major_strides(shape)
    low = list(_digits(offset, steps, shape))
    high = list(low)
    for (start, stop), stride in zip(box, strides, strict=True):
        for dim, digit in enumerate(_digits(stride, steps, shape)):
            low[dim] += start * digit
            high[dim] += (stop - 1) * digit
    for dim in range(len(shape) - 1, 0, -1):
        size = shape[dim]
        low_carry, high_carry = low[dim] // size, high[dim] // size
        if low_carry == high_carry:
            low[dim] -= low_carry * size
            high[dim] -= low_carry * size
        else:
            low[dim], high[dim] = 0, size - 1
        low[dim - 1] += low_carry
        high[dim - 1] += high_carry
    return tuple((a, b + 1) for a, b in zip(low, high, strict=True))


def _digits(value: int, steps: Shape, shape: Shape) -> Shape:
    digits = []
    for step, size in zip(steps, shape, strict=True):
        # A size of 1 shares its step with the next dimension; leave the digit to that one.
        digit = 0 if size == 1 else value // step
        value -= digit * step
        digits.append(digit)
    return tuple(digits)
