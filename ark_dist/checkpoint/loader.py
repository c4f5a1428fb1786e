"""Read the parts of a checkpoint that each rank wants, straight to where they belong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from ark_dist.arrays import is_same_dtype
from ark_dist.checkpoint.agree import Agree, alone, share, together
from ark_dist.checkpoint.boxes import check_box
from ark_dist.checkpoint.progress import shown_progress
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.checkpoint.report import (
    Report,
    dtype_problem,
    merge_reports,
    shape_problem,
    unexpected_names,
)
from ark_dist.core.dtype import DType
from ark_dist.core.errors import ArkError, StateDictError
from ark_dist.core.shape import Box, Shape, box_shape, box_size
from ark_dist.launch.fault import fault_point
from ark_dist.safetensors_file import Array

CALL = "load_state_dict"
Write: TypeAlias = Callable[[Array], object]


class LoadResult(NamedTuple):
    """Which names a load that was not strict passed over.

    Attributes:
        missing_keys: parameters that the state_dict does not have.
        unexpected_keys: names in the state_dict that no parameter has.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The part of a tensor that this rank holds.

    Attributes:
        shape: of the whole tensor.
        dtype: what the part will have.
        box: the part, [start, stop) for each dimension of the whole; an empty box where the
            rank knows the tensor and holds nothing of it.
        write: an array of the box's shape, with any strides, that is filled in place; or a
            function that is given one.
        memory: names with one `memory` are one tensor, which is written once.
    """

    shape: Shape
    dtype: DType
    box: Box
    write: Array | Write
    memory: Hashable

    @property
    def is_held(self) -> bool:
        """Whether there is anything to read."""
        return box_size(self.box) > 0


def load_slices(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Wanted],
    *,
    owner: str,
    is_strict: bool = True,
    is_cast: bool = False,
    prefix: str = "",
    unused: Collection[str] = (),
    is_shown: bool = False,
    rank: int = 0,
    agree: Agree = alone,
) -> LoadResult:
    """Read what this rank wants, once everything that any rank wants was found to fit.

    Every rank calls it, with names of its own in `wanted`.

    Args:
        checkpoint: one that this rank has opened.
        wanted: name, with the prefix -> the part to read.
        owner: the module's name in errors.
        is_strict: all names must be there, and none that no rank wants.
        is_cast: convert tensors of another dtype.
        prefix: names of the checkpoint that do not start with it are left alone.
        unused: names, with the prefix, that may be there besides.
        is_shown: show how far it is; for one rank.
        rank: this rank.
        agree: gives a text to all ranks, and returns what each of them gave.

    Returns:
        The names of all ranks that were missing, and those that no rank expects.

    Raises:
        StateDictError: with everything of all ranks that does not fit; nothing was written.
        ShardCorruptError: for a file that turns out to be damaged; a part may be written.
    """
    report = together(agree, lambda: _look(checkpoint, wanted, is_cast, prefix, unused))
    report = merge_reports(share(agree, report.dump()))
    problems = report.problems(is_strict)
    if problems:
        text = "\n  ".join([f"{CALL}: nothing was loaded into {owner}:", *problems])
        raise StateDictError(f"{text}\n  in {checkpoint.path}")
    together(agree, lambda: _read_all(checkpoint, wanted, is_shown, rank))
    return LoadResult([*report.missing], [*report.unexpected])


def _look(
    checkpoint: Checkpoint,
    wanted: Mapping[str, Wanted],
    is_cast: bool,
    prefix: str,
    unused: Collection[str],
) -> Report:
    shapes, dtypes, ties = [], [], []
    first_names: dict[Hashable, str] = {}
    loaded = {want.memory for name, want in wanted.items() if name in checkpoint.tensors}
    for name, want in _found(checkpoint, wanted).items():
        info = checkpoint.tensors[name]
        if want.is_held:
            check_box(CALL, name, want.box, want.shape)
        first = first_names.setdefault(want.memory, name)
        if info.shape != want.shape:
            shapes.append(shape_problem(name, want.shape, info.shape))
        elif not (is_cast or is_same_dtype(info.dtype, want.dtype)):
            dtypes.append(dtype_problem(name, want.dtype, info.dtype))
        elif not _is_tie(checkpoint, first, name, want):
            ties.append(f"{first} and {name}")
    return Report(
        tuple(n for n, w in wanted.items() if w.memory not in loaded),
        tuple(unexpected_names(checkpoint.tensors, {*wanted, *unused}, prefix)),
        tuple(shapes),
        tuple(dtypes),
        tuple(ties),
    )


def _is_tie(checkpoint: Checkpoint, first: str, name: str, want: Wanted) -> bool:
    """Whether two names of one memory have the same data; a wrong shape is told elsewhere."""
    if checkpoint.tensors[first].shape != want.shape:
        return True
    return checkpoint.is_equal(first, name, want.box, want.dtype.numpy)


def _found(checkpoint: Checkpoint, wanted: Mapping[str, Wanted]) -> dict[str, Wanted]:
    return {name: want for name, want in wanted.items() if name in checkpoint.tensors}


def _read_all(
    checkpoint: Checkpoint, wanted: Mapping[str, Wanted], is_shown: bool, rank: int
) -> None:
    jobs = _planned(checkpoint, wanted)
    first = checkpoint.tensors[jobs[0][0][0]].file if jobs else None
    fault_point("load", rank, None if first is None else Path(first))
    total_bytes = sum(_size(job[0][1]) for job in jobs)
    with shown_progress("loading weights", total_bytes, is_shown) as advance:
        for done, job in enumerate(jobs):
            try:
                _read_job(checkpoint, job)
            except ArkError as error:
                raise type(error)(
                    f"{error}; {done} of {len(jobs)} tensors were loaded: load them all again "
                    "before a run"
                ) from error
            advance(_size(job[0][1]))


def _size(want: Wanted) -> int:
    return box_size(want.box) * want.dtype.itemsize


def _planned(
    checkpoint: Checkpoint, wanted: Mapping[str, Wanted]
) -> list[list[tuple[str, Wanted]]]:
    """Return the reads in the files' order, each with all places that it goes to."""
    jobs: dict[Hashable, list[tuple[str, Wanted]]] = {}
    seen: set[Hashable] = set()
    for name, want in _found(checkpoint, wanted).items():
        if want.is_held and want.memory not in seen:
            seen.add(want.memory)
            info = checkpoint.tensors[name]
            key = (info.file, info.offset, info.name, want.box, want.dtype.name)
            jobs.setdefault(key, []).append((name, want))
    infos = checkpoint.tensors
    return sorted(jobs.values(), key=lambda job: (infos[job[0][0]].file, infos[job[0][0]].offset))


def _read_job(checkpoint: Checkpoint, job: list[tuple[str, Wanted]]) -> None:
    (name, want), *others = job
    if isinstance(want.write, np.ndarray):
        array = want.write
    else:
        array = np.empty(box_shape(want.box), want.dtype.numpy)
    checkpoint.read(name, want.box, array, is_cast=True)
    if not isinstance(want.write, np.ndarray):
        want.write(array)
    for _, other in others:
        if isinstance(other.write, np.ndarray):
            other.write[...] = array
        else:
            other.write(array)
