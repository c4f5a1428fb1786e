"""Compare the figures of a GPU with what is wanted of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted of one figure.

    Attributes:
        case: of the row in `ark-dist bench gpu`.
        field: of that row.
        relation: ">=" or "<=", or "" where the figure is only recorded.
        wanted: the limit, in the row's unit; None goes with "".
    """

    case: str
    field: str
    relation: str
    wanted: float | None


TARGETS = (
    Target("stream-only", "of_floor", ">=", 0.90),
    Target("hop", "ours", "<=", 1.5),  # us
    Target("run(1)+wait", "ours", "<=", 10.0),  # us
    Target("llama-1b layer", "of_floor", ">=", 0.70),
    Target("llama-1b layer vs CUDA graph", "ratio", "", None),
)
# Cases to ask for one by one. "llama-1b layer" stands for both rows: it is part of the other name.
CASES = ("read", "stream-only", "hop", "run(1)+wait", "llama-1b layer")


def check_targets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Say of every target what was found, and whether that is enough.

    `found` is None where there is no such figure, and then `is_met` is false; a target without a
    limit has None for `is_met`.
    """
    return [_checked(target, rows) for target in TARGETS]


def _checked(target: Target, rows: Sequence[Row]) -> dict[str, Any]:
    found = next((row.get(target.field) for row in rows if row.get("case") == target.case), None)
    is_met = None
    if target.wanted is not None:
        is_met = found is not None and (
            found >= target.wanted if target.relation == ">=" else found <= target.wanted
        )
    return {
        "case": target.case,
        "field": target.field,
        "relation": target.relation,
        "wanted": target.wanted,
        "found": found,
        "is_met": is_met,
    }
