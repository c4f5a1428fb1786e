"""Choose the weights that are stored in panels, as the kernels that read them like best."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ark_dist.core.graph import Buffer, GraphMethod, Node, frame_of
from ark_dist.core.op import OPS
from ark_dist.core.packing import PACKED_DTYPES, packed_view
from ark_dist.core.target import Target
from ark_dist.core.view import View


def pack_weights(
    methods: Sequence[GraphMethod], buffers: Sequence[Buffer], target: Target
) -> tuple[Buffer, ...]:
    """Return the buffers, with a packing where all nodes of all methods can read it."""
    if target.kind != "cpu":
        return tuple(buffers)
    wanted: dict[int, set[str]] = {}
    # Rows of a table are read faster where they lie in one piece.
    multiplied: set[int] = set()
    for method in methods:
        for node in method.nodes:
            for view, packing in _reads(node, buffers):
                wanted.setdefault(view.buffer, set()).add(packing)
                if frame_of(node) == "matmul":
                    multiplied.add(view.buffer)
    return tuple(
        replace(buffer, packing=next(iter(packings)))
        if (packings := wanted.get(buffer.id, {""})) != {""}
        and len(packings) == 1
        and buffer.id in multiplied
        else buffer
        for buffer in buffers
    )


def _reads(node: Node, buffers: Sequence[Buffer]) -> Iterator[tuple[View, str]]:
    """Yield the views of weights that a node reads, and the packing it can read each in, or ""."""
    kernel = OPS[node.op].kernel
    packings: tuple[str, ...] = ()
    if kernel is not None and kernel.packings is not None:
        packings = kernel.packings(node.attributes)
    for position, view in enumerate(node.inputs):
        buffer = buffers[view.buffer]
        packing = "".join(packings[position : position + 1])
        if buffer.kind == "weight":
            yield view, packing if packing and _can_read(packing, buffer, view, node) else ""


def _can_read(packing: str, buffer: Buffer, view: View, node: Node) -> bool:
    """Whether a kernel finds its way through a view of the packed buffer."""
    if len(buffer.shape) < 2 or buffer.dtype.name not in PACKED_DTYPES:
        return False
    if buffer.export or buffer.slots != 1 or buffer.initial is not None:
        return False
    # Only a matmul begins anywhere else than at a table's first row.
    is_whole = view.shape == buffer.shape and view.is_contiguous
    return (is_whole or frame_of(node) == "matmul") and (
        packed_view(packing, buffer.shape, view) is not None
    )
