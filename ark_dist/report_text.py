"""Turn reports on plans into words: plain columns, tables of a terminal, or JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ark_dist.core.plan_text import box_text
from ark_dist.core.shape import full_box
from ark_dist.plan_report import Exchange, Piece, Report

if TYPE_CHECKING:
    from rich.console import Console

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
UNIT_STEP = 1024
NUMBERS = ("bytes", "sent", "received")


@dataclass(frozen=True, slots=True)
class Section:
    """A table: its title, the names of its columns, its cells."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def report_dict(report: Report) -> dict[str, object]:
    """All of a report in types that JSON has."""
    return asdict(report)


def plain_text(reports: Sequence[Report]) -> str:
    """Reports as text without any markup."""
    blocks = []
    for report in reports:
        blocks.append(headline(report))
        for section in sections(report):
            blocks.append("\n".join([section.title, *_columns(section)]))
    return "\n\n".join(blocks) + "\n"


def print_tables(reports: Sequence[Report], console: "Console") -> None:
    """Print reports as tables, for people at a terminal."""
    # Only here: an Executor needs no tables, and starts faster without.
    from rich.table import Table
    from rich.text import Text

    for report in reports:
        console.print(Text(headline(report), style="bold"))
        for section in sections(report):
            table = Table(title=section.title, title_justify="left")
            for name in section.head:
                table.add_column(name, justify="right" if name in NUMBERS else "left")
            for row in section.rows:
                table.add_row(*map(Text, row))
            console.print(table)
        console.print()


def headline(report: Report) -> str:
    """Which rank it is, of which program, where."""
    place = ", ".join(f"{axis} {at}" for axis, at in report.place.items())
    where = f" ({place})" if place else ""
    return (
        f"rank {report.rank} of {report.world_size}{where}: {report.program!r} on {report.target}"
    )


def sections(report: Report) -> Iterator[Section]:
    """The tables of a report."""
    yield Section(
        "tensors",
        ("name", "kind", "shape", "here", "bytes", "cut"),
        tuple(_piece_row(piece) for piece in report.pieces),
    )
    count = len(report.exchanges)
    if report.world_size > 1:
        yield Section(
            f"communication in one iteration: {count} message{'' if count == 1 else 's'}",
            ("method", "what", "ranks", "sent", "received", "by", "why"),
            tuple(_exchange_row(exchange) for exchange in report.exchanges),
        )
    arenas = [(name, size_text(size)) for name, size in report.arenas.items()]
    arenas.append(("in all", size_text(sum(report.arenas.values()))))
    yield Section("memory", ("arena", "bytes"), tuple(arenas))
    yield Section(
        "work in one iteration",
        ("method", "tasks per worker", "predicted"),
        tuple((w.method, _tasks_text(w.tasks), time_text(w.predicted_s)) for w in report.work),
    )


def size_text(size: int) -> str:
    """Bytes with the largest unit that leaves 1 or more."""
    value, unit = float(size), 0
    while value >= UNIT_STEP and unit < len(UNITS) - 1:
        value, unit = value / UNIT_STEP, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def time_text(seconds: float) -> str:
    """A time with a unit that leaves few digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _piece_row(piece: Piece) -> tuple[str, ...]:
    if piece.part is None:
        here = "nothing"
    else:
        here = "all" if piece.part == full_box(piece.shape) else box_text(piece.part)
    cuts = [
        f"dimension {d} over {' and '.join(map(repr, axes))}"
        for d, axes in enumerate(piece.axes)
        if axes
    ]
    shape = f"{piece.dtype}{list(piece.shape)}"
    size = " ".join(filter(None, (size_text(piece.bytes), piece.packing)))
    return piece.name, piece.kind, shape, here, size, ", ".join(cuts)


def _exchange_row(exchange: Exchange) -> tuple[str, ...]:
    by = " ".join(filter(None, (exchange.transport, exchange.algorithm)))
    why = f"for {exchange.node}: {exchange.reason}" if exchange.node else exchange.reason
    return (
        exchange.method,
        f"{exchange.op} {exchange.name!r}",
        ranks_text(exchange.ranks),
        size_text(exchange.sent_bytes),
        size_text(exchange.received_bytes),
        by,
        why,
    )


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks in few words: `0-3`, `0, 2`."""
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks))


def _tasks_text(tasks: Sequence[int]) -> str:
    """The numbers of tasks; where they are many, how they spread."""
    if len(tasks) <= 8:  # as many as fit on a line
        return ", ".join(map(str, tasks))
    return f"{min(tasks)} to {max(tasks)}, {sum(tasks)} on {len(tasks)} workers"


def _columns(section: Section) -> Iterator[str]:
    lines = [section.head, *section.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if name in NUMBERS else cell.ljust(width)
            for cell, width, name in zip(line, widths, section.head, strict=True)
        ]
        yield f"  {'  '.join(cells)}".rstrip()
