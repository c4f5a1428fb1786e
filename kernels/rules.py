"""Rules that many operator records share: dtype checks, tiles, costs, elementwise records."""

from collections.abc import Callable, Container
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from ark_dist.core.dtype import BOOL, DTYPES, FLOATS, NUMBERS, DType
from ark_dist.core.op import Argument, Array, Attrs, Kernel, Op, Specs, register
from ark_dist.core.shape import Box, Shape, box_size, broadcast_shapes, full_box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec

# Floats as references get them.
Floats = npt.NDArray[np.float64]

INPUT = Argument("input", "Tensor", "the tensor to work on", None)
OTHER = Argument("other", "Operand", "the second tensor, or a number", None)
# A task should be worth several signals between workers.
GRAIN_HOPS = 4
# A list of more tensors than this is a mistake, and takes seconds to make.
MOST_PARTS = 4096
# One cache line of the widest type: tiles that share a line slow each other down.
LINE_ELEMENTS = 64
# What rules of sharding call dimensions, in order.
LETTERS = "abcdefgh"


def check_dtypes(name: str, allowed: tuple[str, ...], specs: Specs) -> None:
    """Raise TypeError unless all inputs have one dtype, and the operator takes it."""
    for spec in specs:
        if spec.dtype.name not in allowed:
            raise TypeError(
                f"{name}: dtype {spec.dtype} is not supported; use {', '.join(allowed)}, "
                "or cast the tensor"
            )
    if len({spec.dtype for spec in specs}) > 1:
        found = " and ".join(spec.dtype.name for spec in specs)
        raise TypeError(f"{name}: dtypes differ, {found}; cast one of them")


def int_attr(attrs: Attrs, name: str) -> int:
    """An attribute that is an integer."""
    value = attrs[name]
    assert isinstance(value, int), f"{name} is {value!r}"
    return value


def float_attr(name: str, attrs: Attrs, default: DType) -> DType:
    """The float that an operator's result is asked to have; TypeError for another dtype."""
    wanted = attrs["dtype"]
    if wanted is None:
        return default
    if wanted not in FLOATS:
        raise TypeError(f"{name}: dtype {wanted!r} is not supported; use {', '.join(FLOATS)}")
    return DTYPES[str(wanted)]


def check_part_count(name: str, count: int) -> int:
    """Return how many tensors an operator that gives a list makes; ValueError for too many."""
    if count > MOST_PARTS:
        raise ValueError(
            f"{name}: this makes {count} parts, at most {MOST_PARTS} work; make them larger, or "
            "take those you need with narrow"
        )
    return count


def is_fp32(value: object) -> bool:
    """Whether a number is finite in fp32, and not 0 there unless it is 0."""
    if not isinstance(value, (int, float)):
        return False
    with np.errstate(over="ignore"):
        kept = np.float32(value)
    return bool(np.isfinite(kept)) and (kept != 0 or value == 0)


