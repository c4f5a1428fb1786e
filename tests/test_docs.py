"""The documents show what happens: `python -m tests.test_docs --write` refreshes what they show."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.benchmarks import BENCHES
from ark_dist.core.dtype import ALL_DTYPES, FLOATS, NUMBERS
from ark_dist.core.op import OPS, Op
from ark_dist.core.settings import child_environment, read_settings
from ark_dist.launch.open import DEVICES
from ark_dist.scheduler.fuse import ANCHOR_FRAMES

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], key=lambda path: str(path.relative_to(ROOT))
)
# CONTRIBUTING.md shows an operator that is not there; tests/test_contributing.py makes it.
RUN = [path for path in DOCS if path.name not in ("CONTRIBUTING.md", "CHANGELOG.md")]
LIMIT_S = 120
SUFFIXES = (".py", ".h", ".cuh", ".md", ".toml", ".sh")
OPERATORS = ROOT / "docs" / "operators.md"
TABLE_HEAD = ("| operator | dtypes | what it does | fuses with |", "|---|---|---|---|")
MOVEMENT = "Movement and views"
COMMUNICATION = "Communication between ranks"
# Sections in order, with the operators whose frame does not tell where they belong.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Elementwise": (),
    "Comparison and choice": (
        *("equal", "greater", "greater_equal", "less", "less_equal", "not_equal", "where"),
    ),
    "Rows and reductions": ("cumsum",),
    MOVEMENT: ("copy",),
    "Matrices and transformers": (
        *("attention", "embedding", "im2col", "matmul", "rope", "sample"),
    ),
    "State and control": ("identity", "scatter", "stop_when"),
    COMMUNICATION: (),
}
FRAME_SECTIONS = {
    "map": "Elementwise",
    "row": "Rows and reductions",
    "reduce": "Rows and reductions",
}
START, END = "<!-- operators: written by python -m tests.test_docs --write -->\n", "<!-- end -->\n"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        path: its document.
        line: line number of its fence.
        info: what stands behind the fence: "python", "sh", "text output".
        label: the file that the text before it names on a line of its own, or "".
        text: what is inside.
    """

    path: Path
    line: int
    info: str
    label: str
    text: str

    @property
    def place(self) -> str:
        """Document and line, for people and as a test's id."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    found = []
    text = path.read_text("utf-8")
    for match in re.finditer(r"(?:^`([^`\n]+)`:\n\n)?^```([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(path, line, match[2], match[1] or "", match[3]))
    return found


def programs() -> Iterator[tuple[Block, Block | None]]:
    """The blocks that are meant to run, each with the output shown right after it.

    All of Python run, and of commands those whose output is shown.
    """
    for path in RUN:
        found = blocks(path)
        for position, block in enumerate(found):
            after = found[position + 1 : position + 2]
            shown = after[0] if after and after[0].info == "text output" else None
            if block.info == "python" or (block.info == "sh" and shown is not None):
                yield block, shown


def run_program(block: Block, folder: Path, **variables: str) -> str:
    """Run a block in a process of its own and return what it prints.

    Python runs in an empty folder, a command in the checkout.
    """
    command = [sys.executable, "-c", block.text]
    if block.info == "sh":
        program, *words = shlex.split(block.text)
        command = [sys.executable, *([] if program == "python" else ["-m", "ark_dist.cli"]), *words]
    done = subprocess.run(
        command,
        cwd=ROOT if block.info == "sh" else folder,
        env=child_environment(PYTHONPATH=str(ROOT), **variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{block.place} ended with {done.returncode}:\n{done.stderr}"
    return done.stdout


def operator_tables() -> str:
    """The tables of public operators, one for each section, from the records."""
    public = sorted((op for op in OPS.values() if op.is_public), key=lambda op: op.name)
    lines = []
    for section in SECTIONS:
        rows = [operator_row(op) for op in public if section_of(op) == section]
        lines += [f"## {section}", "", *TABLE_HEAD, *rows, ""]
    return "\n" + "\n".join(lines)


def section_of(op: Op) -> str:
    """The section of the document that an operator is in: by name, else by its frame."""
    for section, names in SECTIONS.items():
        if op.name in names:
            return section
    if op.effect == "communication":
        return COMMUNICATION
    return FRAME_SECTIONS.get(op.kernel.frame if op.kernel else "", MOVEMENT)


def operator_row(op: Op) -> str:
    """An operator's line: name, dtypes, the first line of its summary, what it runs with."""
    summary = op.summary.splitlines()[0].replace("|", r"\|")
    return f"| `{op.name}` | {dtypes_text(op.dtypes)} | {summary} | {fuses_text(op)} |"


def dtypes_text(dtypes: tuple[str, ...]) -> str:
    """Dtypes in few words: the names of the sets they hold, then what is left."""
    left, words = set(dtypes), []
    for word, names in (("all", ALL_DTYPES), ("numbers", NUMBERS), ("floats", FLOATS)):
        if left >= set(names):
            words.append(word)
            left -= set(names)
    return ", ".join([*words, *(name for name in ALL_DTYPES if name in left)])


