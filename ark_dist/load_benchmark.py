"""Measure how ranks load one large checkpoint: memory, bytes read, and time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ark_dist.checkpoint.index import SINGLE_NAME
from ark_dist.comm.communicator import Communicator
from ark_dist.core.layout import P
from ark_dist.core.shape import Box, Shape, box_size
from ark_dist.executor import Executor
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.module import Module
from ark_dist.safetensors_file import build_header

# 16 tensors of 128 MB, half of them cut by columns, half by rows.
LAYERS, WIDTH, HIDDEN = 8, 4096, 8192
# Elements of one write, which also is the period of the values.
CHUNK = 1 << 20
CHECKED_ROWS = 5
ROUNDS = 3
MB = 1e6


class Stack(Module):
    """Pairs of products, the first of each cut by columns, the second by rows."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        x = model.tensor((1, WIDTH), name="x")
        for layer in range(LAYERS):
            up = model.parameter((WIDTH, HIDDEN), shard=P(None, "tp"))
            down = model.parameter((HIDDEN, WIDTH), shard=P("tp", None))
            setattr(self, f"up{layer}", up)
            setattr(self, f"down{layer}", down)
            x = model.matmul(model.matmul(x, up), down)


def load(communicator: Communicator) -> list[dict[str, object]]:
    """Write a checkpoint of 2 GB on rank 0, and load it on all ranks, each its part."""
    model = Model("load")
    module = Stack(model)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    folder = tempfile.mkdtemp(prefix="ark-load-") if communicator.rank == 0 else ""
    folder = communicator.broadcast_bytes(folder.encode() if folder else None).decode()
    try:
        if communicator.rank == 0:
            write_checkpoint(Path(folder), shapes)
        rounds = [_once(communicator, module, folder, shapes) for _ in range(ROUNDS)]
    finally:
        communicator.barrier()
        if communicator.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    # Memory of the first round: later ones may find that of the peer.
    ours_s, peer_s = (float(np.median([getattr(r, n) for r in rounds])) for n in ("ours", "peer"))
    packed = communicator.all_gather_bytes(
        json.dumps([ours_s, peer_s, rounds[0].peak, rounds[0].part, rounds[0].read]).encode()
    )
    columns = zip(*(json.loads(data) for data in packed), strict=True)
    size_bytes = sum(4 * prod(shape) for shape in shapes.values())
    return _rows(communicator.size, size_bytes, *columns)


def write_checkpoint(folder: Path, shapes: Mapping[str, Shape]) -> None:
    """Write tensors whose element i is i modulo CHUNK, in chunks."""
    chunk = np.arange(CHUNK, dtype=np.float32).tobytes()
    header = build_header({n: (np.dtype(np.float32), shape) for n, shape in shapes.items()}, {})
    with (folder / SINGLE_NAME).open("wb") as file:
        file.write(header)
        for shape in shapes.values():
            count = prod(shape)
            for start in range(0, count, CHUNK):
                file.write(chunk[: 4 * (count - start)])
        # The disk would be busy with it during the load.
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class _Round:
    """What one rank measured: seconds of both, and bytes."""

    ours: float
    peer: float
    peak: int
    part: int
    read: int


def _once(
    communicator: Communicator, module: Stack, folder: str, shapes: Mapping[str, Shape]
) -> _Round:
    mesh = Mesh({"tp": communicator.size})
    parameters = dict(module.named_parameters())
    with Executor(model=module.model, device="cpu", workers=1, mesh=mesh) as exe:
        exe.compile()
        binding = module.model.binding
        assert binding is not None
        boxes = {name: binding.part(parameter) for name, parameter in parameters.items()}
        communicator.barrier()
        read_before, began = _bytes_read(), time.perf_counter()
        module.load_state_dict(folder)
        ours_s, read_bytes = time.perf_counter() - began, _bytes_read() - read_before
        peak_bytes = _peak_bytes()
        for name, parameter in parameters.items():
            _check(name, parameter.to_numpy(local=True), boxes[name], shapes[name])
    part_bytes = sum(4 * box_size(box) for box in boxes.values())
    peer_s = _peer_s(communicator, folder, boxes)
    return _Round(ours_s, peer_s, peak_bytes, part_bytes, read_bytes)


def _rows(
    ranks: int,
    size_bytes: int,
    ours_s: Sequence[float],
    peer_s: Sequence[float],
    peaks: Sequence[int],
    parts: Sequence[int],
    reads: Sequence[int],
) -> list[dict[str, object]]:
    row = {"dtype": "fp32", "ranks": ranks, "workers": 1}
    size = f"{size_bytes / 1e9:.1f} GB"
    peak, part, read = max(peaks), max(parts), sum(reads)
    time_row = {
        "case": f"{size}: time",
        "unit": "s",
        "ours": max(ours_s),
        "peer_name": "safetensors get_slice",
        "peer": max(peer_s),
        "ratio": max(peer_s) / max(ours_s),
    }
    read_row = {
        "case": f"{size}: read by all ranks",
        "unit": "MB",
        "ours": read / MB,
        "floor": size_bytes / MB,
        "of_floor": read / size_bytes,
    }
    peak_row = {
        "case": f"{size}: peak of a rank",
        "unit": "MB",
        "ours": peak / MB,
        "floor": part / MB,
        "of_floor": peak / part,
    }
    return [{**row, **found} for found in (time_row, read_row, peak_row)]


def _check(name: str, found: npt.NDArray[np.generic], box: Box, shape: Shape) -> None:
    """Compare some rows of a part with what was written."""
    (first, last), (start, stop) = box
    for row in np.linspace(first, last - 1, CHECKED_ROWS).astype(int):
        wanted = (row * shape[1] + np.arange(start, stop)) % CHUNK
        if not np.array_equal(found[row - first], wanted.astype(np.float32)):
            raise AssertionError(f"row {row} of {name} is not what was written")


def _peer_s(communicator: Communicator, folder: str, boxes: Mapping[str, Box]) -> float:
    """Read the same parts with the safetensors library, one after the other."""
    from safetensors import safe_open

    communicator.barrier()
    began = time.perf_counter()
    with safe_open(f"{folder}/{SINGLE_NAME}", framework="np") as file:
        kept = [
            file.get_slice(name)[tuple(slice(*pair) for pair in box)] for name, box in boxes.items()
        ]
    took_s = time.perf_counter() - began
    assert len(kept) == len(boxes)
    return took_s


def _bytes_read() -> int:
    """What this process has read from files so far, out of memory or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def _peak_bytes() -> int:
    """The most memory that this process had resident, shared memory included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
