"""Read parameters into a state_dict and write them from one: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ark_dist import arrays
from ark_dist.binding import Binding
from ark_dist.checkpoint.agree import Ranks, check_same_path, ranks_of, together
from ark_dist.checkpoint.loader import CALL, LoadResult, Wanted, load_slices
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.checkpoint.report import Report, dtype_problem, shape_problem, unexpected_names
from ark_dist.checkpoint.saver import save_checkpoint
from ark_dist.checkpoint.shards import Layout
from ark_dist.context import LOGGER, rank
from ark_dist.core.errors import LifecycleError, StateDictError
from ark_dist.core.op import Array
from ark_dist.core.settings import read_settings
from ark_dist.launch.memory import Arenas
from ark_dist.listing import listed
from ark_dist.serialize import RankedStateDict, find_checkpoint, load
from ark_dist.tensors import Parameter

Parameters = Mapping[str, Parameter]


def read_parameters(parameters: Parameters) -> dict[str, Array]:
    """Return name -> copy; parameters that share memory share the copy."""
    ranks = _ranks(parameters)
    bindings = together(ranks.agree, lambda: _bindings("state_dict", parameters, "read"))
    done: dict[object, Array] = {}
    result = {}
    for name, parameter in parameters.items():
        key = _identity(parameter)
        if key not in done:
            done[key] = bindings[name].read("state_dict", parameter)
        result[name] = done[key]
    return result if ranks.world_size == 1 else RankedStateDict(result, ranks)


def save_parameters(parameters: Parameters, path: str | os.PathLike[str]) -> None:
    """Write a folder, tensor by tensor."""
    ranks = _ranks(parameters)
    bindings = together(ranks.agree, lambda: _bindings("save", parameters, "read"))
    check_same_path("save", ranks, os.fspath(path))
    first: dict[object, str] = {}
    names = {name: first.setdefault(_identity(p), name) for name, p in parameters.items()}

    def layout(name: str) -> Layout:
        parameter = parameters[name]
        owner = bindings[name].owner(parameter)
        return Layout(parameter.value.view.shape, parameter.dtype.numpy, owner)

    save_checkpoint(
        path,
        {name: layout(name) for name in first.values()},
        lambda name: bindings[name].gather(parameters[name], timeout_s=ranks.timeout_s),
        tied={alias: name for alias, name in names.items() if alias != name},
        rank=ranks.rank,
        world_size=ranks.world_size,
        agree=ranks.agree,
    )


@dataclass(frozen=True, slots=True)
class _Load:
    """One load of a module.

    Attributes:
        owner: the module's name in errors.
        parameters: name, with the prefix -> parameter.
        ranks: those that load together.
        unused: names, with the prefix, that may be there besides.
    """

    owner: str
    parameters: Parameters
    ranks: Ranks
    is_strict: bool
    is_cast: bool
    is_verified: bool
    prefix: str
    unused: Collection[str]


def load_parameters(
    owner: str,
    parameters: Parameters,
    source: Mapping[str, Array] | str | os.PathLike[str] | Checkpoint,
    *,
    is_strict: bool,
    is_cast: bool,
    is_verified: bool,
    prefix: str,
    unused: Collection[str] = (),
) -> LoadResult:
    """Check everything first, then write; `owner` names the module in errors."""
    ranks = _ranks(parameters)
    job = _Load(owner, parameters, ranks, is_strict, is_cast, is_verified, prefix, unused)
    bindings = together(ranks.agree, lambda: _bindings(CALL, parameters, "write"))
    opened = together(ranks.agree, lambda: _opened(source, is_verified))
    if isinstance(opened, Checkpoint):
        with opened:
            result = _load_checkpoint(job, bindings, opened)
    else:
        result = _load_dict(job, bindings, opened)
    if result.unexpected_keys and ranks.is_first:
        LOGGER.warning("%s: %s has no %s; skipped", CALL, owner, listed(result.unexpected_keys))
    return result


def _opened(source: object, is_verified: bool) -> Checkpoint | dict[str, Array]:
    if isinstance(source, (str, os.PathLike)):
        source = find_checkpoint(source) or load(source)
    if isinstance(source, Checkpoint):
        return source
    if is_verified:
        raise ValueError(
            f"{CALL}: verify=True wants a folder that ark_dist saved, which has checksums; found "
            "arrays or a file of another format: leave verify out"
        )
    return _checked_dict(source)


def _load_checkpoint(
    job: _Load, bindings: Mapping[str, Binding], checkpoint: Checkpoint
) -> LoadResult:
    """Read this rank's parts from files, where they can straight to the program's memory."""
    ranks = job.ranks
    if job.is_verified:
        together(ranks.agree, lambda: checkpoint.verify(ranks.rank, ranks.world_size))
    wanted = {
        name: Wanted(
            parameter.value.view.shape,
            parameter.dtype,
            bindings[name].part(parameter),
            _destination(bindings[name], parameter),
            _identity(parameter),
        )
        for name, parameter in job.parameters.items()
    }
    result = load_slices(
        checkpoint,
        wanted,
        owner=job.owner,
        is_strict=job.is_strict,
        is_cast=job.is_cast,
        prefix=job.prefix,
        unused=job.unused,
        is_shown=rank() == 0,
        rank=ranks.rank,
        agree=ranks.agree,
    )
    for name in wanted:
        if name in checkpoint.tensors:
            bindings[name].mark_written(job.parameters[name])
    return result


def _destination(binding: Binding, parameter: Parameter) -> Array | Callable[[Array], None]:
    session, view = binding.session, binding.part_view(parameter)
    if view is None:
        return lambda array: binding.write(CALL, parameter, array)
    memory = session.memory
    # Where views are copies, as those of a GPU's memory are, only write() reaches it.
    if type(memory).view is Arenas.view and not memory.plan.buffers[view.buffer].packing:
        array = memory.view(view)
        if array.flags.writeable:
            return array
    return lambda array: session.write(view, array)


def _load_dict(
    job: _Load, bindings: Mapping[str, Binding], given: Mapping[str, Array]
) -> LoadResult:
    """Write from arrays that every rank has whole."""
    parameters = job.parameters
    matched, report = together(job.ranks.agree, lambda: _fitting(job, given))
    for name, array in matched.items():
        bindings[name].write(CALL, parameters[name], array)
    return LoadResult([*report.missing], [*report.unexpected])


def _fitting(job: _Load, given: Mapping[str, Array]) -> tuple[dict[str, Array], Report]:
    parameters = job.parameters
    matched, report = _match(parameters, given, job.is_cast)
    loaded = {_identity(parameters[name]) for name in matched}
    missing = [n for n, p in parameters.items() if n not in given and _identity(p) not in loaded]
    unexpected = unexpected_names(given, {*parameters, *job.unused}, job.prefix)
    report = replace(report, missing=tuple(missing), unexpected=tuple(unexpected))
    problems = report.problems(job.is_strict)
    if problems:
        text = "\n  ".join(problems)
        raise StateDictError(f"{CALL}: nothing was loaded into {job.owner}:\n  {text}")
    return matched, report


def _ranks(parameters: Parameters) -> Ranks:
    """The ranks that a model is cut over, which call together; or this one alone."""
    sizes = {_identity(parameter): parameter.nbytes for parameter in parameters.values()}
    for parameter in parameters.values():
        binding = parameter.model.binding
        if binding is not None and binding.shares is not None:
            timeout_s = read_settings().timeout_s
            return ranks_of(binding.shares.communicator, sum(sizes.values()), timeout_s)
    return ranks_of(None, 0, 0)


def _bindings(call: str, parameters: Parameters, access: str) -> dict[str, Binding]:
    """Return each parameter's binding, whose session allows the access now."""
    bindings = {name: _binding(call, name, parameter) for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        bindings[name].require(call, parameter)
        bindings[name].session.require(access)
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
    parameters: Parameters, given: Mapping[str, Array], is_cast: bool
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
