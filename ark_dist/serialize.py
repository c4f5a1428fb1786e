"""Turn state_dicts into files, files into state_dicts, and NumPy arrays into torch tensors."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import ml_dtypes
import numpy as np

from ark_dist.checkpoint.agree import ALONE, Ranks, check_same_path, together
from ark_dist.checkpoint.atomic import replacing
from ark_dist.checkpoint.index import INDEX_SUFFIX
from ark_dist.checkpoint.reader import Checkpoint, open_checkpoint, read_all
from ark_dist.checkpoint.saver import save_checkpoint
from ark_dist.checkpoint.shards import Layout
from ark_dist.core.errors import CheckpointError
from ark_dist.safe_pickle import load_pickle
from ark_dist.safetensors_file import (
    CODES,
    LENGTH_BYTES,
    Array,
    Dtype,
    build_header,
    check_bools,
    check_name,
    copy_native,
    count_bytes,
    native,
    open_regular,
    read_into,
    refuse_pointer,
)
from ark_dist.weight_zip import load_zip

if TYPE_CHECKING:
    import torch  # type: ignore[import-not-found,unused-ignore]  # reason: an optional package

StateDict: TypeAlias = dict[str, Array]

FORMATS = "safetensors, .npz, a torch checkpoint, a pickle of a dict of arrays"
PICKLE_PROTOCOLS = b"\x02\x03\x04\x05"
_HEAD_BYTES = 32
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class RankedStateDict(dict[str, Array]):
    """A state_dict that all ranks of a model have and save together; its copies are dicts."""

    def __init__(self, arrays: Mapping[str, Array], ranks: Ranks) -> None:
        """Take arrays that are the same on all of `ranks`."""
        super().__init__(arrays)
        self.ranks = ranks

    def __reduce__(self) -> tuple[type[StateDict], tuple[StateDict]]:
        """Let copies and pickles be of this rank alone."""
        return dict, (dict(self),)


def save(state_dict: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
    """Write a state_dict as one safetensors file, whatever the file is called.

    A path that ends with "/" is a folder: it gets safetensors files of up to 5 GB with an index,
    as Hugging Face has them. The file, or the folder's checkpoint, appears at once and whole, or
    the old one stays as it was. Names that share one array are written once and stay tied.

    What `Module.state_dict()` returns of a model that is cut over ranks is saved by all ranks
    together: each calls this with the same path, rank 0 writes, and all raise what it raises.
    `dict(state_dict)` is this rank's alone.

    Raises TypeError and ValueError for what can't be saved, CheckpointError where the file can't
    be written.
    """
    ranks = state_dict.ranks if isinstance(state_dict, RankedStateDict) else ALONE
    arrays, tied = together(ranks.agree, lambda: _split_tied(_check_arrays(state_dict)))
    name = os.fspath(path)
    check_same_path("save", ranks, name)
    if name.endswith("/"):
        tensors = {name: Layout(array.shape, _native(array)) for name, array in arrays.items()}
        save_checkpoint(
            path,
            tensors,
            arrays.__getitem__,
            tied=tied,
            rank=ranks.rank,
            world_size=ranks.world_size,
            agree=ranks.agree,
        )
        return
    together(ranks.agree, lambda: _save_file(name, arrays, tied) if ranks.is_first else None)


def _save_file(path: str, arrays: StateDict, tied: Mapping[str, str]) -> None:
    # Large items first keeps each tensor aligned to its own item size.
    names = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    layouts = {name: (_native(arrays[name]), arrays[name].shape) for name in names}
    header = build_header(layouts, tied)
    target = Path(path)
    temporary = target.parent / f".ark_dist-{secrets.token_hex(8)}.tmp"
    with replacing(target, temporary) as write:
        write(header)
        for name in names:
            wanted = layouts[name][0].newbyteorder("<")
            flat = np.ascontiguousarray(arrays[name], wanted).reshape(-1)
            write(flat.view(np.uint8).data)


def _native(array: Array) -> Dtype:
    dtype = native(array.dtype)
    assert dtype is not None  # checked with the array
    return dtype


def _check_arrays(state_dict: object) -> StateDict:
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"save: found a {type(state_dict).__name__}, wanted a dict of name to numpy.ndarray"
        )
    arrays = dict(state_dict)
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"save: found the key {name!r}, wanted a str")
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise TypeError(
                f"save: {name!r} is a {type(array).__name__}, wanted a numpy.ndarray; "
                "see convert_state_dict"
            )
        if native(array.dtype) is None:
            wanted = ", ".join(str(dtype) for dtype in CODES)
            raise TypeError(f"save: {name!r} has the dtype {array.dtype}, wanted {wanted}")
        try:
            check_name(name)
            count_bytes(array.shape, array.dtype.itemsize)
            check_bools(np.ascontiguousarray(array) if array.dtype == np.bool_ else array)
        except ValueError as error:
            raise ValueError(f"save: {name[:80]!r} has {error}") from None
    return arrays


def _split_tied(arrays: StateDict) -> tuple[StateDict, dict[str, str]]:
    """Return the arrays to write, and alias -> name for those that share all their memory."""
    first: dict[object, str] = {}
    tied: dict[str, str] = {}
    for name, array in arrays.items():
        source = first.setdefault(_memory(array), name)
        if source != name:
            tied[name] = source
    return {name: array for name, array in arrays.items() if name not in tied}, tied


def _memory(array: Array) -> object:
    if not array.size:
        return id(array)
    return array.ctypes.data, array.shape, array.strides, array.dtype.str


def load(path: str | os.PathLike[str]) -> StateDict:
    """Return the name -> array of a file or folder; each array is writable and in memory.

    A folder holds safetensors files, and an index if there are several. A file's format is told
    from its content: safetensors, .npz, a torch checkpoint, or a pickle, of which only arrays in
    a dict are read and nothing is run. Names that were tied come back as one array. Raises
    FileNotFoundError where there is no file, and CheckpointError for a file that is damaged,
    unsafe, or of another format.
    """
    checkpoint = find_checkpoint(path)
    if checkpoint is not None:
        with checkpoint:
            return read_all(checkpoint)
    name = os.fspath(path)
    fd = open_regular(name)
    with os.fdopen(fd, "rb") as file:
        size_bytes, head = _look(fd, name)
        if head.startswith(b"PK"):
            return load_zip(file, size_bytes, name)
        if head[:1] == b"\x80" and head[1:2] in PICKLE_PROTOCOLS:
            return load_pickle(file.read(size_bytes), name)
    raise CheckpointError(
        f"{name}: found {size_bytes} bytes that start with {bytes(head[:16])!r}, "
        f"wanted {FORMATS}; fetch or save it again"
    )


def find_checkpoint(path: str | os.PathLike[str]) -> Checkpoint | None:
    """Open a folder, an index or a safetensors file; None for a file of another format.

    Raises as `open_checkpoint` does.
    """
    name = os.fspath(path)
    if Path(name).is_dir() or name.endswith(INDEX_SUFFIX):
        return open_checkpoint(name)
    fd = open_regular(name)
    try:
        size_bytes, head = _look(fd, name)
    finally:
        os.close(fd)
    refuse_pointer(head, size_bytes, name)
    is_pickle = head[:1] == b"\x80" and head[1:2] in PICKLE_PROTOCOLS
    is_long = int.from_bytes(head[:LENGTH_BYTES], "little") >= size_bytes
    if head[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{" or (is_pickle and is_long):
        return None
    return open_checkpoint(name)


def _look(fd: int, path: str) -> tuple[int, bytearray]:
    """Return a file's size and its first bytes."""
    size_bytes = os.fstat(fd).st_size
    head = bytearray(min(_HEAD_BYTES, size_bytes))
    read_into(fd, 0, memoryview(head), path)
    return size_bytes, head


