"""Turn a path into the checked headers of a checkpoint's files, before any data is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ark_dist.bounded_json import shown
from ark_dist.checkpoint.index import (
    INDEX_NAME,
    INDEX_SUFFIX,
    MAX_INDEX_BYTES,
    SINGLE_NAME,
    Index,
    parse_index,
)
from ark_dist.core.errors import CheckpointError
from ark_dist.json_file import read_bytes
from ark_dist.listing import listed
from ark_dist.safetensors_file import (
    MAX_TENSORS,
    Entry,
    open_regular,
    read_header,
)


@dataclass(frozen=True, slots=True)
class Shard:
    """A checked file: what it holds, and how to tell it from another one of its name."""

    tensors: Mapping[str, Entry]
    tied: Mapping[str, str]
    metadata: Mapping[str, str]
    size_bytes: int
    identity: tuple[int, int]
    allow_links: bool


def open_shards(path: Path, allow_links: bool) -> tuple[dict[str, Shard], dict[str, str]]:
    """Return the checked files by path, and the sha256 of each if the checkpoint has them.

    Raises as `open_checkpoint` does.
    """
    if not _is_folder(path):
        if path.name.endswith(INDEX_SUFFIX):
            return _open_index(path, allow_links)
        # The caller named this very file: a link may lead to it.
        return {str(path): _open_shard(path, allow_links=True)}, {}
    if _is_there(path / INDEX_NAME):
        return _open_index(path / INDEX_NAME, allow_links)
    if _is_there(path / SINGLE_NAME):
        single = path / SINGLE_NAME
        return {str(single): _open_shard(single, allow_links)}, {}
    raise CheckpointError(
        f"{path}: found a folder of {_contents(path)}, wanted {INDEX_NAME} or {SINGLE_NAME} in it; "
        "ark.save(ark.load(file), 'folder/') converts files of other formats"
    )


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be opened for reading: {error}") from error


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _contents(folder: Path) -> str:
    return listed(sorted(shown(name) for name in os.listdir(folder))) or "no files"  # noqa: PTH208


def read_index(path: Path, allow_links: bool) -> Index:
    """Return the checked index in a file; raise CheckpointError on any flaw."""
    text = read_bytes(path, MAX_INDEX_BYTES, allow_links=allow_links)
    try:
        return parse_index(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: damaged index of {len(text)} bytes: found {error}; fetch or save it again"
        ) from error


def _open_index(path: Path, allow_links: bool) -> tuple[dict[str, Shard], dict[str, str]]:
    index = read_index(path, allow_links)
    folder = path.parent
    missing = [shown(name) for name in index.shards if not _is_there(folder / name)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(index.shards)} files are not there: "
            f"{listed(missing)}; fetch them"
        )
    shards: dict[str, Shard] = {}
    found_bytes = 0
    for name in index.shards:
        shard = _open_shard(folder / name, allow_links)
        found_bytes += sum(entry.end - entry.begin for entry in shard.tensors.values())
        shards[name] = _chosen(path, index, name, shard)
    _check_aliases(path, index, shards)
    chosen_bytes = sum(e.end - e.begin for s in shards.values() for e in s.tensors.values())
    # Some tools count what is in the files, others what the index lists.
    if index.size_bytes not in (None, chosen_bytes, found_bytes):
        raise CheckpointError(
            f"{path}: found a total_size of {index.size_bytes} bytes, but its tensors have "
            f"{chosen_bytes}; fetch or save it again"
        )
    places = {name: str(folder / name) for name in shards}
    sums = {places[name]: digest for name, digest in index.sums.items()}
    return {places[name]: shard for name, shard in shards.items()}, sums


def _chosen(path: Path, index: Index, name: str, shard: Shard) -> Shard:
    """Return the shard with the tensors that the index wants from it."""
    wanted = [tensor for tensor, file in index.files.items() if file == name]
    lost = [t for t in wanted if t not in shard.tensors and t not in shard.tied]
    if lost:
        raise CheckpointError(
            f"{path}: {name} of {shard.size_bytes} bytes does not hold {len(lost)} tensors that "
            f"the index puts there: {listed([shown(t) for t in lost])}; fetch or save it again"
        )
    names = {shard.tied.get(tensor, tensor) for tensor in wanted}
    tensors = {n: entry for n, entry in shard.tensors.items() if n in names}
    tied = {alias: source for alias, source in shard.tied.items() if source in tensors}
    return Shard(tensors, tied, shard.metadata, shard.size_bytes, shard.identity, shard.allow_links)


def _check_aliases(path: Path, index: Index, shards: Mapping[str, Shard]) -> None:
    seen: set[str] = set()
    for name, shard in shards.items():
        for alias in (*shard.tied, *shard.tensors):
            if alias in seen or index.files.get(alias, name) != name:
                raise CheckpointError(f"{path}: {shown(alias)} is in two files, {name} is one")
            seen.add(alias)
    if len(seen) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(seen)} names, wanted at most {MAX_TENSORS}")


def _open_shard(path: Path, allow_links: bool) -> Shard:
    fd = open_regular(str(path), allow_links=allow_links)
    try:
        status = os.fstat(fd)
        header = read_header(fd, str(path))
    finally:
        os.close(fd)
    return Shard(
        header.tensors,
        header.tied,
        header.metadata,
        status.st_size,
        (status.st_dev, status.st_ino),
        allow_links,
    )