def fuses_text(op: Op) -> str:
    """What an operator can share a task with, as scheduler/fuse.py has it."""
    if op.effect == "communication":
        return "nothing"
    if op.kernel is None:
        return "no work" if op.pieces is None else "whatever makes its parts"
    if op.kernel.frame == "map":
        return "before and after"
    if op.kernel.frame not in ANCHOR_FRAMES:
        return "nothing"
    return "after, or a matmul" if op.kernel.has_prologue else "after"


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)


def named_files(path: Path) -> list[str]:
    """What a document names in `code` that looks like a file or folder of the project."""
    found = []
    for span in re.findall(r"`([^`\n]+)`", prose(path)):
        if not re.fullmatch(r"[\w.][\w./-]*", span):
            continue  # no path: spaces, patterns, calls, absolute
        parts = span.split("/")
        is_folder = len(parts) > 1 and (parts[-1] == "" or (ROOT / parts[0]).is_dir())
        if is_folder or (span.endswith(SUFFIXES) and not span.startswith(".")):
            found.append(span)
    return found


def links(path: Path) -> list[str]:
    """Targets of a document's relative links."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    return [target for target in targets if "://" not in target]


def anchors(path: Path) -> set[str]:
    """What a link can name behind # in a document."""
    headings: list[str] = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def commands() -> list[tuple[str, ...]]:
    """The shell commands that documents show, as words, without comments."""
    return sorted(
        {
            tuple(shlex.split(line, comments=True))
            for path in DOCS
            for block in blocks(path)
            if block.info == "sh"
            for line in block.text.splitlines()
            if line.strip() and not line.startswith("#")
        }
    )


@cache
def has_help(command: tuple[str, ...]) -> bool:
    """Whether `ark-dist COMMAND --help` ends well."""
    line = [sys.executable, "-m", "ark_dist.cli", *command, "--help"]
    env = child_environment(PYTHONPATH=str(ROOT))
    return not subprocess.run(line, env=env, capture_output=True, timeout=LIMIT_S).returncode


def variables_in(source: str) -> set[str]:
    """The environment variables of ours that Python source names as whole strings."""
    strings = (n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant))
    return {s for s in strings if isinstance(s, str) and re.fullmatch("ARK_DIST_[A-Z_]+", s)}


def documented_variables() -> dict[str, str]:
    """Variable -> the cell of its default, from the table."""
    text = (ROOT / "docs" / "environment.md").read_text("utf-8")
    return dict(re.findall(r"^\| `(ARK_DIST_\w+)` \| ([^|]+?) \|", text, re.M))


def documented_devices() -> list[str]:
    """The names in the table of devices."""
    text = (ROOT / "docs" / "environment.md").read_text("utf-8")
    return re.findall(r"^\| `([a-z]+)` \|", text, re.M)


