"""Write elementwise chains as C++: loads, one line per operator, and a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from ark_dist.core.dtype import DType
from ark_dist.core.graph import Node
from ark_dist.core.op import OPS, AttrValue
from ark_dist.core.view import View
from ark_dist.kernels.lower import Lowered, Operand, spread_strides

CONTIGUOUS, BROADCAST, STRIDED = "1", "0", "s"


@dataclass(frozen=True, slots=True)
class Pointer:
    """One operand inside the generated loop.

    Attributes:
        index: its number among the group's operands.
        dtype: element type.
        kind: how it moves along the inner loop: CONTIGUOUS, BROADCAST or STRIDED.
    """

    index: int
    dtype: DType
    kind: str

    @property
    def name(self) -> str:
        """Its C++ name."""
        return f"a{self.index}"

    def element(self, position: str) -> str:
        """The element at a position of the inner loop."""
        if self.kind == BROADCAST:
            return f"{self.name}[0]"
        if self.kind == CONTIGUOUS:
            return f"{self.name}[{position}]"
        return f"{self.name}[({position}) * s{self.index}]"


def stride_kind(stride: int, extent: int) -> str:
    """How an operand moves along an inner loop of `extent` steps."""
    if extent <= 1 or stride == 1:
        return CONTIGUOUS
    return BROADCAST if stride == 0 else STRIDED


def compute_type(dtype: DType) -> str:
    """The C++ type that arithmetic on a dtype uses."""
    return "float" if dtype.is_float else dtype.c_name


def chain_lines(
    lowered: Lowered, pointers: Mapping[Operand, Pointer], value: str | None, position: str
) -> list[str]:
    """C++ lines that compute one element and store it.

    `value` is the anchor's result, already in its compute type; None where there is none.
    """
    names: dict[View, str] = {}
    lines: list[str] = []
    if lowered.anchor is not None:
        assert value is not None
        names[lowered.anchor.output] = value
    loaded: dict[Operand, str] = {}
    for number, node in enumerate(lowered.chain):
        inputs = []
        for view in node.inputs:
            if view not in names:
                lines += _load(view, lowered, pointers, loaded, position)
            inputs.append(names.get(view) or loaded[_operand(view, lowered)])
        result = f"t{number}"
        lines.append(f"const {compute_type(node.output.dtype)} {result} = {_call(node, inputs)};")
        names[node.output] = result
    last = lowered.operands[-1]
    target = pointers[last]
    store = f"ark_store<{target.dtype.c_name}>({names[lowered.output]})"
    lines.append(f"{target.element(position)} = {store};")
    return lines


def _operand(view: View, lowered: Lowered) -> Operand:
    return Operand(view, spread_strides(view, lowered.output.shape), False)


def _load(
    view: View,
    lowered: Lowered,
    pointers: Mapping[Operand, Pointer],
    loaded: dict[Operand, str],
    position: str,
) -> list[str]:
    operand = _operand(view, lowered)
    if operand in loaded:
        return []
    pointer = pointers[operand]
    loaded[operand] = f"v{pointer.index}"
    element = f"ark_load<{pointer.dtype.c_name}>({pointer.element(position)})"
    return [f"const {compute_type(pointer.dtype)} v{pointer.index} = {element};"]


def _call(node: Node, inputs: Sequence[str]) -> str:
    kernel = OPS[node.op].kernel
    assert kernel is not None
    arguments = ", ".join([*inputs, *literals(node)])
    result = f"<{node.output.dtype.c_name}>" if kernel.is_conversion else ""
    return f"{kernel.function}{result}({arguments})"


def literals(node: Node) -> list[str]:
    """The attributes that the node's function takes, as C++."""
    kernel = OPS[node.op].kernel
    assert kernel is not None
    return [_literal(name, node.attributes[name]) for name in kernel.params]


def _literal(name: str, value: AttrValue) -> str:
    if value is None:
        return "ark_absent{}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"int64_t({value})"
    if isinstance(value, str):
        # A choice is a type of the operator's header: `approximate="tanh"` picks an overload.
        return f"ark_{name}_{value}{{}}"
    assert isinstance(value, float), f"no literal for {value!r}"
    bits = int(np.float32(value).view(np.uint32))
    return f"ark_from_bits({bits:#010x})" + (f" /* {value!r} */" if isfinite(value) else "")
