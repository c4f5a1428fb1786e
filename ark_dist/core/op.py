"""Hold everything there is to know about an operator in one frozen record."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ark_dist.core.shape import Box
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec, View

AttrValue = int | float | bool | str | None | tuple[int, ...]
Attrs = Mapping[str, AttrValue]
Array = npt.NDArray[np.generic]
Specs = tuple[Spec, ...]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an operator's public function.

    Attributes:
        name: its Python name.
        annotation: its Python type, as written; "Tensor" marks an input of the graph,
            "Operand" an input that may also be a Python number.
        doc: one line for the docstring.
        default: its default as Python source, or None if it must be given.
    """

    name: str
    annotation: str
    doc: str
    default: str | None

    @property
    def is_tensor(self) -> bool:
        """Whether it is an input of the graph rather than an attribute."""
        return self.annotation in ("Tensor", "Operand")


@dataclass(frozen=True, slots=True)
class Kernel:
    """How generated code computes the operator.

    Attributes:
        frame: the loop nest around it: "map", "row", "reduce", "matmul", "gather" or "control".
        function: the C++ template that the frame calls, defined in `<op>.h`.
        params: names of the attributes that the function takes as floats, in order.
        has_prologue: whether `<function>_prologue` lets a matmul apply it to its rows.
        is_conversion: whether the function's first template argument is the result's type.
    """

    frame: str
    function: str
    params: tuple[str, ...] = ()
    has_prologue: bool = False
    is_conversion: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: every rule the stages need, with no defaults, so that none is forgotten.

    Attributes:
        name: the public name, also the name of its files.
        summary: the first lines of the public docstring.
        arguments: the public signature, tensors and attributes.
        dtypes: names of the dtypes its tensors may have.
        infer: inputs and attributes -> output spec; raises ValueError or TypeError.
        view: input view and attributes -> output view without moving data, None if this
            view can't be expressed; the field itself is None for operators that compute.
        in_boxes: inputs, output spec, attributes, output box -> the box read from each input.
        reference: input tiles, attributes, output box -> output tile, the definition of
            correct; floating point comes and leaves as float64, rounded by the caller.
        tiles: inputs, output spec, attributes, target -> boxes that cover the output once.
        cost: inputs, output spec, attributes, box -> bytes and operations of one tile.
        sharding: an einsum-like rule such as "mk,kn->mn", "..." for elementwise, or None
            where the operator can't be cut.
        gradient: None until reverse mode is there.
        effect: "none", or "stop" for the operator that may end a run, "command" for the
            one that reads a command's scalars.
        kernel: how generated code computes it; None for views.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    dtypes: tuple[str, ...]
    infer: Callable[[Specs, Attrs], Spec]
    view: Callable[[View, Attrs], View | None] | None
    in_boxes: Callable[[Specs, Spec, Attrs, Box], tuple[Box, ...]]
    reference: Callable[[tuple[Array, ...], Attrs, Box], Array]
    tiles: Callable[[Specs, Spec, Attrs, Target], tuple[Box, ...]]
    cost: Callable[[Specs, Spec, Attrs, Box], Cost]
    sharding: str | None
    gradient: None
    effect: str
    kernel: Kernel | None


OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Add an operator to the registry; a second one of the same name is an error."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", op.name):
        raise ValueError(f"operator name {op.name!r} must be lower case letters, digits and _")
    module = op.infer.__module__
    if not module.startswith("ark_dist."):
        raise ValueError(
            f"operator {op.name}: imported as {module!r}; import it under ark_dist, "
            "so that it is registered once"
        )
    if op.name in OPS:
        raise ValueError(f"operator {op.name} is registered twice; choose another name")
    OPS[op.name] = op
    return op


def find_op(name: str) -> Op:
    """Return the operator called `name`; ValueError lists what there is."""
    if name not in OPS:
        known = ", ".join(sorted(OPS)) or "none: import ark_dist.kernels.ops first"
        raise ValueError(f"operator {name!r} is not registered; there are {known}")
    return OPS[name]
