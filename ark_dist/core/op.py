"""Hold everything there is to know about an operator in one frozen record."""

import difflib
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
            "Operand" an input that may also be a Python number, "Tensor | None" one that
            may be left out, together with those after it. "Sequence[Tensor]" without a
            default is any number of inputs.
        doc: one line for the docstring.
        default: its default as Python source, or None if it must be given.
        dtype: the dtype that this tensor has whatever the others have, such as the condition's
            of `where`; None for tensors that share one.
        source: who gives an attribute: the "caller", or else it is no argument of the public
            function: the "builder", which knows `rank` and `world`, or the "send" that made
            the first input.
    """

    name: str
    annotation: str
    doc: str
    default: str | None
    dtype: str | None = None
    source: str = "caller"

    @property
    def is_tensor(self) -> bool:
        """Whether it is an input of the graph rather than an attribute."""
        return self.annotation in ("Tensor", "Operand", "Tensor | None")

    @property
    def is_optional(self) -> bool:
        """Whether it is an input of the graph that may be left out."""
        return self.annotation == "Tensor | None"

    @property
    def is_list(self) -> bool:
        """Whether it is any number of inputs of the graph; `deps`, which has a default, is not."""
        return self.annotation == "Sequence[Tensor]" and self.default is None


@dataclass(frozen=True, slots=True)
class Kernel:
    """How generated code computes the operator.

    Attributes:
        frame: the loop nest around it: "map", "row", "reduce", "matmul", "gather", "control",
            or "tile" for a function that loops over its tile itself.
        function: the C++ template that the frame calls, defined in `<op>.h`.
        params: names of the attributes that the function takes, in order, after its tensors;
            generated code has them as literals.
        has_prologue: whether `<function>_prologue` lets a matmul apply it to its rows.
        has_columns: whether `<function>_columns` reduces columns side by side in memory.
        is_conversion: whether the function's first template argument is the result's type.
        is_in_place: whether it may write into its first input: of that, each tile reads
            nothing but the elements that it writes.
        scratch: inputs, output spec, attributes, box -> fp32 elements of scratch memory that a
            "tile" function needs; None is none.
        failure: what a call of `ark_fail` means, for errors, with {value} and {limit} in it; ""
            where there is none.
        cuda: views of inputs and output, attributes, box -> integers that a "tile" function in
            `<op>.cuh` has as its first template arguments, and the fp32 elements of scratch
            memory that it needs instead of `scratch`. None where all is as on a CPU.
        takes_wide_rows: inputs, output spec, attributes, target -> whether rows that a norm is
            applied to on the way into a matmul may be of a wider dtype than its weights. None
            where they always may.
        packings: attributes -> for each input, the packing (`core.packing`) of a weight that a
            CPU reads there, "" for none; row-major it reads all. None is none at all.
    """

    frame: str
    function: str
    params: tuple[str, ...] = ()
    has_prologue: bool = False
    has_columns: bool = False
    is_conversion: bool = False
    is_in_place: bool = False
    scratch: Callable[[Specs, Spec, Attrs, Box], int] | None = None
    failure: str = ""
    cuda: Callable[[tuple[View, ...], View, Attrs, Box], tuple[tuple[int, ...], int]] | None = None
    takes_wide_rows: Callable[[Specs, Spec, Attrs, Target], bool] | None = None
    packings: Callable[[Attrs], tuple[str, ...]] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One of the nodes that an operator becomes on some target.

    Attributes:
        op: the operator's name.
        inputs: what it reads: i >= 0 is the whole operator's input i, -1 - k is the result of
            step k.
        attrs: its attributes.
        looks: for each input, the view of it that the step reads; empty is all as they are.
    """

    op: str
    inputs: tuple[int, ...]
    attrs: tuple[tuple[str, AttrValue], ...]
    looks: tuple[Callable[[View], View], ...] = ()


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: every rule the stages need, with no defaults, so that none is forgotten.

    Attributes:
        name: the public name, also the name of its files.
        summary: the first lines of the public docstring.
        arguments: tensors and attributes; `public_arguments` are those of its function.
        dtypes: names of the dtypes its tensors may have.
        infer: inputs and attributes -> output spec; raises ValueError or TypeError.
        view: input view and attributes -> output view without moving data, None if this
            view can't be expressed; the field itself is None for operators that compute.
        in_boxes: inputs, output spec, attributes, output box -> the box read from each input.
        reference: input tiles, attributes, output box -> output tile, the definition of
            correct; floating point comes and leaves as float64, rounded by the caller.
        tiles: inputs, output spec, attributes, target -> boxes that cover the output once.
        cost: inputs, output spec, attributes, box -> bytes and operations of one tile.
        sharding: which dimensions are cut together when several ranks share the work, in the
            language of `ark_dist.core.sharding`, such as "mk,kn->mn"; or inputs, output spec,
            attributes -> such a rule. None where every rank computes all of it.
        localize: inputs, output spec, attributes, the boxes that a rank has of the inputs, the
            box that it computes -> the attributes of the rank's own node. None where they are
            the same.
        gradient: None until reverse mode is there.
        effect: "none", or "stop" for the operator that may end a run, "command" for the
            one that reads a command's scalars, "communication" for those that ranks do
            together (`scheduler/communicate.py` replaces them), "handshake" for what it puts
            there to wait for other ranks.
        kernel: how generated code computes it; None for views, `pieces` and communication.
        expand: inputs, output spec, attributes, target -> the steps that compute it there,
            the last one its output; empty where it stays one node. None is never.
        parts: inputs, attributes -> how many results its function returns, as a list; each is
            the view for one value of the attribute `part`, which the user does not give.
            None for one result.
        is_public: whether users may call it; the parts of expanded operators are not.
        pieces: inputs, attributes, result -> for each input, the view of the result that is a
            copy of it; together they are all of it. None for all that are not put together.
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
    sharding: str | Callable[[Specs, Spec, Attrs], str | None] | None
    localize: Callable[[Specs, Spec, Attrs, tuple[Box, ...], Box], Attrs] | None
    gradient: None
    effect: str
    kernel: Kernel | None
    expand: Callable[[Specs, Spec, Attrs, Target], tuple[Step, ...]] | None
    parts: Callable[[Specs, Attrs], int] | None
    pieces: Callable[[Specs, Attrs, View], tuple[View, ...]] | None
    is_public: bool

    @property
    def public_arguments(self) -> tuple[Argument, ...]:
        """The arguments of its public function, all but what the builder fills in."""
        return tuple(argument for argument in self.arguments if argument.source == "caller")


OPS: dict[str, Op] = {}


def reads_in_place(op: Op, position: int) -> bool:
    """Whether input `position` may be what the operator writes, seen through the same view."""
    kernel = op.kernel
    return kernel is not None and (kernel.frame == "map" or (kernel.is_in_place and position == 0))


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
    """Return the operator called `name`; ValueError names those that are near."""
    if name not in OPS:
        near = difflib.get_close_matches(str(name), OPS, n=3)
        way_out = f"did you mean {' or '.join(near)}?" if near else "docs/operators.md lists them"
        if not OPS:
            way_out = "there are none: import ark_dist.kernels.ops first"
        raise ValueError(f"operator {name!r} is not registered; {way_out}")
    return OPS[name]