def convert_state_dict(
    state_dict: Mapping[str, Array | torch.Tensor], type: str
) -> dict[str, Array] | dict[str, torch.Tensor]:
    """Return a state_dict as type "torch" or "numpy": new data, with ties and bits kept.

    Raises TypeError for another type or for a value that is neither array nor tensor, and
    ImportError for "torch" where torch is not installed.
    """
    if type not in ("torch", "numpy"):
        raise TypeError(f'convert_state_dict: found the type {type!r}, wanted "torch" or "numpy"')
    if not isinstance(state_dict, Mapping):
        raise TypeError("convert_state_dict: wanted a dict of name to array or tensor")
    values = dict(state_dict)
    arrays: StateDict = {}
    done: dict[object, Array] = {}
    for name, value in values.items():
        identity, copy = _look_at(name, value)
        if identity not in done:
            done[identity] = copy()
        arrays[name] = done[identity]
    return _to_torch(arrays) if type == "torch" else arrays


def _look_at(name: str, value: object) -> tuple[object, Callable[[], Array]]:
    """Return what two tied values have in common, and how to copy the value to NumPy."""
    if isinstance(value, np.ndarray) and native(value.dtype) is not None:
        array: Array = value
        return _memory(array), lambda: copy_native(array)
    loaded = sys.modules.get("torch")
    if loaded is None or not isinstance(value, loaded.Tensor) or value.layout != loaded.strided:
        raise TypeError(
            f"convert_state_dict: {name!r} is a {type(value).__name__}, wanted a "
            "numpy.ndarray or a dense torch.Tensor of numbers or bool"
        )
    tensor: torch.Tensor = value
    memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
    return memory if tensor.numel() else id(tensor), lambda: _from_torch(tensor)


def _from_torch(tensor: torch.Tensor) -> Array:
    import torch

    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        return np.array(plain.view(torch.int16).numpy()).view(_BFLOAT16)
    return np.array(plain.numpy())


def _to_torch(arrays: StateDict) -> dict[str, torch.Tensor]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "convert_state_dict: torch is not installed; `pip install torch`, or keep the arrays"
        ) from error
    done: dict[int, torch.Tensor] = {}
    for array in arrays.values():
        if id(array) not in done:
            is_bfloat16 = array.dtype == _BFLOAT16
            tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
            done[id(array)] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    return {name: done[id(array)] for name, array in arrays.items()}
