"""What does not fit between parameters and a state_dict, of one rank or of all, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from ark_dist.core.dtype import DType
from ark_dist.core.shape import Shape
from ark_dist.listing import listed
from ark_dist.safetensors_file import Dtype


@dataclass(frozen=True, slots=True)
class Report:
    """Names that are missing or not expected, and sentences on those that do not fit.

    Attributes:
        missing: parameters that are not there under any of their names.
        unexpected: names that no parameter has.
        shapes: parameters of another shape.
        dtypes: parameters of another dtype.
        ties: pairs of names of one parameter, whose data differ.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()

    def problems(self, is_strict: bool) -> list[str]:
        """Return a line for each kind of problem; empty if all may be loaded.

        Torch's way: the shape and dtype of what is there count even if not strict.
        """
        lines = [
            ("missing", self.missing if is_strict else ()),
            ("unexpected", self.unexpected if is_strict else ()),
            ("wrong shape", self.shapes),
            ("wrong dtype (cast=True converts)", self.dtypes),
            ("one parameter, but the arrays differ", self.ties),
        ]
        return [f"{title}: {listed(items)}" for title, items in lines if items]

    def dump(self) -> str:
        """Return a text for `merge_reports`."""
        return json.dumps(asdict(self))


def merge_reports(texts: Sequence[str]) -> Report:
    """Return the report of all ranks: unexpected is what no rank expects."""
    tables = [json.loads(text) for text in texts]
    merged = {
        key: tuple(dict.fromkeys(item for table in tables for item in table[key]))
        for key in tables[0]
    }
    surplus = set(tables[0]["unexpected"]).intersection(*(t["unexpected"] for t in tables[1:]))
    merged["unexpected"] = tuple(name for name in merged["unexpected"] if name in surplus)
    return Report(**merged)


def shape_problem(name: str, wanted: Shape, found: Shape) -> str:
    """Say that a shape is another one, and whether it looks transposed."""
    hint = " (transposed?)" if found == wanted[::-1] else ""
    return f"{name} is {wanted}, found {found}{hint}"


def dtype_problem(name: str, wanted: DType, found: Dtype) -> str:
    """Say that a dtype is another one."""
    return f"{name} is {wanted}, found {found}"


def unexpected_names(found: Iterable[str], expected: Iterable[str], prefix: str) -> list[str]:
    """Return the names with this prefix that are not expected."""
    known = set(expected)
    return [name for name in found if name.startswith(prefix) and name not in known]
