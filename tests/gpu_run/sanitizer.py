"""Read what compute-sanitizer says: how many errors, or why it can't work here."""

import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.gpu_run.child import Ended

SANITIZERS = ("memcheck", "racecheck", "synccheck")
PROGRAM = "compute-sanitizer"
TOOLKIT = Path("/usr/local/cuda/bin")
# Its words for machines that it does not work on, such as some virtual ones.
REFUSAL = re.compile(
    r"^=+ Error: (.*(?:not supported|[Ff]ailed to initialize|Unable to find).*)$", re.M
)
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) errors?")
HAZARDS = re.compile(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?")


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of one tool.

    Attributes:
        status: as a section's.
        errors: how many it counted; None where it did not get to its end.
        warnings: of racecheck.
        reason: why it is unavailable, or "".
    """

    status: str
    errors: int | None
    warnings: int | None
    reason: str

    def as_dict(self) -> dict[str, object]:
        """For the results."""
        return asdict(self)


def find_sanitizer() -> str | None:
    """The program: on PATH, else of the toolkit."""
    kept = os.pathsep.join([os.environ.get("PATH", os.defpath), str(TOOLKIT)])
    return shutil.which(PROGRAM, path=kept)


def checked_tool(text: str, ended: Ended, *, is_empty: bool, is_good: bool) -> Checked:
    """Judge a tool by what it wrote, how it ended, and the tests under it.

    `is_empty` says that there were none, `is_good` that they passed.
    """
    errors, warnings = counted(text)
    if (refusal := REFUSAL.search(text)) and not is_good:
        return Checked("unavailable", errors, warnings, refusal[1].strip())
    if is_empty:
        return Checked("unavailable", errors, warnings, "no test is marked sanitizer")
    if errors:
        status = "failed"
    elif ended.killed:
        status = "timeout"
    elif errors is None:
        status = "crashed"
    else:
        status = "passed" if is_good else "failed"
    return Checked(status, errors, warnings, "")


def counted(text: str) -> tuple[int | None, int | None]:
    """Errors and warnings of all processes; None where no process told any."""
    errors = [int(count) for count in ERRORS.findall(text)]
    hazards = [(int(bad), int(less)) for bad, less in HAZARDS.findall(text)]
    if not errors and not hazards:
        return None, None
    if hazards:
        return sum(bad for bad, _ in hazards), sum(less for _, less in hazards)
    return sum(errors), None
