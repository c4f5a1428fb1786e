"""Put the traces that ranks write side by side into one file, whichever ranks there are."""

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ark_dist.launch.trace import Row, replace_file

BETWEEN, END = ",\n", "\n]}\n"


@dataclass(frozen=True, slots=True)
class RankPart:
    """The trace of one rank as its file has it.

    Attributes:
        run: which run of the ranks it is from.
        rank: whose it is.
        world_size: how many ranks there are.
        body: rows of JSON, one a line.
    """

    run: str
    rank: int
    world_size: int
    body: str

    @property
    def thread_count(self) -> int:
        """How many threads have a name in it."""
        return self.body.count('"name": "thread_name"')

    def with_rows(self, rows: Sequence[Row]) -> "RankPart":
        """The same with more rows."""
        lines = BETWEEN.join(json.dumps(row) for row in rows)
        body = BETWEEN.join(filter(None, (self.body, lines)))
        return RankPart(self.run, self.rank, self.world_size, body)


def rank_path(path: Path, rank: int) -> Path:
    """The file beside a trace that has one rank's part of it."""
    return path.with_name(f"{path.name}.rank-{rank}.json")


def read_part(path: Path, rank: int) -> RankPart | None:
    """A rank's part, or None where there is none that can be read."""
    try:
        head, _, rest = rank_path(path, rank).read_text("utf-8").partition("\n")
        said = json.loads(head + "]}")
        size = int(said["distributedInfo"]["world_size"])
        run = str(said["ark_dist"]["run"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return RankPart(run, rank, size, rest.removesuffix(END)) if rest.endswith(END) else None


def write_part(path: Path, part: RankPart) -> None:
    """Write a rank's part; it is a trace of its own."""
    head = _head(part.rank, part.world_size, part.run, [part.rank])
    replace_file(rank_path(path, part.rank), (head, part.body, END))


def merge(path: Path, part: RankPart) -> None:
    """Write the trace of all ranks whose parts are there, of the same run as this one.

    Every rank does so after its own part, none waits: the last one's trace has all of them.
    """
    ranks = range(part.world_size)
    merged: tuple[object, ...] | None = None
    for _ in ranks:
        seen = _seen(path, part.world_size)
        if seen == merged:
            return
        parts = [read_part(path, rank) for rank in ranks]
        found = [p for p in parts if p is not None and p.run == part.run]
        replace_file(path, _merged(found, part))
        # Another rank's file, and its trace with all, may have come before this trace without.
        merged = seen


def remove_parts(path: Path) -> None:
    """Remove the ranks' files beside a trace."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.rank-*.json"):
        part.unlink(missing_ok=True)


def _merged(found: Sequence[RankPart], part: RankPart) -> Iterator[str]:
    yield _head(0, part.world_size, part.run, [p.rank for p in found])
    bodies = [p.body for p in found if p.body]
    for number, body in enumerate(bodies):
        yield body if number == 0 else BETWEEN + body
    yield END


def _seen(path: Path, world_size: int) -> tuple[object, ...]:
    """What tells one state of the ranks' files from another."""
    found = []
    for rank in range(world_size):
        try:
            stat = rank_path(path, rank).stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def _head(rank: int, world_size: int, run: str, ranks: Sequence[int]) -> str:
    """All of a trace before its rows, on one line."""
    said = {
        "displayTimeUnit": "ns",
        "distributedInfo": {"rank": rank, "world_size": world_size},
        "ark_dist": {"run": run, "ranks": list(ranks)},
        "traceEvents": [],
    }
    return json.dumps(said).removesuffix("]}") + "\n"
