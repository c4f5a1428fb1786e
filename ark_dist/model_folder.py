"""Look at the files of a language model's folder before anything is made of them."""

from __future__ import annotations

import os

from ark_dist.checkpoint.reader import open_checkpoint
from ark_dist.models.llama_config import read_llama_config
from ark_dist.tokenizer import load_tokenizer


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise what a `LanguageModel` would for a folder's files, without reading the weights."""
    read_llama_config(folder)
    load_tokenizer(folder)
    open_checkpoint(folder).close()
