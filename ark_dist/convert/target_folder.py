"""Make the folder that a conversion writes, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ark_dist.checkpoint.atomic import replacing, sync_folder
from ark_dist.checkpoint.progress import shown_progress
from ark_dist.checkpoint.saver import save_checkpoint
from ark_dist.convert.weights import TARGET_DTYPES, Weights
from ark_dist.core.errors import CheckpointError
from ark_dist.safetensors_file import Array


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion has made.

    Attributes:
        path: the folder.
        dtype: one of `TARGET_DTYPES`.
        tensors: how many were converted; scales are not counted.
        size_bytes: of all tensors, scales included.
    """

    path: str
    dtype: str
    tensors: int
    size_bytes: int


def check_dtype(dtype: str) -> None:
    """Raise ValueError for what nothing can be converted to."""
    if dtype not in TARGET_DTYPES:
        raise ValueError(f"convert: dtype is {dtype!r}; it must be {', '.join(TARGET_DTYPES)}")


def checked_place(place: Path) -> Path:
    """Return where the folder goes, without dots; raise CheckpointError if it can't go there."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise CheckpointError(f"{place}: found a file or a symlink, wanted nothing to convert to")
    if place.is_dir() and any(place.iterdir()):
        raise CheckpointError(
            f"{place}: found a folder that is not empty; remove what is in it, or name another one"
        )
    place = place.resolve()
    if not place.parent.is_dir():
        raise CheckpointError(f"{place}: there is no folder {place.parent}; make it first")
    return place


@contextmanager
def making(place: Path) -> Iterator[Path]:
    """Give a new folder beside `place`, which takes its place at the end unless there was an error.

    It lies in one with a lock, `.<name>.convert`: what a conversion that was killed has left is
    removed by the next one.
    """
    workplace = place.with_name(f".{place.name}.convert")
    with _named_errors(place), _locked(workplace):
        folder = workplace / "folder"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            yield folder
            checked_place(place)
            sync_folder(folder, place)
            folder.rename(place)  # replaces an empty folder, and nothing else
            sync_folder(place.parent, place)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write small files by name."""
    for name, data in files.items():
        with replacing(folder / name, folder / f".{name}.tmp") as write:
            write(data)


def write_weights(folder: Path, weights: Weights, max_shard_bytes: int, is_shown: bool) -> None:
    """Write index and weights, and show on stderr how far it is."""
    with shown_progress("converting", weights.size_bytes, is_shown) as advance:

        def gather(name: str) -> Array:
            array = weights.read(name)
            advance(array.nbytes)
            return array

        save_checkpoint(
            folder, weights.layouts, gather, tied=weights.tied, max_shard_bytes=max_shard_bytes
        )


@contextmanager
def _locked(workplace: Path) -> Iterator[None]:
    with suppress(FileExistsError):
        workplace.mkdir()
    fd = os.open(workplace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CheckpointError(f"{workplace}: another process converts to it now; wait") from None
    finally:
        os.close(fd)


@contextmanager
def _named_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{place}: can't be written: {error.strerror}") from error
