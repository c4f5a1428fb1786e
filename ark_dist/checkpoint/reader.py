"""Open a checkpoint once every claim in it is checked, and read boxes of its tensors."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ark_dist.bounded_json import shown
from ark_dist.checkpoint.boxes import check_box, cut_box, find_runs, inside
from ark_dist.checkpoint.folder import Shard, open_shards
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.core.shape import Box, Shape, box_shape, box_size, full_box
from ark_dist.safetensors_file import Array, Dtype, check_bools, open_regular, read_into

# All that reading holds beside the destination, twice: runs, and rows with their gaps.
STAGING_BYTES = 4 << 20
_MAX_OPEN = 8

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a checkpoint.

    Attributes:
        name: its name in its file; a tied tensor is stored under one of its names.
        file: the path of the file.
        offset: bytes from the start of the file to the first element.
    """

    name: str
    dtype: Dtype
    shape: Shape
    file: str
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """Files whose headers are checked; data is read on demand, and never mapped.

    Attributes:
        path: what was opened.
        tensors: name -> where it lies. Names of `tied` are in it too.
        tied: alias -> the name that its data is stored under.
        metadata: what the headers of the files hold beside tensors.
        sums: path of a file -> its sha256, where the checkpoint has them.
    """

    def __init__(self, path: str, shards: Mapping[str, Shard], sums: Mapping[str, str]) -> None:
        """Use `open_checkpoint`; `shards` are checked files by path."""
        self.path = path
        self.sums = sums
        self._shards = shards
        self.tied: Mapping[str, str] = {
            alias: source for shard in shards.values() for alias, source in shard.tied.items()
        }
        self.metadata: Mapping[str, str] = {
            key: value for shard in shards.values() for key, value in shard.metadata.items()
        }
        tensors = {
            name: TensorInfo(name, entry.dtype, entry.shape, file, entry.begin)
            for file, shard in shards.items()
            for name, entry in shard.tensors.items()
        }
        self.tensors: Mapping[str, TensorInfo] = tensors | {
            alias: tensors[name] for alias, name in self.tied.items()
        }
        self._open: OrderedDict[str, int] = OrderedDict()
        self._staging: Bytes = np.empty(0, np.uint8)
        self._rows: Bytes = np.empty(0, np.uint8)
        # Threads share the staging memory and the open files.
        self._lock = threading.Lock()

    def read(self, name: str, box: Box, out: Array, *, is_cast: bool = False) -> None:
        """Fill `out` with the box [start, stop) per dimension of a tensor.

        `out` has the shape of the box, any strides, and the tensor's dtype in either byte order,
        or any dtype if `is_cast`. Only the box is read, but for gaps of up to a tenth of it and
        for rows of less than a page.

        Raises KeyError for no tensor of that name, ValueError or TypeError for an `out` that
        does not fit, and ShardCorruptError where the file ends early or holds no bools.
        """
        info = self.tensors[name]
        check_box("read", name, box, info.shape)
        _check_out(name, box, out, info, is_cast)
        if not out.size:
            return
        with self._lock:
            if _is_direct(out, info):
                self._fill(info, box, out.reshape(-1).view(np.uint8))
                return
            with np.errstate(all="ignore"):
                for part, piece in self._pieces(info, box):
                    out[inside(part, box)] = piece

    def is_equal(self, name: str, other: str, box: Box, dtype: Dtype) -> bool:
        """Whether two tensors of one shape hold the same bits in a box, once cast to `dtype`."""
        a, b = self.tensors[name], self.tensors[other]
        if a == b:
            return True
        max_elems = STAGING_BYTES // max(a.dtype.itemsize, b.dtype.itemsize)
        with self._lock, np.errstate(all="ignore"):
            for part in cut_box(box, max_elems):
                first, second = (
                    piece.astype(dtype).tobytes()
                    for info in (a, b)
                    for _, piece in self._pieces(info, part)
                )
                if first != second:
                    return False
        return True

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compare every `world_size`-th file, from file `rank` on, with its sha256.

        Raises ShardCorruptError for a file that differs, CheckpointError where there are no
        checksums.
        """
        if not self.sums:
            raise CheckpointError(
                f"{self.path}: found no checksums, wanted the index that ark_dist saves; open it "
                "without verify, or save it again"
            )
        for file in sorted(self._shards)[rank::world_size]:
            found = self._digest(file)
            if found != self.sums[file]:
                raise ShardCorruptError(
                    f"{file}: {self._shards[file].size_bytes} bytes with sha256 {found}, "
                    f"wanted {self.sums[file]}; fetch it again"
                )

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])
            self._staging = self._rows = np.empty(0, np.uint8)

    def __enter__(self) -> Checkpoint:
        """Return the checkpoint."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()

    def __del__(self) -> None:
        # A partly built object has no files yet.
        while open_files := getattr(self, "_open", None):
            os.close(open_files.popitem()[1])

    def _pieces(self, info: TensorInfo, box: Box) -> Iterator[tuple[Box, Array]]:
        """Yield the parts of a box, each as an array that the next one overwrites."""
        if not self._staging.size:
            self._staging = np.empty(STAGING_BYTES, np.uint8)
        for part in cut_box(box, STAGING_BYTES // info.dtype.itemsize):
            raw = self._staging[: box_size(part) * info.dtype.itemsize]
            self._fill(info, part, raw)
            piece: Array = raw.view(info.dtype.newbyteorder("<")).reshape(box_shape(part))
            try:
                check_bools(piece)
            except ValueError as error:
                raise ShardCorruptError(
                    f"{info.file}: tensor {shown(info.name)}: found {error}"
                ) from None
            yield part, piece

    def _fill(self, info: TensorInfo, box: Box, target: Bytes) -> None:
        """Read a box into bytes in row-major order, run by run."""
        runs = find_runs(info.offset, info.shape, box, info.dtype.itemsize)
        fd = self._file(info.file)
        if runs.is_dense and runs.loops[-1][1] <= STAGING_BYTES:
            if not self._rows.size:
                self._rows = np.empty(STAGING_BYTES, np.uint8)
            distance, done = runs.loops[-1][1], 0
            for begin, count in runs.rows(STAGING_BYTES):
                span = self._rows[: (count - 1) * distance + runs.size_bytes]
                read_into(fd, begin, span.data, info.file)
                rows = np.lib.stride_tricks.as_strided(
                    span, (count, runs.size_bytes), (distance, 1), writeable=False
                )
                size = count * runs.size_bytes
                target[done : done + size].reshape(count, runs.size_bytes)[...] = rows
                done += size
            return
        data, size = target.data, runs.size_bytes
        for first, begin in zip(range(0, len(data), size), runs.offsets(), strict=True):
            read_into(fd, begin, data[first : first + size], info.file)

    def _file(self, file: str) -> int:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        shard = self._shards[file]
        with _named_errors(file):
            fd = open_regular(file, allow_links=shard.allow_links)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != shard.identity:
            os.close(fd)
            raise ShardCorruptError(
                f"{file}: found another file of {status.st_size} bytes, wanted the one of "
                f"{shard.size_bytes} that was checked; open the checkpoint again"
            )
        self._open[file] = fd
        if len(self._open) > _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def _digest(self, file: str) -> str:
        digest = hashlib.sha256()
        with self._lock:
            buffer = np.empty(STAGING_BYTES, np.uint8)
            fd, size_bytes = self._file(file), self._shards[file].size_bytes
            for begin in range(0, size_bytes, STAGING_BYTES):
                part = buffer[: min(STAGING_BYTES, size_bytes - begin)]
                read_into(fd, begin, part.data, file)
                digest.update(part.data)
        return digest.hexdigest()


@contextmanager
def _named_errors(file: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ShardCorruptError(
            f"{file}: found no file, wanted the one that was checked; "
            "if the checkpoint was saved anew, open it again"
        ) from None


def _is_direct(out: Array, info: TensorInfo) -> bool:
    """Whether the file's bytes are the array's; bools are checked before they are copied."""
    is_same = out.dtype == info.dtype.newbyteorder("<") and out.dtype != np.bool_
    return is_same and out.flags.c_contiguous


def _check_out(name: str, box: Box, out: Array, info: TensorInfo, is_cast: bool) -> None:
    if out.shape != box_shape(box):
        raise ValueError(
            f"read: the destination of {name!r} is {out.shape}, the box is {box_shape(box)}"
        )
    if not out.flags.writeable:
        raise ValueError(f"read: the destination of {name!r} is read-only; pass a writable array")
    if not is_cast and out.dtype.newbyteorder("=") != info.dtype:
        raise TypeError(
            f"read: the destination of {name!r} is {out.dtype}, the tensor is {info.dtype}; "
            "is_cast=True converts"
        )


def open_checkpoint(
    path: str | os.PathLike[str], *, allow_links: bool = False, verify: bool = False
) -> Checkpoint:
    """Open a checkpoint: a safetensors file, an index, or a folder with one of them.

    Nothing is allocated before the index, all headers and the sizes of all files are checked.

    Args:
        path: a file, or a folder that holds model.safetensors.index.json or model.safetensors.
        allow_links: let files of the folder be symlinks or have several names, as in the cache
            of Hugging Face. They may lead anywhere, so the folder must be trusted.
        verify: compare all files with the sha256 of the index.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ShardCorruptError: for a damaged file, with its sizes.
        CheckpointError: for an index that is wrong or unsafe, or missing files.
    """
    name = os.fspath(path)
    shards, sums = open_shards(Path(name), allow_links)
    checkpoint = Checkpoint(name, shards, sums)
    if verify:
        checkpoint.verify()
    return checkpoint


def read_all(checkpoint: Checkpoint) -> dict[str, Array]:
    """Return all tensors; tied names share one array."""
    arrays: dict[str, Array] = {}
    for name, info in sorted(checkpoint.tensors.items(), key=lambda item: _place(item[1])):
        if name not in checkpoint.tied:
            arrays[name] = np.empty(info.shape, info.dtype)
            checkpoint.read(name, full_box(info.shape), arrays[name])
    return arrays | {alias: arrays[name] for alias, name in checkpoint.tied.items()}


def _place(info: TensorInfo) -> tuple[str, int]:
    return info.file, info.offset
