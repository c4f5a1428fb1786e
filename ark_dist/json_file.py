"""Turn a small JSON file of a model's folder into a dict."""

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
    text = read_bytes(path, max_bytes)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShardCorruptError(
            f"{path}: damaged JSON of {len(text)} bytes: {error}; fetch it again"
        ) from error
    if not isinstance(table, dict):
        raise ShardCorruptError(
            f"{path}: found a JSON {type(table).__name__}, wanted an object; fetch it again"
        )
    return table
