"""Checkpoints and ranks that several test files use."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ark_dist.checkpoint.agree import Agree
from ark_dist.checkpoint.index import INDEX_NAME
from ark_dist.safetensors_file import Array, build_header

T = TypeVar("T")
LIMIT_S = 30


def weights(seed: int = 0) -> dict[str, Array]:
    """Tensors of several shapes and dtypes."""
    rng = np.random.default_rng(seed)
    return {
        "embed": rng.standard_normal((16, 12)).astype(np.float32),
        "layers.0.w": rng.standard_normal((12, 40)).astype(np.float16),
        "layers.1.w": rng.integers(-9, 9, (3, 5, 4)).astype(np.int32),
        "norm": rng.standard_normal(12).astype(np.float64),
        "flag": np.array(True),
        "none": np.zeros((0, 3), np.int8),
    }


def write_shard(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a safetensors file."""
    header = build_header({name: (a.dtype, a.shape) for name, a in arrays.items()}, {})
    path.write_bytes(header + b"".join(a.tobytes() for a in arrays.values()))


def write_folder(
    folder: Path, shards: Mapping[str, Mapping[str, Array]], **changes: object
) -> Path:
    """Write a checkpoint as Hugging Face does; `changes` replace parts of the index."""
    folder.mkdir(exist_ok=True)
    for file, arrays in shards.items():
        write_shard(folder / file, arrays)
    size_bytes = sum(a.nbytes for arrays in shards.values() for a in arrays.values())
    index = {
        "metadata": {"total_size": size_bytes},
        "weight_map": {name: file for file, arrays in shards.items() for name in arrays},
        **changes,
    }
    (folder / INDEX_NAME).write_text(json.dumps(index))
    return folder


def two_shards(folder: Path, **changes: object) -> Path:
    """Write `weights()` as two files."""
    names = sorted(weights())
    shards = {
        "a.safetensors": {name: weights()[name] for name in names[:3]},
        "b.safetensors": {name: weights()[name] for name in names[3:]},
    }
    return write_folder(folder, shards, **changes)


def on_ranks(count: int, action: Callable[[int, Agree], T]) -> list[T | Exception]:
    """Run something on every rank, each a thread; return what each returned or raised."""
    barrier = threading.Barrier(count, timeout=LIMIT_S)
    texts: list[str | None] = [None] * count
    results: list[T | Exception] = [RuntimeError("it did not end")] * count

    def run(rank: int) -> None:
        def agree(text: str | None) -> list[str | None]:
            texts[rank] = text
            barrier.wait()
            copy = [*texts]
            barrier.wait()
            return copy

        try:
            results[rank] = action(rank, agree)
        except Exception as error:
            results[rank] = error
            if isinstance(error, threading.BrokenBarrierError):
                barrier.abort()

    threads = [
        threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return results


def is_same(got: Array, wanted: Array) -> bool:
    """Whether two arrays have one dtype, shape and bits."""
    is_equal = (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    return is_equal and got.tobytes() == wanted.tobytes()