def spread(out: Shape, parts: int, units: Shape) -> tuple[Box, ...]:
    """Cut a shape into about `parts` boxes, outer dimensions first, in whole `units`."""
    if prod(out) == 0:
        return ()
    boxes: list[Box] = [()]
    for size, unit in zip(out, units, strict=True):
        pieces = min(max(parts // len(boxes), 1), -(-size // unit))
        cuts = cut(size, pieces, unit)
        boxes = [(*box, interval) for box in boxes for interval in cuts]
    return tuple(boxes)


def cut(size: int, pieces: int, unit: int) -> list[tuple[int, int]]:
    """Cut [0, size) into `pieces` intervals of whole units, as even as they can be."""
    units = -(-size // unit)
    edges = [units * i // pieces * unit for i in range(pieces)] + [size]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def parts_worth(cost: Cost, target: Target) -> int:
    """How many tasks a piece of work is worth on the target, one per worker at most."""
    return _parts(cost, target, max(GRAIN_HOPS * target.hop_s, target.task_s))


def tiles_worth(cost: Cost, target: Target) -> int:
    """The same for work whose tiles read little in common.

    Where groups of tasks share one counter, who waits for many tasks waits no longer than for one:
    more of them cost nothing.
    """
    if target.counters != "group":
        return parts_worth(cost, target)
    return _parts(cost, target, target.task_s)


def _parts(cost: Cost, target: Target, grain_s: float) -> int:
    return max(1, min(target.worker_count, int(target.seconds(cost) / grain_s)))


def moved_bytes(specs: Specs, out: Spec) -> int:
    """Bytes of all inputs and the output together."""
    return sum(prod(s.shape) * s.dtype.itemsize for s in (*specs, out))


def share(total: int, box: Box, out: Spec) -> int:
    """The part of `total` that falls to a box, by its share of the output's elements."""
    return total * box_size(box) // max(prod(out.shape), 1)


def broadcast_box(shape: Shape, box: Box) -> Box:
    """The box of a broadcast input that an output box reads."""
    skipped = len(box) - len(shape)
    return tuple(
        (0, 1) if size == 1 else interval
        for size, interval in zip(shape, box[skipped:], strict=True)
    )


def map_tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    """Tiles of an elementwise operator: any cut will do, outermost dimensions first."""
    return cut_map(out.shape, tiles_worth(map_cost(specs, out, attrs, full_box(out.shape)), target))


def cut_map(shape: Shape, parts: int) -> tuple[Box, ...]:
    """Cut an output that any cut will do for into about `parts` boxes."""
    units = (1,) * (len(shape) - 1) + (LINE_ELEMENTS,) * min(len(shape), 1)
    return spread(shape, parts, units) if shape else ((),)


def map_cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    """Every element is read, computed once and written."""
    return Cost(share(moved_bytes(specs, out), box, out), box_size(box))


def map_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    """Elementwise operators read the box they write, broadcast."""
    return tuple(broadcast_box(spec.shape, box) for spec in specs)


def cut_letters(ndim: int, whole: Container[int] = ()) -> str:
    """Letters of a sharding rule for all dimensions: "aBc" where dimension 1 is whole."""
    return "".join(c.upper() if d in whole else c for d, c in enumerate(LETTERS[:ndim]))


def per_row_term(spec: Spec, letter: str) -> str:
    """The term of values that rows along `letter` share, or that each has one of."""
    return {(): "", (1,): "P"}.get(spec.shape, letter)


def elementwise(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    reference: Callable[..., Array],
    *,
    result: DType | None = None,
    params: tuple[str, ...] = (),
    check: Callable[[Attrs], None] | None = None,
    ops_per_element: int = 1,
) -> Op:
    """Register an elementwise operator.

    Args:
        name: as in `Op`.
        summary: as in `Op`.
        arguments: as in `Op`.
        dtypes: what the tensors that share a dtype may have.
        reference: tiles, then the attributes in `params` -> the result, in NumPy.
        result: the output's dtype if not the one that is shared.
        params: attributes that reference and C++ function take.
        check: raises ValueError for bad attributes.
        ops_per_element: roughly, for the cost.
    """

    def run(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
        with np.errstate(all="ignore"):
            value = reference(*tiles, *(attrs[param] for param in params))
        return np.broadcast_to(value, tuple(b - a for a, b in box))

    infer = map_infer(name, arguments, dtypes, result, check)
    kernel = Kernel("map", f"ark_{name}", params)
    return map_op(name, summary, arguments, dtypes, infer, run, kernel, ops_per_element)


def map_op(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    infer: Callable[[Specs, Attrs], Spec],
    reference: Callable[[tuple[Array, ...], Attrs, Box], Array],
    kernel: Kernel,
    ops_per_element: int = 1,
) -> Op:
    """Register an operator that computes each element from those in the same place."""

    def cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
        once = map_cost(specs, out, attrs, box)
        return Cost(once.bytes, once.ops * ops_per_element)

    def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
        return cut_map(out.shape, tiles_worth(cost(specs, out, attrs, full_box(out.shape)), target))

    return register(
        Op(
            name=name,
            summary=summary,
            arguments=arguments,
            dtypes=dtypes,
            infer=infer,
            view=None,
            in_boxes=map_boxes,
            reference=reference,
            tiles=tiles,
            cost=cost,
            sharding="...",
            localize=None,
            gradient=None,
            effect="none",
            kernel=kernel,
            expand=None,
            parts=None,
            pieces=None,
            is_public=True,
        )
    )


def map_infer(
    name: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    result: DType | None,
    check: Callable[[Attrs], None] | None,
) -> Callable[[Specs, Attrs], Spec]:
    """The rule for an elementwise operator's output: shapes broadcast, dtypes are one."""
    tensors = tuple(argument for argument in arguments if argument.is_tensor)

    def infer(specs: Specs, attrs: Attrs) -> Spec:
        for argument, spec in zip(tensors, specs, strict=True):
            if argument.dtype not in (None, spec.dtype.name):
                raise TypeError(
                    f"{name}: {argument.name} is {spec.dtype}; it must be {argument.dtype}: "
                    "compare the tensor, or cast it"
                )
        given = zip(tensors, specs, strict=True)
        shared = tuple(spec for argument, spec in given if argument.dtype is None)
        check_dtypes(name, dtypes, shared)
        if check is not None:
            check(attrs)
        shape = broadcast_shapes(name, *(spec.shape for spec in specs))
        return Spec(shape, result or shared[0].dtype)

    return infer


def function(
    name: str, summary: str, reference: Callable[..., Array], *, ops_per_element: int
) -> Op:
    """Register a function of one floating point tensor, computed in fp32."""
    return elementwise(name, summary, (INPUT,), FLOATS, reference, ops_per_element=ops_per_element)


def comparison(
    name: str,
    summary: str,
    reference: Callable[..., Array],
    dtypes: tuple[str, ...] = NUMBERS,
) -> Op:
    """Register an elementwise comparison of two tensors that gives bool."""
    return elementwise(name, summary, (INPUT, OTHER), dtypes, reference, result=BOOL)


def no_reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    """Reference of views: nothing is computed."""
    raise AssertionError("views have no tasks")


def control_op(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    result: Spec,
    effect: str,
    function: str,
) -> Op:
    """Register an operator that computes nothing: its kernel, or its host, does something."""

    def infer(specs: Specs, attrs: Attrs) -> Spec:
        return result

    def in_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
        return tuple(full_box(spec.shape) for spec in specs)

    def reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
        raise AssertionError(f"{name} computes nothing; devices do it themselves")

    def tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
        return (full_box(out.shape),)

    def cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
        return Cost(0, 0)

    return register(
        Op(
            name=name,
            summary=summary,
            arguments=arguments,
            dtypes=dtypes,
            infer=infer,
            view=None,
            in_boxes=in_boxes,
            reference=reference,
            tiles=tiles,
            cost=cost,
            sharding=None,
            localize=None,
            gradient=None,
            effect=effect,
            kernel=Kernel("control", function),
            expand=None,
            parts=None,
            pieces=None,
            is_public=False,
        )
    )


def view_op(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    infer: Callable[[Specs, Attrs], Spec],
    view: Callable[..., object],
    sharding: str | None,
    *,
    parts: Callable[[Specs, Attrs], int] | None = None,
) -> Op:
    """Register an operator that only looks at memory in another way, or in several ways."""
    from ark_dist.core.dtype import ALL_DTYPES

    return register(
        Op(
            name=name,
            summary=summary,
            arguments=arguments,
            dtypes=ALL_DTYPES,
            infer=infer,
            view=view,  # type: ignore[arg-type]  # returns View | None
            in_boxes=map_boxes,
            reference=no_reference,
            tiles=map_tiles,
            cost=map_cost,
            sharding=sharding,
            localize=None,
            gradient=None,
            effect="none",
            kernel=None,
            expand=None,
            parts=parts,
            pieces=None,
            is_public=True,
        )
    )
