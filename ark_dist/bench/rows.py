"""What a benchmark prints, and which of its cases are wanted."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure; `ratio` > 1 means we are ahead of the peer, `of_floor` 1 is the optimum."""

    bench: str
    case: str
    dtype: str
    ranks: int
    workers: int
    unit: str
    ours: float
    peer_name: str | None = None
    peer: float | None = None
    ratio: float | None = None
    floor: float | None = None
    of_floor: float | None = None

    def as_dict(self) -> dict[str, object]:
        """The row for `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which cases to measure: those whose name contains `case`; "" takes any."""

    case: str = ""
    dtype: str = ""

    def takes(self, case: str, dtype: str) -> bool:
        """Whether a case is wanted."""
        return self.case in case and self.dtype in ("", dtype)


ALL = Wanted()
