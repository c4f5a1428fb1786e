"""Turn one call of an operator's function into a node of the model."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ark_dist.core.dtype import DTypeLike, as_dtype
from ark_dist.core.names import checked_name
from ark_dist.core.op import AttrValue, Op, find_op

if TYPE_CHECKING:
    from ark_dist.model import Model
    from ark_dist.ops import ModelOps
    from ark_dist.tensors import Tensor

NUMBERS = (bool, int, float, np.number, np.bool_)


def apply(
    op_name: str,
    /,
    *inputs: object,
    output: Tensor | None = None,
    name: str | None = None,
    deps: Sequence[Tensor] = (),
    model: ModelOps | None = None,
    **attributes: object,
) -> Tensor:
    """Add an operator to `model`, or else to the model of its first tensor.

    An operator without tensors goes into the current model. Raises TypeError and ValueError
    as the operator's record says.
    """
    from ark_dist.model import Model

    op = find_op(op_name)
    attrs = _attributes(op, attributes)
    given = _given(op, inputs)
    target = model if model is not None else _model_of(op_name, given)
    assert isinstance(target, Model)
    if name is not None:
        _check_name(op_name, name)
    return target.apply_op(op_name, given, attrs, output=output, name=name, deps=deps)


def apply_parts(
    op_name: str, /, input: object, *, model: ModelOps | None = None, **attributes: object
) -> list[Tensor]:
    """Add an operator that gives a list: the views for `part` = 0, 1, ...

    Model and errors are those of `apply`.
    """
    from ark_dist.model import Model
    from ark_dist.tensors import Tensor

    op = find_op(op_name)
    assert op.parts is not None, f"{op_name} gives one result"
    if not isinstance(input, Tensor):
        raise TypeError(f"{op_name}: found {type(input).__name__}, wanted a tensor")
    attrs = _attributes(op, attributes)
    target = model if model is not None else input.model
    assert isinstance(target, Model)
    count = op.parts((input.value.view.spec,), attrs)
    return [target.apply_op(op_name, [input], {**attrs, "part": part}) for part in range(count)]


def _check_name(op_name: str, name: object) -> None:
    try:
        checked_name(name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{op_name}: {error}") from None


def _attributes(op: Op, given: Mapping[str, object]) -> dict[str, AttrValue]:
    """The attributes among what was given, as nodes keep them."""
    return {
        a.name: as_attribute(op.name, a.name, a.annotation, given[a.name])
        for a in op.arguments
        if a.name in given
    }


def _given(op: Op, inputs: Sequence[object]) -> tuple[object, ...]:
    """The inputs without optional ones left out at the end; a list's, one by one."""
    for argument in op.arguments:
        if argument.is_list:
            return _listed(op.name, argument.name, inputs[0])
    arguments = [a for a in op.arguments if a.is_tensor]
    for argument, item in zip(arguments, inputs, strict=True):
        # A number takes the dtype of the tensor beside it, as in `2 - x`; indices have their own.
        is_apart = argument.dtype is not None and argument.annotation == "Tensor"
        if is_apart and isinstance(item, NUMBERS):
            raise TypeError(
                f"{op.name}: {argument.name} is {item!r}; it must be a tensor of {argument.dtype}"
            )
    names = [a.name for a in arguments]
    required = sum(a.is_tensor and not a.is_optional for a in op.arguments)
    given = list(inputs)
    while len(given) > required and given[-1] is None:
        given.pop()
    for position in range(required, len(given)):
        if given[position] is None:
            raise TypeError(
                f"{op.name}: {names[position + 1]} is given without {names[position]}; give both"
            )
    return tuple(given)


def _listed(op_name: str, name: str, tensors: object) -> tuple[object, ...]:
    from ark_dist.tensors import Tensor

    # Walking a tensor would give its rows. An array of no dimensions only looks iterable.
    if isinstance(tensors, (Tensor, np.ndarray)) or not isinstance(tensors, Iterable):
        raise TypeError(
            f"{op_name}: {name} is a {type(tensors).__name__}; it must be a sequence of tensors, "
            "such as [x, y]"
        )
    items = tuple(tensors)
    for position, item in enumerate(items):
        if not isinstance(item, Tensor):
            raise TypeError(
                f"{op_name}: {name}[{position}] is a {type(item).__name__}; wanted a tensor"
            )
    if not items:
        raise ValueError(f"{op_name}: {name} is empty; give at least one tensor")
    return items


def _model_of(op_name: str, inputs: Sequence[object]) -> Model:
    from ark_dist.context import current_model
    from ark_dist.tensors import Tensor

    if not inputs:
        return current_model()
    for item in inputs:
        if isinstance(item, Tensor):
            return item.model
    found = " and ".join(type(item).__name__ for item in inputs)
    raise TypeError(f"{op_name}: found {found}, wanted a tensor; model.tensor(...) makes one")


def as_attribute(op_name: str, name: str, annotation: str, value: object) -> AttrValue:
    """Return an attribute as nodes keep it; TypeError names operator and argument."""
    kind = annotation.removesuffix(" | None")
    if value is None and kind != annotation:
        return None
    convert, wanted = CONVERTERS[kind]
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{op_name}: {name} is {value!r}; it must be {wanted}") from None


def _as_int(value: object) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError
    return operator.index(value)  # type: ignore[arg-type]  # raises TypeError itself


def _as_int64(value: object) -> int:
    number = _as_int(value)
    if not -(2**63) <= number < 2**63:  # as plans and generated code have it
        raise OverflowError
    return number


def _as_float(value: object) -> float:
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError
    return float(value)


def _as_bool(value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _as_str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _as_ints(value: object) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)):
        raise TypeError
    if not isinstance(value, Iterable):
        value = (value,)
    return tuple(_as_int(item) for item in value)


def _as_int_or_ints(value: object) -> int | tuple[int, ...]:
    return _as_ints(value) if isinstance(value, Iterable) else _as_int(value)


def _as_dtype_name(value: object) -> str:
    dtype: DTypeLike = value  # type: ignore[assignment]  # as_dtype checks it
    return as_dtype(dtype).name


# Annotation in an operator's record -> how the value is stored, and what a caller may give.
CONVERTERS: dict[str, tuple[Callable[[object], AttrValue], str]] = {
    "int": (_as_int64, "an integer of at most 64 bits"),
    "float": (_as_float, "a number"),
    "bool": (_as_bool, "True or False"),
    "str": (_as_str, "a string"),
    "Sequence[int]": (_as_ints, "a sequence of integers"),
    "int | Sequence[int]": (_as_int_or_ints, "an integer or a sequence of integers"),
    "DTypeLike": (_as_dtype_name, "a dtype such as ark.FP16"),
}
