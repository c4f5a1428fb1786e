"""The worked examples of CONTRIBUTING.md, followed word by word on a copy of the tree."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.errors import CompilerNotFoundError
from ark_dist.core.op import OPS
from ark_dist.core.settings import child_environment
from ark_dist.launch.nvrtc import find_nvrtc
from tests.test_docs import ROOT, blocks

LIMIT_S = 120
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info")
)
FORMULAS = "tests/operator_formulas.py"
TABLE = "FORMULAS: dict[str, Formula] = {\n"


def run(tree: Path, command: Sequence[str | Path], **variables: str) -> str:
    """Run a command in the copy and return its output; fail with it shown."""
    done = subprocess.run(
        command,
        cwd=tree,
        env=child_environment(PYTHONPATH=str(tree), **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def changed(tree: Path) -> list[str]:
    """What git shows as changed or new since the copy was made."""
    lists = (["diff", "--name-only"], ["ls-files", "--others", "--exclude-standard"])
    return sorted(name for words in lists for name in run(tree, ["git", *words]).splitlines())


@dataclass(frozen=True, slots=True)
class Example:
    """What the text tells to do.

    Attributes:
        files: new files by name.
        program: what uses the new operators.
        shown: what that prints.
        formulas: lines for the table of formulas.
    """

    files: dict[str, str]
    program: str
    shown: str
    formulas: str

    @property
    def names(self) -> list[str]:
        """The operators, each defined by two files of one name."""
        names = sorted({Path(path).stem for path in self.files})
        wanted = (f"kernels/ops/{name}{suffix}" for name in names for suffix in (".h", ".py"))
        assert sorted(self.files) == sorted(wanted)
        return names


def read_example(path: Path) -> Example:
    """Find the example's parts in the document."""
    found = blocks(path)
    files = {block.label: block.text for block in found if block.label}
    (program,) = (block.text for block in found if block.info == "python" and not block.label)
    (shown,) = (block.text for block in found if block.info == "text output")
    formulas = files.pop(FORMULAS)
    return Example(files, program, shown, formulas)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project with an index of its own, so that git shows what changes."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    copy = tmp_path / "tree"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LEFT_OUT)
    run(copy, ["git", "init", "--quiet"])
    run(copy, ["git", "add", "--all"])
    return copy


def test_the_worked_example_adds_operators(tree: Path, tmp_path: Path) -> None:
    example = read_example(ROOT / "CONTRIBUTING.md")
    assert len(example.names) == 2
    for name in example.names:
        assert name not in OPS, f"{name} is an operator by now; the example needs another one"
    for path, text in example.files.items():
        (tree / path).write_text(text, "utf-8")
    # What ./dev generate runs once the environment is there.
    generate = ["-m", "ark_dist.kernels.generate"]
    assert f'exec "$python" {" ".join(generate)}' in (tree / "dev").read_text("utf-8")
    run(tree, [sys.executable, *generate])
    assert changed(tree) == ["ark_dist/ops.py", *sorted(example.files)]
    use(tree, example, tmp_path / "cache")
    add_formulas(tree, example.formulas)
    try_operators(tree, example.names, tmp_path / "cache")
    run(tree, [sys.executable, "-m", "tests.test_docs", "--write"])
    assert changed(tree) == sorted(
        ["ark_dist/ops.py", "docs/operators.md", FORMULAS, *example.files]
    )
    lint(tree, [*example.files, "ark_dist/ops.py"])
    # The shared tests find them; those that compile all operators take minutes.
    for name in example.names:
        chosen = f"{name} and not cpu and not instruction_set and not emulated"
        passed = run(tree, [sys.executable, "-m", "pytest", "-q", "tests", "-k", chosen])
        assert " passed" in passed


def use(tree: Path, example: Example, cache: Path) -> None:
    """Run the program on each device: it prints what is shown."""
    for device in ("numpy", "cpu", "emulated"):
        command = [sys.executable, "-c", example.program]
        variables = {"ARK_DIST_DEVICE": device, "ARK_DIST_CACHE_DIR": str(cache)}
        assert run(tree, command, **variables) == example.shown, device


def try_operators(tree: Path, names: Sequence[str], cache: Path) -> None:
    """Run cases of the operators on each device, and compile them for a GPU where that works."""
    command = [sys.executable, "-m", "tests.try_operator", *names]
    printed = run(tree, command, ARK_DIST_CACHE_DIR=str(cache))
    try:
        find_nvrtc()
        compiled = r"compiled for sm_90a: \d+ registers, 0 bytes of stack"
    except CompilerNotFoundError:
        compiled = "not compiled for sm_90a: .*"
    devices = ("numpy", "cpu", "emulated", "emulated, race mode")
    told = [rf"{device}: \d+ cases agree with the formula" for device in devices]
    lines = [f"{name}: {text}" for name in names for text in (*told, compiled)]
    assert re.fullmatch("\n".join(lines) + "\n", printed), printed


def add_formulas(tree: Path, lines: str) -> None:
    """Put the formulas where the text says."""
    path = tree / FORMULAS
    before, table, after = path.read_text("utf-8").partition(TABLE)
    assert table, f"{FORMULAS} has no table of formulas: CONTRIBUTING.md has to say where they are"
    path.write_text(before + table + lines + after, "utf-8")


def lint(tree: Path, names: Sequence[str]) -> None:
    """Check the example as `./dev lint` would, where ruff is installed."""
    ruff = Path(sys.executable).with_name("ruff")
    if os.access(ruff, os.X_OK):
        python = [name for name in names if name.endswith(".py")]
        run(tree, [ruff, "check", *python])
        run(tree, [ruff, "format", "--check", *python])
