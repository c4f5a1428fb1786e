"""The file of results: its name, its fields, and what must not be in it."""

import json
import math
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.gpu_run.machine import GPU_FIELDS, VERSIONS
from tests.gpu_run.targets import TARGETS

SCHEMA = 1
SECTIONS = ("tests", "figures", "sanitizer")
STATES = (
    *("passed", "failed", "timeout", "crashed", "unavailable", "interrupted", "running", "not run"),
)
ENDED = ("passed", "failed", "timeout", "crashed", "unavailable")
NUMBER = (int, float)
NONE = type(None)
Kinds = tuple[type, ...]

# Field -> the types its value may have.
DOCUMENT: dict[str, Kinds] = {
    "schema": (int,),
    "date": (str,),
    "command": (str,),
    "commit": (str, NONE),
    "is_dirty": (bool, NONE),
    "machine": (dict,),
    "gpu": (dict,),
    "versions": (dict,),
    "sections": (dict,),
}
MACHINE: dict[str, Kinds] = {"cpu": (str,), "cores": (int,), "memory_gib": NUMBER, "system": (str,)}
COUNTS: dict[str, Kinds] = {
    **dict.fromkeys(("total", "passed", "skipped", "failed"), (int,)),
    "failures": (list,),
}
LIMITS: dict[str, Kinds] = {"status": (str,), "wall_s": NUMBER, "limit_s": NUMBER}
CHILD: dict[str, Kinds] = {**LIMITS, "rc": (int, NONE), "killed": (str,)}
BODIES: dict[str, dict[str, Kinds]] = {
    "tests": {
        **CHILD,
        **COUNTS,
        "xfailed": (int,),
        "processes": (int,),
        "skips": (list,),
        "slowest": (list,),
    },
    "figures": {
        **CHILD,
        "gpu_after": (dict,),
        "cases": (list,),
        "rows": (list,),
        "targets": (list,),
    },
    "sanitizer": {**LIMITS, "tools": (list,)},
}
TOOL: dict[str, Kinds] = {
    "tool": (str,),
    "status": (str,),
    "errors": (int, NONE),
    "warnings": (int, NONE),
    "reason": (str,),
}
FAILURE: dict[str, Kinds] = {"name": (str,), "outcome": (str,), "message": (str,)}
TARGET: dict[str, Kinds] = {
    "case": (str,),
    "field": (str,),
    "relation": (str,),
    "wanted": (*NUMBER, NONE),
    "found": (*NUMBER, NONE),
    "is_met": (bool, NONE),
}

PATH = re.compile(r"(?<![\w./~-])/(?:[\w.+@~-]+/)+([\w.+@~-]*)")
UUID = re.compile(r"\b(?:GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.I)


# --- the file ---------------------------------------------------------------------------------


def slug(name: str) -> str:
    """A GPU's name as part of a file's: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def new_file(folder: Path, gpu: str, date: str) -> Path:
    """Make the file `<gpu>-<date>.json`, or the first of -2, -3, ... that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        end = f"-{number}" if number > 1 else ""
        path = folder / f"{slug(gpu)}-{date}{end}.json"
        try:
            path.open("x").close()  # two runs at once: each has its own
        except FileExistsError:
            number += 1
        else:
            return path


def write_file(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a file of results, so that it is whole whenever the run ends."""
    text = json.dumps(scrubbed(document), indent=1, ensure_ascii=False) + "\n"
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def scrubbed(value: Any) -> Any:  # noqa: ANN401  # whatever JSON holds
    """A value of JSON without absolute paths, the machine's name, and UUIDs in its texts.

    Numbers that JSON does not have become null.
    """
    if isinstance(value, Mapping):
        return {key: scrubbed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return scrubbed_text(value) if isinstance(value, str) else value


def scrubbed_text(text: str) -> str:
    """Paths of the checkout begin at its root, of others the last name stays."""
    root = str(Path(__file__).resolve().parents[2])
    text = re.sub(rf"{re.escape(root)}(?:/|(?![\w.-]))", "", text)
    host = platform.node()
    if len(host) > 1 and host != "localhost":
        text = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "<host>", text)
    text = UUID.sub("<uuid>", text)
    return PATH.sub(lambda match: f"<path>/{match[1]}", text)


# --- the schema -------------------------------------------------------------------------------


def problems(document: object) -> list[str]:
    """Say what in a document is not as the schema has it."""
    if not isinstance(document, dict):
        return ["it is no object"]
    found = _misfits("", document, DOCUMENT)
    if found:
        return found
    if document["schema"] != SCHEMA:
        return [f"schema is {document['schema']}, not {SCHEMA}"]
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document["date"]):
        found.append(f"date is {document['date']!r}, not like 2026-11-21T22:05:00Z")
    found += _misfits("machine", document["machine"], MACHINE)
    found += [f"gpu has no {name}" for name in GPU_FIELDS if name not in document["gpu"]]
    found += [f"versions has no {name}" for name in VERSIONS if name not in document["versions"]]
    for name, section in document["sections"].items():
        found += _section_problems(name, section)
    text = json.dumps(document, ensure_ascii=False)
    found += [f"{match[0]!r} is a path of one machine" for match in PATH.finditer(text)]
    found += [f"{match[0]!r} is one machine's" for match in UUID.finditer(text)]
    return found


def _section_problems(name: str, section: dict[str, Any]) -> list[str]:
    if name not in SECTIONS or section.get("status") not in STATES:
        return [f"section {name!r} has status {section.get('status')!r}"]
    if section["status"] not in ENDED:
        return []
    found = _misfits(name, section, BODIES[name])
    for key, kinds in (("failures", FAILURE), ("tools", TOOL), ("targets", TARGET)):
        for each in section.get(key, ()):
            found += _misfits(f"{name}.{key}", each, kinds)
    if name == "figures" and not found:
        cases = [target["case"] for target in section["targets"]]
        if cases != [target.case for target in TARGETS]:
            found.append(f"the targets are of {cases}")
    return found


def _misfits(place: str, value: dict[str, Any], kinds: Mapping[str, Kinds]) -> list[str]:
    """Fields that are missing, and those of another type."""
    dot = f"{place}." if place else ""
    found = [f"{dot}{name} is missing" for name in kinds if name not in value]
    for name, allowed in kinds.items():
        if name not in value:
            continue
        is_number = isinstance(value[name], bool) and bool not in allowed
        if is_number or not isinstance(value[name], allowed):
            found.append(f"{dot}{name} is {value[name]!r}")
    return found


def main() -> None:
    """Check files: `python -m tests.gpu_run.results FILE ...`."""
    wrong = False
    for name in sys.argv[1:]:
        for problem in problems(json.loads(Path(name).read_text("utf-8"))):
            print(f"{name}: {problem}")
            wrong = True
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
