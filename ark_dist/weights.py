"""Read parameters into a state_dict and write them from one: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from ark_dist import arrays
from ark_dist.binding import Binding
from ark_dist.checkpoint.loader import CALL, LoadResult, Wanted, load_slices
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.checkpoint.report import Report, dtype_problem, shape_problem, unexpected_names
from ark_dist.context import LOGGER, rank
from ark_dist.core.errors import LifecycleError, StateDictError
from ark_dist.core.op import Array
from ark_dist.launch.memory import Arenas
from ark_dist.listing import listed
from ark_dist.serialize import find_checkpoint, load
from ark_dist.tensors import Parameter


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
    source: Mapping[str, Array] | str | os.PathLike[str] | Checkpoint,
    *,
    is_strict: bool,
    is_cast: bool,
    prefix: str,
) -> LoadResult:
    """Check everything first, then write; `owner` names the module in errors."""
    if isinstance(source, (str, os.PathLike)):
        checkpoint = find_checkpoint(source)
        source = load(source) if checkpoint is None else checkpoint
    if isinstance(source, Checkpoint):
        with source:
            result = _load_checkpoint(owner, parameters, source, is_strict, is_cast, prefix)
    else:
        result = _load_dict(owner, parameters, _checked_dict(source), is_strict, is_cast, prefix)
    if result.unexpected_keys:
        LOGGER.warning("%s: %s has no %s; skipped", CALL, owner, listed(result.unexpected_keys))
    return result


def _load_checkpoint(
    owner: str,
    parameters: Mapping[str, Parameter],
    checkpoint: Checkpoint,
    is_strict: bool,
    is_cast: bool,
    prefix: str,
) -> LoadResult:
    """Read this rank's parts from files, where they can straight to the program's memory."""
    bindings = _writable_bindings(parameters)
    wanted = {
        name: Wanted(
            parameter.value.view.shape,
            parameter.dtype,
            bindings[name].part(parameter),
            _destination(bindings[name], parameter),
            _identity(parameter),
        )
        for name, parameter in parameters.items()
    }
    result = load_slices(
        checkpoint,
        wanted,
        owner=owner,
        is_strict=is_strict,
        is_cast=is_cast,
        prefix=prefix,
        is_shown=rank() == 0,
    )
    for name, want in wanted.items():
        if isinstance(want.write, np.ndarray) and name in checkpoint.tensors:
            # It is in place: this tells the binding, and copies nothing.
            bindings[name].write(CALL, parameters[name], want.write)
    return result


def _destination(binding: Binding, parameter: Parameter) -> Array | Callable[[Array], None]:
    memory, view = binding.session.memory, parameter.value.view
    # Where views are copies, as those of a GPU's memory are, or where this rank has a part of
    # the tensor, only write() reaches it.
    if binding.shares is None and type(memory).view is Arenas.view:
        array = memory.view(view)
        if array.flags.writeable:
            return array
    return lambda array: binding.write(CALL, parameter, array)


def _load_dict(
    owner: str,
    parameters: Mapping[str, Parameter],
    given: Mapping[str, Array],
    is_strict: bool,
    is_cast: bool,
    prefix: str,
) -> LoadResult:
    bindings = _writable_bindings(parameters)
    matched, report = _match(parameters, given, is_cast)
    loaded = {_identity(parameters[name]) for name in matched}
    missing = [n for n, p in parameters.items() if n not in given and _identity(p) not in loaded]
    unexpected = unexpected_names(given, parameters, prefix)
    report = replace(report, missing=tuple(missing), unexpected=tuple(unexpected))
    problems = report.problems(is_strict)
    if problems:
        text = "\n  ".join(problems)
        raise StateDictError(f"{CALL}: nothing was loaded into {owner}:\n  {text}")
    for name, array in matched.items():
        bindings[name].write(CALL, parameters[name], array)
    return LoadResult(missing, unexpected)


def _writable_bindings(parameters: Mapping[str, Parameter]) -> dict[str, Binding]:
    bindings = {name: _binding(CALL, name, parameter) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        bindings[name].require(CALL, parameter)
        bindings[name].session.require("write")
    return bindings


def _checked_dict(state_dict: object) -> dict[str, Array]:
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{CALL}: found a {type(state_dict).__name__}, wanted a dict of name to "
            "numpy.ndarray, or the path of a file or folder"
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
) -> tuple[dict[str, Array], Report]:
    """Return the arrays to write, each memory once, and what does not fit."""
    matched: dict[str, Array] = {}
    first_names: dict[object, str] = {}
    shapes, dtypes, ties = [], [], []
    for name in [name for name in parameters if name in given]:
        parameter, array = parameters[name], given[name]
        if array.shape != parameter.value.view.shape:
            shapes.append(shape_problem(name, parameter.value.view.shape, array.shape))
        elif not (is_cast or arrays.is_same_dtype(array.dtype, parameter.dtype)):
            dtypes.append(dtype_problem(name, parameter.dtype, array.dtype))
        else:
            value = arrays.cast(CALL, name, array, parameter.dtype)
            first = first_names.setdefault(_identity(parameter), name)
            if first == name:
                matched[name] = value
            elif not _same_bits(matched[first], value):
                ties.append(f"{first} and {name}")
    return matched, Report(shapes=tuple(shapes), dtypes=tuple(dtypes), ties=tuple(ties))


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
