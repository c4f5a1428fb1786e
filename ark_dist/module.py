"""Group parameters and submodules under names, as torch does, and load them by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ark_dist.checkpoint.loader import LoadResult
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.tensors import Parameter
from ark_dist.weights import load_parameters, read_parameters, save_parameters


def _no_forward(self: Module, *args: object, **kwargs: object) -> NoReturn:
    """Compute the outputs; a subclass defines it."""
    raise NotImplementedError(
        f"{type(self).__name__} has no forward(); define it to say what calling the module does"
    )


def _no_backward(self: Module, *args: object, **kwargs: object) -> NoReturn:
    """Compute gradients; a subclass may define it, nothing calls it by itself."""
    raise NotImplementedError(
        f"{type(self).__name__} has no backward(); define it if you need it, gradients are not "
        "derived automatically"
    )


def _call(self: Module, *args: object, **kwargs: object) -> object:
    """Call forward()."""
    return self.forward(*args, **kwargs)


class Module:
    """Base of models: parameters and submodules assigned to attributes are registered.

    A subclass calls `super().__init__()` first, assigns `ark.Parameter` and Module objects to
    attributes, and defines `forward`. Names nest with dots: "submodule.weight".
    """

    # Each subclass has its own signature, which no common type but Callable[..., Any] describes.
    forward: Callable[..., Any] = _no_forward
    backward: Callable[..., Any] = _no_backward
    __call__: Callable[..., Any] = _call

    # Names that a strict load passes over: what checkpoints have and this module does not use.
    unused_names: Collection[str] = ()

    _parameters: dict[str, Parameter]
    _modules: dict[str, Module]

    def __init__(self) -> None:
        object.__setattr__(self, "_parameters", {})
        object.__setattr__(self, "_modules", {})

    def __setattr__(self, name: str, value: object) -> None:
        parameters = self.__dict__.get("_parameters")
        modules = self.__dict__.get("_modules")
        if isinstance(value, (Parameter, Module)) and (parameters is None or modules is None):
            raise AttributeError(_before_init(self, name))
        if isinstance(value, Parameter):
            _forget(name, self.__dict__, modules)
            self.register_parameter(name, value)
        elif isinstance(value, Module):
            _forget(name, self.__dict__, parameters)
            self.register_module(name, value)
        else:
            _forget(name, parameters, modules)
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Parameter | Module:
        if "_parameters" not in self.__dict__:
            if name in ("_parameters", "_modules"):
                raise AttributeError(_before_init(self, name))
        elif name in self._parameters:
            return self._parameters[name]
        elif name in self._modules:
            return self._modules[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for table in (self.__dict__.get("_parameters", {}), self.__dict__.get("_modules", {})):
            if name in table:
                del table[name]
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        own = (self.__dict__.get("_parameters", {}), self.__dict__.get("_modules", {}))
        return sorted({*super().__dir__(), *own[0], *own[1]})

    def __repr__(self) -> str:
        lines = [
            f"({name}): " + repr(child).replace("\n", "\n  ")
            for name, child in self.named_children()
        ]
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n  ".join([f"{type(self).__name__}(", *([extra] if extra else []), *lines]) + "\n)"

    def extra_repr(self) -> str:
        """What `repr` shows between the parentheses; a subclass may override it."""
        return ""

    # Registration.

    def register_parameter(self, name: str, parameter: Parameter) -> None:
        """Add a parameter under a name, as assigning it does.

        Raises:
            TypeError: if it is no Parameter.
            ValueError: if the name is taken, empty or has a dot.
        """
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"register_parameter: {name!r} is a {type(parameter).__name__}, wanted an "
                "ark.Parameter"
            )
        self._check_name("register_parameter", name, self._parameters)
        self._parameters[name] = parameter
        parameter.model.label(parameter.value, f"{type(self).__name__}.{name}")

    def register_module(self, name: str, module: Module) -> None:
        """Add a submodule under a name, as assigning it does.

        Raises:
            TypeError: if it is no Module.
            ValueError: if the name is taken, empty or has a dot, or the module holds this one.
        """
        if not isinstance(module, Module):
            raise TypeError(
                f"register_module: {name!r} is a {type(module).__name__}, wanted an ark.Module"
            )
        self._check_name("register_module", name, self._modules)
        if any(inner is self for inner in module.modules()):
            raise ValueError(f"register_module: {name!r} holds this module itself; no cycles work")
        self._modules[name] = module

    def add_module(self, name: str, module: Module) -> None:
        """The same as `register_module`, as torch calls it."""
        self.register_module(name, module)

    def _check_name(self, call: str, name: object, table: Mapping[str, object]) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"{call}: name {name!r} must be a non-empty string without a dot")
        if name not in table and hasattr(self, name):
            raise ValueError(f"{call}: {type(self).__name__} has an attribute {name!r} already")

    # Walking the tree.

    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yield this module and all inside it, with their dotted names."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._modules.items():
            inner = f"{prefix}.{name}" if prefix else name
            yield from child.named_modules(memo, inner, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Yield this module and all inside it."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the submodules right under this one, with their names."""
        yield from self._modules.items()

    def children(self) -> Iterator[Module]:
        """Yield the submodules right under this one."""
        for _, module in self.named_children():
            yield module

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield (dotted name, parameter).

        Args:
            prefix: put before each name, with a dot.
            recurse: go into submodules.
            remove_duplicate: yield a parameter with several names under the first only.
        """
        seen: set[object] = set()
        named = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in named if recurse else [(prefix, self)]:
            for name, parameter in module._parameters.items():
                key = (parameter.model, parameter.value.view.buffer)
                if remove_duplicate and key in seen:
                    continue
                seen.add(key)
                yield (f"{path}.{name}" if path else name), parameter

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield each parameter once; `recurse` goes into submodules."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def params_dict(self, prefix: str = "") -> dict[str, Parameter]:
        """Return prefix + dotted name -> parameter, tied ones under each of their names."""
        return {
            prefix + name: parameter
            for name, parameter in self.named_parameters(remove_duplicate=False)
        }

    # Weights.

    def state_dict(self, prefix: str = "") -> dict[str, npt.NDArray[np.generic]]:
        """Return prefix + dotted name -> a copy of the parameter, bit for bit.

        A parameter with several names is one array under all of them. Of a model that is cut over
        ranks it has the whole tensors, on every rank: all ranks call it, and `ark.save` of it;
        `save` needs less memory.

        Raises:
            LifecycleError: before the program has memory, and while it runs.
        """
        return read_parameters(self.params_dict(prefix))

    def save(self, path: str | os.PathLike[str], prefix: str = "") -> None:
        """Write all parameters as a folder of safetensors files, as Hugging Face does.

        Of a model that is cut over ranks all ranks call it. The lowest rank that holds a part of
        a tensor writes the whole of it; nobody holds more than one whole tensor at a time. Any
        number of ranks can load what any number saved. The folder's checkpoint appears at once
        and whole, or the old one stays as it was.

        Args:
            path: the folder; it is made if its parent is there.
            prefix: what to put before the module's own names.

        Raises:
            CheckpointError: where the folder can't be written; the same on all ranks.
            LifecycleError: before the program has memory, and while it runs.
        """
        save_parameters(self.params_dict(prefix), path)

    def load_state_dict(
        self,
        state_dict: Mapping[str, npt.NDArray[np.generic]] | str | os.PathLike[str] | Checkpoint,
        strict: bool = True,
        prefix: str = "",
        *,
        cast: bool = False,
        verify: bool = False,
    ) -> LoadResult:
        """Write all parameters from a state_dict, or none if anything does not fit.

        Args:
            state_dict: prefix + dotted name -> array of the parameter's shape and dtype.
                Names that do not start with `prefix` are left alone. Or the path of a file, or of
                a folder of safetensors files; each rank reads its own slices of those, straight
                to where they belong. Of a model that is cut over ranks all ranks call it.
            strict: every parameter must be there, and nothing else but `unused_names`.
            prefix: what stands before the module's own names.
            cast: convert arrays of another dtype.
            verify: first compare all files with the sha256 that a folder saved by ark_dist has;
                the ranks share that work.

        Returns:
            The names that were missing and those that were not expected, as torch does.

        Raises:
            StateDictError: with all missing, unexpected, misshapen and mistyped names.
            TypeError: for something that is no dict of name to numpy.ndarray, and no path.
            ValueError: for verify with something that is no checkpoint.
            FileNotFoundError: if there is nothing at the path.
            CheckpointError: for files that are damaged or unsafe; a part may be loaded if the
                damage is in the data of a tensor.
            LifecycleError: before the program has memory, and while it runs.
        """
        return load_parameters(
            type(self).__name__,
            self.params_dict(prefix),
            state_dict,
            is_strict=strict,
            is_cast=cast,
            is_verified=verify,
            prefix=prefix,
            unused={prefix + name for name in self.unused_names},
        )


def _forget(name: str, *tables: dict[str, Any] | None) -> None:
    for table in tables:
        if table is not None:
            table.pop(name, None)


def _before_init(module: Module, name: str) -> str:
    kind = type(module).__name__
    return (
        f"{kind}.{name} is used before Module.__init__(); call super().__init__() first in "
        f"{kind}.__init__"
    )
