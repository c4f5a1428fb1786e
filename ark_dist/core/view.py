"""Tensors as data: a shape and dtype, a strided window on a buffer, a box of a buffer."""

from dataclasses import dataclass
from math import prod

from ark_dist.core.dtype import DType
from ark_dist.core.region import buffer_box
from ark_dist.core.shape import Box, Shape, box_shape, full_box, row_major_strides


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of a tensor, all that shape rules may look at."""

    shape: Shape
    dtype: DType


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a buffer, in the buffer's own coordinates."""

    buffer: int
    box: Box


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a buffer; offset and strides count elements, strides are >= 0."""

    buffer: int
    dtype: DType
    offset: int
    shape: Shape
    strides: Shape

    @property
    def spec(self) -> Spec:
        """Shape and dtype."""
        return Spec(self.shape, self.dtype)

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow one another in row-major order."""
        expected = row_major_strides(self.shape)
        return all(
            size == 1 or a == b
            for size, a, b in zip(self.shape, self.strides, expected, strict=True)
        )

    def region(self, box: Box, buffer_shape: Shape) -> Region:
        """The part of the buffer that `box` of this view touches."""
        return Region(self.buffer, buffer_box(self.offset, self.strides, box, buffer_shape))

    def whole(self, buffer_shape: Shape) -> Region:
        """The part of the buffer that the whole view touches."""
        return self.region(full_box(self.shape), buffer_shape)

    def box_in(self, buffer_shape: Shape) -> Box | None:
        """The box of the buffer that it is, with the box's elements in order; None if it is none.

        Its shape may lack or add dimensions where it is all of the buffer.
        """
        if self.offset == 0 and self.is_contiguous and prod(self.shape) == prod(buffer_shape):
            return full_box(buffer_shape)
        steps = row_major_strides(buffer_shape)
        if len(self.shape) != len(steps) or any(
            size > 1 and step != own
            for size, step, own in zip(self.shape, self.strides, steps, strict=True)
        ):
            return None
        box = self.whole(buffer_shape).box
        return box if box_shape(box) == self.shape else None
