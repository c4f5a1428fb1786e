"""Turn .npz files and zipped torch checkpoints into arrays, and refuse tricks with zips."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from typing import BinaryIO

import numpy as np

from ark_dist.safe_pickle import load_torch_pickle, refusing
from ark_dist.safetensors_file import MAX_TENSORS, Array, copy_native, count_bytes, native, shown

MAX_RATIO = 200
MAX_DATA_BYTES = 64 << 30
# Small files may pack well: no bomb fits in this.
FREE_BYTES = 1 << 20
MAX_DIRECTORY_BYTES = 64 << 20
MAX_PICKLE_BYTES = 256 << 20
MAX_NPY_HEADER_BYTES = 10_000
_END_BYTES = 22
_LOCATOR_BYTES = 20
_END64_BYTES = 56
_IS_ENCRYPTED = 0x1
_HINT = "fetch it again, or save it as safetensors where it comes from"


def load_zip(file: BinaryIO, file_bytes: int, path: str) -> dict[str, Array]:
    """Return the arrays of an .npz or of a torch checkpoint; raise CheckpointError on others."""
    with refusing(path, _HINT):
        _check_directory(file, file_bytes)
        with zipfile.ZipFile(file) as archive:
            entries = _check_entries(archive.infolist(), file_bytes)
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) == 1:
                return _load_torch(archive, entries, pickles[0], file_bytes, path)
            if not entries or not all(name.endswith(".npy") for name in entries):
                raise ValueError("a zip that is neither an .npz nor a torch checkpoint")
            return {
                name.removesuffix(".npy"): _read_npy(archive, info)
                for name, info in entries.items()
            }


def _check_directory(file: BinaryIO, file_bytes: int) -> None:
    """Bound the list of entries before zipfile reads it; its end must be the file's end."""
    tail_bytes = min(file_bytes, _END_BYTES + _LOCATOR_BYTES + _END64_BYTES)
    file.seek(-tail_bytes, os.SEEK_END)
    tail = file.read(tail_bytes)
    end = tail[-_END_BYTES:]
    if len(end) < _END_BYTES or not end.startswith(b"PK\x05\x06") or end[20:] != b"\0\0":
        raise ValueError(f"no end of a zip in the last of {file_bytes} bytes: cut short")
    size_bytes = int.from_bytes(end[12:16], "little")
    if tail[-_END_BYTES - _LOCATOR_BYTES :].startswith(b"PK\x06\x07"):
        size_bytes = int.from_bytes(tail[40:48], "little")
    if size_bytes > MAX_DIRECTORY_BYTES:
        raise ValueError(f"a zip with {size_bytes} bytes of names")


def _check_entries(infos: list[zipfile.ZipInfo], file_bytes: int) -> dict[str, zipfile.ZipInfo]:
    if len(infos) > MAX_TENSORS:
        raise ValueError(f"{len(infos)} entries, wanted at most {MAX_TENSORS}")
    twice, count = Counter(info.filename for info in infos).most_common(1)[0] if infos else ("", 0)
    if count > 1:
        raise ValueError(f"the entry {shown(twice)} {count} times")
    for info in infos:
        _check_entry(info)
    data_bytes = sum(info.file_size for info in infos)
    if data_bytes > min(MAX_DATA_BYTES, max(MAX_RATIO * file_bytes, FREE_BYTES)):
        raise ValueError(f"{data_bytes} bytes packed into {file_bytes}: a zip bomb")
    if sum(info.compress_size for info in infos) > file_bytes:
        raise ValueError("entries that overlap: a zip bomb")
    return {info.filename: info for info in infos}


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.filename
    parts = info.orig_filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in info.orig_filename:
        raise ValueError(f"the entry {shown(name)}, which leaves its folder")
    if info.flag_bits & _IS_ENCRYPTED:
        raise ValueError(f"the encrypted entry {shown(name)}")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.is_dir():
        raise ValueError(f"the entry {shown(name)}, which is no regular file")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"the entry {shown(name)}, packed by an unknown method")


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    data = archive.read(info)
    if len(data) != info.file_size:
        raise ValueError(f"{len(data)} bytes in {shown(info.filename)}, wanted {info.file_size}")
    return data


def _load_torch(
    archive: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    pickle_name: str,
    file_bytes: int,
    path: str,
) -> dict[str, Array]:
    root = pickle_name.removesuffix("data.pkl")
    if entries[pickle_name].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"a data.pkl of over {MAX_PICKLE_BYTES} bytes")
    order = entries.get(f"{root}byteorder")
    is_big_endian = order is not None and _read(archive, order) == b"big"

    def read_storage(key: str, size_bytes: int) -> bytes:
        info = entries.get(f"{root}data/{key}")
        if info is None or info.file_size != size_bytes:
            raise ValueError(f"no torch storage {shown(key)} of {size_bytes} bytes")
        return _read(archive, info)

    return load_torch_pickle(
        _read(archive, entries[pickle_name]),
        read_storage,
        file_bytes=max(file_bytes, sum(info.file_size for info in entries.values())),
        is_big_endian=is_big_endian,
        path=path,
    )


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            read_header = np.lib.format.read_array_header_1_0
        elif version == (2, 0):
            read_header = np.lib.format.read_array_header_2_0
        else:
            raise ValueError(f"version {version} of .npy in {shown(info.filename)}")
        shape, is_fortran, dtype = read_header(stream, max_header_size=MAX_NPY_HEADER_BYTES)
        if native(dtype) is None:  # object arrays above all
            raise ValueError(f"dtype {shown(dtype)} in {shown(info.filename)}")
        wanted = count_bytes(shape, dtype.itemsize)
        if wanted > info.file_size:
            raise ValueError(f"{shown(info.filename)}: {info.file_size} bytes, wanted {wanted}")
        data = stream.read(wanted + 1)
    if len(data) != wanted:
        raise ValueError(f"{shown(info.filename)}: {len(data)} bytes, wanted {wanted}")
    array: Array = np.ndarray(shape, dtype, data, order="F" if is_fortran else "C")
    return copy_native(array)