def documented_folders() -> list[str]:
    """The folders in the table of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    return re.findall(r"^\| `([a-z_/]+)/` \|", text, re.M)


def folders() -> set[str]:
    """The folders of the project that hold files of its own, seen once."""
    roots = ("ark_dist", "comm", "docs", "examples", "kernels", "launch", "scheduler", "tests")
    files = (path for root in roots for path in (ROOT / root).rglob("*.*"))
    return {
        str(path.parent.relative_to(ROOT))
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }


def write() -> None:
    """Write the shown outputs and the tables of operators anew."""
    text = OPERATORS.read_text("utf-8")
    start, end = text.index(START) + len(START), text.index(END)
    OPERATORS.write_text(text[:start] + operator_tables() + text[end:], "utf-8")
    for block, shown in programs():
        if shown is not None:
            fence = f"```{block.info}\n{block.text}```"
            before, found, after = block.path.read_text("utf-8").partition(fence)
            assert found, f"{block.place} is gone"
            with tempfile.TemporaryDirectory() as folder:
                output = f"```text output\n{run_program(block, Path(folder))}```"
            old = f"```text output\n{shown.text}```"
            block.path.write_text(before + found + after.replace(old, output, 1), "utf-8")


# --- tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "shown"), [pytest.param(*pair, id=pair[0].place) for pair in programs()]
)
def test_a_program_in_the_docs_prints_what_is_shown(
    block: Block, shown: Block | None, tmp_path: Path
) -> None:
    printed = run_program(block, tmp_path)
    assert list(tmp_path.iterdir()) == []
    if shown is not None:
        assert printed == shown.text, f"{shown.place}: run python -m tests.test_docs --write"


@pytest.mark.parametrize("device", ["cpu", "emulated", "numpy"])
def test_the_readmes_transformer_block_prints_the_same_on_every_device(
    device: str, tmp_path: Path
) -> None:
    (found,) = (pair for pair in programs() if "ark.Module" in pair[0].text)
    block, shown = found
    assert shown is not None
    assert run_program(block, tmp_path, ARK_DIST_DEVICE=device) == shown.text


def test_the_readme_shows_a_first_model_and_a_plan() -> None:
    shown = [shown.text for block, shown in programs() if shown and block.path.name == "README.md"]
    assert len(shown) >= 2
    assert any(text.startswith('plan "') and "waits c" in text for text in shown)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_file_that_a_document_names_exists(path: Path) -> None:
    made = {block.label for block in blocks(path)} if path.name == "CONTRIBUTING.md" else set()
    missing = [n for n in named_files(path) if not (ROOT / n).exists() and n not in made]
    for target in links(path):
        name, _, anchor = target.partition("#")
        found = (path.parent / name) if name else path
        if not found.exists() or (anchor and anchor not in anchors(found)):
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_in_the_docs_exists(command: tuple[str, ...]) -> None:
    variables = len(list(takewhile(re.compile("[A-Z_]+=").match, command)))
    program, *words = command[variables:]
    if program == "./dev":
        text = (ROOT / "dev").read_text("utf-8")
        assert re.search(rf"^  {words[0]}\)$", text, re.M), f"./dev has no {words[0]}"
        assert re.search(rf"^  {words[0]}  ", text, re.M), f"./dev help leaves {words[0]} out"
        if words[0] == "gpu":
            text = (ROOT / "tests" / "gpu_run" / "__main__.py").read_text("utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert option in text
    elif program == "ark-dist":
        names = tuple(words[: 2 if words[0] == "cache" else 1])
        assert has_help(names), f"ark-dist has no {' '.join(names)}"
        assert words[0] != "bench" or words[1] in BENCHES
    else:
        assert program in ("python", ".venv/bin/python", "mpirun"), f"{program}: nothing checks it"
        if words[0] == "-m":
            assert importlib.util.find_spec(words[1]), f"there is no module {words[1]}"
    for word in words:
        assert not word.endswith(".py") or (ROOT / word).is_file(), f"{word} is not there"


def test_every_environment_variable_is_documented_and_every_documented_one_is_read() -> None:
    settings = (ROOT / "ark_dist" / "core" / "settings.py").read_text("utf-8")
    documented = documented_variables()
    assert set(documented) == variables_in(settings)
    assert list(documented) == sorted(documented)


def test_no_other_variable_is_named_anywhere() -> None:
    folders = ("ark_dist", "scheduler", "kernels", "launch", "comm", "examples")
    files = [ROOT / "dev", *DOCS, *(p for f in folders for p in (ROOT / f).rglob("*.py"))]
    named = {name for p in files for name in re.findall(r"\bARK_DIST_[A-Z_]+", p.read_text())}
    assert named == set(documented_variables())


def test_a_documented_default_is_the_default() -> None:
    exact = {n: cell[1:-1] for n, cell in documented_variables().items() if cell.startswith("`")}
    assert {"ARK_DIST_TIMEOUT_S", "ARK_DIST_COMPILE_TIMEOUT_S", "ARK_DIST_LOG"} <= set(exact)
    for name, default in exact.items():
        assert read_settings({name: default}) == read_settings({}), name


def test_the_table_of_folders_is_complete() -> None:
    assert documented_folders() == sorted(folders())


def test_every_device_is_documented_and_every_documented_one_is_there() -> None:
    assert documented_devices() == sorted(DEVICES)


def test_the_tables_of_operators_are_current() -> None:
    text = OPERATORS.read_text("utf-8")
    shown = text[text.index(START) + len(START) : text.index(END)]
    assert shown == operator_tables(), "run python -m tests.test_docs --write"


def test_every_public_operator_is_in_one_table_and_no_other_is() -> None:
    shown = re.findall(r"^\| `(\w+)` \|", operator_tables(), re.M)
    assert sorted(shown) == sorted(name for name, op in OPS.items() if op.is_public)
    assert {name for names in SECTIONS.values() for name in names} <= set(shown)


def test_a_table_names_sets_of_dtypes() -> None:
    assert dtypes_text(ALL_DTYPES) == "all"
    assert dtypes_text((*NUMBERS, "bool")) == "numbers, bool"
    assert dtypes_text(FLOATS) == "floats"
    assert dtypes_text(("bool", "int32")) == "int32, bool"


def test_blocks_are_found_with_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("One:\n\n`a/b.py`:\n\n```python\nx\n```\n\n```text output\n\n```\n")
    one, two = blocks(path)
    assert (one.line, one.info, one.label, one.text) == (5, "python", "a/b.py", "x\n")
    assert (two.line, two.info, two.label, two.text) == (9, "text output", "", "\n")


def test_a_missing_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "See `launch/none.py`, `x.cube()`, `a b.py`, `launch/`, `~/.cache/a`, [x](c.md#d) "
        "and [y](https://a.b/c.md).\n## A heading, here\n"
    )
    assert named_files(path) == ["launch/none.py", "launch/"]
    assert links(path) == ["c.md#d"]
    assert anchors(path) == {"a-heading-here"}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.test_docs --write")
    write()
