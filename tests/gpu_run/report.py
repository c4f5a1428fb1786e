"""Print the results of a run as a short table."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Columns of a table that is not for a terminal.
FILE_WIDTH = 160
MOST_FAILURES = 20
BROKEN = ("failed", "crashed", "timeout")

Line = tuple[str, str, str]


def print_report(document: Mapping[str, Any]) -> None:
    """Print a line per section, target and failure."""
    table = Table("what", "result", "", title=document["gpu"]["name"])
    for name, section in document["sections"].items():
        for line in _lines(name, section):
            table.add_row(*map(Text, line))
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)  # no terminal to fit: cut nothing off
    console.print(table)


def _lines(name: str, section: Mapping[str, Any]) -> Iterator[Line]:
    yield name, section["status"], _counts(section)
    if section["status"] in BROKEN and section.get("output_tail"):
        yield "", "", section["output_tail"].rpartition("\n")[2]
    yield from _failures(section)
    for skip in () if section.get("passed") else section.get("skips", ()):
        yield f"  {skip['count']} skipped", "", skip["reason"]
    for target in section.get("targets", ()):
        found = "missing" if target["found"] is None else f"{target['found']:.4g}"
        wanted = f"wanted {target['relation']} {target['wanted']:g}" if target["relation"] else ""
        verdict = {True: "met", False: "MISSED", None: ""}[target["is_met"]]
        yield f"  {target['case']}", f"{target['field']} {found}", f"{wanted} {verdict}".strip()
    for tool in section.get("tools", ()):
        errors = "" if tool["errors"] is None else f"{tool['errors']} errors"
        yield f"  {tool['tool']}", tool["status"], tool["reason"] or f"{errors}, {_counts(tool)}"
        yield from _failures(tool)


def _counts(section: Mapping[str, Any]) -> str:
    if "message" in section:
        return str(section["message"])
    names = ("passed", "failed", "skipped")
    counts = [f"{section[key]} {key}" for key in names if key in section]
    if "total" in section:
        counts.append(f"of {section['total']}")
    if "wall_s" in section:
        counts.append(f"in {section['wall_s']:.0f} s")
    if section.get("killed"):
        counts.append(section["killed"])
    return ", ".join(counts)


def _failures(section: Mapping[str, Any]) -> Iterator[Line]:
    """A line for all failures of one message, with the first of them."""
    failures = section.get("failures", ())
    counts = Counter((failure["outcome"], failure["message"]) for failure in failures)
    for (outcome, message), count in [*counts.items()][:MOST_FAILURES]:
        name = next(f["name"] for f in failures if f["message"] == message)
        others = f" and {count - 1} more" if count > 1 else ""
        yield f"  {name}{others}", outcome, message
    if len(counts) > MOST_FAILURES:
        yield f"  and {len(counts) - MOST_FAILURES} more messages", "", ""
