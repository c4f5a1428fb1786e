"""The worked example of CONTRIBUTING.md, followed word by word on a copy of the tree."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.op import OPS
from ark_dist.core.settings import child_environment
from tests.test_docs import ROOT, Block, blocks

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


def example(found: Sequence[Block]) -> tuple[dict[str, str], str, str, str]:
    """The example's files by name, the program that uses it, what that prints, the formula."""
    files = {block.label: block.text for block in found if block.label}
    (program,) = (block.text for block in found if block.info == "python" and not block.label)
    (shown,) = (block.text for block in found if block.info == "text output")
    return files, program, shown, files.pop(FORMULAS)


def operator_name(files: dict[str, str]) -> str:
    """The operator that two files of one name define."""
    (name,) = {Path(path).stem for path in files}
    assert sorted(files) == [f"kernels/ops/{name}.h", f"kernels/ops/{name}.py"]
    return name


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


def test_the_worked_example_adds_an_operator(tree: Path, tmp_path: Path) -> None:
    files, program, shown, formula = example(blocks(ROOT / "CONTRIBUTING.md"))
    name = operator_name(files)
    assert name not in OPS, f"{name} is an operator by now; the example needs another one"
    for path, text in files.items():
        (tree / path).write_text(text, "utf-8")
    # What ./dev generate runs once the environment is there.
    generate = ["-m", "ark_dist.kernels.generate"]
    assert f"exec python {' '.join(generate)}" in (tree / "dev").read_text("utf-8")
    run(tree, [sys.executable, *generate])
    assert changed(tree) == ["ark_dist/ops.py", *sorted(files)]
    for device in ("numpy", "cpu"):
        cache = str(tmp_path / "cache")
        printed = run(
            tree, [sys.executable, "-c", program], ARK_DIST_DEVICE=device, ARK_DIST_CACHE_DIR=cache
        )
        assert printed == shown, device
    add_formula(tree, formula)
    run(tree, [sys.executable, "-m", "tests.test_docs", "--write"])
    assert changed(tree) == sorted(["ark_dist/ops.py", "docs/operators.md", FORMULAS, *files])
    lint(tree, [*files, "ark_dist/ops.py"])
    # The shared tests find it; those that compile take a minute and would show nothing more.
    chosen = f"{name} and not cpu and not instruction_set"
    passed = run(tree, [sys.executable, "-m", "pytest", "-q", "tests", "-k", chosen])
    assert " passed" in passed


def add_formula(tree: Path, line: str) -> None:
    """Put the formula where the text says."""
    path = tree / FORMULAS
    before, table, after = path.read_text("utf-8").partition(TABLE)
    assert table, f"{FORMULAS} has no table of formulas: CONTRIBUTING.md has to say where they are"
    path.write_text(before + table + line + after, "utf-8")


def lint(tree: Path, names: Sequence[str]) -> None:
    """Check the example as `./dev lint` would, where ruff is installed."""
    ruff = Path(sys.executable).with_name("ruff")
    if os.access(ruff, os.X_OK):
        python = [name for name in names if name.endswith(".py")]
        run(tree, [ruff, "check", *python])
        run(tree, [ruff, "format", "--check", *python])
