"""Hold the current model and the logger, and offer a model's calls on the current one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from ark_dist.core.dtype import FP32, INT32, DTypeLike
from ark_dist.core.errors import ConfigError
from ark_dist.core.groups import check_world
from ark_dist.core.layout import P
from ark_dist.core.settings import read_settings

if TYPE_CHECKING:
    from ark_dist.model import Model
    from ark_dist.tensors import Parameter, Tensor
    from ark_dist.world import World

LOGGER = logging.getLogger("ark_dist")
_PACKAGE = Path(__file__).parent
# The current model, and whether a runtime has taken it.
_current: ContextVar[tuple[Model, bool] | None] = ContextVar("ark_dist_model", default=None)


def init(*, reset: bool = False) -> None:
    """Prepare the library and connect to the other ranks; safe to call any number of times.

    Args:
        reset: forget the current model, so that the next tensor starts a new one.

    Raises:
        ConfigError: the launcher's variables can't be.
        CommTimeout: not all ranks came in time.
    """
    set_up_logging()
    _world()
    if reset:
        drop_model()


def rank() -> int:
    """This process's rank, from 0; the first call connects it to the others.

    Raises:
        ConfigError: the launcher's variables can't be.
        CommTimeout: not all ranks came in time.
    """
    return _world().rank


def world_size() -> int:
    """The number of processes that run the program together; see `rank`."""
    return _world().size


def check_ranks(call: str, rank: int | None, world_size: int | None) -> World:
    """Return the ranks that a program runs on; what is None is as the process was started.

    Raises:
        TypeError: for numbers that are no integers.
        ValueError: for a rank outside the world.
        ConfigError: for ranks that are not those of this process, unless it is to run alone.
    """
    from ark_dist.world import ALONE

    here = _world()
    if world_size is None:
        world_size = here.size
    if rank is None:
        rank = here.rank if world_size == here.size else 0
    check_world(call, rank, world_size)
    if (rank, world_size) == (here.rank, here.size):
        return here
    if world_size == 1:
        return ALONE
    raise ConfigError(
        f"{call}: rank is {rank} and world_size is {world_size}, but this process is rank "
        f"{here.rank} of {here.size}; leave both out, or start {world_size} processes with mpirun"
    )


def _world() -> World:
    # Only here: what connects ranks is not needed to import the package.
    from ark_dist import world

    return world.current()


def current_model() -> Model:
    """The model that module-level calls such as `ark.tensor` build; made on first use."""
    from ark_dist.model import Model

    entry = _current.get()
    if entry is None:
        entry = (Model(), False)
        _current.set(entry)
    return entry[0]


def take_model() -> Model:
    """Return the current model for a runtime to own, or a new one if another owns it."""
    entry = _current.get()
    if entry is None or entry[1] or entry[0].binding is not None:
        drop_model()
    model = current_model()
    _current.set((model, True))
    return model


def drop_model(model: Model | None = None) -> None:
    """Forget the current model; if one is given, only that one."""
    entry = _current.get()
    if entry is not None and (model is None or entry[0] is model):
        _current.set(None)


def tensor(
    shape: int | Sequence[int],
    dtype: DTypeLike = FP32,
    *,
    name: str | None = None,
    shard: P | None = None,
) -> Tensor:
    """Add an input to the current model; see `Model.tensor`."""
    return current_model().tensor(shape, dtype, name=name, shard=shard)


def parameter(
    shape: int | Sequence[int],
    dtype: DTypeLike = FP32,
    *,
    name: str | None = None,
    shard: P | None = None,
) -> Parameter:
    """Add a weight to the current model; see `Model.parameter`."""
    return current_model().parameter(shape, dtype, name=name, shard=shard)


def constant(
    value: object,
    shape: int | Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
    *,
    name: str | None = None,
) -> Tensor:
    """Add a constant to the current model; see `Model.constant`."""
    return current_model().constant(value, shape, dtype, name=name)


def zeros(
    shape: int | Sequence[int], dtype: DTypeLike = FP32, *, name: str | None = None
) -> Tensor:
    """Add a constant of zeros to the current model; see `Model.zeros`."""
    return current_model().zeros(shape, dtype, name=name)


def ones(shape: int | Sequence[int], dtype: DTypeLike = FP32, *, name: str | None = None) -> Tensor:
    """Add a constant of ones to the current model; see `Model.ones`."""
    return current_model().ones(shape, dtype, name=name)


def full(
    shape: int | Sequence[int],
    value: int | float | bool,
    dtype: DTypeLike = FP32,
    *,
    name: str | None = None,
) -> Tensor:
    """Add a constant with one value everywhere to the current model; see `Model.full`."""
    return current_model().full(shape, value, dtype, name=name)


def state(
    shape: int | Sequence[int],
    dtype: DTypeLike = FP32,
    *,
    name: str | None = None,
    init: object = 0,
    shard: P | None = None,
) -> Tensor:
    """Add memory that lives across iterations to the current model; see `Model.state`."""
    return current_model().state(shape, dtype, name=name, init=init, shard=shard)


def scalar(name: str, dtype: DTypeLike = INT32, *, init: int | float | bool = 0) -> Tensor:
    """Add a scalar that a run can set to the current model; see `Model.scalar`."""
    return current_model().scalar(name, dtype, init=init)


def assign(state: Tensor, value: Tensor | int | float | bool) -> Tensor:
    """Write a value into a state of the state's own model; see `Model.assign`."""
    return _model_of(state).assign(state, value)


def keep(tensor: Tensor) -> Tensor:
    """Let the host read a tensor after a run, though operators use it; see `Model.keep`."""
    return _model_of(tensor).keep(tensor)


def method(name: str) -> AbstractContextManager[None]:
    """Add the operators of a block to a method of the current model; see `Model.method`."""
    return current_model().method(name)


def stage(index: int) -> AbstractContextManager[None]:
    """Let the operators of a block run in one pipeline stage of the mesh; see `Model.stage`.

    It counts for the current model.
    """
    return current_model().stage(index)


def shard(tensor: Tensor, shard: P) -> Tensor:
    """Say how the mesh cuts a tensor of any model; see `Model.shard`."""
    return _model_of(tensor).shard(tensor, shard)


def _model_of(value: object) -> Model:
    from ark_dist.tensors import Tensor

    return value.model if isinstance(value, Tensor) else current_model()


def set_up_logging() -> None:
    """Print INFO lines to stderr, unless the user has set up logging."""
    if LOGGER.hasHandlers():
        return
    level = read_settings().log_level
    try:
        LOGGER.setLevel(level)
    except ValueError:
        raise ValueError(
            f"ARK_DIST_LOG is {level!r}; it must be DEBUG, INFO, WARNING, ERROR or CRITICAL"
        ) from None
    LOGGER.addHandler(_StderrHandler())


class _StderrHandler(logging.Handler):
    """Writes `LEVEL file:line message` to whatever stderr is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers:
            return  # the user has set up logging since
        path = Path(record.pathname)
        if path.is_relative_to(_PACKAGE):
            path = path.relative_to(_PACKAGE.parent)
        line = f"{record.levelname} {path}:{record.lineno} {record.getMessage()}\n"
        sys.stderr.write(line)
