"""Turn the index of a checkpoint, as Hugging Face defines it, into checked names, and back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ark_dist.bounded_json import parse_table, shown
from ark_dist.safetensors_file import MAX_TENSORS, check_name

INDEX_SUFFIX = ".index.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 25_000_000
MAX_SHARDS = 10_000
SHARD_SUFFIX = ".safetensors"
# Where we keep checksums: other tools pass over what they don't know of the metadata.
SUMS_KEY = "sha256"
_MAX_NAME_BYTES = 255
_MAX_SIZE = 2**63
# One between two tensors and two checksums; the rest is room for metadata.
_MAX_COMMAS = MAX_TENSORS + MAX_SHARDS
# {metadata: {sha256: {...}}}; nobody nests deeper
_NESTING = (b"[]", b"{}", b"{}", b"{}")
_SUM = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Index:
    """A checked index.

    Attributes:
        files: name of a tensor -> the shard it is in.
        size_bytes: bytes of all tensors; None where the index does not tell.
        sums: shard -> its sha256 in hexadecimal; empty where there are none.
    """

    files: Mapping[str, str]
    size_bytes: int | None
    sums: Mapping[str, str]

    @property
    def shards(self) -> list[str]:
        """The shards, each once, in order of name."""
        return sorted(set(self.files.values()))


def parse_index(text: bytes) -> Index:
    """Return a checked index; raise ValueError or RecursionError on any flaw."""
    table = parse_table(text, _NESTING, MAX_TENSORS, max_commas=_MAX_COMMAS, can_float=True)
    files = table.get("weight_map")
    metadata = table.get("metadata", {})
    if not isinstance(files, dict) or not isinstance(metadata, dict):
        raise ValueError("an index without the objects weight_map and metadata")
    if len(files) > MAX_TENSORS:
        raise ValueError(f"{len(files)} tensors, wanted at most {MAX_TENSORS}")
    for name, shard in files.items():
        check_name(name)
        if not isinstance(shard, str):
            raise ValueError(f"tensor {shown(name)} in {shown(shard)}, wanted a file's name")
    for shard in set(files.values()):
        _check_shard(shard)
    if len(set(files.values())) > MAX_SHARDS:
        raise ValueError(f"{len(set(files.values()))} shards, wanted at most {MAX_SHARDS}")
    return Index(files, _parse_size(metadata.get("total_size")), _parse_sums(metadata, files))


def _check_shard(name: str) -> None:
    try:
        is_long = len(os.fsencode(name)) > _MAX_NAME_BYTES
    except UnicodeEncodeError:
        raise ValueError("a shard's name that is not valid Unicode") from None
    if is_long or any(c in name for c in "/\\\0:") or name.startswith("."):
        raise ValueError(f"the shard {shown(name)}, wanted the bare name of a file beside it")
    if not name.endswith(SHARD_SUFFIX):
        raise ValueError(f"the shard {shown(name)}, wanted a name that ends in {SHARD_SUFFIX}")


def _parse_size(size: object) -> int | None:
    if size is None:
        return None
    # Some tools write a whole number as a float.
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < _MAX_SIZE:
        raise ValueError(f"the total_size {shown(size)}, wanted a number of bytes")
    if size != int(size):
        raise ValueError(f"the total_size {shown(size)}, wanted a whole number of bytes")
    return int(size)


def _parse_sums(metadata: Mapping[str, object], files: Mapping[str, str]) -> Mapping[str, str]:
    sums = metadata.get(SUMS_KEY, {})
    if not isinstance(sums, dict):
        raise ValueError(f"{SUMS_KEY} that is no object")
    for shard, digest in sums.items():
        if not isinstance(digest, str) or not _SUM.fullmatch(digest):
            raise ValueError(f"the {SUMS_KEY} {shown(digest)} of {shown(shard)}")
    if sums and sums.keys() != set(files.values()):
        raise ValueError(f"{SUMS_KEY} of other shards than those of weight_map")
    return sums


def build_index(index: Index) -> bytes:
    """Return the text of an index."""
    metadata = {"total_size": index.size_bytes, SUMS_KEY: dict(index.sums)}
    table = {"metadata": metadata, "weight_map": dict(sorted(index.files.items()))}
    return json.dumps(table, ensure_ascii=False, indent=2).encode() + b"\n"
