"""Look at the files of a language model's folder before anything is made of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ark_dist.checkpoint.index import INDEX_NAME, SINGLE_NAME
from ark_dist.checkpoint.reader import Checkpoint, open_checkpoint
from ark_dist.core.errors import CheckpointError
from ark_dist.models.llama_config import read_llama_config
from ark_dist.tokenizer import load_tokenizer

# Where Hugging Face's cache has what the links in its folder `snapshots/<revision>` lead to.
SNAPSHOTS, BLOBS = "snapshots", "blobs"


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise what a `LanguageModel` would for a folder's files, without reading the weights."""
    read_llama_config(folder)
    load_tokenizer(folder)
    open_weights(folder).close()


def open_weights(folder: str | os.PathLike[str]) -> Checkpoint:
    """Open the weights of a folder, which may be one of Hugging Face's cache.

    Raises:
        CheckpointError: as `open_checkpoint`, and for links that lead elsewhere.
    """
    root = Path(folder)
    check_links(root, (INDEX_NAME, SINGLE_NAME))
    checkpoint = open_checkpoint(root, allow_links=True)
    try:
        check_links(root, {Path(info.file).name for info in checkpoint.tensors.values()})
    except CheckpointError:
        checkpoint.close()
        raise
    return checkpoint


def check_links(root: Path, names: Iterable[str]) -> None:
    """Refuse links among these files that lead out of the folder, but to where Hugging Face's do.

    What such a link names would be read, and perhaps copied, in the folder's place.

    Raises:
        CheckpointError: for the first such link.
    """
    folder = real_path(root)
    homes = [folder]
    if folder.parent.name == SNAPSHOTS:
        homes.append(real_path(folder.parent.parent / BLOBS))
    for name in names:
        path = root / name
        if path.is_symlink():
            found = real_path(path)
            if not any(found.is_relative_to(home) for home in homes):
                raise CheckpointError(
                    f"{path}: found a link to {found}, wanted a file of this folder or of Hugging "
                    "Face's cache; copy it here if you trust it"
                )


def real_path(path: Path) -> Path:
    """Follow all links; Path.resolve raises RuntimeError for those that go round."""
    return Path(os.path.realpath(path))
