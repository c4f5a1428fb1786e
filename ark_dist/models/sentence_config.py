"""Read from a folder of Sentence Transformers how its model makes vectors of texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ark_dist.core.errors import ModelConfigError
from ark_dist.json_file import read_json, read_json_list
from ark_dist.models.config_file import MAX_BYTES, Keys, config_errors

MODULES, SENTENCES = "modules.json", "sentence_bert_config.json"
# What a vector goes through, by the last part of its type's name.
TRANSFORMER, POOLING, NORMALIZE = "Transformer", "Pooling", "Normalize"
MODE, MEAN = "pooling_mode", "pooling_mode_mean_tokens"
# A token between the two around every text.
SHORTEST = 3


@dataclass(frozen=True, slots=True)
class SentenceConfig:
    """How texts become tokens.

    Attributes:
        max_length: the most tokens of a text; longer ones are cut.
        is_lower: whether texts are written in small letters first.
    """

    max_length: int
    is_lower: bool


def read_sentence_config(folder: str | os.PathLike[str], positions: int) -> SentenceConfig:
    """Read what a folder says besides its config.json; a plain BERT's says nothing.

    Args:
        folder: the model.
        positions: tokens that the model was made for; no text is longer.

    Raises:
        ModelConfigError: for a damaged file, and for vectors that are made in another way than
            as the mean over tokens.
    """
    root = Path(folder)
    for keys in _poolings(root):
        _check_pooling(keys)
    sentences = _read_table(root / SENTENCES)
    length = min(sentences.size("max_seq_length", positions), positions)
    if length < SHORTEST:
        raise sentences.error(f"a text may have {length} tokens, wanted at least {SHORTEST}")
    return SentenceConfig(length, sentences.flag("do_lower_case"))


def _read_table(path: Path) -> Keys:
    with config_errors(path, "a model's folder with it"):
        try:
            return Keys(read_json(path, max_bytes=MAX_BYTES), str(path))
        except FileNotFoundError:
            return Keys({}, str(path))


def _poolings(root: Path) -> Iterator[Keys]:
    """Yield the configurations of the modules that make one vector of many."""
    path = root / MODULES
    with config_errors(path, "a model's folder with it"):
        try:
            modules = read_json_list(path, max_bytes=MAX_BYTES)
        except FileNotFoundError:
            return
    for module in modules:
        kind, place = _module(module, str(path))
        if kind == POOLING:
            yield _read_table(root / place / "config.json")


def _module(module: object, source: str) -> tuple[str, str]:
    """Return a module's kind and folder."""
    if not isinstance(module, dict):
        raise ModelConfigError(f"{source}: holds {module!r:.80}, wanted a list of objects")
    kind, place = module.get("type"), module.get("path")
    if not isinstance(kind, str) or not isinstance(place, str):
        raise ModelConfigError(
            f"{source}: a module has the type {kind!r:.80} and the path {place!r:.80}, wanted texts"
        )
    name = kind.rpartition(".")[2]
    if name not in (TRANSFORMER, POOLING, NORMALIZE):
        raise ModelConfigError(
            f"{source}: a module is a {kind!r:.80}; only {TRANSFORMER}, {POOLING} and {NORMALIZE} "
            "are supported"
        )
    # It must not lead out of the folder.
    if "/" in place or "\0" in place or place.startswith("."):
        raise ModelConfigError(f"{source}: a module has the path {place!r:.80}, wanted a name")
    return name, place


def _check_pooling(keys: Keys) -> None:
    """Refuse all but the mean over tokens."""
    mode = keys.table.get(MODE)
    if mode not in (None, "mean"):
        raise keys.error(f"{MODE} is {mode!r:.80}; only 'mean' is supported")
    for name in keys.table:
        if name.startswith(f"{MODE}_") and name != MEAN and keys.flag(name):
            raise keys.error(f"{name!r:.80} is true; only {MEAN} is supported")
    if mode is None and not keys.flag(MEAN):
        raise keys.error(f"{MEAN} is not true; nothing else is supported")
