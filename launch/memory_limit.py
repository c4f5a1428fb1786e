"""Refuse a plan that the machine's memory can't hold, before anything is allocated."""

import os

from ark_dist.core.errors import MemoryLimitError
from ark_dist.core.plan import ARENAS, Plan
from ark_dist.core.verify_plan import stored_buffers

# The largest buffers that an error lists.
LISTED = 8
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def machine_bytes() -> int:
    """The machine's memory in bytes, whoever uses it now."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(plan: Plan, limit_bytes: int) -> None:
    """Raise MemoryLimitError, with the arenas and the largest buffers, unless the plan fits."""
    needed = sum(plan.arena_bytes)
    if needed <= limit_bytes:
        return
    stored = stored_buffers(plan)
    largest = sorted(
        (b for b in plan.buffers if b.id in stored), key=lambda b: (-b.size_bytes, b.id)
    )
    arenas = ", ".join(
        f"{name} {size_text(size)}"
        for name, size in zip(ARENAS, plan.arena_bytes, strict=True)
        if size
    )
    lines = [
        f"  {size_text(b.size_bytes):>10}  {b.kind:10}  {b.name!r} {b.dtype}{list(b.shape)}"
        + (f" {b.packing}" if b.packing else "")
        for b in largest[:LISTED]
    ]
    raise MemoryLimitError(
        f"rank {plan.rank}: program {plan.name!r} needs {size_text(needed)} ({arenas}), and may "
        f"have {size_text(limit_bytes)}; use more ranks, smaller inputs or caches, or raise "
        f"ARK_DIST_MEMORY. The largest of {len(largest)} buffers:\n" + "\n".join(lines)
    )


def size_text(size_bytes: int) -> str:
    """A size in the unit that fits it."""
    size, unit = float(size_bytes), UNITS[0]
    for unit in UNITS:
        if size < 1024 or unit == UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == UNITS[0] else f"{size:.1f} {unit}"
