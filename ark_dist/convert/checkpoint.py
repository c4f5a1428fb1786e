"""Turn a Llama's Hugging Face folder into one with weights of another dtype."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ark_dist.bounded_json import shown
from ark_dist.checkpoint.boxes import cut_box, inside
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.checkpoint.saver import MAX_SHARD_BYTES
from ark_dist.checkpoint.shards import Layout
from ark_dist.convert.int8 import SUFFIX
from ark_dist.convert.rounding import rounded
from ark_dist.convert.target_folder import (
    Converted,
    check_dtype,
    checked_place,
    making,
    write_files,
    write_weights,
)
from ark_dist.convert.weights import BESIDE_INT8, FLOATS, TORCH_DTYPES, Weights, is_matrix
from ark_dist.core.dtype import INT8
from ark_dist.core.errors import CheckpointError
from ark_dist.core.shape import box_shape, full_box
from ark_dist.json_file import read_bytes
from ark_dist.listing import listed
from ark_dist.model_folder import check_links, open_weights, real_path
from ark_dist.models import quantization as quantization_config
from ark_dist.models.config_file import FILE, read_config
from ark_dist.models.llama_config import llama_config
from ark_dist.safetensors_file import Array, Dtype
from ark_dist.tokenizer import MAX_TOKENIZER_BYTES

# Copied where they are there.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
# transformers 5 writes the second one.
DTYPE_KEYS = ("torch_dtype", "dtype")
# Elements that are read and rounded at a time.
_PIECE_ELEMS = 4 << 20


def convert_folder(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "bf16",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    is_shown: bool = False,
) -> Converted:
    """Write a Llama's folder once more, its weights rounded to nearest in `dtype`.

    The folder is made under another name beside its place and renamed when it is complete. All
    tensors are taken: floats become "bf16", "fp16" or "fp32". With "int8" matrices are, with a
    scale per row in fp32, and the other floats are in bf16. `config.json` says so and is the same
    otherwise, and the tokenizer's files are copied.

    Args:
        source: a folder as Hugging Face has it, its cache included.
        target: the folder to make; it must be absent or empty, its parent must be there.
        dtype: of all weights in the folder.
        max_shard_bytes: where to begin another file of weights.
        is_shown: whether to show on stderr how far it is.

    Raises:
        ValueError: for another dtype.
        ModelConfigError: for a folder without config.json, and for another model than a Llama.
        CheckpointError: for files that are missing, damaged or links out of the folder, weights
            that are int8 already or don't fit `dtype`, and a folder that can't be written.
    """
    check_dtype(dtype)
    root = Path(source)
    _check_apart(root, Path(target))
    place = checked_place(Path(target))
    check_links(root, (FILE, *COPIED))
    config = _config(root, dtype)
    with open_weights(root) as checkpoint:
        weights = _weights(checkpoint, dtype)
        files = _copied(root)
        with making(place) as folder:
            write_weights(folder, weights, max_shard_bytes, is_shown)
            write_files(folder, {**files, FILE: config})
    count = len(checkpoint.tensors) - len(checkpoint.tied)
    return Converted(str(place), dtype, count, weights.size_bytes)


def _check_apart(root: Path, target: Path) -> None:
    """Refuse what would need room in the source, or be told to remove it."""
    here, there = real_path(root), real_path(target)
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise CheckpointError(
            f"{target}: found the folder to convert, or one in it or around it; name another place"
        )


def _config(root: Path, dtype: str) -> bytes:
    """Return the new config.json."""
    keys = read_config(root)
    if llama_config(keys.table, keys.source).is_int8:
        way_out = "use it as it is" if dtype == INT8.name else "convert what it was made from"
        raise CheckpointError(f"{root}: its matrices are int8 already; {way_out}")
    is_int8 = dtype == INT8.name
    table = {key: value for key, value in keys.table.items() if key != quantization_config.KEY}
    for key in [key for key in DTYPE_KEYS if key in table] or DTYPE_KEYS[:1]:
        table[key] = TORCH_DTYPES[BESIDE_INT8 if is_int8 else dtype]
    if is_int8:
        table[quantization_config.KEY] = quantization_config.INT8
    return (json.dumps(table, indent=2) + "\n").encode()


def _weights(checkpoint: Checkpoint, dtype: str) -> Weights:
    layouts = {
        name: Layout(info.shape, info.dtype)
        for name, info in checkpoint.tensors.items()
        if name not in checkpoint.tied
    }
    if dtype == INT8.name:
        _check_no_int8(checkpoint.path, layouts)

    def read(name: str, wanted: Dtype) -> Array:
        return _read(checkpoint, name, wanted)

    return Weights(layouts, read, dtype, checkpoint.tied)


def _check_no_int8(path: str, layouts: Mapping[str, Layout]) -> None:
    """Refuse what would be no matrix with its scales afterwards."""
    found = [
        shown(name)
        for name, layout in layouts.items()
        if name.endswith(f".weight{SUFFIX}")
        or (is_matrix(name, layout) and layout.dtype not in FLOATS)
    ]
    if found:
        raise CheckpointError(
            f"{path}: found matrices that are no floats, or scales of some: {listed(found)}; "
            "convert a folder of floats"
        )


def _read(checkpoint: Checkpoint, name: str, dtype: Dtype) -> Array:
    """Return a tensor, rounded to nearest if it holds floats."""
    info = checkpoint.tensors[name]
    place, box = f"{info.file}: tensor {shown(name)}", full_box(info.shape)
    out: Array = np.empty(info.shape, dtype)
    for part in cut_box(box, _PIECE_ELEMS):
        exact: Array = np.empty(box_shape(part), info.dtype)
        checkpoint.read(name, part, exact)
        out[inside(part, box)] = rounded(exact, dtype, place) if info.dtype in FLOATS else exact
    return out


def _copied(root: Path) -> dict[str, bytes]:
    """Return the small files by name."""
    files = {}
    for name in COPIED:
        try:
            files[name] = read_bytes(root / name, MAX_TOKENIZER_BYTES)
        except FileNotFoundError:
            continue
    return files
