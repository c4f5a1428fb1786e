"""Read parameters into a state_dict and write them from one: all of it, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ark_dist import arrays
from ark_dist.binding import Binding, listed
from ark_dist.context import LOGGER
from ark_dist.core.errors import LifecycleError, StateDictError
from ark_dist.core.op import Array
from ark_dist.tensors import Parameter

CALL = "load_state_dict"


class LoadResult(NamedTuple):
    """Which names a load that was not strict passed over.

    Attributes:
        missing_keys: parameters that the state_dict does not have.
        unexpected_keys: names in the state_dict that no parameter has.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


def read_parameters(parameters: Mapping[str, Parameter]) -> dict[str, Array]:
    """Return name -> copy; parameters that share memory share the copy."""
    done: dict[object, Array] = {}
    result = {}
    for name, parameter in parameters.items():
        key = _identity(parameter)
        if key not in done:
            done[key] = _binding("state_dict", name, parameter).read("state_dict", parameter)
        result[name] = done[key]
    return result


def load_parameters(
    owner: str,
    parameters: Mapping[str, Parameter],
    state_dict: Mapping[str, Array],
    *,
    is_strict: bool,
    is_cast: bool,
    prefix: str,
) -> LoadResult:
    """Check everything first, then write; `owner` names the module in errors."""
    given = _checked_dict(state_dict)
    bindings = {name: _binding(CALL, name, parameter) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        bindings[name].require(CALL, parameter)
        bindings[name].session.require("write")
    matched, problems = _match(parameters, given, is_cast)
    loaded = {_identity(parameters[name]) for name in matched}
    missing = [n for n, p in parameters.items() if n not in given and _identity(p) not in loaded]
    unexpected = [n for n in given if n.startswith(prefix) and n not in parameters]
    # Torch's way: the shape and dtype of what is there count even if not strict.
    if is_strict:
        problems = [
            *([f"missing: {listed(missing)}"] if missing else []),
            *([f"unexpected: {listed(unexpected)}"] if unexpected else []),
            *problems,
        ]
    if problems:
        text = "\n  ".join(problems)
        raise StateDictError(f"{CALL}: nothing was loaded into {owner}:\n  {text}")
    for name, array in matched.items():
        bindings[name].write(CALL, parameters[name], array)
    if unexpected:
        LOGGER.warning("%s: %s has no %s; skipped", CALL, owner, listed(unexpected))
    return LoadResult(missing, unexpected)


def _checked_dict(state_dict: object) -> dict[str, Array]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{CALL}: found a {type(state_dict).__name__}, wanted a dict of name to "
            "numpy.ndarray; ark.load(path) reads one from a file"
        )
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise TypeError(f"{CALL}: found the name {name!r}, wanted a string")
        if not isinstance(value, np.ndarray):
            raise TypeError(
                f"{CALL}: {name!r} is a {type(value).__name__}, wanted a numpy.ndarray; "
                'ark.convert_state_dict(state_dict, "numpy") converts torch tensors'
            )
    return dict(state_dict)


def _match(
    parameters: Mapping[str, Parameter], given: Mapping[str, Array], is_cast: bool
) -> tuple[dict[str, Array], list[str]]:
    """Return the arrays to write, each memory once, and what does not fit as sentences."""
    matched: dict[str, Array] = {}
    first_names: dict[object, str] = {}
    shapes, dtypes, ties = [], [], []
    for name in [name for name in parameters if name in given]:
        parameter, array = parameters[name], given[name]
        if array.shape != parameter.value.view.shape:
            shapes.append(_shape_problem(name, parameter, array))
        elif not (is_cast or arrays.is_same_dtype(array.dtype, parameter.dtype)):
            dtypes.append(f"{name} is {parameter.dtype}, found {array.dtype}")
        else:
            value = arrays.cast(CALL, name, array, parameter.dtype)
            first = first_names.setdefault(_identity(parameter), name)
            if first == name:
                matched[name] = value
            elif not _same_bits(matched[first], value):
                ties.append(f"{first} and {name}")
    problems = [*_section("wrong shape", shapes)]
    problems += _section("wrong dtype (cast=True converts)", dtypes)
    problems += _section("one parameter, but the arrays differ", ties)
    return matched, problems


def _section(title: str, items: list[str]) -> Iterable[str]:
    return [f"{title}: {listed(items)}"] if items else []


def _shape_problem(name: str, parameter: Parameter, array: Array) -> str:
    wanted = parameter.value.view.shape
    hint = " (transposed?)" if array.shape == wanted[::-1] else ""
    return f"{name} is {wanted}, found {array.shape}{hint}"


def _same_bits(a: Array, b: Array) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _identity(parameter: Parameter) -> object:
    return parameter.model, parameter.value.view.buffer


def _binding(call: str, name: str, parameter: Parameter) -> Binding:
    binding = parameter.model.binding
    if binding is None or binding.session.state == "new":
        raise LifecycleError(
            f"{call}: {name!r} has no memory yet; call launch() of a Runtime, or compile() of "
            "an Executor, first"
        )
    return binding
