"""Decide which rank writes which tensor into which file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ark_dist.core.shape import Shape
from ark_dist.safetensors_file import (
    CODES,
    MAX_TENSORS,
    Dtype,
    build_header,
    check_name,
    count_bytes,
)

# What other tools look for before they read a file.
_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor to save.

    Attributes:
        shape: of the whole tensor.
        dtype: as a file can hold it, in native byte order.
        owner: the rank that writes it: the lowest one that holds a part.
    """

    shape: Shape
    dtype: Dtype
    owner: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A file to write.

    Attributes:
        owner: the rank that writes it.
        names: its tensors, in order.
        header: its first bytes.
        tail: what its name ends in.
    """

    owner: int
    names: tuple[str, ...]
    header: bytes
    tail: str


def plan_shards(
    tensors: Mapping[str, Layout],
    tied: Mapping[str, str],
    metadata: Mapping[str, str],
    max_shard_bytes: int,
) -> tuple[ShardPlan, ...]:
    """Return the files of a checkpoint, the same on every rank.

    A tensor of more than `max_shard_bytes` has a file of its own. Raises ValueError for names,
    shapes and dtypes that a file can't hold.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"save: max_shard_bytes is {max_shard_bytes}; it must be 1 or more")
    _check(tensors, tied)
    groups = _grouped(tensors, max_shard_bytes)
    plans = []
    for number, (owner, group) in enumerate(groups, start=1):
        # Large items first keeps each tensor aligned to its own item size.
        names = sorted(group, key=lambda name: -tensors[name].dtype.itemsize)
        layouts = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
        aliases = {alias: name for alias, name in tied.items() if name in layouts}
        header = build_header(layouts, aliases, {**_METADATA, **metadata})
        plans.append(
            ShardPlan(owner, tuple(names), header, f"{number:05}-of-{len(groups):05}.safetensors")
        )
    return tuple(plans)


def _check(tensors: Mapping[str, Layout], tied: Mapping[str, str]) -> None:
    if len(tensors) + len(tied) > MAX_TENSORS:
        raise ValueError(
            f"save: {len(tensors) + len(tied)} names, wanted at most {MAX_TENSORS}; "
            "save several checkpoints"
        )
    for name in (*tensors, *tied):
        try:
            check_name(name)
        except ValueError as error:
            raise ValueError(f"save: {name[:80]!r} has {error}") from None
    for name, layout in tensors.items():
        if layout.dtype not in CODES:
            wanted = ", ".join(map(str, CODES))
            raise ValueError(f"save: {name!r} has the dtype {layout.dtype}, wanted {wanted}")
        try:
            count_bytes(layout.shape, layout.dtype.itemsize)
        except ValueError as error:
            raise ValueError(f"save: {name!r} has {error}") from None
    for alias, source in tied.items():
        if alias in tensors or source not in tensors:
            raise ValueError(f"save: {alias!r} is tied to {source!r}; it must be another tensor")


def _grouped(tensors: Mapping[str, Layout], max_bytes: int) -> list[tuple[int, list[str]]]:
    """Return (owner, names) for each file; a checkpoint of nothing has one file, of rank 0."""
    groups: list[tuple[int, list[str]]] = []
    filled: dict[int, int] = {}
    for owner in sorted({layout.owner for layout in tensors.values()}):
        for name in [name for name, layout in tensors.items() if layout.owner == owner]:
            size_bytes = tensors[name].size_bytes
            if owner not in filled or filled[owner] + size_bytes > max_bytes:
                groups.append((owner, []))
                filled[owner] = 0
            groups[-1][1].append(name)
            filled[owner] += size_bytes
    return groups or [(0, [])]


def fingerprint(plans: tuple[ShardPlan, ...]) -> str:
    """Return a digest of the plan, by which ranks see that theirs are equal."""
    table = [(plan.owner, plan.names, plan.header.hex(), plan.tail) for plan in plans]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()
