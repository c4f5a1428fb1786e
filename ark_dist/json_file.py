"""Turn a small JSON file of a model's folder into a dict or a list."""

import json
import os
from pathlib import Path

from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.safetensors_file import open_regular, read_into, refuse_pointer

# Configurations are a few kB; a tokenizer_config.json with many added tokens is 1 MB.
MAX_CONFIG_BYTES = 16 << 20


def read_bytes(path: Path, max_bytes: int, *, allow_links: bool = True) -> bytes:
    """Return a file's content.

    Raises FileNotFoundError where there is no file, and CheckpointError for one of more than
    `max_bytes`, for what is no regular file, and for what git LFS leaves in a file's place;
    without `allow_links` for links too.
    """
    fd = open_regular(str(path), allow_links=allow_links)
    try:
        size_bytes = os.fstat(fd).st_size
        if size_bytes > max_bytes:
            raise CheckpointError(
                f"{path}: found {size_bytes} bytes, wanted at most {max_bytes}; fetch it again"
            )
        data = bytearray(size_bytes)
        read_into(fd, 0, memoryview(data), str(path))
    finally:
        os.close(fd)
    refuse_pointer(data, size_bytes, str(path))
    return bytes(data)


def read_json(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Return the object that a JSON file holds.

    Raises as `read_bytes`, and CheckpointError where it holds something else.
    """
    table = _read_value(path, max_bytes)
    if not isinstance(table, dict):
        raise _other(path, table, "an object")
    return table


def read_json_list(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> list[object]:
    """Return the list that a JSON file holds; raises as `read_json`."""
    values = _read_value(path, max_bytes)
    if not isinstance(values, list):
        raise _other(path, values, "a list")
    return values


def _read_value(path: Path, max_bytes: int) -> object:
    text = read_bytes(path, max_bytes)
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShardCorruptError(
            f"{path}: damaged JSON of {len(text)} bytes: {error}; fetch it again"
        ) from error
    return value


def _other(path: Path, found: object, wanted: str) -> ShardCorruptError:
    return ShardCorruptError(
        f"{path}: found a JSON {type(found).__name__}, wanted {wanted}; fetch it again"
    )
